//! What the leader does for the keys: adds one where there is none or a new one is asked for, has it written with once
//! every member holds it, and seals anew what is still sealed with another key or in clear.

use std::{sync::Arc, time::Duration};

use coracle_api::Storage;
use coracle_objects::{Expect, Object, Revision, SEALED_RESOURCES, Table, Transaction};
use futures::{StreamExt, stream};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    SecretBox,
    key::KeyId,
    key_ring::{KEYS_MAX, KeyRing, KeyRingError},
    sealing,
    state::{self, KeyRingState},
};
use crate::ReplicatedStorage;

/// How often the leader looks at what is to be done.
const PERIOD: Duration = Duration::from_millis(500);

/// Objects that are sealed anew at a time, and the pause after so many: requests of clients have the room in between.
const RESEALED_AT_A_TIME: usize = 16;
const RESEALED_A_ROUND: usize = 64;
const ROUND_PAUSE: Duration = Duration::from_millis(10);

/// Dropped keys that are remembered, so that members which were away forget them too.
const DROPPED_MAX: usize = 64;

/// Why a change of keys does not begin.
#[derive(Debug, Error)]
pub enum KeysRefused {
    #[error(
        "a change of keys is under way: key {0} is on its way to all members; see `coracle cluster keys`"
    )]
    Adding(KeyId),
    #[error(
        "a change of keys is under way: {left} objects are not sealed with key {writing} yet; try again when none are"
    )]
    Resealing { writing: KeyId, left: u64 },
    #[error("the ring has {KEYS_MAX} keys already; drop old ones with `coracle cluster drop-key ID`")]
    TooMany,
    #[error("there is no key {0:?}; see `coracle cluster keys`")]
    Unknown(String),
    #[error(
        "key {0} is in use: new objects are sealed with it; rotate first with `coracle cluster rotate-keys`"
    )]
    InUse(KeyId),
    #[error(
        "{left} objects are still sealed with key {id}; it can be dropped once they are sealed with the new one"
    )]
    Needed { id: KeyId, left: u64 },
    #[error("the cluster has no keys yet; try again in a moment")]
    NoRing,
    #[error(transparent)]
    Ring(#[from] KeyRingError),
    #[error("the change was not made: {0}")]
    NotWritten(String),
}

/// What the leader does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Makes a key and has it added.
    Add,
    Agree(KeyRingState),
    /// Everything is to be sealed with this key.
    Seal(KeyId),
}

/// Does what is to be done, as long as this member leads.
pub async fn run(storage: &ReplicatedStorage, secrets: &SecretBox) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut finished: Option<(KeyId, Vec<Option<Table>>)> = None;
    loop {
        ticks.tick().await;
        let view = storage.view();
        let agreed = KeyRingState::read(&view);
        let status = storage.status();
        let all_hold = |key: &KeyId| state::members_without(key, &view, &status).is_empty();
        let step = plan(agreed.as_ref().map(|(_, agreed)| agreed), &secrets.ring(), all_hold);
        match step {
            Step::Add => {
                if let Err(error) = add(storage, secrets).await {
                    tracing::warn!(%error, "a key for Secrets is not added yet");
                }
            }
            Step::Agree(agreed) => {
                if let Ok(Ok(_)) = storage.propose(agreed.write(&view)).await {
                    tracing::info!(writing = ?agreed.writing, adding = ?agreed.adding, "keys for Secrets changed");
                }
            }
            Step::Seal(key) => {
                let Some((revision, _)) = agreed else { continue };
                // Tables share their parts: what was looked at once is told by its pointer.
                let tables = sealed_tables(storage);
                let known = finished
                    .as_ref()
                    .is_some_and(|(with, finished)| *with == key && same_tables(&tables, finished));
                if !known && seal_anew(storage, secrets, &key, revision).await {
                    finished = Some((key, tables));
                }
            }
        }
    }
}

