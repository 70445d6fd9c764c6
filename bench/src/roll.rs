//! Changes of members under load: one control node becomes three and five, each is replaced, five become three, and each
//! restarts, while clients write. Tells the longest pause between acknowledged writes in each phase, and fails where a
//! write was lost or refused.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::store::RangeRequest;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::{
    client::{Store, new_request},
    cluster::Cluster,
    load::ms,
    process::coracle,
};

/// Closed-loop writers, each with a pause between its writes.
const WRITERS: u64 = 8;
const PACE: Duration = Duration::from_millis(10);
/// One try of a write; then it goes to the next member, with the same request id.
const TRY: Duration = Duration::from_millis(400);
/// Objects of each writer, written in turn.
const OBJECTS: u64 = 64;
/// Between two looks at the cluster.
const POLL: Duration = Duration::from_millis(100);
/// After this long a change will not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// The cluster rests so long between phases.
const SETTLE: Duration = Duration::from_secs(1);
/// The longest pause that a change of members and a rolling restart may make.
const CHANGE_PAUSE_MAX_MS: f64 = 2000.0;
const RESTART_PAUSE_MAX_MS: f64 = 500.0;

/// What the writers have seen.
struct Seen {
    last_ack: Instant,
    longest: Duration,
    writes: u64,
    retries: u64,
    refused: Vec<String>,
    /// The last acknowledged number under each name.
    acked: BTreeMap<String, u64>,
}

struct Load {
    doors: Mutex<Vec<Store>>,
    seen: Mutex<Seen>,
    stop: AtomicBool,
}

/// With `from` the cluster is of that build, and the restarts are a rolling upgrade to this one.
pub async fn run(from: Option<PathBuf>) -> Result<()> {
    let new = coracle()?;
    let (done, old) = match from {
        Some(old) => ("upgraded", old),
        None => ("restarted", new.clone()),
    };
    let mut cluster = Cluster::start_of(old, 1).await?;
    let load = Arc::new(Load {
        doors: Mutex::new(doors(&cluster)?),
        seen: Mutex::new(Seen {
            last_ack: Instant::now(),
            longest: Duration::ZERO,
            writes: 0,
            retries: 0,
            refused: Vec::new(),
            acked: BTreeMap::new(),
        }),
        stop: AtomicBool::new(false),
    });
    let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(load.clone(), writer))).collect();
    sleep(SETTLE).await;
    let mut phases = Phases { load: load.clone(), failed: Vec::new() };

    phases.begin();
    grow(&mut cluster, &load, 3).await?;
    phases.end("1 -> 3 voters", CHANGE_PAUSE_MAX_MS);
    grow(&mut cluster, &load, 5).await?;
    phases.end("3 -> 5 voters", CHANGE_PAUSE_MAX_MS);
    for old in 0..5 {
        replace(&mut cluster, &load, old).await?;
        phases.end(&format!("member {} of 5 replaced", old + 1), CHANGE_PAUSE_MAX_MS);
    }
    shrink(&mut cluster, &load).await?;
    phases.end("5 -> 3 voters", CHANGE_PAUSE_MAX_MS);
    cluster.upgrade(new);
    for number in cluster.alive().collect::<Vec<_>>() {
        restart(&mut cluster, &load, number).await?;
        phases.end(&format!("member {} {done}", number + 1), RESTART_PAUSE_MAX_MS);
    }

    load.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    verify(&cluster, &load).await?;
    let seen = load.seen.lock();
    println!("roll  {} writes acknowledged, none lost, {} tries repeated", seen.writes, seen.retries);
    ensure!(seen.refused.is_empty(), "writes were refused: {:?}", seen.refused);
    ensure!(phases.failed.is_empty(), "too long without a write: {}", phases.failed.join(", "));
    Ok(())
}

struct Phases {
    load: Arc<Load>,
    failed: Vec<String>,
}

impl Phases {
    fn begin(&mut self) {
        let mut seen = self.load.seen.lock();
        seen.longest = Duration::ZERO;
    }

    fn end(&mut self, what: &str, pause_max_ms: f64) {
        let mut seen = self.load.seen.lock();
        let pause = ms(seen.longest.max(seen.last_ack.elapsed()));
        println!("roll  {what:<24} longest pause of writes {pause:>6.0} ms (at most {pause_max_ms})");
        if pause > pause_max_ms {
            self.failed.push(format!("{what}: {pause:.0} ms"));
        }
        seen.longest = Duration::ZERO;
    }
}

/// A door to each member that runs.
fn doors(cluster: &Cluster) -> Result<Vec<Store>> {
    cluster.alive().map(|number| Ok(cluster.client(number)?.store())).collect()
}

