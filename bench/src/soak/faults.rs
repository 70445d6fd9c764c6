//! What is done to the members, and when: drawn from a seed, one or two faults at a time, until the time is up.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::{Rng, RngExt, rngs::StdRng};
use tokio::time::sleep;

use super::{
    members::{MEMBERS, Members},
    network::Direction,
};

/// Between two looks at the processes.
const TICK: Duration = Duration::from_millis(100);
/// Faults at a time.
const AT_A_TIME: usize = 2;

/// One thing that goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9; the member is started again at the end.
    Kill(usize),
    /// kill -9 of all at once.
    KillAll,
    /// SIGSTOP, for longer than an election takes.
    Pause(usize),
    /// SIGSTOP, for so long that whoever waits for this member gives up: its sockets stay open meanwhile.
    Freeze(usize),
    /// A member loses the packets from or to all others, or both.
    Isolate(usize, Direction),
    /// A member loses the packets from or to one other.
    Cut(usize, usize, Direction),
    /// The small disk is full.
    FullDisk,
}

struct UnderWay {
    fault: Fault,
    until: Instant,
}

/// Runs the schedule for `time`, and ends every fault. Answers what was done, in words.
pub async fn run(
    members: &mut Members,
    rng: &mut StdRng,
    time: Duration,
    full_disk: bool,
) -> Result<Vec<String>> {
    let begun = Instant::now();
    let mut log = Vec::new();
    let mut under_way: Vec<UnderWay> = Vec::new();
    let mut next = begun + Duration::from_secs(2);
    while begun.elapsed() < time {
        let now = Instant::now();
        for ended in under_way.extract_if(.., |one| one.until <= now) {
            end(members, ended.fault)?;
        }
        if now >= next && under_way.len() < AT_A_TIME {
            let fault = draw(rng, full_disk);
            if !under_way.iter().any(|other| collide(other.fault, fault)) {
                let lasts = Duration::from_millis(rng.random_range(lasts_ms(fault)));
                log.push(format!(
                    "{:>7.1} s  {fault:?} for {:.1} s",
                    begun.elapsed().as_secs_f64(),
                    lasts.as_secs_f64()
                ));
                begin(members, fault, lasts)?;
                under_way.push(UnderWay { fault, until: now + lasts });
            }
            next = now + Duration::from_millis(rng.random_range(300..4000));
        }
        members.tend()?;
        sleep(TICK).await;
    }
    for ended in under_way {
        end(members, ended.fault)?;
    }
    Ok(log)
}

fn draw(rng: &mut impl Rng, full_disk: bool) -> Fault {
    let member = rng.random_range(0..MEMBERS);
    let other = (member + rng.random_range(1..MEMBERS)) % MEMBERS;
    let direction = [Direction::In, Direction::Out, Direction::Both][rng.random_range(0..3)];
    match rng.random_range(0..100) {
        0..30 => Fault::Kill(member),
        30..34 => Fault::KillAll,
        34..46 => Fault::Pause(member),
        46..54 => Fault::Freeze(member),
        54..74 => Fault::Isolate(member, direction),
        74..90 => Fault::Cut(member, other, direction),
        _ if full_disk => Fault::FullDisk,
        _ => Fault::Kill(member),
    }
}

/// An election takes up to 0.75 s, and a second one may be needed. Who freezes is away for longer than any time limit
/// of the others: nodes' silence, watches without a leader, a snapshot that stands still.
fn lasts_ms(fault: Fault) -> std::ops::Range<u64> {
    match fault {
        Fault::Kill(_) | Fault::KillAll => 200..3_000,
        Fault::Pause(_) => 1_500..5_000,
        Fault::Freeze(_) => 15_000..30_000,
        Fault::Isolate(..) | Fault::Cut(..) => 1_000..8_000,
        Fault::FullDisk => 3_000..10_000,
    }
}

/// Whether the end of one would undo the other.
fn collide(one: Fault, other: Fault) -> bool {
    let touched = |fault| match fault {
        Fault::Kill(member) | Fault::Pause(member) | Fault::Freeze(member) => (Some(member), None),
        Fault::Isolate(member, _) | Fault::Cut(member, ..) => (None, Some(member)),
        Fault::KillAll | Fault::FullDisk => (None, None),
    };
    let ((process, network), (other_process, other_network)) = (touched(one), touched(other));
    let same = |one: Option<usize>, other: Option<usize>| one.is_some() && one == other;
    let all = |fault, process: Option<usize>| fault == Fault::KillAll && process.is_some();
    one == other
        || same(process, other_process)
        || same(network, other_network)
        || all(one, other_process)
        || all(other, process)
}

fn begin(members: &mut Members, fault: Fault, lasts: Duration) -> Result<()> {
    match fault {
        Fault::Kill(member) => members.kill(member, lasts),
        Fault::KillAll => (0..MEMBERS).for_each(|member| members.kill(member, lasts)),
        Fault::Pause(member) | Fault::Freeze(member) => members.pause(member),
        Fault::Isolate(member, direction) => members.network().cut(member, None, direction)?,
        Fault::Cut(member, other, direction) => members.network().cut(member, Some(other), direction)?,
        Fault::FullDisk => members.fill()?,
    }
    Ok(())
}

fn end(members: &mut Members, fault: Fault) -> Result<()> {
    match fault {
        // They come back by themselves.
        Fault::Kill(_) | Fault::KillAll => {}
        Fault::Pause(member) | Fault::Freeze(member) => members.go_on(member),
        Fault::Isolate(member, _) | Fault::Cut(member, ..) => members.network().heal(member)?,
        Fault::FullDisk => members.empty(),
    }
    Ok(())
}
