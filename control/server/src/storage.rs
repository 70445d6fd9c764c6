//! The one door for changes of state, and linearizable reads, from any member. Secrets are sealed on their way out.
//!
//! The leader gathers transactions into entries. Any other member sends each to the leader and waits until its own
//! state has it too. A retry keeps its request id, so the store gives it the first try's outcome: trying again after
//! an unknown outcome is harmless.

mod forwarding;
mod leadership;
mod reads;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coracle_api::{Expired, ProposeError, Storage, Unavailable, WatchStream};
use coracle_objects::{Applied, Refusal, ResourceName, Revision, Transaction, View, Write};
use coracle_proto::cluster::ProposeRequest;
use coracle_raft::{Leading, ProposeError as RaftProposeError, Raft, Role, Status};
use coracle_store::{Outcome, Request, RequestId, decode_outcome, encode_transaction};
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore, SemaphorePermit, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, transport::Channel};

pub use self::forwarding::{forgotten, leader_client, not_done};
use self::{
    forwarding::{FORWARD_TIMEOUT, certainly_not, clock_of},
    leadership::{follow_leadership, moved, wait_for_news},
    reads::{READ_TIMEOUT, ReadReply, read_index, serve_reads},
};
use crate::{
    batch::{self, Batcher, Committed},
    encryption::{self, NotSealed, SecretBox},
    health::SharedNotes,
    machine::AppliedEntry,
    peers::Peers,
    version::AgreedLevel,
    watch_hub::WatchHub,
};

/// Until a write must have an outcome; after it the outcome is unknown.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two tries, where nothing tells that trying again makes sense.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Writes of one member under way at a time; others wait. Below the number of outcomes that the store remembers.
const WRITES_MAX: usize = 1024;

/// How often a write is given another identity because this member is so far behind that the store forgot the first.
const IDENTITIES_MAX: usize = 4;

/// How often a write is sealed anew because the keys have changed meanwhile.
const SEAL_TRIES: usize = 8;

/// Reads that may wait for the next index.
const READS_MAX: usize = 16 * 1024;

/// The replicated store as this member sees it. Cheap to clone.
#[derive(Clone)]
pub struct ReplicatedStorage {
    shared: Arc<Shared>,
}

struct Shared {
    member: u64,
    raft: Raft<AppliedEntry>,
    hub: Arc<WatchHub>,
    peers: Arc<Peers>,
    batcher: Batcher,
    secrets: Arc<SecretBox>,
    notes: SharedNotes,
    level: AgreedLevel,
    /// Random for this start of the process.
    client: u64,
    /// The highest that was used or heard of.
    sequence: AtomicU64,
    writes: Semaphore,
    reads: mpsc::Sender<ReadReply>,
    /// Held by who asks for a read index; who comes meanwhile waits for the next, together with all others.
    asking: AsyncMutex<()>,
}

/// Why a leader did not apply a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    Raft(RaftProposeError),
    /// Certainly not done: too many disks are nearly full, and the transaction grows the state.
    NoSpace,
    /// Not done now. Its sequence is so low that it may have been done before and its outcome be forgotten.
    Forgotten,
}

impl From<RaftProposeError> for NotProposed {
    fn from(error: RaftProposeError) -> Self {
        NotProposed::Raft(error)
    }
}

/// How one try to write went.
enum Try {
    Done(Outcome),
    /// Certainly not done by this try.
    Not(String),
    /// Perhaps done, now or later.
    Unknown(String),
    /// Certainly not done, and trying again at once makes no sense.
    NoSpace,
    /// Certainly not done by this try, nor by another under the same identity.
    Forgotten,
}

impl ReplicatedStorage {
    /// Entries are written at `level`, and what goes to the leader.
    pub fn start(
        member: u64,
        raft: Raft<AppliedEntry>,
        hub: Arc<WatchHub>,
        peers: Arc<Peers>,
        secrets: Arc<SecretBox>,
        level: AgreedLevel,
    ) -> Self {
        let (reads, waiting) = mpsc::channel(READS_MAX);
        let shared = Arc::new(Shared {
            member,
            batcher: Batcher::start(member, raft.clone(), level.clone()),
            raft,
            hub,
            peers,
            secrets,
            notes: SharedNotes::default(),
            level,
            client: rand::random(),
            sequence: AtomicU64::new(0),
            writes: Semaphore::new(WRITES_MAX),
            reads,
            asking: AsyncMutex::new(()),
        });
        tokio::spawn(serve_reads(Arc::downgrade(&shared), waiting));
        tokio::spawn(follow_leadership(shared.raft.leading(), Arc::downgrade(&shared.hub)));
        Self { shared }
    }