fn plan(agreed: Option<&KeyRingState>, ring: &KeyRing, all_hold: impl Fn(&KeyId) -> bool) -> Step {
    let Some(agreed) = agreed else {
        return match &ring.writing {
            Some(writing) => Step::Agree(KeyRingState {
                writing: Some(writing.clone()),
                keys: ring.ids().cloned().collect(),
                ..KeyRingState::default()
            }),
            // A cluster from before there was encryption.
            None => Step::Add,
        };
    };
    match (&agreed.adding, &agreed.writing) {
        // Whoever made it has gone before anybody else had it. Nothing is sealed with it.
        (Some(adding), _) if ring.get(adding.as_str()).is_none() => Step::Add,
        (Some(adding), _) if all_hold(adding) => {
            Step::Agree(KeyRingState { writing: Some(adding.clone()), adding: None, ..agreed.clone() })
        }
        (_, Some(writing)) => Step::Seal(writing.clone()),
        (Some(adding), None) => Step::Agree(KeyRingState { adding: Some(adding.clone()), ..agreed.clone() }),
        (None, None) => Step::Add,
    }
}

/// Begins to change to a new key. Only the leader can.
pub async fn begin(storage: &ReplicatedStorage, secrets: &SecretBox) -> Result<(), KeysRefused> {
    let (_, agreed) = KeyRingState::read(&storage.view()).ok_or(KeysRefused::NoRing)?;
    if let Some(adding) = agreed.adding {
        return Err(KeysRefused::Adding(adding));
    }
    if let Some(writing) = agreed.writing {
        let counts = state::counts(&storage.hub().published().sealed);
        let left = counts.iter().filter(|(key, _)| key.as_deref() != Some(writing.as_str()));
        let left = left.map(|(_, count)| count).sum();
        if left > 0 {
            return Err(KeysRefused::Resealing { writing, left });
        }
    }
    if agreed.keys.len() >= KEYS_MAX {
        return Err(KeysRefused::TooMany);
    }
    add(storage, secrets).await
}

/// Makes a key and has it added; one that is being added already gives way to it.
async fn add(storage: &ReplicatedStorage, secrets: &SecretBox) -> Result<(), KeysRefused> {
    let id = secrets.generate()?;
    let view = storage.view();
    let mut agreed = KeyRingState::read(&view).map(|(_, agreed)| agreed).unwrap_or_default();
    if let Some(given_up) = agreed.adding.replace(id.clone()) {
        forget(&mut agreed, &given_up);
    }
    agreed.keys.push(id.clone());
    let written = write(storage, agreed.write(&view)).await;
    if written.is_err() {
        secrets.change(|ring| ring.remove(&id))?;
    }
    written
}

/// Has all members forget a key that nothing is sealed with any more. Only the leader can.
pub async fn drop_key(storage: &ReplicatedStorage, id: &str) -> Result<(), KeysRefused> {
    let view = storage.view();
    let (_, mut agreed) = KeyRingState::read(&view).ok_or(KeysRefused::NoRing)?;
    let known = agreed.keys.iter().find(|key| key.as_str() == id).cloned();
    let id = known.ok_or_else(|| KeysRefused::Unknown(id.to_owned()))?;
    if agreed.writing.as_ref() == Some(&id) || agreed.adding.as_ref() == Some(&id) {
        return Err(KeysRefused::InUse(id));
    }
    let counts = state::counts(&storage.hub().published().sealed);
    if let Some(&left) = counts.get(&Some(id.to_string())) {
        return Err(KeysRefused::Needed { id, left });
    }
    forget(&mut agreed, &id);
    write(storage, agreed.write(&view)).await
}

fn forget(agreed: &mut KeyRingState, id: &KeyId) {
    agreed.keys.retain(|key| key != id);
    agreed.dropped.push(id.clone());
    let surplus = agreed.dropped.len().saturating_sub(DROPPED_MAX);
    agreed.dropped.drain(..surplus);
}

async fn write(storage: &ReplicatedStorage, transaction: Transaction) -> Result<(), KeysRefused> {
    match storage.propose(transaction).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(KeysRefused::NotWritten(format!("{refusal:?}"))),
        Err(error) => Err(KeysRefused::NotWritten(error.to_string())),
    }
}

