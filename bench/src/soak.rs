//! The fault soak: three control processes in network namespaces of their own, under random faults and load; what the
//! clients saw is held against the one order that the store gave it.
//!
//! Faults: kill -9 of one or all, SIGSTOP for longer than an election or for 15 s and more, packets lost in one or both
//! directions, a full disk. Afterwards the cluster must heal by itself, with equal states on all members.

mod checker;
mod clients;
mod faults;
mod members;
mod network;
mod watchers;

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
    task::JoinSet,
    time::{sleep, timeout},
};

use self::{
    checker::{Outcome, Seen, violations},
    clients::{Shared, grpc_reader, grpc_writer, put_at, read_all, rest_reader, rest_writer},
    members::{MEMBERS, Members},
    watchers::watcher,
};

/// Within so long after the last fault every member must write, read and be in the same state as the others.
const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// Within so long after the last write every watcher must have seen it.
const WATCHED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// Clients of each kind; a watcher in so many is one by REST.
const GRPC_WRITERS: usize = 4;
const REST_WRITERS: usize = 2;
const READERS: usize = 2;
const WATCHERS: usize = 6;
const REST_WATCHER_EVERY: usize = 3;
/// Violations that are printed.
const PRINTED_MAX: usize = 20;

/// What the soak is told.
pub struct Settings {
    pub time: Duration,
    pub seed: u64,
    /// The size of the third member's data directory, which a fault then fills. None leaves it on the real disk.
    pub small_mb: Option<u64>,
}

/// Prints seed, schedule, figures and verdict. An error where anything was violated. Interrupted, it cleans up as well.
pub async fn run(settings: Settings) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        done = judge(settings) => done,
        _ = ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    }
}

async fn judge(settings: Settings) -> Result<()> {
    println!("soak   seed {}, {} s of faults", settings.seed, settings.time.as_secs());
    let mut members = Members::start(settings.small_mb).await?;
    let (seen, mut found) = match soak(&mut members, &settings).await {
        Ok(soaked) => soaked,
        Err(error) => {
            (0..MEMBERS).for_each(|member| println!("{}", members.log_tail(member)));
            return Err(error);
        }
    };
    found.extend(violations(&seen));
    found.append(&mut members.ended);
    figures(&seen);
    if found.is_empty() {
        println!("soak   verdict: nothing was lost, stale, doubled or out of order, and the cluster healed");
        return Ok(());
    }
    for violation in found.iter().take(PRINTED_MAX) {
        println!("soak   VIOLATION: {violation}");
    }
    (0..MEMBERS).for_each(|member| println!("{}", members.log_tail(member)));
    bail!("{} violations with seed {}", found.len(), settings.seed)
}

async fn soak(members: &mut Members, settings: &Settings) -> Result<(Seen, Vec<String>)> {
    let clients = (0..MEMBERS).map(|member| members.client(member)).collect::<Result<Vec<_>>>()?;
    let shared = Arc::new(Shared {
        clients,
        begun: Instant::now(),
        stop: false.into(),
        target: 0.into(),
        seen: Mutex::default(),
        values: 0.into(),
    });
    let from = read_all(&shared, 0).await?.revision;
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut watching = JoinSet::new();
    for number in 0..WATCHERS {
        watching.spawn(watcher(shared.clone(), number, from, number % REST_WATCHER_EVERY == 0));
    }
    for register in 0..clients::REGISTERS {
        put_at(&shared, register % MEMBERS, register).await?;
    }
    let mut working = work(&shared, settings.seed);
    let schedule = faults::run(members, &mut rng, settings.time, settings.small_mb.is_some()).await?;
    println!("soak   {} faults:", schedule.len());
    schedule.iter().for_each(|fault| println!("soak   {fault}"));

    let mut found = Vec::new();
    match heal(members, &shared).await {
        Ok(took) => {
            println!("soak   every member writes and reads {:.1} s after the last fault", took.as_secs_f64())
        }
        Err(error) => found.push(format!("not healed within {} s: {error:#}", HEALED_WITHIN.as_secs())),
    }
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = working.join_next().await {
        ended.context("a client panicked")?;
    }
    let last = put_at(&shared, 0, 0).await.context("the last write")?;
    shared.target.store(last, Ordering::Relaxed);
    // A watch that is silent looks at the target again when it hears something.
    let all = async { while watching.join_next().await.is_some() {} };
    if timeout(WATCHED_WITHIN, all).await.is_err() {
        found.push(format!("a watcher did not see revision {last} within {} s", WATCHED_WITHIN.as_secs()));
    }
    found.extend(differences(members).await);
    let seen = std::mem::take(&mut *shared.seen.lock().expect("no client panics"));
    Ok((seen, found))
}

fn work(shared: &Arc<Shared>, seed: u64) -> JoinSet<()> {
    let mut working = JoinSet::new();
    let mut seeds = (seed..).map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut next = || seeds.next().unwrap_or_default();
    for number in 0..GRPC_WRITERS {
        working.spawn(grpc_writer(shared.clone(), next(), number % 2 == 0));
    }
    for _ in 0..REST_WRITERS {
        working.spawn(rest_writer(shared.clone(), next()));
    }
    for _ in 0..READERS {
        working.spawn(grpc_reader(shared.clone(), next()));
        working.spawn(rest_reader(shared.clone(), next()));
    }
    working
}

/// Waits until every member takes a write and answers a linearizable read.
async fn heal(members: &mut Members, shared: &Shared) -> Result<Duration> {
    let begun = Instant::now();
    for member in 0..MEMBERS {
        loop {
            members.tend()?;
            let tried = match put_at(shared, member, member).await {
                Ok(_) => read_all(shared, member).await.map(drop),
                Err(error) => Err(error),
            };
            match tried {
                Ok(()) => break,
                Err(error) if begun.elapsed() > HEALED_WITHIN => {
                    return Err(error.context(format!("member {}", member + 1)));
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }
    Ok(begun.elapsed())
}

/// Once they have applied the same, members must be in the same state.
async fn differences(members: &mut Members) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let mut states = Vec::new();
        for member in 0..MEMBERS {
            match members.status(member).await {
                Ok(status) => states.push((status.revision, status.state_hash)),
                Err(error) => return vec![format!("member {} has no status: {error:#}", member + 1)],
            }
        }
        if states.iter().all(|state| *state == states[0]) {
            return Vec::new();
        }
        if begun.elapsed() > HEALED_WITHIN {
            return vec![format!("the members are in different states: {states:?}")];
        }
        sleep(POLL).await;
    }
}

fn figures(seen: &Seen) {
    let count =
        |wanted: fn(&Outcome) -> bool| seen.writes.iter().filter(|write| wanted(&write.outcome)).count();
    println!(
        "soak   writes: {} acknowledged, {} refused, {} of unknown outcome",
        count(|outcome| matches!(outcome, Outcome::Done(_))),
        count(|outcome| matches!(outcome, Outcome::Refused)),
        count(|outcome| matches!(outcome, Outcome::Unknown)),
    );
    println!("soak   linearizable reads: {}", seen.reads.len());
    for watched in &seen.watched {
        println!("soak   {}: {} events, {} gaps", watched.name, watched.events.len(), watched.gaps.len());
    }
    let acknowledged = seen.writes.iter().filter(|write| matches!(write.outcome, Outcome::Done(_)));
    let mut moments: Vec<u64> = acknowledged.map(|write| write.completed).collect();
    moments.sort_unstable();
    let pause = moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    println!("soak   longest pause between acknowledged writes: {:.1} s", pause as f64 / 1e9);
}
