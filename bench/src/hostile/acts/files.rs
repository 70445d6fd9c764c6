//! Guests and the disk.

use std::time::Duration;

use anyhow::Result;

use super::Stage;

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
