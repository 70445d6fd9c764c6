//! The workloads of a cluster: what clients admit to it, and what its parts make of that.
//!
//! In one thread and in virtual time: the real API ([`door`]) over the real store ([`storage`]), the real controllers and
//! scheduler, what a leader decides of nodes and plans (`coracle_leader`), and nodes with the real core over a model of a
//! sandbox ([`node`]). What is simulated is what joins them in `coracle_server` and `coracle_agent` ([`world`], [`link`],
//! [`records`]); of raft only who leads and when another does ([`plane`]), and how nodes find that one ([`seek`]).
//!
//! A seed is a [`script`]: requests of raw bytes with random manifests ([`manifests`], [`edits`], [`values`]: nulls,
//! numbers beyond their type, depth, circles of owners), deletes, machines that die and return, a leader that freezes
//! with its sockets open (of one member or of three), machines that say nothing all together.
//!
//! What is checked:
//! - **what the API admits, every reader reads** ([`readers`]): every object that is ever stored is read by a typed
//!   client, the controllers, the scheduler, a node and the API; nothing panics;
//! - **a cluster that nobody touches comes to rest**: a minute after the last operation nothing is written any more in
//!   the next minute, and the whole run writes no more than what can be explained; no replica set has more pods than
//!   it wants;
//! - **who was only away moves nothing**: no node that is well is told to be not Ready, no pod of it is evicted or loses
//!   its readiness, whoever of the control plane is away; nor any pod where all machines are silent together; and a
//!   machine that really dies is still told from these, its pods are evicted within three seconds;
//! - what is deleted goes, where every machine is there and no finalizer of a client holds it.
//!
//! A violation is shrunk: steps and edits without which it stays are taken out.

pub mod door;
pub mod fuzz;
pub mod storage;
pub mod world;

mod clock;
mod edits;
mod link;
mod manifests;
mod node;
mod plane;
mod readers;
mod records;
mod script;
mod seek;
mod shrink;
mod values;

use std::{
    cell::RefCell,
    fmt,
    str::FromStr,
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub use script::Script;
pub use world::Broken;

use crate::{
    rng::Rng,
    workloads::world::{Then, World},
};

/// A fault that is built in, and must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Admission lets a null through in the templates of pods.
    NullAdmitted,
    /// Controllers forget every five seconds what they have tried in vain.
    ForgottenBackoff,
    /// A node tells the status of a pod again and again, with another time in it.
    ReportedAgain,
    /// The silence of nodes counts also while the leader was away.
    SilenceCounts,
    /// Nodes that fall silent together are told to be down one after the other.
    ToldApart,
}

impl Mutant {
    pub const ALL: [Mutant; 5] = [
        Mutant::NullAdmitted,
        Mutant::ForgottenBackoff,
        Mutant::ReportedAgain,
        Mutant::SilenceCounts,
        Mutant::ToldApart,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Mutant::NullAdmitted => "null-admitted",
            Mutant::ForgottenBackoff => "forgotten-backoff",
            Mutant::ReportedAgain => "reported-again",
            Mutant::SilenceCounts => "silence-counts",
            Mutant::ToldApart => "told-apart",
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Mutant, String> {
        Mutant::ALL.into_iter().find(|mutant| mutant.name() == name).ok_or_else(|| {
            let names: Vec<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            format!("no mutant of workloads is called {name}; there are: {}", names.join(", "))
        })
    }
}

/// What a run without a violation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub seed: u64,
    /// Over everything that was written, in order: equal for equal runs.
    pub trace_hash: u64,
    pub admitted: u64,
    pub refused: u64,
    pub entries: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    pub broken: Broken,
    /// The requests and their answers, in order.
    pub told: Vec<String>,
    pub entries: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.told {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {} of workloads: [{}] {}", self.seed, self.broken.class, self.broken.what)
    }
}

impl std::error::Error for Violation {}

/// Where a run is, for who watches it from another thread: what never returns tells nothing by itself.
pub struct Progress(Mutex<Place>);

