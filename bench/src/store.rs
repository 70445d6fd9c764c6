//! Row 7: replicated writes, linearizable reads and delivered watch events of three voters on this machine, against etcd
//! with as many voters, the same bytes a value, the same client counts, TLS and fsync on both sides.
//!
//! Every load runs in rounds, ours and the peer's in turn, so that a machine that others use favours neither.

mod etcd;
mod ours;
mod watch;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::{
    cluster::Cluster,
    load::{Measured, Times, closed_loop},
};

pub use etcd::EtcdCluster;
pub use ours::GrpcDoor;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Load {
    Writes,
    /// Linearizable ones.
    Reads,
    /// Watch events.
    Events,
}

impl Load {
    pub const ALL: [Load; 3] = [Load::Writes, Load::Reads, Load::Events];
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Load::Writes => "writes",
            Load::Reads => "reads",
            Load::Events => "events",
        })
    }
}

/// Connections that the clients share.
pub const CONNECTIONS: usize = 8;
/// Bytes of data in one object, beside its metadata.
const DATA_BYTES: usize = 512;
/// Objects that are written and read, in turn.
pub const KEYS: u64 = 1000;

/// A store under load: one write or read of `key` on behalf of `client`.
pub trait Door: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>>;
    /// A linearizable read.
    fn get(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>>;
    /// All changes from now on, once it resolves. An item is what came together.
    fn watch(&self, watcher: usize) -> BoxFuture<'static, Result<BoxStream<'static, Result<Arrived>>>>;
}

/// Events that came together, and the first one's object.
pub struct Arrived {
    pub events: u64,
    pub first: bytes::Bytes,
}

/// The object that every door writes: a ConfigMap whose data begins with the time, in nanoseconds since the epoch.
pub fn object(key: u64) -> Vec<u8> {
    let padding = "x".repeat(DATA_BYTES - 20);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!(
        r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"bench-{key}","namespace":"default"}},"data":{{"value":"{now:020}{padding}"}}}}"#,
    )
    .into_bytes()
}

pub async fn run(time: Duration, rounds: u32, clients: &[usize], loads: &[Load]) -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let etcd = EtcdCluster::start().await?;
    let leader = cluster.leader().await?;
    let client = cluster.client(leader)?;
    let mut doors: Vec<Arc<dyn Door>> =
        vec![Arc::new(ours::GrpcDoor::new(&client)), Arc::new(ours::RestDoor::new(&client).await?)];
    if let Some(etcd) = &etcd {
        doors.push(Arc::new(etcd.door(etcd.leader().await?)?));
    }
    for door in &doors {
        for key in 0..KEYS {
            door.put(key as usize, key).await?;
        }
    }
    for &clients in clients {
        for (load, what) in [(Load::Writes, "writes"), (Load::Reads, "linearizable reads")] {
            if !loads.contains(&load) {
                continue;
            }
            let mut all = vec![Times::default(); doors.len()];
            for _ in 0..rounds {
                for (door, times) in doors.iter().zip(&mut all) {
                    times.add(run_load(door, clients, time, load).await?);
                }
            }
            report(&format!("{what}, {clients} clients"), &doors, &all);
        }
    }
    if !loads.contains(&Load::Events) {
        return Ok(());
    }
    let mut all = vec![Times::default(); doors.len()];
    for _ in 0..rounds {
        for (door, times) in doors.iter().zip(&mut all) {
            times.add(watch::load(door, time).await?);
        }
    }
    let what = format!("events, {} watchers, {} writers", watch::WATCHERS, watch::WRITERS);
    report(&what, &doors, &all);
    Ok(())
}

async fn run_load(door: &Arc<dyn Door>, clients: usize, time: Duration, load: Load) -> Result<Times> {
    let door = door.clone();
    closed_loop(clients, time, move |client, sequence| {
        let key = sequence % KEYS;
        if load == Load::Writes { door.put(client, key) } else { door.get(client, key) }
    })
    .await
}

/// Prints each door's figures; ours as multiples of the last one's, where that is the peer's.
fn report(what: &str, doors: &[Arc<dyn Door>], all: &[Times]) {
    let measured: Vec<Measured> = all.iter().map(Times::measured).collect();
    let peer = doors.iter().position(|door| door.name().starts_with("etcd")).map(|at| &measured[at]);
    for (door, measured) in doors.iter().zip(&measured) {
        let ours = !door.name().starts_with("etcd");
        let ratio = peer.filter(|_| ours).map(|peer| {
            let (rate, p99) = (measured.per_second / peer.per_second, measured.p99.as_secs_f64());
            format!("  {rate:.2} x etcd, p99 {:.2} x", p99 / peer.p99.as_secs_f64())
        });
        println!("row 7  {what:<34} {:<14} {}{}", door.name(), measured.line(), ratio.unwrap_or_default());
    }
}
