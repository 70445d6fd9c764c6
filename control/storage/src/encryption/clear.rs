//! The state in clear, kept in step with the state as it is stored.

use std::sync::Arc;

use coracle_objects::{Event, Object, SEALED_RESOURCES, Table, View};
use imbl::ordmap::DiffItem;

use super::{SecretBox, secret_box::StaysSealed};

/// One moment of the store, as it is stored and in clear.
#[derive(Clone, Default)]
pub struct Published {
    /// With ciphertext: what log and snapshots have.
    pub sealed: Arc<View>,
    /// What everybody reads. An object that this member cannot open is in it as it is stored.
    pub clear: Arc<View>,
}

/// The state in clear. Only what differs from `before` is opened; without it, everything.
pub fn clear_view(secrets: &SecretBox, sealed: &View, before: Option<&Published>) -> View {
    let mut clear = sealed.clone();
    for resource in SEALED_RESOURCES {
        let Some(table) = sealed.tables.get(*resource) else { continue };
        let known = before.and_then(|before| {
            Some((before.sealed.tables.get(*resource)?, before.clear.tables.get(*resource)?))
        });
        let opened = match known {
            Some((was_sealed, was_clear)) => follow(secrets, was_sealed, was_clear, table),
            None => table.iter().map(|(name, object)| (name.clone(), open(secrets, object))).collect(),
        };
        clear.tables.insert((*resource).into(), opened);
    }
    clear
}

fn follow(secrets: &SecretBox, was_sealed: &Table, was_clear: &Table, now: &Table) -> Table {
    let mut clear = was_clear.clone();
    // Shared parts of the two tables are skipped: this costs what has changed.
    for difference in was_sealed.diff(now) {
        match difference {
            DiffItem::Add(name, object) | DiffItem::Update { new: (name, object), .. } => {
                clear.insert(name.clone(), open(secrets, object));
            }
            DiffItem::Remove(name, _) => {
                clear.remove(name);
            }
        }
    }
    clear
}

/// An event in clear; `clear` is the state after it, or a later one.
pub fn clear_event(secrets: &SecretBox, event: &Arc<Event>, clear: &View) -> Arc<Event> {
    if event.object.sealed().is_none()
        && event.previous.as_ref().is_none_or(|object| object.sealed().is_none())
    {
        return event.clone();
    }
    let known = clear.get(&event.object.key).filter(|known| known.revision == event.object.revision);
    let object = known.cloned().unwrap_or_else(|| open(secrets, &event.object));
    let previous = event.previous.as_ref().map(|object| open(secrets, object));
    Arc::new(Event { kind: event.kind, object, previous })
}

/// What cannot be opened stays as it is: whoever asks for it is told so, and it can still be deleted.
fn open(secrets: &SecretBox, object: &Arc<Object>) -> Arc<Object> {
    secrets.open(object).unwrap_or_else(|error| {
        // A missing key is on its way perhaps: who fetches it says it where it cannot be had.
        if matches!(error, StaysSealed::Broken { .. }) {
            tracing::error!(%error, "an object cannot be opened");
        }
        object.clone()
    })
}
