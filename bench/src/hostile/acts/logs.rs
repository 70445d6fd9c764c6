//! Logs: their readers, and the disk.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use tokio::{io::AsyncWriteExt, time::sleep};

use super::{CORE, FLOOD, LONG, POLL, Stage, guests::container};

const READERS: usize = 300;
/// Of a file's blocks, whatever those of the file system are (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Each follows from the beginning, on a connection of its own.
pub async fn unread(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.start(&rest, "logger", container(&["log"])).await?;
    stage.address(&rest, "logger").await?;
    let path = stage.path(CORE, "pods/logger/log?follow=true");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", coracle_proto::tls::SERVER_NAME);
    let mut open = Vec::new();
    for _ in 0..READERS {
        let mut stream = stage.client.raw().await?;
        stream.write_all(request.as_bytes()).await?;
        open.push(stream);
    }
    sleep(FLOOD).await;
    Ok(format!("{} readers", open.len()))
}

/// Goes on until all have logged all, or as long as such acts take. The answer is what their logs took of the disk at most.
pub async fn full(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for number in 0..8 {
        stage.start(&rest, &format!("p{number}"), container(&["log", "1000"])).await?;
    }
    // The node's disk may be mounted for it alone.
    let root = PathBuf::from(format!("/proc/{}/root", stage.node));
    let logs = root.join(stage.node_dir.join("logs").strip_prefix("/")?);
    let (begun, mut most, mut ended) = (Instant::now(), 0, false);
    while !ended && begun.elapsed() < LONG {
        most = most.max(bytes_on_disk(&logs));
        let pods = rest.get(&stage.path(CORE, "pods")).await?;
        let mut pods = pods["items"].as_array().into_iter().flatten();
        ended = pods.all(|pod| pod["status"]["phase"] == "Succeeded");
        sleep(POLL).await;
    }
    Ok(format!("logs took {} MiB of the disk; {}", most >> 20, stage.summary(&rest).await?))
}

/// Of all files below a folder; of one that goes meanwhile none.
fn bytes_on_disk(folder: &Path) -> u64 {
    let (mut bytes, mut folders) = (0, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) => bytes += found.blocks() * BLOCK_BYTES,
                Err(_) => {}
            }
        }
    }
    bytes
}
