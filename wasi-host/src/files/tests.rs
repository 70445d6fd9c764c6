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
    Account::new(Arc::clone(pool), holder, ledger)
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
