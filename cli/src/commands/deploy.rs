//! `coracle deploy`: from a .wasm file to a URL that answers.
//!
//! What can be known at once is checked before anything is made. What is made again is merged: only what was asked for
//! changes. Where the first deployment fails, nothing of it is left.

mod check;
mod function;
mod image;
mod made;
mod objects;
mod progress;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use self::{function::wait_ready as wait_function, made::delete_app, progress::wait_available};
use self::{made::Made, objects::Standing};
use crate::{
    args::DeployArgs,
    client::{Body, Cluster, Refused, native_kind},
    commands::{push::push, up::stop_asked},
    output,
};

/// Annotation of a Node: the host:port of its gateway.
pub const GATEWAY_ANNOTATION: &str = "coracle.dev/gateway-address";
/// Annotation of a Node that says whether its node has linked yet, and what it says before.
const JOINED_ANNOTATION: &str = "coracle.dev/joined";
const JOINED_UNLINKED: &str = "waiting";
/// How long a node that has joined has for its first link, and how often it is looked for.
const FIRST_LINK_WITHIN: Duration = Duration::from_secs(10);
const FIRST_LINK_POLL: Duration = Duration::from_millis(50);
/// A program that is Ready because it has just begun may be about to end: it is looked at again after this time.
const PROGRAM_STAYS: Duration = Duration::from_secs(1);
/// How often a change is made anew because somebody else changed the same object meanwhile.
const CONFLICTS_MAX: u32 = 5;

pub async fn run(args: &DeployArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    let checked = check::run(&cluster, args).await?;
    let mut made = Made::default();
    // Whoever does not want to wait any more wants what a failure leaves: nothing, where this was the first time.
    let outcome = tokio::select! {
        outcome = carry_out(&cluster, &checked, args.timeout, &mut made) => outcome,
        () = stop_asked() => Err(anyhow::anyhow!("it was stopped")),
    };
    if let Err(error) = outcome {
        return Err(made.taken_back(&cluster, &checked.wanted.name, error).await);
    }
    let host = &checked.host;
    let port = checked.gateway.rsplit_once(':').map_or("80", |(_, port)| port);
    output::line(format!("http://{host}:{port}/"))?;
    if !host.ends_with(".localhost") {
        output::note(format!("(the gateway answers at {} for the host {host})", checked.gateway));
    }
    Ok(())
}

/// Pushes, applies and waits. What it makes it notes in `made` before.
async fn carry_out(
    cluster: &Cluster,
    checked: &check::Checked,
    timeout: Duration,
    made: &mut Made,
) -> Result<()> {
    let wanted = &checked.wanted;
    // The cluster checks all of it before anything is made.
    for change in &objects::changes(wanted, &Standing::read(cluster, &wanted.name).await?)? {
        send(cluster, change, "?dryRun=All").await?;
    }
    if let Some(file) = &checked.push {
        if !image::exists(cluster, &file.repository, &file.tag).await? {
            made.image = Some((file.repository.clone(), file.tag.clone()));
        }
        push(cluster, &file.repository, &file.tag, file.bytes.clone()).await?;
    }
    let mut conflicts = 0;
    loop {
        let standing = Standing::read(cluster, &wanted.name).await?;
        match apply(cluster, &objects::changes(wanted, &standing)?, made).await {
            Err(error) if conflicts < CONFLICTS_MAX && is_conflict(&error) => conflicts += 1,
            applied => break applied?,
        }
    }
    if is_function(cluster, &wanted.name).await? {
        wait_function(cluster, &wanted.name, timeout, output::note).await?;
        function::wait_routed(&checked.gateway, &checked.host).await;
        return Ok(());
    }
    let available =
        async || wait_available(cluster, &wanted.name, timeout, &mut |message| output::note(message)).await;
    available().await?;
    if wanted.is_program {
        tokio::time::sleep(PROGRAM_STAYS).await;
        available().await?;
    }
    Ok(())
}

async fn is_function(cluster: &Cluster, name: &str) -> Result<bool> {
    let path = native_kind("functions")?.object(&cluster.namespace, name)?;
    Ok(cluster.get(&path).await?.is_some())
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.root_cause().downcast_ref::<Refused>().is_some_and(|refused| refused.code == 409)
}

async fn apply(cluster: &Cluster, changes: &[objects::Change], made: &mut Made) -> Result<()> {
    made.applied = true;
    for change in changes {
        let object = (change.kind, change.name());
        // Noted before: it may be made without an answer that says so.
        let is_new = change.create && !made.objects.contains(&object);
        if is_new {
            made.objects.push(object);
        }
        let sent = send(cluster, change, "").await;
        if is_new && sent.as_ref().is_err_and(is_conflict) {
            // Somebody else has made it.
            made.objects.pop();
        }
        sent?;
    }
    Ok(())
}

async fn send(cluster: &Cluster, change: &objects::Change, query: &str) -> Result<Value> {
    let kind = native_kind(change.kind)?;
    let path = kind.object(&cluster.namespace, &change.name())?;
    let request = match change.create {
        true => http::Request::post(kind.collection(&cluster.namespace) + query)
            .header("content-type", "application/json"),
        false => http::Request::patch(path.clone() + query)
            .header("content-type", "application/strategic-merge-patch+json"),
    };
    let body = Body::from(serde_json::to_vec(&change.body)?);
    let (_, answer) = cluster.send(request.body(body)?).await.with_context(|| format!("applying {path}"))?;
    serde_json::from_slice(&answer).context("the answer is not JSON")
}

/// All objects of a kind, of every namespace.
async fn everywhere(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    list(cluster, &native_kind(kind)?.everywhere()).await
}

/// The objects of a collection.
async fn list(cluster: &Cluster, path: &str) -> Result<Vec<Value>> {
    let mut list = cluster.get(path).await?.unwrap_or_default();
    match list["items"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// The host:port of a gateway of the cluster. A node that has just joined and not yet said what it has is waited for.
pub async fn gateway(cluster: &Cluster) -> Result<String> {
    let begun = Instant::now();
    loop {
        let nodes = everywhere(cluster, "nodes").await?;
        if nodes.is_empty() {
            bail!(
                "there is no node to run it: make a token with `coracle token create`, and start one with `coracle node`"
            );
        }
        let annotation =
            |node: &Value, name| node["metadata"]["annotations"][name].as_str().map(str::to_owned);
        let addresses = nodes.iter().filter_map(|node| annotation(node, GATEWAY_ANNOTATION));
        if let Some(address) = addresses.filter(|address| !address.is_empty()).min() {
            return Ok(address);
        }
        let is_awaited = |node| annotation(node, JOINED_ANNOTATION).as_deref() == Some(JOINED_UNLINKED);
        if !nodes.iter().any(is_awaited) || begun.elapsed() >= FIRST_LINK_WITHIN {
            bail!("no node has a gateway: start one with --gateway ADDR");
        }
        tokio::time::sleep(FIRST_LINK_POLL).await;
    }
}
