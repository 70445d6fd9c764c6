//! What the leader does about its members by itself, as long as it leads: promotes learners, replaces the dead, marks
//! the dead that it cannot replace, and removes the objects of those that are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use coracle_api::{Storage, write};
use coracle_objects::{
    Object, ObjectKey, Transaction, View, Write,
    draft::{editable, encode, timestamp},
};
use coracle_raft::{MemberChange, Status};
use coracle_storage::{
    ReplicatedStorage,
    encryption::KEY_HOLDERS,
    peers::{MEMBERS, members},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use super::policy::{self, Known, LAG_ENTRIES_MAX, Plan};
use crate::events::EventRecorder;

/// How often the members are looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// An object whose member has been in no configuration for so long is removed. A joiner's object is written up to ten
/// seconds before it is a member.
const STRAY_PERIOD: Duration = Duration::from_secs(60);

/// Of the condition that tells a dead member.
pub const CONDITION: &str = "Healthy";
pub const REASON_DEAD: &str = "NotHeardOf";

/// In the events about members.
const COMPONENT: &str = "coracle-members";

/// For how long something must last before the leader acts on it.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// A learner that was healthy for so long is promoted.
    pub learner_healthy: Duration,
    /// A member that was not heard of for so long is dead.
    pub member_dead: Duration,
}

/// Since when things are so. A new leader begins with nothing: all have their full periods before them.
#[derive(Default)]
struct Since {
    healthy: BTreeMap<u64, Instant>,
    silent: BTreeMap<u64, Instant>,
    stray: BTreeMap<u64, Instant>,
    nameless: BTreeMap<u64, Instant>,
}

/// Keeps the members as they should be. Never ends by itself.
pub async fn run(storage: &ReplicatedStorage, recorder: &EventRecorder, periods: Periods) {
    let mut since = Since::default();
    let mut ticks = interval(PERIOD);
    loop {
        ticks.tick().await;
        let status = storage.status();
        if status.progress.is_empty() {
            continue;
        }
        let plan = policy::plan(&since.look(&status, periods, Instant::now()));
        if !plan.changes.is_empty() {
            change(storage, recorder, &plan).await;
        }
        mark(storage, recorder, &status, &plan.alarms, periods.member_dead).await;
        for id in since.strays(&status, &storage.view(), Instant::now()) {
            forget(storage, id).await;
        }
        for id in since.nameless(&status, &storage.view(), Instant::now()) {
            remove(storage, recorder, id).await;
        }
    }
}

impl Since {
    fn look(&mut self, status: &Status, periods: Periods, now: Instant) -> BTreeMap<u64, Known> {
        let mut known = BTreeMap::new();
        for &(id, matched, active) in &status.progress {
            let voter = status.voters.contains(&id);
            let caught_up = status.last.saturating_sub(matched) <= LAG_ENTRIES_MAX;
            let healthy = lasting(&mut self.healthy, id, active && (voter || caught_up), now);
            let silent = lasting(&mut self.silent, id, !active && id != status.id, now);
            let ready = healthy.is_some_and(|lasted| lasted >= periods.learner_healthy);
            let dead = silent.is_some_and(|lasted| lasted >= periods.member_dead);
            known.insert(id, Known { voter, ready, dead });
        }
        self.healthy.retain(|id, _| known.contains_key(id));
        self.silent.retain(|id, _| known.contains_key(id));
        known
    }

    /// Ids that have an object but have not been members for long.
    fn strays(&mut self, status: &Status, view: &View, now: Instant) -> Vec<u64> {
        let is_member = |id: &u64| status.voters.contains(id) || status.learners.contains(id);
        let strays: BTreeSet<u64> = members(view).into_keys().filter(|id| !is_member(id)).collect();
        long_since(&mut self.stray, strays, now)
    }

    /// Learners that have had no object for long: their joining was given up. Changes of keys and authorities would wait
    /// for them for ever.
    fn nameless(&mut self, status: &Status, view: &View, now: Instant) -> Vec<u64> {
        let known = members(view);
        let nameless = status.learners.iter().copied().filter(|id| !known.contains_key(id)).collect();
        long_since(&mut self.nameless, nameless, now)
    }
}

/// Those of `ids` that have been among them for [`STRAY_PERIOD`].
fn long_since(since: &mut BTreeMap<u64, Instant>, ids: BTreeSet<u64>, now: Instant) -> Vec<u64> {
    since.retain(|id, _| ids.contains(id));
    let mut long = ids.into_iter().collect::<Vec<u64>>();
    long.retain(|id| lasting(since, *id, true, now).is_some_and(|lasted| lasted >= STRAY_PERIOD));
    long
}