/// Whether everything that this member can open is sealed with the key now.
async fn seal_anew(storage: &ReplicatedStorage, secrets: &SecretBox, key: &KeyId, agreed: Revision) -> bool {
    let sealed = storage.hub().published().sealed.clone();
    let objects = SEALED_RESOURCES.iter().flat_map(|resource| sealed.list(resource, None));
    let others: Vec<_> = objects.filter(|object| !is_sealed_with(object, key)).cloned().collect();
    if others.is_empty() {
        return true;
    }
    tracing::info!(objects = others.len(), %key, "sealing anew");
    let mut failed = 0;
    for round in others.chunks(RESEALED_A_ROUND) {
        let writes = round.iter().filter_map(|object| sealed_anew(secrets, object, key, agreed));
        let writes: Vec<_> = writes.map(|transaction| storage.propose_sealed(transaction)).collect();
        failed += round.len() - writes.len();
        let outcomes: Vec<_> = stream::iter(writes).buffer_unordered(RESEALED_AT_A_TIME).collect().await;
        // What was changed meanwhile is sealed with the new key by that, or looked at again.
        failed += outcomes.iter().filter(|outcome| !matches!(outcome, Ok(Ok(_)))).count();
        sleep(ROUND_PAUSE).await;
    }
    tracing::info!(objects = others.len(), failed, %key, "sealed anew");
    failed == 0
}

fn is_sealed_with(object: &Object, key: &KeyId) -> bool {
    object.sealed().is_some_and(|sealed| sealed.key == key.as_str())
}

/// The transaction that seals an object with the key; `None` where this member cannot open it or lacks the key.
pub(super) fn sealed_anew(
    secrets: &SecretBox,
    object: &Arc<Object>,
    key: &KeyId,
    agreed: Revision,
) -> Option<Transaction> {
    let clear = secrets.open(object).ok()?;
    let ring = secrets.ring();
    let draft = sealing::seal(ring.get(key.as_str())?, &object.key, &clear.draft()).ok()?;
    let update = Transaction::update(object.key.clone(), draft, object.revision);
    Some(update.expecting(KeyRingState::key(), Expect::Revision(agreed)))
}

fn sealed_tables(storage: &ReplicatedStorage) -> Vec<Option<Table>> {
    let sealed = storage.hub().published().sealed.clone();
    SEALED_RESOURCES.iter().map(|resource| sealed.tables.get(*resource).cloned()).collect()
}

fn same_tables(some: &[Option<Table>], others: &[Option<Table>]) -> bool {
    let same = |pair: (&Option<Table>, &Option<Table>)| match pair {
        (Some(one), Some(other)) => one.ptr_eq(other),
        (None, None) => true,
        _ => false,
    };
    some.len() == others.len() && some.iter().zip(others).all(same)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::encryption::key::Key;

    fn ring() -> (KeyRing, KeyId) {
        let mut ring = KeyRing::default();
        let key = Key::generate(Timestamp::now());
        let id = key.id.clone();
        ring.add(key);
        (ring, id)
    }

    #[test]
    fn a_key_is_written_with_once_all_members_hold_it() {
        let (mut ring, id) = ring();
        assert_eq!(plan(None, &KeyRing::default(), |_| true), Step::Add, "a cluster without keys gets one");
        ring.writing = Some(id.clone());
        let founded =
            KeyRingState { writing: Some(id.clone()), keys: vec![id.clone()], ..Default::default() };
        assert_eq!(plan(None, &ring, |_| true), Step::Agree(founded.clone()));
        assert_eq!(plan(Some(&founded), &ring, |_| true), Step::Seal(id.clone()));
        let new = Key::generate(Timestamp::now());
        let adding = KeyRingState { adding: Some(new.id.clone()), ..founded.clone() };
        assert_eq!(plan(Some(&adding), &ring, |_| true), Step::Add, "the key is lost with who made it");
        let new_id = new.id.clone();
        ring.add(new);
        assert_eq!(
            plan(Some(&adding), &ring, |_| false),
            Step::Seal(id),
            "the old one as long as one lacks the new"
        );
        let switched = KeyRingState { writing: Some(new_id), adding: None, ..founded };
        assert_eq!(plan(Some(&adding), &ring, |_| true), Step::Agree(switched));
    }
}