    pub fn hub(&self) -> &Arc<WatchHub> {
        &self.shared.hub
    }

    /// Raft's id of this member.
    pub fn member(&self) -> u64 {
        self.shared.member
    }

    pub fn raft(&self) -> &Raft<AppliedEntry> {
        &self.shared.raft
    }

    pub fn peers(&self) -> &Arc<Peers> {
        &self.shared.peers
    }

    /// What the members have told each other about their states and disks.
    pub fn notes(&self) -> &SharedNotes {
        &self.shared.notes
    }

    /// The level that the cluster has agreed on, and what this member knows.
    pub fn level(&self) -> &AgreedLevel {
        &self.shared.level
    }

    /// What this member knows of the cluster now.
    pub fn status(&self) -> Status {
        self.shared.raft.status().borrow().clone()
    }

    /// Who leads, as far as this member knows.
    pub fn leading(&self) -> Leading {
        *self.shared.raft.leading().borrow()
    }

    pub fn leads(&self) -> bool {
        self.leading().role == Role::Leader
    }

    /// Over everything that was ever applied; equal on members at the same revision.
    pub fn state_hash(&self) -> [u8; 32] {
        self.shared.hub.state_hash()
    }

    /// A channel to the leader, where it is known and another member.
    pub fn leader_channel(&self) -> Option<Channel> {
        let leader = self.leading().leader.filter(|leader| *leader != self.shared.member)?;
        self.shared.peers.channel(leader)
    }

    /// The same for logs, whose readers may be slow.
    pub fn leader_logs_channel(&self) -> Option<Channel> {
        let leader = self.leading().leader.filter(|leader| *leader != self.shared.member)?;
        self.shared.peers.logs_channel(leader)
    }

    /// Gives a transaction its identity.
    pub fn request(&self, transaction: Transaction) -> Request {
        let highest = &self.shared.sequence;
        highest.fetch_max(self.shared.hub.clock(), Ordering::Relaxed);
        let sequence = highest.fetch_add(1, Ordering::Relaxed) + 1;
        Request { id: RequestId { client: self.shared.client, sequence }, transaction }
    }

    /// The highest sequence that this member has used or heard of.
    pub fn clock(&self) -> u64 {
        self.shared.sequence.load(Ordering::Relaxed).max(self.shared.hub.clock())
    }

    /// Goes on above the clock that comes with [`forgotten`].
    pub fn learn_clock(&self, status: &tonic::Status) {
        if let Some(clock) = clock_of(status) {
            self.shared.sequence.fetch_max(clock, Ordering::Relaxed);
        }
    }

