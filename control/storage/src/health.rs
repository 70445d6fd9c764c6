//! Members compare notes: whether their states are equal, and who has room on the disk.
//!
//! Every member asks the others every few seconds. One whose state is another than that of the majority of the voters at
//! the same entry stops: it cannot be trusted any more, and the rest goes on without it. Where there is no majority nobody
//! knows who is wrong: all go on, and it is told. A leader whose disk is nearly full hands over to a voter that has room;
//! where too few voters have any, the cluster takes only what does not grow its state.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use coracle_proto::cluster::{HealthRequest, HealthResponse, StateCheckpoint};
use coracle_raft::{Role, Status};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{interval, timeout};
use tonic::{Code, Response};

use crate::{ReplicatedStorage, leader_client, machine::Fatal};

/// Between two entries whose state is compared, about.
const CHECKPOINT_ENTRIES: u64 = 64;

/// Checkpoints that are remembered: members that are further apart are compared when they have come nearer.
const CHECKPOINTS_MAX: usize = 64;

/// How often members ask each other.
const PERIOD: Duration = Duration::from_secs(5);

/// Until a member must have answered.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The hash of the state as of some entries. All members take them at the same entries.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    taken: VecDeque<(u64, [u8; 32])>,
    last: u64,
}

impl Checkpoints {
    /// The state is that of a snapshot as of entry `index`, or of a process that begins.
    pub(crate) fn begin(&mut self, index: u64) {
        self.taken.clear();
        self.last = index;
    }

    /// The first entry in each stretch of the log is a checkpoint; a stretch that began before this member's state did
    /// has none here.
    pub(crate) fn applied(&mut self, index: u64, hash: impl FnOnce() -> [u8; 32]) {
        if index / CHECKPOINT_ENTRIES > self.last / CHECKPOINT_ENTRIES {
            self.taken.push_back((index, hash()));
            if self.taken.len() > CHECKPOINTS_MAX {
                self.taken.pop_front();
            }
        }
        self.last = index;
    }
}

/// The checkpoints of this member; shared with its state machine.
pub(crate) type SharedCheckpoints = Arc<Mutex<Checkpoints>>;

/// What this member tells the others.
pub fn report(storage: &ReplicatedStorage) -> HealthResponse {
    let checkpoints = storage.hub().checkpoints().lock();
    let checkpoints = checkpoints.taken.iter();
    let checkpoints = checkpoints
        .map(|(index, hash)| StateCheckpoint { index: *index, state_hash: hash.to_vec().into() })
        .collect();
    HealthResponse { checkpoints, disk_low: disk_is_low(&storage.status()) }
}

/// Whether the disk of the data directory is nearly full.
pub fn disk_is_low(status: &Status) -> bool {
    status.disk.is_some_and(|disk| disk.low)
}

/// What this member has learned from the others.
#[derive(Debug, Default)]
pub struct Notes {
    /// Voters whose disk was nearly full when they last answered.
    low: BTreeSet<u64>,
    /// The term that this member led when the others last answered: of a younger one it is not known who is silent.
    led: u64,
    /// The newest entry at which states differ while no majority tells which is right.
    pub disputed: Option<u64>,
    /// Somebody did not take this member for one: it may have been removed without hearing of it, as a learner is that
    /// nobody sends anything any more.
    pub refused: bool,
}

/// The notes of this member.
pub type SharedNotes = Mutex<Notes>;

impl Notes {
    fn take(&mut self, status: &Status, answers: &BTreeMap<u64, HealthResponse>) {
        self.low.retain(|id| status.voters.contains(id));
        if status.role == Role::Leader {
            self.led = status.term;
        }
        for (id, answer) in answers {
            match answer.disk_low && status.voters.contains(id) {
                true => self.low.insert(*id),
                false => self.low.remove(id),
            };
        }
    }

    /// Whether the state may grow: a voter whose disk is full dies, and a quorum with room, the leader in it, must
    /// outlive that. Silent voters are of no help then, but as long as all have room it does not matter who is silent.
    pub(crate) fn have_room(&self, status: &Status) -> bool {
        if disk_is_low(status) {
            return false;
        }
        if !status.voters.iter().any(|id| self.low.contains(id)) {
            return true;
        }
        let heard = |id: u64| {
            let young = self.led != status.term;
            young
                || id == status.id
                || status.progress.iter().any(|(member, _, active)| *member == id && *active)
        };
        let with_room = status.voters.iter().filter(|id| !self.low.contains(id) && heard(**id)).count();
        with_room > status.voters.len() / 2
    }
}

/// What a comparison of states says of this member's.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// The majority of the voters has another state as of this entry.
    Wrong(u64),
    /// States differ as of this entry, and none is that of a majority.
    Disputed(u64),
}

