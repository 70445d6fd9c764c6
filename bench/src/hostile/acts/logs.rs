//! Readers of logs.

use anyhow::Result;
use tokio::{io::AsyncWriteExt, time::sleep};

use super::{CORE, FLOOD, Stage, guests::container};

const READERS: usize = 300;

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