/// For how long it has been so; `None` where it is not.
fn lasting(since: &mut BTreeMap<u64, Instant>, id: u64, is_so: bool, now: Instant) -> Option<Duration> {
    if !is_so {
        since.remove(&id);
        return None;
    }
    Some(now.duration_since(*since.entry(id).or_insert(now)))
}

async fn change(storage: &ReplicatedStorage, recorder: &EventRecorder, plan: &Plan) {
    let (promoted, removed) = (plan.promoted(), plan.removed());
    if let Err(error) = storage.raft().change_members(plan.changes.clone()).await {
        tracing::debug!(?promoted, ?removed, %error, "members not changed yet");
        return;
    }
    tracing::info!(?promoted, ?removed, "members changed");
    let view = storage.view();
    for id in promoted {
        record(recorder, &view, id, "Normal", "Promoted", "the learner is a voter now".into());
    }
    for id in removed {
        record(recorder, &view, id, "Warning", "Replaced", "a learner took the dead member's place".into());
        forget(storage, id).await;
    }
}

/// Takes a learner without an object out of the configuration.
async fn remove(storage: &ReplicatedStorage, recorder: &EventRecorder, id: u64) {
    match storage.raft().change_membership(MemberChange::Remove(id)).await {
        Ok(()) => {
            tracing::warn!(member = id, "a learner without an object is removed: its joining was given up");
            let message = "a learner without a Member object: its joining was given up".to_owned();
            record(recorder, &storage.view(), id, "Warning", "Removed", message);
            forget(storage, id).await;
        }
        Err(error) => tracing::debug!(member = id, %error, "a learner without an object is not removed yet"),
    }
}

/// Removes a member's object, and what it told of its keys.
pub async fn forget(storage: &ReplicatedStorage, id: u64) {
    let keys = [key(id), ObjectKey::new(KEY_HOLDERS, "", &id.to_string())];
    let written = write(storage, |view| {
        let there = keys.iter().filter(|key| view.get(key).is_some());
        let writes: Vec<Write> = there.map(|key| Write::Delete { key: key.clone() }).collect();
        (!writes.is_empty()).then(|| Transaction { preconditions: vec![], writes })
    });
    if let Err(error) = written.await {
        tracing::warn!(member = id, %error, "the object of a member that is gone stays for now");
    }
}

/// Writes who is dead into the members' objects, where that has changed.
async fn mark(
    storage: &ReplicatedStorage,
    recorder: &EventRecorder,
    status: &Status,
    dead: &[u64],
    period: Duration,
) {
    let view = storage.view();
    for &(id, _, active) in &status.progress {
        let is_dead = dead.contains(&id);
        let was_dead = view.get(&key(id)).is_some_and(|object| is_marked_dead(object));
        // A member that is silent, but not yet for long, keeps the mark that it has.
        if is_dead == was_dead || !is_dead && !active {
            continue;
        }
        let message = if is_dead {
            format!(
                "it was not heard of for {} s, and there is no learner to take its place",
                period.as_secs()
            )
        } else {
            "it is heard of again".to_owned()
        };
        let (key, now) = (key(id), Timestamp::now());
        let written = write(storage, |view| {
            let object = view.get(&key)?;
            let draft = with_condition(object, is_dead, &message, now);
            Some(Transaction::update(key.clone(), draft, object.revision))
        });
        match written.await {
            Ok(None) => {}
            Ok(Some(_)) => {
                let (type_, reason) = if is_dead { ("Warning", "Dead") } else { ("Normal", "Back") };
                record(recorder, &view, id, type_, reason, message);
            }
            Err(error) => tracing::debug!(member = id, %error, "a member is not marked yet"),
        }
    }
}

/// Whether a member's object says that it is dead.
pub fn is_marked_dead(object: &Object) -> bool {
    condition(&editable(object)).is_some_and(|condition| condition["status"] == "False")
}

/// Since when, and why, in words.
pub fn dead_since(object: &Object) -> Option<(String, String)> {
    let draft = editable(object);
    let condition = condition(&draft).filter(|condition| condition["status"] == "False")?;
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    Some((text("lastTransitionTime"), text("message")))
}

