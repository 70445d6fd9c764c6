//! Guests that take time, memory, and the host's own.

use anyhow::Result;
use serde_json::json;

use super::{FLOOD, Stage, guests::container};

pub async fn loops(stage: Stage) -> Result<String> {
    stage.crowd(64, &["spin"]).await
}

pub async fn fills(stage: Stage) -> Result<String> {
    stage.crowd(8, &["fill", "256"]).await
}

/// Each is ended for want of memory and starts again.
pub async fn hogs(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut hog = container(&["grow", "1000"]);
    hog["resources"] = json!({"limits": {"memory": "256Mi"}});
    stage.replicas(&rest, "hog", 8, hog).await?;
    tokio::time::sleep(FLOOD).await;
    stage.summary(&rest).await
}

pub async fn resources(stage: Stage) -> Result<String> {
    stage.crowd(20, &["resources", "4900"]).await
}

pub async fn random(stage: Stage) -> Result<String> {
    stage.crowd(8, &["random"]).await
}

pub async fn datagrams(stage: Stage) -> Result<String> {
    stage.crowd(8, &["datagrams", "1000"]).await
}

pub async fn log(stage: Stage) -> Result<String> {
    stage.crowd(8, &["log"]).await
}

pub async fn lines(stage: Stage) -> Result<String> {
    stage.crowd(8, &["lines"]).await
}
