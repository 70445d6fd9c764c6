//! What a store of compiled code can do to who runs components, whatever it does: have them compiled anew, or tell that they
//! cannot be kept. Nothing else of the host is another than with the store on its disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::artifact::CodeStore;
use crate::artifact::code_store::{CodeKey, Desk, Kept, Pins, Voucher};
use crate::{Exit, PrepareError};

/// What the store does that it should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It gives other code, which was vouched for.
    Mixes,
    /// It gives code with a bit changed.
    Changes,
    /// It gives half of the code.
    Cuts,
    /// It gives a voucher by which the component takes another amount of memory.
    Lies,
    /// It has lost what vouches for the code.
    Forgets,
    /// It fails to give what it has.
    Fails,
    /// It never answers whether it has something.
    Hangs,
    /// It has no room.
    IsFull,
    /// It fails to keep what it is given.
    Refuses,
}

/// A store in memory, which does as it is told.
struct Memory {
    dir: TempDir,
    kept: Mutex<HashMap<String, (Vec<u8>, Voucher)>>,
    pins: Mutex<HashMap<String, Arc<Pins>>>,
    fault: Mutex<Fault>,
    /// Faults that are mended by what is put, or that stay.
    is_lasting: bool,
    bringing: AtomicUsize,
}

/// Counts as long as a store is asked.
struct Bringing<'a>(&'a AtomicUsize);

impl Drop for Bringing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Memory {
    fn new(is_lasting: bool) -> Arc<Memory> {
        Arc::new(Memory {
            dir: tempfile::tempdir().expect("a directory"),
            kept: Mutex::default(),
            pins: Mutex::default(),
            fault: Mutex::new(Fault::None),
            is_lasting,
            bringing: AtomicUsize::new(0),
        })
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    fn fault(&self) -> Fault {
        *self.fault.lock()
    }

    fn refused() -> io::Error {
        io::Error::other("the store is out of order")
    }

    fn all_pins(&self) -> Vec<Arc<Pins>> {
        self.pins.lock().values().cloned().collect()
    }
}

#[async_trait]
impl CodeStore for Memory {
    async fn bring(&self, key: &CodeKey, _desk: &Desk) -> bool {
        self.bringing.fetch_add(1, Ordering::Relaxed);
        let _bringing = Bringing(&self.bringing);
        if self.fault() == Fault::Hangs {
            std::future::pending::<()>().await;
        }
        self.fault() != Fault::Fails && self.kept.lock().contains_key(&key.to_string())
    }

    fn size(&self, key: &CodeKey) -> Option<u64> {
        self.kept.lock().get(&key.to_string()).map(|(code, _)| code.len() as u64)
    }

    fn get(&self, key: &CodeKey) -> io::Result<Option<Kept>> {
        let (name, fault) = (key.to_string(), self.fault());
        let kept = self.kept.lock();
        let Some((code, voucher)) = kept.get(&name) else { return Ok(None) };
        let other = kept.iter().find(|(other, _)| **other != name).map(|(_, kept)| kept);
        let mut code = code.clone();
        let mut said = voucher.as_bytes().to_vec();
        match fault {
            Fault::Mixes => {
                let (other, voucher) = other.expect("another");
                (code, said) = (other.clone(), voucher.as_bytes().to_vec());
            }
            Fault::Changes => {
                let middle = code.len() / 2;
                code[middle] ^= 1;
            }
            Fault::Cuts => code.truncate(code.len() / 2),
            Fault::Lies => {
                let at = said.iter().rposition(|byte| *byte == b' ').expect("what it takes");
                said[at + 1] ^= 1;
            }
            Fault::Forgets => said.clear(),
            Fault::Fails => return Err(Memory::refused()),
            _ => {}
        }
        let path = self.dir.path().join(format!("{:x}", rand::random::<u64>()));
        fs::write(&path, code)?;
        Ok(Some(Kept { path, voucher: Voucher::of(said) }))
    }

