//! The one door for changes of state, and linearizable reads, from any member. Secrets are sealed on their way out.
//!
//! The leader gathers transactions into entries. Any other member sends each to the leader and waits until its own
//! state has it too. What is tried again, and who shares a read index, [`coracle_member`] says; here are the calls.

mod leadership;
mod reads;

use std::{sync::Arc, time::Duration};

use coracle_api::{Expired, ProposeError, Storage, Unavailable, WatchStream};
use coracle_member::{
    batch::{self, Committed, Forgotten},
    identity::{IDENTITIES_MAX, Identities},
    reads::{READ_TIMEOUT, Read, Readers, WAITING_MAX},
    retry::{Failure, Next, Place, Try, Write},
    room::grows,
};
use coracle_objects::{Applied, Refusal, ResourceName, Revision, Transaction, View};
use coracle_proto::cluster::ProposeRequest;
use coracle_raft::{Leading, ProposeError as RaftProposeError, Raft, Role, Status};
use coracle_store::{Outcome, Request, decode_outcome, encode_transaction};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, transport::Channel};

use self::{
    leadership::{follow_leadership, moved, wait_for_news},
    reads::{Asking, ReadReply, read_index, serve_reads},
};
use crate::{
    batch::{Batcher, TRANSACTION_BYTES_MAX},
    encryption::{self, NotSealed, SecretBox},
    forwarding::{FORWARD_TIMEOUT, certainly_not, clock_of, leader_client},
    health::SharedNotes,
    machine::AppliedEntry,
    peers::Peers,
    version::AgreedLevel,
    watch_hub::WatchHub,
};

/// Until a write must have an outcome; after it the outcome is unknown. Clients are answered within 10 s.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(9);

/// Writes of one member under way at a time; others wait. Below the number of outcomes that the store remembers.
const WRITES_MAX: usize = 1024;

/// How often a write is sealed anew because the keys have changed meanwhile.
const SEAL_TRIES: usize = 8;

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
    identities: Identities,
    writes: Semaphore,
    readers: Mutex<Readers<ReadReply>>,
    /// Rung where readers wait and nobody asks.
    readers_bell: mpsc::Sender<()>,
}

/// Why a leader did not apply a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposed {
    /// For raft's reason.
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

