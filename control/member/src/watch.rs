//! One watch of a resource, without gap or double: where it goes on in the store's window, and what it says of how far it
//! is. The window has what was missed, in pages; between pages a queue has what happens, which may overflow.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use coracle_objects::{Event, Revision};

use crate::leadership::Leadership;

/// How often a quiet watch says how far it has seen.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// Events that a watch may be behind before it reads again from the store's window.
pub const QUEUE_EVENTS_MAX: usize = 4096;

/// Events that a watch takes out of the store's window at a time, as the store is locked meanwhile, and their bytes,
/// about, as a reader that stands still keeps them in memory.
pub const PAGE_EVENTS_MAX: usize = 4096;
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How much of the store's window a page is.
#[derive(Clone, Copy, Debug)]
pub struct PageBounds {
    pub events_max: usize,
    pub bytes_max: usize,
}

impl Default for PageBounds {
    fn default() -> Self {
        Self { events_max: PAGE_EVENTS_MAX, bytes_max: PAGE_BYTES_MAX }
    }
}

impl PageBounds {
    /// How many of the events that the window gave make a page, and whether there may be more behind it. The window was
    /// asked for the first `events_max`, and gave whole revisions.
    pub fn cut(&self, found: &[Arc<Event>]) -> (usize, bool) {
        let fits = whole_revisions(found, self.bytes_max);
        (fits, found.len() >= self.events_max || fits < found.len())
    }
}

/// How many of these events are about so many bytes, without an end in the middle of a revision. At least one revision.
fn whole_revisions(events: &[Arc<Event>], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let mut last = None;
    for (count, event) in events.iter().enumerate() {
        if bytes > bytes_max && last != Some(event.object.revision) {
            return count;
        }
        bytes += event.object.json.len();
        last = Some(event.object.revision);
    }
    events.len()
}

/// How far a watch is.
#[derive(Debug)]
pub struct Watch {
    backlog: VecDeque<Arc<Event>>,
    /// Behind the backlog there may be more in the store's window: the queue does not follow it.
    more: bool,
    /// The queue has lost something.
    missed: bool,
    /// The revision of the last event given, and how many events of that revision were given.
    last: (Revision, usize),
    /// When the backlog is used up, everything up to here has been given.
    seen: Option<Revision>,
    /// The last progress that was told.
    announced: Revision,
}

/// What a watch gives or needs next.
#[derive(Clone, Debug)]
pub enum Next {
    Event(Arc<Event>),
    /// Every event up to and including this revision has been given.
    Progress(Revision),
    /// The window has to be read after this revision, and a new queue follows it from there: [`Watch::page`]. Where the
    /// window does not reach back so far, the watch has overflowed.
    Page {
        after: Revision,
    },
    /// What happens: [`Watch::received`], [`Watch::missed`], [`Watch::tick`].
    Wait,
}

/// What a quiet watch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    Nothing,
    /// Every event up to and including this revision has been given.
    Progress(Revision),
    /// It has to go on at another member.
    End,
}

impl Watch {
    /// A watch of what happens after a revision. It begins with a page.
    pub fn new(after: Revision) -> Self {
        Self {
            backlog: VecDeque::new(),
            more: true,
            missed: false,
            last: (after, 0),
            seen: None,
            announced: after,
        }
    }

    pub fn next_item(&mut self) -> Next {
        if let Some(event) = self.backlog.pop_front() {
            return Next::Event(self.give(event));
        }
        if self.more || self.missed {
            return Next::Page { after: self.goes_on().0 };
        }
        match self.seen.take() {
            Some(seen) => {
                self.announced = seen.max(self.announced);
                Next::Progress(self.announced)
            }
            None => Next::Wait,
        }
    }

    /// What the window has after the revision that was asked for, in whole revisions. `more` is [`PageBounds::cut`]'s;
    /// without it the window reaches up to the revision `seen`, and the new queue has what follows.
    pub fn page(&mut self, mut backlog: VecDeque<Arc<Event>>, more: bool, seen: Revision) {
        let (_, given) = self.goes_on();
        backlog.drain(..given.min(backlog.len()));
        self.backlog = backlog;
        self.more = more;
        self.missed = false;
        self.seen = Some(seen);
    }

    /// The next event out of the queue, where the watch waits. It is to be given.
    pub fn received(&mut self, event: Arc<Event>) -> Arc<Event> {
        self.give(event)
    }

    /// The queue has lost events, where the watch waits: the window tells.
    pub fn missed(&mut self) {
        self.missed = true;
    }

    /// Some time has passed. `revision` is the store's, and `complete` whether the queue follows this state and is empty
    /// at that very moment: then all up to there has been given.
    pub fn tick(&mut self, leadership: Leadership, revision: Revision, complete: bool) -> Tick {
        match leadership {
            Leadership::Lost => return Tick::End,
            Leadership::Sought => return Tick::Nothing,
            Leadership::Led => {}
        }
        if !complete || !self.waits() || revision <= self.announced {
            return Tick::Nothing;
        }
        self.announced = revision;
        Tick::Progress(revision)
    }

    /// Whether it has given all that it knows of.
    pub fn waits(&self) -> bool {
        self.backlog.is_empty() && !self.more && !self.missed && self.seen.is_none()
    }