async fn write(load: Arc<Load>, writer: u64) {
    let client = u64::from(std::process::id()) << 8 | writer;
    for sequence in 1.. {
        if load.stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("roll-{writer}-{}", sequence % OBJECTS);
        let key = ObjectKey::new("configmaps", "default", &name);
        let draft = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"default"}},"data":{{"n":"{sequence}"}}}}"#
        );
        let writes = vec![Write::Put { key, draft: draft.into() }];
        let transaction = Transaction { preconditions: Vec::new(), writes };
        let id = new_request(client);
        let mut at = writer as usize + sequence as usize;
        loop {
            let door = {
                let doors = load.doors.lock();
                doors[at % doors.len()].clone()
            };
            let tried = timeout(TRY, door.txn(id, transaction.clone())).await;
            match tried {
                Ok(Ok(outcome)) => {
                    load.acknowledged(name, sequence, outcome.err().map(|refusal| format!("{refusal:?}")));
                    break;
                }
                Ok(Err(_)) | Err(_) => {
                    load.seen.lock().retries += 1;
                    at += 1;
                    sleep(PACE / 2).await;
                }
            }
        }
        sleep(PACE).await;
    }
}

impl Load {
    fn acknowledged(&self, name: String, sequence: u64, refusal: Option<String>) {
        let mut seen = self.seen.lock();
        let now = Instant::now();
        seen.longest = seen.longest.max(now - seen.last_ack);
        seen.last_ack = now;
        seen.writes += 1;
        seen.acked.insert(name, sequence);
        seen.refused.extend(refusal);
    }
}

async fn grow(cluster: &mut Cluster, load: &Load, voters: usize) -> Result<()> {
    while cluster.alive().count() < voters {
        cluster.add()?;
        *load.doors.lock() = doors(cluster)?;
    }
    until_voters(cluster, voters).await
}

async fn replace(cluster: &mut Cluster, load: &Load, old: usize) -> Result<()> {
    let new = cluster.add()?;
    *load.doors.lock() = doors(cluster)?;
    let (old_id, new_id) = (cluster.member_id(old).await?, cluster.member_id(new).await?);
    let begun = Instant::now();
    // Refused until the learner has caught up.
    while let Err(error) = cluster.cli(&["cluster", "replace", &old_id.to_string(), &new_id.to_string()]) {
        if begun.elapsed() > PATIENCE {
            return Err(error);
        }
        sleep(POLL).await;
    }
    leave(cluster, load, old)?;
    until_voters(cluster, 5).await
}

async fn shrink(cluster: &mut Cluster, load: &Load) -> Result<()> {
    let leaving: Vec<usize> = cluster.alive().take(2).collect();
    let mut ids = Vec::new();
    for number in &leaving {
        ids.push(cluster.member_id(*number).await?.to_string());
    }
    let arguments: Vec<&str> =
        ["cluster", "remove", "--force"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    cluster.cli(&arguments)?;
    for number in leaving {
        leave(cluster, load, number)?;
    }
    until_voters(cluster, 3).await
}

/// A member that is removed has no more clients, then ends.
fn leave(cluster: &mut Cluster, load: &Load, number: usize) -> Result<()> {
    cluster.stop(number);
    *load.doors.lock() = doors(cluster)?;
    Ok(())
}

async fn restart(cluster: &mut Cluster, load: &Load, number: usize) -> Result<()> {
    let client = cluster.client(number)?;
    cluster.stop(number);
    cluster.resume(number)?;
    *load.doors.lock() = doors(cluster)?;
    let begun = Instant::now();
    loop {
        let status = client.status().await.ok();
        if status.is_some_and(|status| status.leader_id != 0 && status.applied_index >= status.commit_index) {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "member {} did not come back", number + 1);
        sleep(POLL).await;
    }
    sleep(SETTLE).await;
    Ok(())
}

async fn until_voters(cluster: &Cluster, voters: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let number = cluster.alive().next().context("no member is left")?;
        let found = cluster.client(number)?.status().await.ok();
        let voting = found.map(|status| status.members.iter().filter(|member| member.voter).count());
        if voting == Some(voters) {
            break;
        }
        if begun.elapsed() > PATIENCE {
            bail!("{voting:?} voters instead of {voters}");
        }
        sleep(POLL).await;
    }
    sleep(SETTLE).await;
    Ok(())
}

/// Each object holds the number that was acknowledged last: each writer waits for one write before the next.
async fn verify(cluster: &Cluster, load: &Load) -> Result<()> {
    let acked = load.seen.lock().acked.clone();
    for number in cluster.alive() {
        let mut store = cluster.client(number)?.store();
        for (name, sequence) in &acked {
            let request = RangeRequest {
                resource: "configmaps".into(),
                namespace: "default".into(),
                name: name.clone(),
                ..RangeRequest::default()
            };
            let answer = store.client.range(request).await?.into_inner();
            let json = answer.objects.first().map(|object| object.json.clone()).unwrap_or_default();
            let wanted = format!(r#""n":"{sequence}""#);
            let text = String::from_utf8_lossy(&json);
            ensure!(text.contains(&wanted), "member {}: {name} should hold {sequence}: {text}", number + 1);
        }
    }
    Ok(())
}