struct Place {
    /// What has its turn, and since when.
    part: &'static str,
    since: Instant,
    told: Vec<String>,
}

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new(Place { part: "nothing", since: Instant::now(), told: vec![] }))
    }
}

impl Progress {
    fn begin(&self, seed: u64) {
        *self.0.lock() = Place { part: "the API", since: Instant::now(), told: vec![format!("seed {seed}")] };
    }

    fn enter(&self, part: &'static str) {
        let mut place = self.0.lock();
        (place.part, place.since) = (part, Instant::now());
    }

    fn tell(&self, line: &str) {
        self.enter("the API");
        self.0.lock().told.push(line.to_owned());
    }

    /// How long the present turn takes already.
    pub fn turn(&self) -> Duration {
        self.0.lock().since.elapsed()
    }

    /// What has its turn, and the requests so far.
    pub fn words(&self) -> String {
        let place = self.0.lock();
        format!("{}\n{} does not return", place.told.join("\n"), place.part)
    }
}

/// What the caller decides; everything else follows from the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub mutant: Option<Mutant>,
    /// No circles of owners, no machines that die and no leader that is away.
    pub calm: bool,
}

/// Has a seed draw its script and what else is decided from sources of their own.
const SCRIPT: u64 = 0x776f_726b_6c6f_6164;
const TEARDOWN: u64 = 0x7465_6172_646f_776e;

/// What a seed asks for.
pub fn script(seed: u64, calm: bool) -> Script {
    Script::draw(&mut Rng::new(seed ^ SCRIPT), calm)
}

/// Runs one seed to its end, or to the first broken promise, which is shrunk.
pub fn run(seed: u64, options: &Options, progress: &Arc<Progress>) -> Result<Report, Violation> {
    let mutant = options.mutant;
    let script = script(seed, options.calm);
    let mut chance = Rng::new(seed ^ TEARDOWN);
    let then = Then { teardown: chance.chance(350), absence: chance.chance(300) && !options.calm };
    match play(seed, &script, mutant, then, progress) {
        Ok(report) => Ok(report),
        Err(violation) => Err(shrink::shrink(script, violation, |script| {
            match play(seed, script, mutant, then, progress) {
                Ok(report) => (report.entries, None),
                Err(violation) => (violation.entries, Some(violation)),
            }
        })),
    }
}

/// Plays the scenario of a leader that freezes, beside machines that are silent together and one that dies, with so many
/// members. Answers how long the pods of the one that died were missing, in virtual milliseconds.
pub fn frozen(seed: u64, members: usize, mutant: Option<Mutant>) -> Result<u64, Broken> {
    watch_panics();
    let mut world = World::of(members, &mut Rng::new(seed), mutant, Arc::new(Progress::default()));
    let played = world.play_frozen();
    WATCHED.set(false);
    played
}

/// Plays one script.
fn play(
    seed: u64,
    script: &Script,
    mutant: Option<Mutant>,
    then: Then,
    progress: &Arc<Progress>,
) -> Result<Report, Violation> {
    watch_panics();
    progress.begin(seed);
    let mut world = World::new(&mut Rng::new(seed), mutant, progress.clone());
    let played = world.play(script, then);
    WATCHED.set(false);
    match played {
        Ok(()) => Ok(Report {
            seed,
            trace_hash: world.storage.hash(),
            admitted: world.admitted,
            refused: world.refused,
            entries: world.storage.entries(),
        }),
        Err(broken) => Err(Violation { seed, broken, told: world.told, entries: world.storage.entries() }),
    }
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static WATCHED: RefCell<bool> = const { RefCell::new(false) };
}

/// Where this thread panicked last.
fn last_panic() -> String {
    LAST_PANIC.with_borrow(Clone::clone)
}

/// Panics of threads that run worlds are remembered instead of printed: they are told of with the seed.
fn watch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHED.with_borrow(|watched| *watched) {
                let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
                LAST_PANIC.set(place.unwrap_or_default());
            } else {
                before(info);
            }
        }));
    });
    WATCHED.set(true);
}