/// Compares notes for as long as the process lives. Where states differ and nobody knows which is right, `tell` is told
/// once what to do.
pub async fn run(storage: ReplicatedStorage, fatal: Arc<Fatal>, tell: impl Fn(String)) {
    let mut ticks = interval(PERIOD);
    loop {
        ticks.tick().await;
        let status = storage.status();
        let others = status.voters.iter().chain(&status.learners).filter(|id| **id != status.id);
        let asked = others.map(|id| ask(&storage, *id));
        let heard = join_all(asked).await;
        let refused = heard.iter().any(|(_, answer)| matches!(answer, Err(Code::PermissionDenied)));
        let answers: BTreeMap<u64, HealthResponse> =
            heard.into_iter().filter_map(|(id, answer)| Some((id, answer.ok()?))).collect();
        let own = report(&storage);
        let verdict = compare((status.id, &own), &answers, &status.voters);
        if let Verdict::Wrong(index) = verdict {
            let reason = format!(
                "the state of this member is not that of the majority at entry {index} of the log: remove it from the \
                 cluster and join it again as a new member with an empty data directory"
            );
            tracing::error!(index, "the state of this member differs from that of the majority");
            fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(reason).is_none());
            return;
        }
        storage.notes().lock().take(&status, &answers);
        storage.notes().lock().refused = refused;
        let disputed = if let Verdict::Disputed(index) = verdict { Some(index) } else { None };
        dispute(&storage, disputed, &tell);
        if own.disk_low && storage.leads() {
            hand_over(&storage, &status, &answers).await;
        }
    }
}

async fn ask(storage: &ReplicatedStorage, id: u64) -> (u64, Result<HealthResponse, Code>) {
    let Some(channel) = storage.peers().channel(id) else { return (id, Err(Code::Unavailable)) };
    let answer = timeout(TIMEOUT, async { leader_client(channel).health(HealthRequest {}).await }).await;
    let answer =
        answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("it did not answer in time")));
    (id, answer.map(Response::into_inner).map_err(|status| status.code()))
}

/// Tells it once where states differ and nobody knows which is right.
fn dispute(storage: &ReplicatedStorage, disputed: Option<u64>, tell: impl Fn(String)) {
    let known = std::mem::replace(&mut storage.notes().lock().disputed, disputed);
    if let Some(index) = disputed.filter(|_| known.is_none()) {
        tracing::error!(index, "the states of members differ, and none is that of a majority");
        tell(disputed_message(index));
    }
}

/// What to do where states differ without a majority.
pub fn disputed_message(index: u64) -> String {
    format!(
        "the states of members differ at entry {index} of the log and none is that of a majority of voters: compare \
         `state_hash` of the members, remove those that are wrong, and join them again with empty data directories"
    )
}

/// Looks for the newest entry as of which a majority of the voters, this member among them where it votes, has one
/// state. Learners are compared with it and never counted.
fn compare(
    (me, own): (u64, &HealthResponse),
    others: &BTreeMap<u64, HealthResponse>,
    voters: &[u64],
) -> Verdict {
    let mut disputed = None;
    for mine in own.checkpoints.iter().rev() {
        let theirs = others.iter().filter_map(|(id, other)| {
            let same_entry = other.checkpoints.iter().find(|theirs| theirs.index == mine.index)?;
            Some((*id, &same_entry.state_hash))
        });
        let mut votes: BTreeMap<&[u8], usize> = BTreeMap::new();
        let mut differ = false;
        for (id, hash) in theirs.chain([(me, &mine.state_hash)]) {
            differ |= *hash != mine.state_hash;
            if voters.contains(&id) {
                *votes.entry(hash).or_default() += 1;
            }
        }
        match votes.iter().find(|(_, count)| **count > voters.len() / 2) {
            Some((hash, _)) if **hash != mine.state_hash => return Verdict::Wrong(mine.index),
            Some(_) => break,
            None if differ => disputed = disputed.or(Some(mine.index)),
            None => {}
        }
    }
    disputed.map_or(Verdict::Good, Verdict::Disputed)
}

