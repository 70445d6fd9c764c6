//! Watches without gap or double, and what they say of how far they are.

use coracle_member::watch::{PAGE_EVENTS_MAX, PROGRESS_PERIOD};
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_raft::{Frozen, StateMachine};
use coracle_store::{Command, Request, RequestId, StoreConfig};
use futures::{FutureExt, StreamExt};
use tokio::{sync::watch, time::Instant};

use super::*;
use crate::machine::Machine;

struct Bench {
    machine: Machine,
    hub: Arc<WatchHub>,
    sequence: u64,
}

impl Bench {
    fn new() -> Self {
        let (machine, hub) = Machine::new(Arc::new(watch::Sender::new(None)), Arc::default());
        Self { machine, hub, sequence: 0 }
    }

    /// One transaction that writes the named config maps.
    fn put(&mut self, names: &[&str]) {
        self.put_large(names, 0);
    }

    fn put_large(&mut self, names: &[&str], bytes: usize) {
        self.sequence += 1;
        let padding = "x".repeat(bytes);
        let writes = names.iter().map(|name| Write::Put {
            key: ObjectKey::new("configmaps", "default", name),
            draft: format!(
                r#"{{"metadata":{{"name":"{name}"}},"n":{},"padding":"{padding}"}}"#,
                self.sequence
            )
            .into(),
        });
        let writes = writes.collect();
        self.apply(writes);
    }

    fn remove(&mut self, name: &str) {
        self.sequence += 1;
        self.apply(vec![Write::Delete { key: ObjectKey::new("configmaps", "default", name) }]);
    }

    fn apply(&mut self, writes: Vec<Write>) {
        let transaction = Transaction { preconditions: vec![], writes };
        let request = Request { id: RequestId { client: 1, sequence: self.sequence }, transaction };
        self.machine.apply(self.sequence, 1, &Command { proposer: 1, requests: vec![request] }.encode());
    }

    fn watch(&self, after: Revision) -> WatchStream {
        self.hub.watch(&"configmaps".into(), after).unwrap()
    }
}

fn revision(item: Option<WatchItem>) -> (char, Revision) {
    match item.unwrap() {
        WatchItem::Event(event) => ('e', event.object.revision),
        WatchItem::Progress(revision) => ('p', revision),
        WatchItem::Overflow => ('o', 0),
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_has_the_backlog_then_what_follows() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.put(&["a"]);
    }
    let mut watch = bench.watch(1);
    bench.put(&["a"]);
    let mut items = vec![];
    for _ in 0..4 {
        items.push(revision(watch.next().await));
    }
    assert_eq!(items, [('e', 2), ('e', 3), ('p', 3), ('e', 4)]);
    assert!(watch.next().now_or_never().is_none());
    assert_eq!(revision(watch.next().await), ('p', 4), "after the period");
}