    /// As [`Storage::propose`], for a request whose caller gave it its identity and may send it again, to any member.
    /// None where the store may have forgotten it: it was not applied by this call.
    pub async fn propose_request(&self, request: Request) -> Result<Option<Outcome>, ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let _turn = self.turn(deadline).await?;
        self.propose_until(&request, deadline).await
    }

    async fn turn(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, ProposeError> {
        match timeout_at(deadline, self.shared.writes.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(ProposeError::Unavailable("too many writes are waiting".into())),
        }
    }

    /// Applies another member's transaction. Only the leader can; the caller tries elsewhere otherwise.
    pub async fn propose_here(&self, request: Request) -> Result<Committed, NotProposed> {
        // Raft refuses the others' proposals itself; what they know of disks says nothing of the leader's.
        let room = !self.leads() || self.shared.notes.lock().have_room(&self.status());
        if !room && grows(&self.shared.hub.published().sealed, &request.transaction) {
            return Err(NotProposed::NoSpace);
        }
        self.shared.batcher.propose(request).await
    }

    /// Proposes what is sealed already, or has nothing to be sealed.
    pub async fn propose_sealed(
        &self,
        transaction: Transaction,
    ) -> Result<Result<Applied, Refusal>, ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let _turn = self.turn(deadline).await?;
        // Its identity is given only in its turn: an old one could be forgotten before it comes.
        let mut request = self.request(transaction);
        for _ in 0..IDENTITIES_MAX {
            if let Some(outcome) = self.propose_until(&request, deadline).await? {
                return Ok(outcome);
            }
            request = self.request(request.transaction);
        }
        Err(ProposeError::Unavailable("this member is too far behind the others".into()))
    }

    /// Seals a transaction and proposes it, again where the keys have changed meanwhile.
    async fn seal_and_propose(
        &self,
        transaction: Transaction,
    ) -> Result<Result<Applied, Refusal>, ProposeError> {
        for _ in 0..SEAL_TRIES {
            let state = self.shared.hub.published();
            let sealed = match self.shared.secrets.seal_transaction(&transaction, &state) {
                Ok(sealed) => sealed,
                Err(NotSealed::Refused(refusal)) => return Ok(Err(refusal)),
                Err(error @ NotSealed::NoKey(_)) => return Err(ProposeError::Unavailable(error.to_string())),
            };
            match self.propose_sealed(sealed).await? {
                Err(refusal) if encryption::refused_for_its_keys(&refusal) => {}
                outcome => return Ok(outcome),
            }
        }
        Err(ProposeError::Unavailable("the keys for Secrets keep changing".into()))
    }

    /// Tries until there is an outcome or no more time. None where no try applied it, and none will.
    async fn propose_until(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Option<Outcome>, ProposeError> {
        let (bytes, limit) = (batch::size(&request.transaction) as u64, batch::TRANSACTION_BYTES_MAX as u64);
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let mut leading = self.shared.raft.leading();
        let mut unknown = None;
        let mut reason = "no leader is known".to_owned();
        while Instant::now() < deadline {
            let seen = *leading.borrow_and_update();
            let tried = async {
                match seen.leader {
                    Some(leader) if leader == self.shared.member => self.try_here(request).await,
                    Some(leader) => self.try_there(leader, request, deadline).await,
                    None => Try::Not("no leader is known".into()),
                }
            };
            let tried = tokio::select! {
                biased;
                tried = tried => tried,
                // An old leader that is cut off would keep the write until its call times out.
                () = moved(leading.clone(), seen) => Try::Unknown("the leader changed meanwhile".into()),
            };
            match tried {
                Try::Done(outcome) => return Ok(Some(outcome)),
                Try::Not(why) => reason = why,
                Try::Unknown(why) => unknown = Some(why),
                Try::NoSpace if unknown.is_none() => return Err(ProposeError::NoSpace),
                Try::NoSpace => {}
                Try::Forgotten if unknown.is_none() => return Ok(None),
                Try::Forgotten => return Err(ProposeError::Unknown("its outcome is forgotten".into())),
            }
            wait_for_news(&leading, seen, deadline).await;
        }
        match unknown {
            Some(why) => Err(ProposeError::Unknown(why)),
            None => Err(ProposeError::Unavailable(reason)),
        }
    }

    async fn try_here(&self, request: &Request) -> Try {
        match self.propose_here(request.clone()).await {
            Ok(done) => Try::Done(done.outcome),
            Err(NotProposed::NoSpace) => Try::NoSpace,
            Err(NotProposed::Forgotten) => Try::Forgotten,
            Err(NotProposed::Raft(error @ RaftProposeError::Unknown)) => Try::Unknown(error.to_string()),
            Err(NotProposed::Raft(error)) => Try::Not(error.to_string()),
        }
    }

    async fn try_there(&self, leader: u64, request: &Request, deadline: Instant) -> Try {
        let Some(channel) = self.shared.peers.channel(leader) else {
            return Try::Not(format!("the address of the leader, member {leader}, is not known"));
        };
        let mut client = leader_client(channel);
        let message = ProposeRequest { transaction: encode_transaction(request, self.shared.level.get()) };
        let response = match timeout(FORWARD_TIMEOUT, client.propose(message)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if clock_of(&status).is_some() => {
                self.learn_clock(&status);
                return Try::Forgotten;
            }
            Ok(Err(status)) if certainly_not(&status) && status.code() == Code::ResourceExhausted => {
                return Try::NoSpace;
            }
            Ok(Err(status)) if certainly_not(&status) => return Try::Not(status.message().to_owned()),
            Ok(Err(status)) => {
                return Try::Unknown(format!("the leader, member {leader}: {}", status.message()));
            }
            Err(_) => return Try::Unknown(format!("the leader, member {leader}, did not answer in time")),
        };
        match decode_outcome(&response.outcome, self.shared.level.known()) {
            Ok(outcome) => {
                // A member that is cut off from the log for long answers all the same: the write is done.
                let _ = timeout_at(deadline, self.shared.raft.wait_applied(response.applied_index)).await;
                Try::Done(outcome)
            }
            Err(error) => Try::Unknown(format!("the leader's answer cannot be read: {error}")),
        }
    }
}

