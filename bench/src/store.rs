//! Row 7: replicated writes and linearizable reads of three voters on this machine, against etcd with as many voters,
//! the same value size, the same client counts, TLS and fsync on both sides.

mod etcd;
mod ours;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use futures::future::BoxFuture;

use crate::load::{Measured, closed_loop};

/// Closed-loop clients of one run each.
const CLIENTS: &[usize] = &[1, 16, 256];
/// Connections that the clients share.
pub const CONNECTIONS: usize = 8;
/// Bytes of one value, beside its key.
pub const VALUE_BYTES: usize = 512;
/// Keys that are written and read, in turn.
pub const KEYS: u64 = 1000;

/// A store under load: one write or read of `key` on behalf of `client`.
pub trait Door: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>>;
    /// A linearizable read; `None` where this door has none.
    fn get(&self, client: usize, key: u64) -> Option<BoxFuture<'static, Result<()>>>;
}

pub async fn run(time: Duration) -> Result<()> {
    let ours = ours::Cluster::start().await?;
    let etcd = etcd::Cluster::start().await?;
    let doors: Vec<Arc<dyn Door>> = ours.doors().await?;
    let peer: Option<Arc<dyn Door>> = match &etcd {
        Some(cluster) => Some(cluster.door()),
        None => None,
    };
    for door in doors.iter().chain(&peer) {
        for key in 0..KEYS {
            door.put(key as usize, key).await?;
        }
    }
    for &clients in CLIENTS {
        for writes in [true, false] {
            let theirs = match &peer {
                Some(peer) => load(peer, clients, time, writes).await?,
                None => None,
            };
            for door in &doors {
                let Some(measured) = load(door, clients, time, writes).await? else { continue };
                print(writes, clients, door.name(), &measured, theirs.as_ref());
            }
            if let (Some(peer), Some(theirs)) = (&peer, &theirs) {
                print(writes, clients, peer.name(), theirs, None);
            }
        }
    }
    Ok(())
}

async fn load(
    door: &Arc<dyn Door>,
    clients: usize,
    time: Duration,
    writes: bool,
) -> Result<Option<Measured>> {
    if !writes {
        let Some(first) = door.get(0, 0) else { return Ok(None) };
        first.await?;
    }
    let door = door.clone();
    let measured = closed_loop(clients, time, move |client, sequence| {
        let key = sequence % KEYS;
        if writes {
            door.put(client, key)
        } else {
            door.get(client, key).unwrap_or_else(|| Box::pin(async { Ok(()) }))
        }
    })
    .await?;
    Ok(Some(measured))
}

fn print(writes: bool, clients: usize, who: &str, measured: &Measured, peer: Option<&Measured>) {
    let what = if writes { "writes" } else { "linearizable reads" };
    let ratio =
        peer.map(|peer| format!("  {:.2} x etcd", measured.per_second / peer.per_second)).unwrap_or_default();
    println!("row 7  {what:<18} {clients:>3} clients  {who:<16} {}{ratio}", measured.line());
}