/// To the voter that is furthest among those that have room.
async fn hand_over(storage: &ReplicatedStorage, status: &Status, others: &BTreeMap<u64, HealthResponse>) {
    let has_room = |id: &u64| others.get(id).is_some_and(|other| !other.disk_low);
    let candidates = status
        .progress
        .iter()
        .filter(|(id, _, active)| *active && *id != status.id && status.voters.contains(id) && has_room(id));
    if let Some((successor, _, _)) = candidates.max_by_key(|(_, matched, _)| *matched) {
        tracing::warn!(successor, "the disk is nearly full: leadership is handed over");
        if let Err(error) = storage.raft().transfer_leader(*successor).await {
            tracing::warn!(successor, %error, "leadership could not be handed over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(checkpoints: &[(u64, u8)]) -> HealthResponse {
        let checkpoint =
            |(index, hash): &(u64, u8)| StateCheckpoint { index: *index, state_hash: vec![*hash; 32].into() };
        HealthResponse { checkpoints: checkpoints.iter().map(checkpoint).collect(), disk_low: false }
    }

    #[test]
    fn checkpoints_are_at_the_same_entries_wherever_a_member_began() {
        let entries = [1, 30, 70, 71, 127, 130, 300, 301, 330];
        let taken = |begin: u64| {
            let mut checkpoints = Checkpoints::default();
            checkpoints.begin(begin);
            for index in entries.iter().filter(|index| **index > begin) {
                checkpoints.applied(*index, || [*index as u8; 32]);
            }
            checkpoints.taken.iter().map(|(index, _)| *index).collect::<Vec<_>>()
        };
        assert_eq!(taken(0), [70, 130, 300, 330]);
        assert_eq!(taken(70), [130, 300, 330]);
        assert_eq!(taken(129), [300, 330], "the entry before 130 may have been raft's own");
    }

    #[test]
    fn only_the_odd_one_out_stops() {
        let good = response(&[(70, 1), (130, 2), (300, 3)]);
        let bad = response(&[(70, 1), (130, 9), (300, 9)]);
        let late = response(&[(70, 1)]);
        // This member has the id 1, the others 2 and up.
        let check = |own: &HealthResponse, others: &[&HealthResponse], voters: &[u64]| {
            let others = (2..).zip(others.iter().map(|one| (*one).clone())).collect();
            compare((1, own), &others, voters)
        };
        let three = [1, 2, 3];
        assert_eq!(check(&bad, &[&good, &good], &three), Verdict::Wrong(300));
        assert_eq!(check(&good, &[&good, &bad], &three), Verdict::Good);
        assert_eq!(check(&good, &[&good, &good], &three), Verdict::Good);
        assert_eq!(check(&good, &[&late, &late], &three), Verdict::Good);
        assert_eq!(check(&bad, &[&good, &late], &three), Verdict::Disputed(300), "one other is no majority");
        assert_eq!(check(&good, &[&bad, &late], &three), Verdict::Disputed(300));
        assert_eq!(check(&bad, &[&good, &good], &[1, 2, 3, 4, 5]), Verdict::Disputed(300));
    }

    #[test]
    fn learners_are_judged_and_do_not_judge() {
        let good = response(&[(70, 1), (130, 2)]);
        let bad = response(&[(70, 1), (130, 9)]);
        let check = |me: u64, own: &HealthResponse, others: &[(u64, &HealthResponse)], voters: &[u64]| {
            let others = others.iter().map(|(id, one)| (*id, (*one).clone())).collect();
            compare((me, own), &others, voters)
        };
        assert_eq!(check(1, &good, &[(2, &bad)], &[1]), Verdict::Good, "the only voter is the majority");
        assert_eq!(check(2, &bad, &[(1, &good)], &[1]), Verdict::Wrong(130));
        let learners = [(2, &good), (3, &good), (4, &bad), (5, &bad)];
        assert_eq!(check(1, &good, &learners, &[1, 2, 3]), Verdict::Good, "two bad learners are nobody");
        let voters = [(1, &good), (2, &good), (3, &good), (5, &bad)];
        assert_eq!(check(4, &bad, &voters, &[1, 2, 3]), Verdict::Wrong(130));
        assert_eq!(check(1, &good, &[(2, &bad)], &[1, 2]), Verdict::Disputed(130), "one against one");
    }

    #[test]
    fn the_state_grows_only_with_a_quorum_that_has_room() {
        let status = |active: &[u64]| Status {
            id: 1,
            voters: vec![1, 2, 3],
            learners: vec![4],
            progress: (1..=4).map(|id| (id, 0, active.contains(&id))).collect(),
            ..Status::default()
        };
        let low = |ids: &[u64]| -> Notes {
            let mut notes = Notes::default();
            let answers =
                (2..=4).map(|id| (id, HealthResponse { disk_low: ids.contains(&id), ..response(&[]) }));
            notes.take(&status(&[]), &answers.collect());
            notes
        };
        assert!(low(&[]).have_room(&status(&[])), "nobody was heard of yet, and nobody is short of room");
        assert!(low(&[2]).have_room(&status(&[1, 2, 3])));
        assert!(!low(&[2, 3]).have_room(&status(&[1, 2, 3])), "two would die");
        assert!(!low(&[2]).have_room(&status(&[1, 2])), "the third is away");
        assert!(low(&[4]).have_room(&status(&[1, 2, 3, 4])), "a learner is no part of the quorum");
        let young = Status { role: Role::Leader, term: 2, ..status(&[1, 2]) };
        let mut notes = low(&[2]);
        assert!(notes.have_room(&young), "it has just been elected, and nobody had time to answer");
        notes.take(&young, &[(2, HealthResponse { disk_low: true, ..response(&[]) })].into());
        assert!(!notes.have_room(&young), "the third had its time");
        let mut notes = low(&[2, 3]);
        notes.take(&status(&[]), &[(2, response(&[]))].into());
        assert!(notes.have_room(&status(&[1, 2, 3])), "one has room again");
        let space = coracle_raft::Space { total: 1, free: 0 };
        let full = Status { disk: Some(coracle_raft::DiskRoom { space, low: true }), ..status(&[1, 2, 3]) };
        assert!(!low(&[]).have_room(&full), "the leader itself");
    }
}
