//! `coracle get -w`: prints what is there, and each object again when it changes.

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::Value;

use super::{TABLE, look, path, table::Table};
use crate::{
    args::{GetArgs, Output},
    client::{Body, Cluster},
    output::{self, Widths},
    selection::Target,
};

/// The largest event that is taken.
const LINE_BYTES_MAX: usize = 16 << 20;

pub async fn run(cluster: &Cluster, args: &GetArgs, targets: &[Target]) -> Result<()> {
    let [target] = targets else { bail!("objects of one kind can be watched at a time") };
    if !matches!(args.output, None | Some(Output::Wide)) {
        bail!("--watch prints tables alone: leave --output out, or say `-o wide`");
    }
    let watched = Target { name: None, ..target.clone() };
    let only = target
        .name
        .iter()
        .map(|name| format!("fieldSelector=metadata.name%3D{}", crate::names::encode(name)));
    let only: Vec<String> = only.collect();
    let list =
        http::Request::get(path(args, &watched, &only)?).header("accept", TABLE).body(Body::default())?;
    let (_, body) = cluster.send(list).await?;
    let list: Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
    let columns = list["columnDefinitions"].clone();
    let mut look = look(args, false);
    let mut widths = Widths::default();
    output::text(&widths.render(&Table::new(target.kind.clone(), list).lines(&look)))?;
    look.headers = false;

    let mut query = only;
    query.extend([format!("watch=true&resourceVersion={revision}")]);
    let request =
        http::Request::get(path(args, &watched, &query)?).header("accept", TABLE).body(Body::default())?;
    let mut stream = cluster.stream(request).await?.into_body().into_data_stream();
    let mut pending = Vec::new();
    while let Some(chunk) = stream.next().await {
        pending.extend_from_slice(&chunk.context("the watch ended early")?);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).context("an event of the watch is not JSON")?;
            if event["type"] == "ERROR" {
                bail!(
                    "the watch ended: {}",
                    event["object"]["message"].as_str().unwrap_or("no reason given")
                );
            }
            let mut rows = event["object"].clone();
            if rows["rows"].as_array().is_none_or(Vec::is_empty) || event["type"] == "BOOKMARK" {
                continue;
            }
            // Only the first event of a watch has the columns.
            rows["columnDefinitions"] = columns.clone();
            output::text(&widths.render(&Table::new(target.kind.clone(), rows).lines(&look)))?;
        }
        if pending.len() > LINE_BYTES_MAX {
            bail!("an event of the watch is larger than {} MiB", LINE_BYTES_MAX >> 20);
        }
    }
    bail!("the cluster ended the watch")
}