    fn give(&mut self, event: Arc<Event>) -> Arc<Event> {
        let revision = event.object.revision;
        self.last = if self.last.0 == revision { (revision, self.last.1 + 1) } else { (revision, 1) };
        event
    }

    /// After which revision it goes on in the window, and how many events that follow have been given: the last that was
    /// given may be in the middle of a transaction.
    fn goes_on(&self) -> (Revision, usize) {
        // A page ends with a whole revision, and so does what progress was told of.
        let whole = self.more || self.announced >= self.last.0;
        match self.last {
            (revision, given) if !whole && given > 0 => (revision - 1, given),
            (revision, _) => (revision.max(self.announced), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Applied, ObjectKey, ResourceName, Transaction, Write};
    use coracle_store::{Command, Request, RequestId, Store, StoreConfig};

    use super::*;

    /// A store whose every transaction writes so many config maps.
    fn store(transactions: u64, objects: usize, bytes: usize) -> Store {
        let mut store = Store::new(StoreConfig::default());
        for sequence in 1..=transactions {
            put(&mut store, sequence, objects, bytes);
        }
        store
    }

    fn put(store: &mut Store, sequence: u64, objects: usize, bytes: usize) {
        let writes = (0..objects).map(|number| Write::Put {
            key: ObjectKey::new("configmaps", "default", &number.to_string()),
            draft: format!(
                r#"{{"metadata":{{"name":"{number}"}},"n":{sequence},"x":"{}"}}"#,
                "x".repeat(bytes)
            )
            .into(),
        });
        let transaction = Transaction { preconditions: vec![], writes: writes.collect() };
        let request = Request { id: RequestId { client: 1, sequence }, transaction };
        let batch = store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap();
        assert!(matches!(batch.results[0].1, Ok(Applied { .. })), "{:?}", batch.results);
    }

    fn read(store: &Store, watch: &mut Watch, after: Revision, bounds: PageBounds) {
        let resource = ResourceName::from("configmaps");
        let found = store.first_events_since(resource.as_str(), after, bounds.events_max).unwrap();
        let (fits, more) = bounds.cut(&found);
        watch.page(found.into_iter().take(fits).collect(), more, store.revision());
    }

    /// Everything until the watch waits, and how many pages that took.
    fn run(store: &Store, watch: &mut Watch, bounds: PageBounds) -> (Vec<(char, Revision)>, usize) {
        let (mut given, mut pages) = (vec![], 0);
        loop {
            match watch.next_item() {
                Next::Event(event) => given.push(('e', event.object.revision)),
                Next::Progress(revision) => given.push(('p', revision)),
                Next::Page { after } => {
                    pages += 1;
                    read(store, watch, after, bounds);
                }
                Next::Wait => return (given, pages),
            }
        }
    }

    #[test]
    fn a_backlog_comes_in_pages_of_whole_revisions_and_then_progress() {
        let store = store(5, 2, 100);
        let small = PageBounds { events_max: 3, bytes_max: usize::MAX };
        let few_bytes = PageBounds { events_max: 100, bytes_max: 1 };
        for (bounds, expected) in [(PageBounds::default(), 1), (small, 3), (few_bytes, 4)] {
            let (given, pages) = run(&store, &mut Watch::new(1), bounds);
            let events = (2..=5).flat_map(|revision| [('e', revision), ('e', revision)]);
            assert_eq!(given, events.chain([('p', 5)]).collect::<Vec<_>>());
            assert_eq!(pages, expected, "{bounds:?}");
        }
    }

    #[test]
    fn a_watch_goes_on_in_the_middle_of_a_transaction() {
        let mut store = store(1, 1, 1);
        let mut watch = Watch::new(1);
        run(&store, &mut watch, PageBounds::default());
        put(&mut store, 2, 3, 1);
        let events = store.events_since("configmaps", 1).unwrap();
        watch.received(events[0].clone());
        watch.received(events[1].clone());
        put(&mut store, 3, 1, 1);
        watch.missed();
        let (given, _) = run(&store, &mut watch, PageBounds::default());
        assert_eq!(given, [('e', 2), ('e', 3), ('p', 3)]);
    }

    #[test]
    fn progress_is_told_once_and_only_of_what_was_given() {
        let store = store(2, 1, 1);
        let mut watch = Watch::new(0);
        assert_eq!(watch.tick(Leadership::Led, 2, true), Tick::Nothing, "the backlog comes first");
        run(&store, &mut watch, PageBounds::default());
        assert_eq!(watch.tick(Leadership::Led, 2, true), Tick::Nothing, "it has been told");
        assert_eq!(watch.tick(Leadership::Led, 4, false), Tick::Nothing, "something waits");
        assert_eq!(watch.tick(Leadership::Sought, 4, true), Tick::Nothing);
        assert_eq!(watch.tick(Leadership::Led, 4, true), Tick::Progress(4));
        watch.missed();
        assert_eq!(watch.tick(Leadership::Led, 5, true), Tick::Nothing);
        assert!(matches!(watch.next_item(), Next::Page { after: 4 }), "it goes on where it said it was");
        assert_eq!(watch.tick(Leadership::Lost, 5, true), Tick::End);
    }
}
