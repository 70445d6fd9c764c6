//! Proposes transactions to raft as entries: [`coracle_member::batch`] says what shares one. A lone transaction is proposed
//! by its caller, without a task between.

use std::{borrow::Borrow, sync::Arc, task::Poll};

use bytes::Bytes;
use coracle_member::batch::{
    Bounds, Committed, ENTRY_HEAD_BYTES_MAX, Entry, Gatherer, Proposers, WAITING_MAX, outcome_of,
};
use coracle_raft::{ENTRY_BYTES_MAX, ProposeError, Raft};
use coracle_store::{Command, Request};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{machine::AppliedEntry, replicated::NotProposed, version::AgreedLevel};

/// The largest transaction, as [`coracle_member::batch::size`] tells it: alone in an entry it is one that raft takes.
pub const TRANSACTION_BYTES_MAX: usize = ENTRY_BYTES_MAX - ENTRY_HEAD_BYTES_MAX;

type Reply = oneshot::Sender<Result<Committed, NotProposed>>;

/// Proposes transactions to the local raft member, which must lead.
#[derive(Clone)]
pub struct Batcher {
    entries: Entries,
    raft: Raft<AppliedEntry>,
    gathered: Gathered,
    /// One for each that waits: who finds none waits for it, in its turn.
    places: Arc<Semaphore>,
}

/// What waits, and the bell that wakes who proposes it: rung where an entry is due.
#[derive(Clone)]
struct Gathered {
    gatherer: Arc<Mutex<Gatherer<Reply>>>,
    bell: mpsc::Sender<()>,
}

/// An entry that counts as under way, until it has ended or nobody waits for it any more.
struct UnderWay<G: Borrow<Gathered>>(G);

impl<G: Borrow<Gathered>> Drop for UnderWay<G> {
    fn drop(&mut self) {
        let gathered = self.0.borrow();
        let due = gathered.gatherer.lock().ended();
        gathered.ring_if(due);
    }
}

impl Gathered {
    fn ring_if(&self, due: bool) {
        if due {
            // One that has been rung already is enough.
            let _ = self.bell.try_send(());
        }
    }
}

impl Batcher {
    /// Starts the task that proposes entries; it ends when the last handle is dropped.
    pub fn start(member: u64, raft: Raft<AppliedEntry>, level: AgreedLevel) -> Self {
        let (bell, rung) = mpsc::channel(1);
        let gatherer = Arc::new(Mutex::new(Gatherer::new(Bounds::default())));
        let gathered = Gathered { gatherer, bell };
        let entries = Entries { member, level };
        let places = Arc::new(Semaphore::new(WAITING_MAX));
        let proposing = Proposing {
            entries: entries.clone(),
            raft: raft.clone(),
            gatherer: gathered.gatherer.clone(),
            bell: gathered.bell.downgrade(),
            places: places.clone(),
        };
        tokio::spawn(proposing.run(rung));
        Self { entries, raft, gathered, places }
    }

    /// Waits until the transaction was applied here, or certainly or perhaps was not.
    pub async fn propose(&self, request: Request) -> Result<Committed, NotProposed> {
        if self.gathered.gatherer.lock().goes_alone() {
            let _under_way = UnderWay(&self.gathered);
            let id = request.id;
            let entry = self.entries.write(vec![request]).ok_or(ProposeError::Dropped)?;
            let applied = self.raft.propose(entry).await?;
            return Ok(outcome_of(&applied.batch.results, applied.index, id)?);
        }
        let Ok(place) = self.places.acquire().await else { return Err(ProposeError::Stopped.into()) };
        // It is given back where the request is taken into an entry.
        place.forget();
        let (reply, outcome) = oneshot::channel();
        let Ok(due) = self.gathered.gatherer.lock().wait(request, reply) else {
            return Err(ProposeError::Dropped.into());
        };
        self.gathered.ring_if(due);
        outcome.await.unwrap_or(Err(ProposeError::Unknown.into()))
    }
}

/// What the task that proposes entries has. The bell's last handle is the batcher's, or an entry's that is under way.
struct Proposing {
    entries: Entries,
    raft: Raft<AppliedEntry>,
    gatherer: Arc<Mutex<Gatherer<Reply>>>,
    bell: mpsc::WeakSender<()>,
    places: Arc<Semaphore>,
}

impl Proposing {
    async fn run(self, mut rung: mpsc::Receiver<()>) {
        while rung.recv().await.is_some() {
            loop {
                let next = self.gatherer.lock().next_entry();
                let (Some(entry), Some(bell)) = (next, self.bell.upgrade()) else { break };
                self.places.add_permits(entry.requests.len());
                self.propose(entry, Gathered { gatherer: self.gatherer.clone(), bell }).await;
            }
        }
    }

    async fn propose(&self, entry: Entry<Reply>, gathered: Gathered) {
        let under_way = UnderWay(gathered);
        let Some(bytes) = self.entries.write(entry.requests) else {
            return fail(ProposeError::Dropped, entry.proposers);
        };
        let raft = self.raft.clone();
        let mut proposal = Box::pin(async move { raft.propose(bytes).await });
        // Polled once here, so that entries reach raft in the order in which they were gathered.
        let first_poll = futures::poll!(&mut proposal);
        tokio::spawn(async move {
            let result = match first_poll {
                Poll::Ready(result) => result,
                Poll::Pending => proposal.await,
            };
            drop(under_way);
            match result {
                Ok(applied) => {
                    entry.proposers.deal(&applied.batch.results, applied.index, |reply, result| {
                        // A proposer that has gone away does not want its answer.
                        let _ = reply.send(result.map_err(NotProposed::from));
                    })
                }
                Err(error) => fail(error, entry.proposers),
            }
        });
    }
}

fn fail(error: ProposeError, proposers: Proposers<Reply>) {
    proposers.into_all().for_each(|reply| drop(reply.send(Err(error.into()))));
}

/// Writes entries as this member, at the level that all members know.
#[derive(Clone)]
struct Entries {
    member: u64,
    level: AgreedLevel,
}

impl Entries {
    fn write(&self, requests: Vec<Request>) -> Option<Bytes> {
        let level = self.level.get();
        let encoded = Command { proposer: self.member, requests }.encode_at(level, self.level.known());
        // A build knows all levels up to its newest, and the agreed one is never above it.
        encoded.inspect_err(|_| tracing::error!(level, "this build cannot write at the cluster's level")).ok()
    }
}
