//! Makes pods of instances of functions that nodes have started by themselves, one after the other for each node.

use coracle_api::{Storage, WriteError, write};
use coracle_leader::woken;
use coracle_proto::node::{PodWoken, WakeRefused};
use jiff::Timestamp;
use tokio::sync::mpsc;

/// Instances of a node that may wait. It tells again of what finds no room.
pub const WAITING_MAX: usize = 256;

/// Writes pods until the channel closes; `refused` is called for those that are not to be.
pub async fn write_pods<F: Future<Output = ()>>(
    storage: &impl Storage,
    node: &str,
    mut told: mpsc::Receiver<PodWoken>,
    refused: impl Fn(WakeRefused) -> F,
) {
    while let Some(woken) = told.recv().await {
        let mut why = None;
        let written = write(storage, |view| match woken::plan(view, node, &woken, Timestamp::now()) {
            Ok(transaction) => transaction,
            Err(reason) => {
                why = Some(reason);
                None
            }
        });
        let reason = match written.await {
            Ok(_) => why,
            Err(error @ (WriteError::Refused(_) | WriteError::Denied(_))) => Some(error.to_string()),
            Err(error) => {
                // The node tells again.
                tracing::debug!(node, pod = woken.name, %error, "an instance was not written");
                None
            }
        };
        if let Some(reason) = reason {
            tracing::debug!(node, pod = woken.name, reason, "an instance is refused");
            refused(WakeRefused { uid: woken.uid, reason }).await;
        }
    }
}
