//! What is open is closed elsewhere, and listings come in parts.

mod guests;

use std::future::poll_fn;
use std::sync::mpsc;

use super::listing::Listing;
use super::*;
use crate::ledger::{Ledger, NodeBounds};

fn account(pool: &Arc<Pool>) -> Arc<Account> {
    let holder = Holder { namespace: "default".into(), pod: Some([10, 128, 0, 7].into()) };
    let bounds = NodeBounds { memory: None, heap: 1 << 20, files: 100, files_guaranteed: 1 };
    let ledger = Ledger::new(bounds).pod(&holder.namespace, None);
    Account::new(Arc::clone(pool), holder, ledger, Arc::new(Reserve::with(|| None)))
}

#[test]
fn what_takes_long_to_close_is_closed_elsewhere() {
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<std::thread::ThreadId>);
    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
            let _ = self.1.send(std::thread::current().id());
        }
    }
    let pool = Pool::new("files", 8, 0);
    let (close, wait) = mpsc::channel();
    let (told, closed) = mpsc::channel();
    drop(Opened::new(Slow(wait, told), &account(&pool), None));
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
    let on_full =
        Arc::try_unwrap(account(&Pool::new("files", 8, 0))).unwrap_or_else(|_| unreachable!("ours"));
    let account = Arc::new(Account { reserve: Arc::new(Reserve::with(full)), ..on_full });
    let mut files = Files::new(account);
    files.mount(File::open(dir.path()).expect("there"), "/".to_owned(), false);
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
    let pool = Pool::new("files", 8, 0);
    let mut files = Files::new(account(&pool));
    files.mount(File::open(dir.path()).expect("there"), "/".to_owned(), true);
    let mut listing =
        Listing::open(Arc::clone(&files.account), Arc::clone(&files.dirs[0].0)).await.expect("open");
    let mut found = std::collections::BTreeSet::new();
    while let Some(entry) = poll_fn(|cx| listing.poll_next(cx)).await {
        assert!(listing.ahead() < 64);
        assert!(found.insert(entry.expect("an entry").name));
    }
    assert_eq!(found.len(), 1_000);
}
