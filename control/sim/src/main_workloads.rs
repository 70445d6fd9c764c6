//! `coracle-sim --world workloads`: seeds in threads, watched, since what is looked for includes what never returns.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use coracle_sim::workloads::{Options, Progress, Report, Violation, fuzz, run, script};

use super::{Arguments, PROGRESS_PERIOD, mutant_of};

/// A part whose turn takes so long does not return.
const TURN_MAX: Duration = Duration::from_secs(10);

/// How often threads are looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// What a thread says.
enum News {
    Began(usize, u64, Arc<Progress>),
    Ended(usize, Result<Report, Box<Violation>>),
    /// No seed is left for it.
    Done,
}

/// What all threads take from and tell to.
struct Shared {
    next: AtomicU64,
    stop: AtomicBool,
    end: u64,
    deadline: Option<Instant>,
    options: Options,
}

#[derive(Default)]
struct Total {
    runs: u64,
    admitted: u64,
    refused: u64,
    entries: u64,
    /// The class of each violation, how often, and its first seed.
    classes: BTreeMap<String, (u64, u64)>,
}

impl Total {
    fn tell(&self, elapsed: Duration) {
        println!(
            "{} seeds in {} s, {:.0} a second; {} writes admitted, {} refused, {} entries; {} violations",
            self.runs,
            elapsed.as_secs(),
            self.runs as f64 / elapsed.as_secs_f64(),
            self.admitted,
            self.refused,
            self.entries,
            self.violations()
        );
    }

    fn violations(&self) -> u64 {
        self.classes.values().map(|(count, _)| count).sum()
    }

    fn broken(&mut self, class: &str, seed: u64) {
        self.classes.entry(class.to_owned()).or_insert((0, seed)).0 += 1;
    }
}

pub fn main(arguments: &Arguments) -> ExitCode {
    let Ok(mutant) = mutant_of(arguments) else { return ExitCode::FAILURE };
    if let Some(path) = &arguments.input {
        let played = std::fs::read(path).map_err(|error| error.to_string());
        return ended(played.and_then(|bytes| fuzz::play_bytes(&bytes)));
    }
    if let Some(folder) = &arguments.corpus {
        let (first, end) = arguments.seeds;
        let write = |seed: u64| {
            let bytes = fuzz::as_bytes(&script(seed, arguments.calm));
            std::fs::write(folder.join(format!("seed-{seed}")), bytes)
        };
        return ended((first..end).try_for_each(write).map_err(|error| error.to_string()));
    }
    let started = Instant::now();
    let shared = Arc::new(Shared {
        next: AtomicU64::new(arguments.seeds.0),
        stop: AtomicBool::new(false),
        end: arguments.seeds.1,
        deadline: arguments.minutes.map(|minutes| started + Duration::from_secs(60 * minutes)),
        options: Options { mutant, calm: arguments.calm },
    });
    let (news, heard) = mpsc::channel();
    let mut threads = arguments.jobs.max(1);
    for number in 0..threads {
        spawn(number, &shared, &news);
    }
    let mut working = threads;
    let mut at: BTreeMap<usize, (u64, Arc<Progress>)> = BTreeMap::new();
    let mut total = Total::default();
    let mut told = Duration::ZERO;
    while working > 0 {
        match heard.recv_timeout(LOOK_PERIOD) {
            Ok(News::Began(thread, seed, progress)) => {
                at.insert(thread, (seed, progress));
            }
            Ok(News::Ended(thread, ended)) => {
                at.remove(&thread);
                took(&mut total, ended);
            }
            Ok(News::Done) => working -= 1,
            Err(_) => {}
        }
        let hung = at.iter().find(|(_, (_, progress))| progress.turn() > TURN_MAX).map(|(thread, _)| *thread);
        if let Some((seed, progress)) = hung.and_then(|thread| at.remove(&thread)) {
            println!("{}: seed {seed}", progress.words());
            total.runs += 1;
            total.broken("hang", seed);
            // That thread is lost: it cannot be ended.
            spawn(threads, &shared, &news);
            threads += 1;
        }
        if total.violations() > 0 && !arguments.keep_going {
            shared.stop.store(true, Ordering::Relaxed);
        }
        if started.elapsed() >= told + PROGRESS_PERIOD {
            told = started.elapsed();
            total.tell(told);
        }
    }
    for (class, (count, seed)) in &total.classes {
        println!("{count:>6} [{class}], first seed {seed}");
    }
    total.tell(started.elapsed());
    if total.classes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ended(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn took(total: &mut Total, ended: Result<Report, Box<Violation>>) {
    total.runs += 1;
    match ended {
        Ok(report) => {
            total.admitted += report.admitted;
            total.refused += report.refused;
            total.entries += report.entries;
        }
        Err(violation) => {
            // One of each kind is enough to look into.
            if !total.classes.contains_key(&violation.broken.class) {
                println!("{violation}");
            }
            total.broken(&violation.broken.class, violation.seed);
        }
    }
}

fn spawn(number: usize, shared: &Arc<Shared>, news: &mpsc::Sender<News>) {
    let (shared, news) = (shared.clone(), news.clone());
    std::thread::spawn(move || {
        let late = || shared.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        while !shared.stop.load(Ordering::Relaxed) && !late() {
            let seed = shared.next.fetch_add(1, Ordering::Relaxed);
            if seed >= shared.end {
                break;
            }
            let progress = Arc::new(Progress::default());
            // Who listens is gone only when the process ends.
            let _ = news.send(News::Began(number, seed, progress.clone()));
            let ended = run(seed, &shared.options, &progress).map_err(Box::new);
            let _ = news.send(News::Ended(number, ended));
        }
        let _ = news.send(News::Done);
    });
}
