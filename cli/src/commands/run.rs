//! `coracle run`: one component in this process, without a cluster, in the sandbox that a node has for it.

mod network;
mod ports;
mod starter;
mod stdio;

use std::{fmt, path::PathBuf};

use anyhow::Result;
use coracle_wasi_host::{Container, Exit, Stdin};
use futures::FutureExt;

pub use self::{
    network::Publications,
    ports::Ports,
    starter::{Running, Starter},
};
use crate::{
    args::RunArgs,
    commands::up::{stop_asked, stop_signal},
    output,
    project::Project,
};

/// The component has ended with this code, which is told as the command's own.
#[derive(Debug)]
pub struct Ended(pub u8);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the component ended with code {}", self.0)
    }
}

impl std::error::Error for Ended {}

pub async fn run(args: &RunArgs) -> Result<()> {
    let (file, port) = component(args).await?;
    let starter = Starter::new(&args.given, &args.args)?;
    let artifact = starter.prepare(&file).await?;
    let ports = Ports::of(&args.given.ports, artifact.entry(), port)?;
    let publications = Publications::listen(&ports).await?;
    let stdin = if ports.serves_http { Stdin::AtEnd } else { stdio::stdin()? };
    let running = starter.start(&file, artifact, &ports, stdin)?;
    publications.serve(&running.namespace);
    let exit = tokio::select! {
        exit = until_its_end(&running.container) => exit?,
        error = starter.unwritten() => return Err(error),
    };
    // What was written last may not have been taken.
    starter.unwritten().now_or_never().map_or(Ok(()), Err)?;
    told(exit)
}

/// The file to run, and the port of a project's program.
async fn component(args: &RunArgs) -> Result<(PathBuf, Option<u16>)> {
    if !args.file.is_dir() {
        return Ok((args.file.clone(), None));
    }
    let project = Project::open(&args.file)?;
    Ok((project.build().await?, project.port()))
}

/// Waits for the end, and brings it about where it is asked for: first in order, then at once.
async fn until_its_end(container: &Container) -> Result<Exit> {
    let code = tokio::select! {
        exit = container.wait() => return Ok(exit),
        code = stop_signal() => code,
    };
    container.stop();
    // One that waits for whoever reads its output ends with the process alone.
    let exit = tokio::select! {
        exit = container.wait() => exit,
        () = stop_asked() => Exit::Killed,
    };
    if exit == Exit::Killed { Err(Ended(code).into()) } else { Ok(exit) }
}

/// The component's end as that of this command.
fn told(exit: Exit) -> Result<()> {
    if exit.is_success() {
        return Ok(());
    }
    if !matches!(exit, Exit::Completed { .. }) {
        output::note(format!("error: the component {exit}"));
    }
    // What a process can say of itself is a byte, and a failure is none of 0.
    Err(Ended(((exit.code() & 0xff) as u8).max(1)).into())
}