#[test]
fn a_past_state_is_the_same_as_it_was_then() {
    let mut bench = Bench::new();
    let maps = ResourceName::from("configmaps");
    let mut then = vec![bench.hub.view()];
    for names in [&["a", "b"][..], &["a"], &["c"], &["b", "c"], &["d"]] {
        bench.put(names);
        then.push(bench.hub.view());
    }
    bench.remove("a");
    bench.put(&["a"]);
    let objects = |view: &View| {
        let objects = view.list("configmaps", None);
        objects.map(|object| (object.key.clone(), object.revision, object.json.clone())).collect::<Vec<_>>()
    };
    for view in &then {
        let rebuilt = bench.hub.view_at(&maps, view.revision).unwrap();
        assert_eq!((rebuilt.revision, objects(&rebuilt)), (view.revision, objects(view)));
    }
    assert!(bench.hub.view_at(&maps, 8).is_none(), "not reached yet");
    let mut state = Vec::new();
    bench.machine.freeze().write_to(&mut state).unwrap();
    bench.machine.restore(9, &mut &state[..]).unwrap();
    assert!(bench.hub.view_at(&maps, 6).is_none(), "forgotten");
    assert!(bench.hub.view_at(&maps, 7).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_a_leader_says_nothing_and_ends() {
    let mut bench = Bench::new();
    let mut watch = bench.watch(0);
    assert_eq!(revision(watch.next().await), ('p', 0));
    bench.hub.set_leadership(Leadership::Sought);
    bench.put(&["a"]);
    assert_eq!(revision(watch.next().await), ('e', 1), "what was committed before is given");
    let quiet = tokio::time::timeout(PROGRESS_PERIOD * 10, watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    bench.hub.set_leadership(Leadership::Led);
    assert_eq!(revision(watch.next().await), ('p', 1));
    bench.hub.set_leadership(Leadership::Lost);
    let begun = Instant::now();
    assert!(watch.next().await.is_none());
    assert!(begun.elapsed() <= PROGRESS_PERIOD);
}

#[tokio::test(start_paused = true)]
async fn a_slow_watch_goes_on_from_the_window_in_the_middle_of_a_transaction() {
    let mut bench = Bench::new();
    let mut watch = bench.watch(0);
    assert_eq!(revision(watch.next().await), ('p', 0));
    bench.put(&["a", "b", "c"]);
    assert_eq!(revision(watch.next().await), ('e', 1));
    for _ in 0..QUEUE_EVENTS_MAX {
        bench.put(&["a"]);
    }
    let mut seen = vec![];
    for _ in 0..QUEUE_EVENTS_MAX + 2 {
        seen.push(revision(watch.next().await).1);
    }
    assert_eq!(seen[..3], [1, 1, 2]);
    assert_eq!(*seen.last().unwrap(), QUEUE_EVENTS_MAX as u64 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_backlog_comes_in_pages() {
    let mut bench = Bench::new();
    for _ in 0..PAGE_EVENTS_MAX + 10 {
        bench.put(&["a", "b"]);
    }
    let mut watch = bench.watch(1);
    bench.put(&["a"]);
    let (mut seen, end) = (vec![], PAGE_EVENTS_MAX as u64 + 11);
    loop {
        match revision(watch.next().await) {
            ('p', revision) => break assert_eq!(revision, end),
            (_, revision) => seen.push(revision),
        }
    }
    let pairs = (2..end).flat_map(|revision| [revision, revision]);
    assert_eq!(seen, pairs.chain([end]).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_keeps_nothing_in_memory() {
    const BYTES: usize = 1 << 20;
    let mut bench = Bench::new();
    let (mut stalled, mut quick) = (bench.watch(0), bench.watch(0));
    assert_eq!(revision(stalled.next().await), ('p', 0));
    assert_eq!(revision(quick.next().await), ('p', 0));
    bench.put_large(&["a"], BYTES);
    let first = match quick.next().await {
        Some(WatchItem::Event(event)) => Arc::downgrade(&event),
        _ => panic!("an event"),
    };
    let window = StoreConfig::default().watch_bytes_max;
    for _ in 0..window / BYTES + 1 {
        bench.put_large(&["a"], BYTES);
    }
    assert!(first.upgrade().is_none(), "a watch holds an event that the window has lost");
    assert_eq!(revision(stalled.next().await), ('o', 0));

    let mut late = bench.watch(bench.sequence - 20);
    let mut seen = vec![];
    for _ in 0..20 {
        seen.push(revision(late.next().await).1);
    }
    assert_eq!(seen, (bench.sequence - 19..=bench.sequence).collect::<Vec<_>>(), "in pages of few bytes");
}

#[tokio::test(start_paused = true)]
async fn watches_end_when_the_whole_state_is_replaced() {
    let mut bench = Bench::new();
    bench.put(&["a"]);
    let mut ahead = Bench::new();
    for _ in 0..3 {
        ahead.put(&["b"]);
    }
    let mut watch = bench.watch(1);
    assert_eq!(revision(watch.next().await), ('p', 1));
    let (_, mut everything) = bench.hub.follow();

    let mut state = Vec::new();
    ahead.machine.freeze().write_to(&mut state).unwrap();
    bench.machine.restore(3, &mut &state[..]).unwrap();
    assert_eq!(revision(watch.next().await), ('o', 0));
    assert!(watch.next().await.is_none());
    assert!(everything.ready().is_err() && everything.next().await.is_err());
    assert_eq!(bench.hub.view().revision, 3);
    assert!(bench.hub.watch(&"configmaps".into(), 2).is_err());
    assert_eq!(bench.hub.state_hash(), ahead.hub.state_hash());

    // And it goes on from there.
    let mut watch = bench.watch(3);
    let (_, mut everything) = bench.hub.follow();
    bench.sequence = ahead.sequence;
    bench.put(&["c"]);
    assert_eq!(revision(watch.next().await), ('p', 3));
    assert_eq!(revision(watch.next().await), ('e', 4));
    assert_eq!(everything.next().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_follower_that_stands_still_keeps_no_more_than_the_bound() {
    let mut bench = Bench::new();
    let (_, mut quick) = bench.hub.follow();
    for rounds in [6, 20] {
        let (_, mut still) = bench.hub.follow();
        for _ in 0..rounds {
            bench.put_large(&["a", "b"], 1024 * 1024);
            assert_eq!(quick.next().await.unwrap().len(), 2);
        }
        assert_eq!(still.ready().is_ok(), rounds == 6);
        bench.put(&["a"]);
        quick.next().await.unwrap();
        assert_eq!(still.next().await.is_ok(), rounds == 6, "it has missed something for good");
    }
}

#[tokio::test]
async fn what_followers_have_had_their_time_for_is_let_go() {
    let mut bench = Bench::new();
    let (_, mut still) = bench.hub.follow();
    bench.put(&["a", "b"]);
    bench.hub.forget_followed();
    let (_, mut later) = bench.hub.follow();
    bench.put(&["a"]);
    assert_eq!(still.next().await.unwrap().len(), 2, "nothing is old at the first look");
    bench.hub.forget_followed();
    assert_eq!(still.next().await.unwrap().len(), 1);
    assert_eq!(later.next().await.unwrap().len(), 1);
    bench.put(&["a"]);
    bench.hub.forget_followed();
    bench.hub.forget_followed();
    assert!(still.next().await.is_err(), "it has missed something");
    // Whoever begins anew goes on.
    let (_, mut anew) = bench.hub.follow();
    bench.put(&["a"]);
    assert_eq!(anew.next().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_out_of_the_window_overflows() {
    let mut bench = Bench::new();
    let mut watch = bench.watch(0);
    let bytes = coracle_store::StoreConfig::default().watch_bytes_max / QUEUE_EVENTS_MAX;
    for _ in 0..=QUEUE_EVENTS_MAX {
        bench.put_large(&["a"], bytes);
    }
    assert_eq!(revision(watch.next().await), ('p', 0));
    assert_eq!(revision(watch.next().await), ('o', 0));
    assert!(watch.next().await.is_none());
    assert_eq!(bench.hub.overflowed(), 1);
    assert!(bench.hub.watch(&"configmaps".into(), 0).is_err());
}
