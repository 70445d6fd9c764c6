//! Many transactions, one log entry: what arrives while an entry is under way travels in the next. A lone transaction
//! goes to raft at once, without a task between.

use std::{collections::BTreeMap, sync::Arc, task::Poll};

use bytes::Bytes;
use coracle_objects::{Expect, ObjectKey, Transaction, Write};
use coracle_raft::{ENTRY_BYTES_MAX, ProposeError, Raft};
use coracle_store::{Command, Outcome, Request, RequestId};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{machine::AppliedEntry, storage::NotProposed, version::AgreedLevel};

/// Transactions that may wait for an entry.
const WAITING_MAX: usize = 1024;

/// Bytes of transactions in one entry, about; one that is larger travels alone.
const ENTRY_BYTES: usize = 256 * 1024;

/// The largest transaction, as [`size`] tells it: alone in an entry it is one that raft takes.
pub const TRANSACTION_BYTES_MAX: usize = ENTRY_BYTES_MAX - 64;

/// Entries of this member under way at a time.
const ENTRIES_UNDER_WAY: usize = 2;

/// A transaction's outcome and the index of the entry that gave it.
#[derive(Clone, Debug)]
pub struct Committed {
    pub outcome: Outcome,
    pub index: u64,
}

type Reply = oneshot::Sender<Result<Committed, NotProposed>>;

struct Waiting {
    request: Request,
    reply: Reply,
}

/// Proposes transactions to the local raft member, which must lead.
#[derive(Clone)]
pub struct Batcher {
    entries: Entries,
    raft: Raft<AppliedEntry>,
    under_way: Arc<Semaphore>,
    waiting: mpsc::Sender<Waiting>,
}

impl Batcher {
    /// Starts the task that gathers entries; it ends when the last handle is dropped.
    pub fn start(member: u64, raft: Raft<AppliedEntry>, level: AgreedLevel) -> Self {
        let (waiting, requests) = mpsc::channel(WAITING_MAX);
        let under_way = Arc::new(Semaphore::new(ENTRIES_UNDER_WAY));
        let entries = Entries { member, level };
        tokio::spawn(gather(entries.clone(), raft.clone(), under_way.clone(), requests));
        Self { entries, raft, under_way, waiting }
    }

    /// Waits until the transaction was applied here, or certainly or perhaps was not.
    pub async fn propose(&self, request: Request) -> Result<Committed, NotProposed> {
        if self.under_way.available_permits() == ENTRIES_UNDER_WAY
            && let Ok(_permit) = self.under_way.try_acquire()
        {
            let id = request.id;
            let entry = self.entries.write(vec![request]).ok_or(ProposeError::Dropped)?;
            let applied = self.raft.propose(entry).await?;
            return outcome_of(&applied, id);
        }
        let (reply, outcome) = oneshot::channel();
        if self.waiting.send(Waiting { request, reply }).await.is_err() {
            return Err(ProposeError::Stopped.into());
        }
        outcome.await.unwrap_or(Err(ProposeError::Unknown.into()))
    }
}

async fn gather(
    entries: Entries,
    raft: Raft<AppliedEntry>,
    under_way: Arc<Semaphore>,
    mut requests: mpsc::Receiver<Waiting>,
) {
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(waiting) => waiting,
            None => match requests.recv().await {
                Some(waiting) => waiting,
                None => return,
            },
        };
        let Ok(permit) = under_way.clone().acquire_owned().await else { return };
        let mut bytes = size(&first.request.transaction);
        let mut batch = vec![first];
        while let Ok(next) = requests.try_recv() {
            bytes += size(&next.request.transaction);
            if bytes > ENTRY_BYTES {
                left_over = Some(next);
                break;
            }
            batch.push(next);
        }
        let (requests, replies): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|Waiting { request, reply }| {
                let id = request.id;
                (request, (id, reply))
            })
            .unzip();
        let Some(entry) = entries.write(requests) else {
            answer(Err(ProposeError::Dropped), replies);
            continue;
        };
        let raft = raft.clone();
        let mut proposal = Box::pin(async move { raft.propose(entry).await });
        // Polled once here, so that entries reach raft in the order in which they were gathered.
        let first_poll = futures::poll!(&mut proposal);
        tokio::spawn(async move {
            let result = match first_poll {
                Poll::Ready(result) => result,
                Poll::Pending => proposal.await,
            };
            drop(permit);
            answer(result, replies);
        });
    }
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

