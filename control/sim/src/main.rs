//! `coracle-sim`: runs seeds and prints what it finds.

#[path = "main_workloads.rs"]
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use coracle_sim::{Counts, Options, run};

/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_secs(10);

/// What is simulated.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum World {
    /// The replicated store under faults of machines, disks and networks.
    Raft,
    /// API, controllers, scheduler and nodes under whatever clients admit.
    Workloads,
}

/// Runs a simulated cluster under faults, once for each seed, and checks that it keeps its promises.
#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value = "raft")]
    world: World,
    /// The seeds: one, a range without its end as in 0..10000, or all from one on as in 5000..
    #[arg(long, default_value = "0..1000", value_parser = seeds)]
    seeds: (u64, u64),
    /// No new seed is begun after so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// A fault that is built in, which must be found.
    #[arg(long)]
    mutant: Option<String>,
    /// The initial voters; by the seed where it is not given.
    #[arg(long)]
    voters: Option<u64>,
    /// Without faults.
    #[arg(long)]
    calm: bool,
    /// So many runs at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Workloads: plays an input of the fuzz target `admitted_workloads` in the place of seeds.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Workloads: writes what the seeds ask for as inputs of that target into this folder, and plays none.
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Goes on after a violation.
    #[arg(long)]
    keep_going: bool,
}

/// The first seed, and the one behind the last.
fn seeds(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?} is no seed: {error}"));
    match text.split_once("..") {
        Some((first, "")) => Ok((number(first)?, u64::MAX)),
        Some((first, end)) => Ok((number(first)?, number(end)?)),
        None => number(text).map(|seed| (seed, seed.saturating_add(1))),
    }
}

/// What all jobs have done together.
#[derive(Default)]
struct Total {
    runs: u64,
    violations: u64,
    counts: Counts,
    /// The longest time that healing took, in virtual microseconds, and its seed.
    healing: (u64, u64),
    told: Duration,
}

impl Total {
    fn tell(&mut self, elapsed: Duration) {
        let rate = self.runs as f64 / elapsed.as_secs_f64();
        println!(
            "{} seeds in {} s, {rate:.0} a second, {} violations",
            self.runs,
            elapsed.as_secs(),
            self.violations
        );
        self.told = elapsed;
    }
}

/// The fault of this world that is named, if one is.
fn mutant_of<M: std::str::FromStr<Err = String>>(arguments: &Arguments) -> Result<Option<M>, ()> {
    let parsed = arguments.mutant.as_deref().map(str::parse).transpose();
    parsed.map_err(|error| eprintln!("{error}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.world == World::Workloads {
        return workloads::main(&arguments);
    }
    let Ok(mutant) = mutant_of(&arguments) else { return ExitCode::FAILURE };
    let options = Options { mutant, voters: arguments.voters, calm: arguments.calm };
    if options.mutant.is_some() {
        // What a mutant does may make the product panic; that is a find like any other.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let started = Instant::now();
    let deadline = arguments.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let next = AtomicU64::new(arguments.seeds.0);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) && deadline.is_none_or(|deadline| started.elapsed() < deadline) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= arguments.seeds.1 {
                return;
            }
            let ended = run(seed, &options);
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.runs += 1;
            match ended {
                Ok(report) => {
                    total.counts.add(&report.counts);
                    total.healing = total.healing.max((report.healed_after, seed));
                }
                Err(violation) => {
                    total.violations += 1;
                    println!("{violation}");
                    stop.store(!arguments.keep_going, Ordering::Relaxed);
                }
            }
            let elapsed = started.elapsed();
            if elapsed >= total.told + PROGRESS_PERIOD {
                total.tell(elapsed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..arguments.jobs {
            scope.spawn(work);
        }
        work();
    });
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{:#?}", total.counts);
    let (healing, seed) = total.healing;
    println!("longest healing {:.1} virtual seconds, seed {seed}", healing as f64 / 1e6);
    total.tell(started.elapsed());
    if total.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
