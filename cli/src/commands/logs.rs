//! `coracle logs`: prints what a container wrote.

use std::io::Write;

use anyhow::{Context, Result};
use futures::StreamExt;
use http_body_util::BodyExt;

use crate::{
    args::LogsArgs,
    client::{Body, Cluster, native_kind},
    names::encode,
};

pub async fn run(args: &LogsArgs) -> Result<()> {
    let cluster = Cluster::find(&args.connection)?;
    let mut query = vec![format!("follow={}", args.follow), format!("previous={}", args.previous)];
    query.extend(args.container.iter().map(|container| format!("container={}", encode(container))));
    query.extend(args.tail.iter().map(|lines| format!("tailLines={lines}")));
    let pod = native_kind("pods", &cluster.namespace)?.object(&args.pod)?;
    let path = format!("{pod}/log?{}", query.join("&"));
    let response = cluster.stream(http::Request::get(path).body(Body::default())?).await?;
    let mut body = response.into_body().into_data_stream();
    let mut stdout = std::io::stdout();
    while let Some(chunk) = body.next().await {
        stdout.write_all(&chunk.context("the log ended early")?)?;
        stdout.flush()?;
    }
    Ok(())
}
