//! Guests and the disk.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::time::sleep;

use super::{FLOOD, Stage, guests::container};

/// Making so many takes its time.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn nested(stage: Stage) -> Result<String> {
    stage.to_the_end("nested", &["nest", "/data", "15000"], PATIENCE).await
}

pub async fn many(stage: Stage) -> Result<String> {
    stage.to_the_end("many", &["files", "/data", "200000"], PATIENCE).await
}

pub async fn open(stage: Stage) -> Result<String> {
    stage.crowd(8, &["open", "/data", "20000"]).await
}

pub async fn listings(stage: Stage) -> Result<String> {
    stage.crowd(2, &["list", "/data", "10000", "1000"]).await
}

pub async fn syncs(stage: Stage) -> Result<String> {
    stage.crowd(32, &["sync", "/data"]).await
}

/// Those that write without a permit, to a file or standard output, are ended and start again.
pub async fn permits(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.replicas(&rest, "permitted", 8, container(&["permits", "/data", "64"])).await?;
    for (name, to) in [("no-permit-out", "stdout"), ("no-permit-file", "/data")] {
        stage.replicas(&rest, name, 4, container(&["unpermitted", to])).await?;
    }
    sleep(FLOOD).await;
    stage.summary(&rest).await
}

/// All of the node's disk, and what becomes free of it.
pub async fn disk(stage: Stage) -> Result<String> {
    stage.crowd(1, &["fill-disk", "/data"]).await
}

/// Each is a small component with a large section of its own.
pub async fn images(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for number in 0..40 {
        let image = format!("hostile/large:{number}");
        stage.push(&image, &super::compile::large_module(number, 8 << 20)).await?;
        stage.start(&rest, &format!("p{number}"), json!({"name": "c", "image": image})).await?;
    }
    sleep(FLOOD).await;
    stage.summary(&rest).await
}