impl ReplicatedStorage {
    /// The index that all who wait now are given together.
    async fn next_read_index(&self, deadline: Instant) -> Result<u64, Unavailable> {
        let (reply, index) = oneshot::channel();
        let overload = |_| Unavailable("too many reads are waiting".into());
        self.shared.reads.try_send(reply).map_err(overload)?;
        match timeout_at(deadline, index).await {
            Ok(Ok(index)) => index,
            Ok(Err(_)) => Err(Unavailable("this member is stopping".into())),
            Err(_) => Err(Unavailable("no quorum confirmed the read in time".into())),
        }
    }
}

impl Storage for ReplicatedStorage {
    fn view(&self) -> Arc<View> {
        self.shared.hub.view()
    }

    async fn linearizable(&self) -> Result<Arc<View>, Unavailable> {
        let deadline = Instant::now() + READ_TIMEOUT;
        // A lone reader asks by itself, without a task between.
        let index = match self.shared.asking.try_lock() {
            Ok(_asking) => read_index(&self.shared).await?,
            Err(_) => self.next_read_index(deadline).await?,
        };
        match timeout_at(deadline, self.shared.raft.wait_applied(index)).await {
            Ok(Ok(())) => Ok(self.view()),
            Ok(Err(_)) => Err(Unavailable("this member is stopping".into())),
            Err(_) => Err(Unavailable("this member is behind the others".into())),
        }
    }

    async fn propose(&self, transaction: Transaction) -> Result<Result<Applied, Refusal>, ProposeError> {
        match encryption::concerns(&transaction) {
            true => self.seal_and_propose(transaction).await,
            false => self.propose_sealed(transaction).await,
        }
    }

    fn view_at(&self, resource: &ResourceName, revision: Revision) -> Option<Arc<View>> {
        self.shared.hub.view_at(resource, revision).map(Arc::new)
    }

    fn is_led(&self) -> bool {
        self.leading().led
    }

    fn watch(&self, resource: &ResourceName, after: Revision) -> Result<WatchStream, Expired> {
        self.shared.hub.watch(resource, after)
    }
}

/// An update may add so many bytes to an object though the disk is nearly full: deleting begins with an update.
const GROWTH_BYTES_MAX: usize = 256;

/// Whether a transaction makes the state notably larger.
fn grows(view: &View, transaction: &Transaction) -> bool {
    transaction.writes.iter().any(|write| match write {
        Write::Delete { .. } => false,
        Write::Put { key, draft } => {
            let before = view.get(key).map(|object| object.draft().len() + GROWTH_BYTES_MAX);
            before.is_none_or(|bytes_max| draft.len() > bytes_max)
        }
    })
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Object, ObjectKey};

    use super::*;

    #[test]
    fn a_full_disk_takes_deletes_and_what_leads_to_them() {
        let key = ObjectKey::new("configmaps", "default", "a");
        let draft = |bytes: usize| format!(r#"{{"metadata":{{"name":"a"}},"x":"{}"}}"#, "y".repeat(bytes));
        let object = Object::from_draft(key.clone(), draft(1000).as_bytes(), 1).unwrap();
        let mut view = View::default();
        view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.into());

        let update = |bytes| Transaction::update(key.clone(), draft(bytes).into(), 1);
        assert!(!grows(&view, &Transaction::delete(key.clone(), 1)));
        assert!(!grows(&view, &update(10)) && !grows(&view, &update(1000 + GROWTH_BYTES_MAX)));
        assert!(grows(&view, &update(1001 + GROWTH_BYTES_MAX)));
        let other = ObjectKey::new("configmaps", "default", "b");
        assert!(grows(&view, &Transaction::create(other, draft(1).into())));
    }
}
