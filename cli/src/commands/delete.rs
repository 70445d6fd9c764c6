//! `coracle delete`: deletes objects and waits until they are gone.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{
    args::DeleteArgs,
    client::{Body, Cluster},
};

/// How often a deleted object is looked for.
const POLL: Duration = Duration::from_millis(100);
/// How long a deleted object may take to go, beyond a pod's longest usual grace period.
const GONE_WITHIN: Duration = Duration::from_secs(90);

pub async fn run(args: &DeleteArgs) -> Result<()> {
    let cluster = Cluster::find(&args.connection)?;
    let paths = cluster.kind(&args.kind).await?;
    // All are read before any goes: a script with one name that is none deletes nothing.
    let objects: Vec<String> = args.names.iter().map(|name| paths.object(name)).collect::<Result<_>>()?;
    for (name, path) in args.names.iter().zip(objects) {
        cluster.send(http::Request::delete(&path).body(Body::default())?).await?;
        wait_gone(&cluster, &path)
            .await
            .with_context(|| format!("waiting for {} {name} to go", args.kind))?;
        println!("{} {name} deleted", args.kind);
    }
    Ok(())
}

async fn wait_gone(cluster: &Cluster, path: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + GONE_WITHIN;
    while let Some(object) = cluster.get(path).await? {
        if tokio::time::Instant::now() > deadline {
            bail!("it is still there, held by finalizers {}", object["metadata"]["finalizers"]);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
