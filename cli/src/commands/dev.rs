//! `coracle dev`: builds a project and runs it, again at each change.

mod sources;

use std::time::{Duration, Instant};

use anyhow::Result;
use coracle_wasi_host::{Exit, Stdin};
use tokio::sync::watch;

use self::sources::Sources;
use crate::{
    args::DevArgs,
    commands::{
        run::{Ports, Publications, Running, Starter},
        up::stop_asked,
    },
    output,
    project::Project,
};

/// How long a component that is replaced may take to end.
const RETIRES_WITHIN: Duration = Duration::from_secs(10);

pub async fn run(args: &DevArgs) -> Result<()> {
    let mut project = Project::open(&args.dir)?;
    let starter = Starter::new(&args.given, &args.args)?;
    let (current, namespace) = watch::channel(None);
    let mut running: Option<Running> = None;
    let mut is_served = false;
    loop {
        // What changes while it builds is built after it, but where all is watched: the build's own files are among that.
        let mut sources = Sources::of(&project)?;
        let begun = Instant::now();
        let started = tokio::select! {
            started = build(&project, &starter, args) => started,
            () = stop_asked() => return Ok(()),
        };
        if project.is_watched_whole() {
            sources.look()?;
        }
        match started {
            Ok((new, ports)) => {
                current.send_replace(Some(new.namespace.clone()));
                // Whoever comes now comes to the new one; the old one is heard out.
                retire(running.replace(new));
                output::note(format!("built and started in {} ms", begun.elapsed().as_millis()));
                if !is_served && !ports.published.is_empty() {
                    is_served = true;
                    Publications::listen(&ports).await?.serve_whichever(&namespace);
                }
            }
            Err(error) => output::note(format!("error: {error:#}")),
        }
        loop {
            tokio::select! {
                changed = sources.changed() => {
                    changed?;
                    match Project::open(&args.dir) {
                        Ok(changed) => {
                            project = changed;
                            break;
                        }
                        Err(error) => output::note(format!("error: {error:#}")),
                    }
                    sources.look()?;
                }
                () = stop_asked() => return Ok(()),
                error = starter.unwritten() => return Err(error),
                exit = ended(running.as_ref()) => {
                    output::note(format!("it {exit}; it is started again at the next change"));
                    current.send_replace(None);
                    running = None;
                }
            }
        }
    }
}

/// Builds the project and starts what comes of it.
async fn build(project: &Project, starter: &Starter<'_>, args: &DevArgs) -> Result<(Running, Ports)> {
    let file = project.build().await?;
    let artifact = starter.prepare(&file).await?;
    let ports = Ports::of(&args.given.ports, artifact.entry(), project.port())?;
    // One program after the other has no input in common.
    Ok((starter.start(&file, artifact, &ports, Stdin::AtEnd)?, ports))
}

/// Lets a component finish what it has begun, for a while.
fn retire(old: Option<Running>) {
    let Some(old) = old else { return };
    old.container.stop();
    tokio::spawn(async move {
        let _ = tokio::time::timeout(RETIRES_WITHIN, old.container.wait()).await;
    });
}

async fn ended(running: Option<&Running>) -> Exit {
    match running {
        Some(running) => running.container.wait().await,
        None => std::future::pending().await,
    }
}