impl From<Forgotten> for NotProposed {
    fn from(Forgotten: Forgotten) -> Self {
        NotProposed::Forgotten
    }
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
        let (readers_bell, rung) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            member,
            batcher: Batcher::start(member, raft.clone(), level.clone()),
            raft,
            hub,
            peers,
            secrets,
            notes: SharedNotes::default(),
            level,
            identities: Identities::new(rand::random()),
            writes: Semaphore::new(WRITES_MAX),
            readers: Mutex::new(Readers::new(WAITING_MAX)),
            readers_bell,
        });
        tokio::spawn(serve_reads(Arc::downgrade(&shared), rung));
        tokio::spawn(follow_leadership(shared.raft.leading(), Arc::downgrade(&shared.hub)));
        Self { shared }
    }

    /// Where state is read and watched.
    pub fn hub(&self) -> &Arc<WatchHub> {
        &self.shared.hub
    }

    /// Raft's id of this member.
    pub fn member(&self) -> u64 {
        self.shared.member
    }

    /// The member of raft below.
    pub fn raft(&self) -> &Raft<AppliedEntry> {
        &self.shared.raft
    }

    /// The other members, as this one reaches them.
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
    fn leading(&self) -> Leading {
        *self.shared.raft.leading().borrow()
    }

    /// Whether this member leads, as far as it knows.
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
        Request { id: self.shared.identities.next(self.shared.hub.clock()), transaction }
    }

    /// The highest sequence that this member has used or heard of.
    pub fn clock(&self) -> u64 {
        self.shared.identities.highest().max(self.shared.hub.clock())
    }

    /// Goes on above the clock that comes with [`crate::forgotten`].
    pub fn learn_clock(&self, status: &tonic::Status) {
        if let Some(clock) = clock_of(status) {
            self.shared.identities.heard(clock);
        }
    }

    /// As [`Storage::propose`], for a request whose caller gave it its identity and may send it again, to any member.
    /// None where the store may have forgotten it: it was not applied by this call.
    pub async fn propose_request(&self, request: Request) -> Result<Option<Outcome>, ProposeError> {
        let begun = Instant::now();
        let _turn = self.turn(begun + PROPOSE_TIMEOUT).await?;
        self.propose_from(begun, request, 1).await
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
    pub(crate) async fn propose_sealed(
        &self,
        transaction: Transaction,
    ) -> Result<Result<Applied, Refusal>, ProposeError> {
        let begun = Instant::now();
        let _turn = self.turn(begun + PROPOSE_TIMEOUT).await?;
        // Its identity is given only in its turn: an old one could be forgotten before it comes.
        let request = self.request(transaction);
        let outcome = self.propose_from(begun, request, IDENTITIES_MAX).await?;
        outcome.ok_or_else(|| ProposeError::Unavailable("this member is too far behind the others".into()))
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

    /// Tries until there is an outcome or no more time, counted from `begun`. None where no try applied it, and none will.
    async fn propose_from(
        &self,
        begun: Instant,
        mut request: Request,
        identities_max: usize,
    ) -> Result<Option<Outcome>, ProposeError> {
        let (bytes, limit) = (batch::size(&request.transaction) as u64, TRANSACTION_BYTES_MAX as u64);
        if bytes > limit {
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let mut leading = self.shared.raft.leading();
        let mut write = Write::new(self.shared.member, PROPOSE_TIMEOUT, identities_max);
        let deadline = begun + PROPOSE_TIMEOUT;
        loop {
            let seen = *leading.borrow_and_update();
            let Some(place) = write.begin(begun.elapsed(), seen.leader).map_err(failed)? else {
                wait_for_news(&leading, seen, deadline).await;
                continue;
            };
            let tried = async {
                match place {
                    Place::Here => self.try_here(&request).await,
                    Place::There(leader) => self.try_there(leader, &request).await,
                }
            };
            let tried = tokio::select! {
                biased;
                tried = tried => tried,
                () = moved(leading.clone(), seen) => Try::moved(),
            };
            match write.tried(tried) {
                Next::Done { outcome, index } => {
                    // A member that is cut off from the log for long answers all the same: the write is done.
                    if place != Place::Here {
                        let _ = timeout_at(deadline, self.shared.raft.wait_applied(index)).await;
                    }
                    return Ok(Some(outcome));
                }
                Next::Again => wait_for_news(&leading, seen, deadline).await,
                Next::Anew => request.id = self.shared.identities.next(self.shared.hub.clock()),
                Next::Failed(Failure::Forgotten) => return Ok(None),
                Next::Failed(failure) => return Err(failed(failure)),
            }
        }
    }

    async fn try_here(&self, request: &Request) -> Try {
        match self.propose_here(request.clone()).await {
            Ok(Committed { outcome, index }) => Try::Done { outcome, index },
            Err(NotProposed::NoSpace) => Try::NoSpace,
            Err(NotProposed::Forgotten) => Try::Forgotten,
            Err(NotProposed::Raft(error @ RaftProposeError::Unknown)) => Try::Unknown(error.to_string()),
            Err(NotProposed::Raft(error)) => Try::Not(error.to_string()),
        }
    }

    async fn try_there(&self, leader: u64, request: &Request) -> Try {
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
            Ok(outcome) => Try::Done { outcome, index: response.applied_index },
            Err(error) => Try::Unknown(format!("the leader's answer cannot be read: {error}")),
        }
    }
}

impl ReplicatedStorage {
    /// The index that all who wait now are given together.
    async fn next_read_index(&self, deadline: Instant) -> Result<u64, Unavailable> {
        let (reply, index) = oneshot::channel();
        let due = self.shared.readers.lock().wait(reply);
        let due = due.map_err(|_| Unavailable("too many reads are waiting".into()))?;
        self.shared.ring_if(due);
        match timeout_at(deadline, index).await {
            Ok(Ok(index)) => index,
            Ok(Err(_)) => Err(Unavailable("this member is stopping".into())),
            Err(_) => Err(Unavailable(Read::Asking.missing().into())),
        }
    }
}

/// A write has no outcome: the API is told why.
fn failed(failure: Failure) -> ProposeError {
    match failure {
        Failure::Unavailable(why) => ProposeError::Unavailable(why),
        Failure::NoSpace => ProposeError::NoSpace,
        Failure::Unknown(why) => ProposeError::Unknown(why),
        Failure::Forgotten => ProposeError::Unavailable("its identity is forgotten".into()),
    }
}

impl Storage for ReplicatedStorage {
    fn view(&self) -> Arc<View> {
        self.shared.hub.view()
    }

    async fn linearizable(&self) -> Result<Arc<View>, Unavailable> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let alone = self.shared.readers.lock().goes_alone();
        // A lone reader asks by itself, without a task between.
        let index = if alone {
            let _asking = Asking(&self.shared);
            read_index(&self.shared).await?
        } else {
            self.next_read_index(deadline).await?
        };
        match timeout_at(deadline, self.shared.raft.wait_applied(index)).await {
            Ok(Ok(())) => Ok(self.view()),
            Ok(Err(_)) => Err(Unavailable("this member is stopping".into())),
            Err(_) => Err(Unavailable(Read::Behind(index).missing().into())),
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