fn outcome_of(applied: &AppliedEntry, id: RequestId) -> Result<Committed, NotProposed> {
    let found = applied.batch.results.iter().find(|(found, _)| *found == id);
    let outcome = found.map(|(_, outcome)| outcome.clone()).ok_or(NotProposed::Forgotten)?;
    Ok(Committed { outcome, index: applied.index })
}

/// Gives each proposer its own result. The store leaves out requests whose outcome it may have forgotten.
fn answer(result: Result<AppliedEntry, ProposeError>, replies: Vec<(RequestId, Reply)>) {
    match result {
        Ok(applied) => {
            let outcomes: BTreeMap<RequestId, &Outcome> =
                applied.batch.results.iter().map(|(id, outcome)| (*id, outcome)).collect();
            for (id, reply) in replies {
                let outcome = outcomes.get(&id).copied().cloned().ok_or(NotProposed::Forgotten);
                // A proposer that has gone away does not want its answer.
                let _ = reply.send(outcome.map(|outcome| Committed { outcome, index: applied.index }));
            }
        }
        Err(error) => replies.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.into())))),
    }
}

/// What a transaction takes in an entry, in bytes: never less.
pub fn size(transaction: &Transaction) -> usize {
    let writes = transaction.writes.iter().map(|write| match write {
        Write::Put { key, draft } => draft.len() + key_size(key),
        Write::Delete { key } => key_size(key),
    });
    let preconditions = transaction.preconditions.iter().map(|precondition| match &precondition.expect {
        Expect::Uid(uid) => uid.len() + key_size(&precondition.key),
        _ => key_size(&precondition.key),
    });
    writes.sum::<usize>() + preconditions.sum::<usize>()
}

/// With the lengths and numbers that stand beside it.
fn key_size(key: &ObjectKey) -> usize {
    key.resource.as_str().len() + key.name.namespace.len() + key.name.name.len() + 64
}

#[cfg(test)]
mod tests {
    use coracle_objects::Applied;
    use coracle_store::Batch;

    use super::*;

    #[test]
    fn a_transaction_takes_no_more_than_its_size() {
        let key = |name: &str| ObjectKey::new("configmaps", "default", name);
        let mut transaction = Transaction::create(key("a"), vec![b'x'; 300].into())
            .expecting(key("b"), Expect::Uid("u".repeat(200)))
            .expecting(key(&"n".repeat(250)), Expect::Revision(u64::MAX));
        transaction.writes.extend((0..1000).map(|number| Write::Delete { key: key(&number.to_string()) }));
        let id = RequestId { client: u64::MAX, sequence: u64::MAX };
        let bytes = size(&transaction);
        let requests = vec![Request { id, transaction }];
        let entry = Command { proposer: u64::MAX, requests }.encode();
        assert!(
            entry.len() <= bytes + (ENTRY_BYTES_MAX - TRANSACTION_BYTES_MAX),
            "{} > {bytes}",
            entry.len()
        );
    }

    #[test]
    fn only_the_forgotten_request_has_no_outcome() {
        let id = |sequence| RequestId { client: 1, sequence };
        let outcome = |revision| Ok(Applied { revision, revisions: vec![] });
        let results = vec![(id(1), outcome(11)), (id(3), outcome(13))];
        let batch = Arc::new(Batch { results, events: vec![], revision: 13 });
        let (replies, answers): (Vec<_>, Vec<_>) = (1..=3)
            .map(|sequence| {
                let (reply, answer) = oneshot::channel();
                ((id(sequence), reply), answer)
            })
            .unzip();
        answer(Ok(AppliedEntry { index: 5, batch }), replies);
        let revisions: Vec<Result<u64, NotProposed>> = answers
            .into_iter()
            .map(|mut answer| answer.try_recv().unwrap().map(|done| done.outcome.unwrap().revision))
            .collect();
        assert_eq!(revisions, [Ok(11), Err(NotProposed::Forgotten), Ok(13)]);
    }
}
