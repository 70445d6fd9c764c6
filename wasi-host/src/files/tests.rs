//! What is open is closed elsewhere, and listings come in parts.

mod guests;
mod usage;

use std::fs::File;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::mpsc;

use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};

use super::listing::Listing;
use super::*;
use crate::ledger::{Ledger, NodeBounds};

fn ledger() -> Ledger {
    Ledger::new(NodeBounds { memory: None, heap: 1 << 20, files: 100, files_guaranteed: 1 })
}

/// A directory that a guest is to find.
fn root(path: &std::path::Path) -> Dir {
    let dir = File::open(path).expect("there");
    Dir::new(dir, FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE, true)
}

fn account(pools: &Pools) -> Arc<Account> {
    account_of(pools, &ledger())
}

fn account_of(pools: &Pools, ledger: &Ledger) -> Arc<Account> {
    let holder = Holder { namespace: "default".into(), pod: Some([10, 128, 0, 7].into()) };
    let reserve = Arc::new(Reserve::with(|| None, ledger.clone()));
    let ledger = ledger.pod(&holder.namespace, None);
    Account::new(pools.clone(), holder, ledger, reserve)
}

#[test]
fn what_takes_long_to_close_is_closed_elsewhere() {
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<std::thread::ThreadId>);
    impl Drop for Slow {
        fn drop(&mut self) {
            // Where it is not closed elsewhere, nobody tells it to go on.
            let _ = self.0.recv_timeout(std::time::Duration::from_secs(10));
            let _ = self.1.send(std::thread::current().id());
        }
    }
    let pools = Pools::new();
    let (close, wait) = mpsc::channel();
    let (told, closed) = mpsc::channel();
    drop(Opened::new(Slow(wait, told), &account(&pools), None));
    assert!(closed.try_recv().is_err(), "it goes on elsewhere");
    close.send(()).expect("it waits for this");
    assert_ne!(closed.recv().expect("closed"), std::thread::current().id());
}

#[tokio::test]
async fn what_would_take_more_of_a_full_disk_is_refused_and_what_frees_some_is_not() {
    use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("old"), "some").expect("written");
    let full = || Some(reserve::Space { bytes: 1 << 40, bytes_free: 0, inodes: 0, inodes_free: 0 });
    let on_full = Arc::try_unwrap(account(&Pools::new())).unwrap_or_else(|_| unreachable!("ours"));
    let account = Arc::new(Account { reserve: Arc::new(Reserve::with(full, ledger())), ..on_full });
    let mut files = Files::new(account);
    files.mount(root(dir.path()), "/".to_owned(), false, None);
    let root = || Arc::clone(&files.dirs[0].0);
    let open = |name: &str, how: OpenFlags| {
        let flags = (how, DescriptorFlags::READ | DescriptorFlags::WRITE);
        files.open_at(root(), PathFlags::empty(), name.to_owned(), flags)
    };
    let code = |failed: FsError| failed.downcast().expect("a code");
    let full = ErrorCode::InsufficientSpace;
    assert_eq!(open("new", OpenFlags::CREATE).await.map(drop).map_err(code), Err(full));
    assert_eq!(files.create_directory_at(root(), "new".into()).await.map_err(code), Err(full));
    let old = open("old", OpenFlags::empty()).await.map_err(code).expect("open");
    assert_eq!(files.write(Arc::clone(&old), vec![0; 9], 0).await.map_err(code), Err(full));
    let written = transfer::write(&old, vec![0; 9].into(), transfer::Place::End);
    assert_eq!(written.expect_err("full").kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(files.read(old, 9, 0).await.map_err(code).expect("read").0, b"some");
    files.unlink_file_at(root(), "old".into()).await.map_err(code).expect("removed");
}

#[tokio::test]
async fn a_listing_holds_a_part_of_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    for index in 0..1_000 {
        File::create(dir.path().join(index.to_string())).expect("made");
    }
    let pools = Pools::new();
    let mut files = Files::new(account(&pools));
    files.mount(root(dir.path()), "/".to_owned(), true, None);
    let mut listing =
        Listing::open(Arc::clone(&files.account), Arc::clone(&files.dirs[0].0)).await.expect("open");
    let mut found = std::collections::BTreeSet::new();
    while let Some(entry) = poll_fn(|cx| listing.poll_next(cx)).await {
        assert!(listing.ahead() < 64);
        assert!(found.insert(entry.expect("an entry").name));
    }
    assert_eq!(found.len(), 1_000);
}

/// A folder of so many files that a listing of it is not read at once, in a pod that may have some open files.
fn folder(pools: &Pools) -> (tempfile::TempDir, Files) {
    let dir = tempfile::tempdir().expect("a directory");
    for index in 0..100 {
        File::create(dir.path().join(index.to_string())).expect("made");
    }
    let mut files = Files::new(account(pools));
    files.mount(root(dir.path()), "/".to_owned(), false, None);
    (dir, files)
}

async fn open(files: &Files, path: &str) -> Result<OpenDescriptor, ErrorCode> {
    let flags = (OpenFlags::empty(), DescriptorFlags::READ | DescriptorFlags::WRITE);
    let opened =
        files.open_at(Arc::clone(&files.dirs[0].0), PathFlags::empty(), path.to_owned(), flags).await;
    opened.map_err(|error| error.downcast().expect("an error of the guest's"))
}

