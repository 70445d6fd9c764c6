//! Members compare notes: whether their states are equal, and who has room on the disk.
//!
//! Every member asks the others every few seconds. One whose state is another than the majority's at the same entry
//! stops: it cannot be trusted any more, and the rest goes on without it. A leader whose disk is nearly full hands over
//! to a voter that has room; where none has, the cluster takes only what does not grow its state.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use coracle_proto::cluster::{HealthRequest, HealthResponse, StateCheckpoint};
use coracle_raft::Status;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{interval, timeout};

use crate::{
    machine::Fatal,
    storage::{ReplicatedStorage, leader_client},
};

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
pub struct Checkpoints {
    taken: VecDeque<(u64, [u8; 32])>,
    last: u64,
}

impl Checkpoints {
    /// The state is that of a snapshot as of entry `index`, or of a process that begins.
    pub fn begin(&mut self, index: u64) {
        self.taken.clear();
        self.last = index;
    }

    /// The first entry in each stretch of the log is a checkpoint; a stretch that began before this member's state did
    /// has none here.
    pub fn applied(&mut self, index: u64, hash: impl FnOnce() -> [u8; 32]) {
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
pub type SharedCheckpoints = Arc<Mutex<Checkpoints>>;

/// What this member tells the others.
pub fn report(storage: &ReplicatedStorage) -> HealthResponse {
    let checkpoints = storage.hub().checkpoints().lock();
    let checkpoints = checkpoints.taken.iter();
    let checkpoints = checkpoints
        .map(|(index, hash)| StateCheckpoint { index: *index, state_hash: hash.to_vec().into() })
        .collect();
    HealthResponse { checkpoints, disk_low: disk_is_low(&storage.status()) }
}

pub fn disk_is_low(status: &Status) -> bool {
    status.disk.is_some_and(|disk| disk.low)
}

/// Compares notes for as long as the process lives.
pub async fn run(storage: ReplicatedStorage, fatal: Arc<Fatal>) {
    let mut ticks = interval(PERIOD);
    loop {
        ticks.tick().await;
        let status = storage.status();
        let others = status.voters.iter().chain(&status.learners).filter(|id| **id != status.id);
        let asked = others.map(|id| ask(&storage, *id));
        let answers: BTreeMap<u64, HealthResponse> = join_all(asked).await.into_iter().flatten().collect();
        let own = report(&storage);
        if let Some(index) = differs(&own, &answers, status.voters.len()) {
            let reason = format!(
                "the state of this member is not that of the majority at entry {index} of the log: remove it from the \
                 cluster and join it again as a new member with an empty data directory"
            );
            tracing::error!(index, "the state of this member differs from that of the majority");
            fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(reason).is_none());
            return;
        }
        if own.disk_low && storage.leads() {
            hand_over(&storage, &status, &answers).await;
        }
    }
}

async fn ask(storage: &ReplicatedStorage, id: u64) -> Option<(u64, HealthResponse)> {
    let channel = storage.peers().channel(id)?;
    let answer = timeout(TIMEOUT, async { leader_client(channel).health(HealthRequest {}).await }).await;
    Some((id, answer.ok()?.ok()?.into_inner()))
}

/// The newest entry at which this member's state is another than that of so many others that these are a majority of
/// the voters, all with one state.
fn differs(own: &HealthResponse, others: &BTreeMap<u64, HealthResponse>, voters: usize) -> Option<u64> {
    own.checkpoints.iter().rev().find_map(|mine| {
        let mut states: BTreeMap<&[u8], usize> = BTreeMap::new();
        for other in others.values() {
            let same_entry = other.checkpoints.iter().find(|theirs| theirs.index == mine.index);
            if let Some(theirs) = same_entry {
                *states.entry(&theirs.state_hash).or_default() += 1;
            }
        }
        states
            .iter()
            .any(|(hash, count)| **hash != mine.state_hash && *count > voters / 2)
            .then_some(mine.index)
    })
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
        let others = |all: &[&HealthResponse]| (2..).zip(all.iter().map(|one| (*one).clone())).collect();
        assert_eq!(differs(&bad, &others(&[&good, &good]), 3), Some(300));
        assert_eq!(differs(&bad, &others(&[&good, &late]), 3), None, "one other is no majority");
        assert_eq!(differs(&good, &others(&[&good, &bad]), 3), None);
        assert_eq!(differs(&good, &others(&[&bad, &late]), 3), None);
        assert_eq!(differs(&good, &others(&[&good, &good]), 3), None);
        assert_eq!(differs(&bad, &others(&[&good, &good]), 5), None);
    }
}