fn condition(draft: &Value) -> Option<&Value> {
    draft["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == CONDITION)
}

fn with_condition(object: &Object, is_dead: bool, message: &str, now: Timestamp) -> bytes::Bytes {
    let mut draft = editable(object);
    let condition = json!({
        "type": CONDITION,
        "status": if is_dead { "False" } else { "True" },
        "reason": if is_dead { REASON_DEAD } else { "HeardOf" },
        "message": message,
        "lastTransitionTime": timestamp(now),
    });
    draft["status"] = json!({ "conditions": [condition] });
    encode(&draft)
}

/// Tells something about a member, as an event.
pub fn record(
    recorder: &EventRecorder,
    view: &View,
    id: u64,
    type_: &'static str,
    reason: &'static str,
    message: String,
) {
    let uid = view.get(&key(id)).map(|object| object.meta.uid.clone()).unwrap_or_default();
    recorder.take(json!({
        "involvedObject": {
            "apiVersion": "coracle.dev/v1",
            "kind": "Member",
            "name": id.to_string(),
            "uid": uid,
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "source": { "component": COMPONENT },
    }));
}

fn key(id: u64) -> ObjectKey {
    ObjectKey::new(MEMBERS, "", &id.to_string())
}

#[cfg(test)]
mod tests {
    use coracle_api::new_draft;
    use coracle_storage::peers::MemberSpec;

    use super::*;

    const PERIODS: Periods =
        Periods { learner_healthy: Duration::from_secs(10), member_dead: Duration::from_secs(30) };

    fn status(progress: &[(u64, u64, bool)]) -> Status {
        Status {
            id: 1,
            last: 1000,
            voters: vec![1, 2],
            learners: vec![3],
            progress: progress.to_vec(),
            ..Status::default()
        }
    }

    #[test]
    fn readiness_and_death_take_their_periods() {
        let mut since = Since::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let all = status(&[(1, 1000, true), (2, 0, false), (3, 900, true)]);
        let first = since.look(&all, PERIODS, at(0));
        assert!(first.values().all(|known| !known.ready && !known.dead));
        let known = since.look(&all, PERIODS, at(10));
        assert!(known[&3].ready && !known[&2].dead);
        assert!(since.look(&all, PERIODS, at(30))[&2].dead);
        let behind = status(&[(1, 1000, true), (2, 1000, true), (3, 700, true)]);
        let known = since.look(&behind, PERIODS, at(31));
        assert!(!known[&3].ready && !known[&2].dead);
        assert!(!since.look(&all, PERIODS, at(32))[&3].ready, "the period begins anew");
        assert!(!since.look(&all, PERIODS, at(400))[&1].dead, "never itself");
    }

    #[test]
    fn only_lasting_strays_are_removed() {
        let mut since = Since::default();
        let mut view = View::default();
        for id in [1, 9] {
            let spec = MemberSpec { id, ..MemberSpec::default() };
            let draft =
                new_draft("coracle.dev/v1", "Member", &key(id), spec.to_body(), Timestamp::UNIX_EPOCH);
            let object = Object::from_draft(key(id), &draft, 1).unwrap();
            view.tables.entry(key(id).resource).or_default().insert(key(id).name, object.into());
        }
        let start = Instant::now();
        assert_eq!(since.strays(&status(&[]), &view, start), [0; 0]);
        assert_eq!(since.strays(&status(&[]), &view, start + STRAY_PERIOD), [9]);
        let later = start + STRAY_PERIOD;
        assert_eq!(since.nameless(&status(&[]), &view, later), [0; 0]);
        assert_eq!(since.nameless(&status(&[]), &view, later + STRAY_PERIOD), [3], "never a voter");
    }

    #[test]
    fn a_mark_is_read_back() {
        let draft = new_draft(
            "coracle.dev/v1",
            "Member",
            &key(2),
            MemberSpec::default().to_body(),
            Timestamp::UNIX_EPOCH,
        );
        let object = Object::from_draft(key(2), &draft, 1).unwrap();
        assert!(!is_marked_dead(&object));
        let marked = with_condition(&object, true, "silent", Timestamp::UNIX_EPOCH);
        let marked = Object::from_draft(key(2), &marked, 2).unwrap();
        assert_eq!(dead_since(&marked), Some(("1970-01-01T00:00:00Z".into(), "silent".into())));
        let back = with_condition(&marked, false, "back", Timestamp::UNIX_EPOCH);
        assert!(!is_marked_dead(&Object::from_draft(key(2), &back, 3).unwrap()));
    }
}