#[tokio::test]
async fn what_a_guest_has_open_is_counted_until_it_is_closed() {
    let pools = Pools::new();
    let (_dir, files) = folder(&pools);
    let held = || files.account.ledger.held(Holding::Files);
    let mut all = Vec::new();
    let refused = loop {
        match open(&files, "1").await {
            Ok(file) => all.push(file),
            Err(refused) => break refused,
        }
        assert!(all.len() < 100, "more than there are for all pods");
    };
    assert_eq!((refused, held()), (ErrorCode::InsufficientMemory, all.len() as u64));
    let list = || Listing::open(Arc::clone(&files.account), Arc::clone(&files.dirs[0].0));
    assert!(list().await.is_err(), "a listing is an open directory");
    let most = held();
    all.pop();
    until_held(&files, most - 1).await;
    let listing = list().await.expect("there is room for one");
    assert_eq!(open(&files, "1").await.err(), Some(ErrorCode::InsufficientMemory));
    drop((listing, all));
    until_held(&files, 0).await;
}

async fn until_held(files: &Files, count: u64) {
    let held = || files.account.ledger.held(Holding::Files);
    let closed = async {
        while held() != count {
            tokio::task::yield_now().await;
        }
    };
    let closed = tokio::time::timeout(std::time::Duration::from_secs(60), closed).await;
    assert!(closed.is_ok(), "{} are held, and not {count}", held());
}

#[tokio::test]
async fn bytes_on_their_way_are_counted_and_few_where_memory_is_scarce() {
    let pools = Pools::new();
    let (_dir, files) = folder(&pools);
    let file = open(&files, "1").await.expect("open");
    let ledger = &files.account.ledger;
    let (bytes, charge) = files.account.hold_some(64 << 10);
    assert_eq!((bytes, ledger.held(Holding::Heap)), (64 << 10, 64 << 10));
    drop(charge);
    let written = files.account.take_some(&[0; 2 * TRANSFER_BYTES_MAX]);
    assert_eq!((written.len(), ledger.held(Holding::Heap)), (TRANSFER_BYTES_MAX, TRANSFER_BYTES_MAX as u64));
    drop(written);
    assert_eq!(ledger.held(Holding::Heap), 0);
    let mut others = Charge::nothing(ledger, Holding::Heap);
    while others.grow(1 << 10).is_ok() {}
    let (bytes, charge) = files.account.hold_some(64 << 10);
    assert_eq!((bytes, charge.is_none()), (BYTES_SQUEEZED, true));
    others.set_held(1 << 30);
    let written = files.account.take_some(&[0; 2 * TRANSFER_BYTES_MAX]);
    assert_eq!(
        (written.len(), ledger.held(Holding::Heap)),
        (BYTES_SQUEEZED, others.amount() + BYTES_SQUEEZED as u64)
    );
    drop(written);
    let refused = files.write(Arc::clone(&file), vec![0; 64 << 10], 0).await.expect_err("no room");
    assert_eq!(refused.downcast().expect("an error of the guest's"), ErrorCode::InsufficientMemory);
    drop(others);
    assert_eq!(files.write(file, vec![0; 64 << 10], 0).await.expect("room"), 64 << 10);
    assert_eq!(fitting("x".repeat(PATH_BYTES_MAX)).map(|path| path.len()), Ok(PATH_BYTES_MAX));
    assert_eq!(fitting("x".repeat(PATH_BYTES_MAX + 1)), Err(ErrorCode::NameTooLong));
}

#[tokio::test]
async fn more_calls_than_may_wait_are_refused_and_it_is_told() {
    let (pools, ledger) = (Pools::new(), ledger());
    let account = account_of(&pools, &ledger);
    let (go_on, stuck) = mpsc::channel::<()>();
    let stuck = Arc::new(parking_lot::Mutex::new(stuck));
    let mut calls = Vec::new();
    loop {
        let stuck = Arc::clone(&stuck);
        let call = account.call(move || stuck.lock().recv().is_ok());
        if call.is_refused() {
            break;
        }
        calls.push(call);
    }
    assert!(calls.len() > WAITING_MAX, "{}", calls.len());
    assert_eq!(account.call(|| ()).await, Err(NotDone::Full));
    assert_eq!(
        ledger.refusals().next().await[0].to_string(),
        "file calls that wait: the pod holds 4096 of the 4096 that it may; wait for some of them before more are made"
    );
    drop(go_on);
}

#[tokio::test]
async fn what_waits_for_the_disk_to_have_everything_holds_up_nothing_else() {
    let pools = Pools::new();
    let (_dir, files) = folder(&pools);
    let file = open(&files, "1").await.expect("open");
    // All that one pod may sync at once wait for a disk that does not answer.
    let (answer, disk) = mpsc::channel::<()>();
    let disk = Arc::new(parking_lot::Mutex::new(disk));
    let stuck: Vec<_> = (0..SYNCS_MAX)
        .map(|_| {
            let disk = Arc::clone(&disk);
            files.account.sync(move || {
                let _ = disk.lock().recv();
            })
        })
        .collect();
    let mut syncs = [
        Box::pin(files.sync(Arc::clone(&file))) as Pin<Box<dyn Future<Output = FsResult<()>>>>,
        Box::pin(files.sync_data(Arc::clone(&file))),
    ];
    // A thread of the other pool has been there and back meanwhile.
    assert!(files.stat(Arc::clone(&file)).await.is_ok());
    for sync in &mut syncs {
        let polled = poll_fn(|cx| std::task::Poll::Ready(sync.as_mut().poll(cx).is_pending())).await;
        assert!(polled, "it waits in its own line");
    }
    assert_eq!(files.write(file, vec![0; 4], 0).await.expect("written"), 4);
    drop(answer);
    for sync in syncs {
        assert!(sync.await.is_ok());
    }
    for call in stuck {
        call.await.expect("done");
    }
    assert_eq!(pools.syncs.waiting(), 0);
    // The file is closed there a moment later.
    while pools.calls.running() > 0 {
        tokio::task::yield_now().await;
    }
}
