//! `coracle logs`: prints what containers wrote.

mod pods;
mod prefixed;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, future::try_join_all, stream::BoxStream};
use http_body_util::BodyExt;
use serde_json::Value;

use self::prefixed::Prefixed;
use crate::{
    args::LogsArgs,
    client::{Body, Cluster, native_kind},
    names::encode,
    output,
};

/// Logs that are followed at a time, as with kubectl.
const FOLLOWED_MAX: usize = 50;
/// Lines of each container where many pods are chosen by labels, as with kubectl.
const SELECTED_TAIL: i64 = 10;

/// One container's log.
struct Source {
    pod: String,
    container: String,
}

pub async fn run(args: &LogsArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    let pods = pods::chosen(&cluster, args).await?;
    let sources = sources(&pods, args)?;
    if args.follow && sources.len() > FOLLOWED_MAX {
        bail!(
            "{} logs are more than the {FOLLOWED_MAX} that can be followed: choose fewer pods",
            sources.len()
        );
    }
    let prefix = args.prefix || args.all_pods;
    if args.follow {
        let follow = |source| print(&cluster, args, source, prefix);
        return try_join_all(sources.iter().map(follow)).await.map(|_| ());
    }
    for source in &sources {
        print(&cluster, args, source, prefix).await?;
    }
    Ok(())
}

/// The logs of the pods that are asked for.
fn sources(pods: &[Value], args: &LogsArgs) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let source = |container: &str| Source { pod: name.to_owned(), container: container.to_owned() };
        let containers = pods::containers(pod);
        match &args.container {
            Some(named) if containers.contains(named) => sources.push(source(named)),
            Some(named) if pods.len() == 1 => {
                bail!("pod {name} has no container {named:?}: it has {}", containers.join(", "))
            }
            Some(_) => {}
            None if args.all_containers => {
                sources.extend(containers.iter().map(|container| source(container)))
            }
            None => {
                let (container, of) = pods::default_container(pod);
                if of.len() > 1 {
                    output::note(format!("Defaulted container {container:?} out of: {}", of.join(", ")));
                }
                sources.push(source(&container));
            }
        }
    }
    Ok(sources)
}

async fn print(cluster: &Cluster, args: &LogsArgs, source: &Source, prefix: bool) -> Result<()> {
    let mut log = open(cluster, &source.pod, &query(args, &source.container)).await?;
    let name = format!("[pod/{}/{}] ", source.pod, source.container);
    let mut lines = Prefixed::new(if prefix { name } else { String::new() });
    while let Some(chunk) = log.next().await {
        // As the component wrote it: its colours are for this terminal.
        output::bytes(&lines.take(&chunk?))?;
    }
    output::bytes(&lines.end())
}

fn query(args: &LogsArgs, container: &str) -> Vec<String> {
    let mut query = vec![
        format!("container={}", encode(container)),
        format!("follow={}", args.follow),
        format!("previous={}", args.previous),
        format!("timestamps={}", args.timestamps),
    ];
    let tail = args.tail.or(args.selector.is_some().then_some(SELECTED_TAIL));
    query.extend(tail.filter(|lines| *lines >= 0).map(|lines| format!("tailLines={lines}")));
    query.extend(args.since.map(|since| format!("sinceSeconds={}", since.as_secs())));
    query.extend(args.since_time.map(|time| format!("sinceTime={}", encode(&time.to_string()))));
    query.extend(args.limit_bytes.map(|bytes| format!("limitBytes={bytes}")));
    query
}

/// The log of a container as it comes.
async fn open(
    cluster: &Cluster,
    pod: &str,
    query: &[String],
) -> Result<BoxStream<'static, Result<bytes::Bytes>>> {
    let path = native_kind("pods")?.object(&cluster.namespace, pod)?;
    let request = http::Request::get(format!("{path}/log?{}", query.join("&"))).body(Body::default())?;
    let body = cluster.stream(request).await?.into_body().into_data_stream();
    Ok(body.map(|chunk| chunk.context("the log ended early")).boxed())
}
/// The last lines of a container, for a message.
pub async fn last_lines(
    cluster: &Cluster,
    pod: &str,
    container: &str,
    previous: bool,
    lines: u32,
) -> Result<String> {
    let query = [
        format!("container={}", encode(container)),
        format!("previous={previous}"),
        format!("tailLines={lines}&limitBytes=4096"),
    ];
    let mut log = open(cluster, pod, &query).await?;
    let mut text = Vec::new();
    while let Some(chunk) = log.next().await {
        text.extend_from_slice(&chunk?);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