    fn make_room(&self, _bytes: u64) -> Result<(), PrepareError> {
        if self.fault() == Fault::IsFull { Err(PrepareError::NoRoom) } else { Ok(()) }
    }

    fn put(&self, key: &CodeKey, mut code: File, voucher: &Voucher) -> Result<(), PrepareError> {
        let source = Arc::new(Memory::refused());
        if self.fault() == Fault::Refuses {
            return Err(PrepareError::Io { what: "cannot keep", path: "memory".into(), source });
        }
        let mut bytes = Vec::new();
        code.rewind().and_then(|()| code.read_to_end(&mut bytes)).expect("a file");
        self.kept.lock().insert(key.to_string(), (bytes, voucher.clone()));
        if !self.is_lasting {
            self.set(Fault::None);
        }
        Ok(())
    }

    fn remove(&self, key: &CodeKey) {
        self.kept.lock().remove(&key.to_string());
    }

    fn pins(&self, key: &CodeKey) -> Arc<Pins> {
        Arc::clone(self.pins.lock().entry(key.to_string()).or_default())
    }
}

/// Another host of the bench's machine, with the same key, over this store.
fn over(bench: &Bench, store: &Arc<Memory>) -> Host {
    let cache_dir = bench.dir.path().join("cache");
    let config = HostConfig { cache_dir, guest_threads: 1, max_instances: INSTANCES, compiler: None };
    let store: Arc<dyn CodeStore> = Arc::<Memory>::clone(store);
    Host::over(config, |_| store).expect("a host")
}

/// Two programs that come to different ends.
fn programs(bench: &Bench) -> [(PathBuf, Exit); 2] {
    [("succeeds", 0), ("fails", 1)].map(|(name, code)| {
        let path = bench.write(&format!("{name}.wasm"), &module(&format!("(call $exit (i32.const {code}))")));
        (path, Exit::Completed { code })
    })
}

async fn run(bench: &Bench, host: &Host, program: &Path) -> Result<Exit, PrepareError> {
    let artifact = host.prepare(program, "default").await?;
    let pod = host.pod(PodLimits::default(), namespace());
    let container = pod.start(bench.spec(artifact)).expect("started");
    Ok(container.wait().await)
}

#[tokio::test]
async fn code_of_another_store_runs_and_what_is_not_what_it_was_is_compiled_anew() {
    let bench = Bench::new(1);
    let store = Memory::new(false);
    let programs = programs(&bench);
    let first = over(&bench, &store);
    for (program, exit) in &programs {
        assert_eq!(&run(&bench, &first, program).await.expect("runs"), exit);
    }
    assert_eq!(first.compiles().succeeded, 2);
    let faults = [Fault::Mixes, Fault::Changes, Fault::Cuts, Fault::Lies, Fault::Forgets, Fault::Fails];
    for (fault, compiled) in [(Fault::None, 0)].into_iter().chain(faults.map(|fault| (fault, 1))) {
        store.set(fault);
        let next = over(&bench, &store);
        let (program, exit) = &programs[0];
        assert_eq!(&run(&bench, &next, program).await.expect("runs"), exit, "{fault:?}");
        assert_eq!(next.compiles().succeeded, compiled, "{fault:?}");
        // What is good again is used again.
        let next = over(&bench, &store);
        assert_eq!(&run(&bench, &next, program).await.expect("runs"), exit, "{fault:?}");
        assert_eq!(next.compiles().succeeded, 0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_store_that_never_gives_what_it_was_given_has_nothing_run() {
    let bench = Bench::new(1);
    let store = Memory::new(true);
    let [(program, _), (other, _)] = programs(&bench);
    over(&bench, &store).prepare(&other, "default").await.expect("prepared");
    for fault in [Fault::Mixes, Fault::Changes, Fault::Lies, Fault::Forgets, Fault::Fails] {
        store.set(fault);
        let host = over(&bench, &store);
        for _ in 0..2 {
            let refused = run(&bench, &host, &program).await.expect_err("nothing to be run");
            assert!(matches!(refused, PrepareError::GivenUp { .. }), "{fault:?}: {refused}");
            assert!(refused.to_string().contains("could not be loaded"), "{fault:?}: {refused}");
        }
        assert_eq!(host.compiles().succeeded, 1, "{fault:?}: it is not tried again at once");
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_told_and_tried_again_where_only_room_is_missing() {
    let bench = Bench::new(1);
    let store = Memory::new(true);
    let [(program, exit), (other, _)] = programs(&bench);
    let host = over(&bench, &store);
    store.set(Fault::IsFull);
    let refused = run(&bench, &host, &program).await.expect_err("full");
    assert!(matches!(refused, PrepareError::NoRoom) && host.compiles().succeeded == 0, "{refused}");
    store.set(Fault::None);
    assert_eq!(run(&bench, &host, &program).await.expect("there is room"), exit);
    store.set(Fault::Refuses);
    let refused = run(&bench, &host, &other).await.expect_err("not kept");
    assert!(refused.to_string().contains("out of order"), "{refused}");
    store.set(Fault::None);
    let refused = run(&bench, &host, &other).await.expect_err("not tried again at once");
    assert!(refused.to_string().contains("out of order"), "{refused}");
    assert_eq!(host.compiles().succeeded, 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_not_waited_for() {
    let bench = Bench::new(1);
    let store = Memory::new(true);
    let [(program, _), (other, _)] = programs(&bench);
    let host = over(&bench, &store);
    host.prepare(&other, "default").await.expect("prepared");
    store.set(Fault::Hangs);
    let ask = || {
        let (host, program) = (host.clone(), program.clone());
        tokio::spawn(async move { host.prepare(&program, "default").await.map(drop) })
    };
    let waiting = [ask(), ask()];
    while host.waiting_for_compiler() < 2 || store.bringing.load(Ordering::Relaxed) < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.bringing.load(Ordering::Relaxed), 1, "it is asked once for all that wait");
    for task in waiting {
        task.abort();
        assert!(task.await.expect_err("given up").is_cancelled());
    }
    assert_eq!(store.bringing.load(Ordering::Relaxed), 0, "nobody waits for it");
    // Nothing is asked of it for what is on the shelf.
    host.prepare(&other, "default").await.expect("ready");
    // By the paused clock, which is where somebody's next timer ends whenever nobody has anything to do.
    let begun = tokio::time::Instant::now();
    host.prepare(&program, "default").await.expect("compiled");
    assert_eq!(host.compiles().succeeded, 2);
    assert!(begun.elapsed() < Duration::from_secs(3_600), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_store_is_told_what_is_used_and_what_it_let_go_goes_from_memory() {
    let bench = Bench::new(1);
    let store = Memory::new(true);
    let [(program, _), (other, _)] = programs(&bench);
    let host = over(&bench, &store);
    let in_memory = || host.held().into_iter().find(|(what, _)| *what == "artifacts in memory");
    let used = [
        host.prepare(&program, "a").await.expect("prepared"),
        host.prepare(&program, "b").await.expect("prepared"),
    ];
    let pins = store.all_pins();
    assert!(pins.len() == 1 && pins[0].is_pinned() && pins[0].last_use().is_none());
    let [first, second] = used;
    drop(first);
    assert!(pins[0].is_pinned(), "another namespace uses it");
    drop(second);
    let last_use = pins[0].last_use().expect("nobody uses it");
    let again = host.prepare(&program, "a").await.expect("ready");
    drop(again);
    assert!(pins[0].last_use() > Some(last_use));
    store.kept.lock().clear();
    host.prepare(&other, "a").await.expect("prepared");
    assert_eq!(in_memory(), Some(("artifacts in memory", 1)));
}
