//! Deletions by controllers, as transactions.

use coracle_objects::{Object, Transaction, View, claims, is_cluster_info, is_kept_namespace};
use jiff::Timestamp;
use serde_json::Value;

use crate::draft::{self, Unreadable};

pub use coracle_objects::deletion::{
    FOREGROUND, ORPHAN, Propagation, Wish, drop_finalizer, is_complete, wish,
};

/// The transaction that deletes the object as it is known here. None where that has begun already, or never may.
pub fn delete(
    view: &View,
    object: &Object,
    propagation: Option<Propagation>,
    now: Timestamp,
) -> Result<Option<Transaction>, Unreadable> {
    let kept = is_kept_namespace(&object.key) || is_cluster_info(&object.key);
    if kept || object.meta.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut value = draft::of(object)?;
    wish(object.key.resource.as_str(), &mut value, Wish { propagation, grace_s: None }, now);
    Ok(Some(write(view, object, &value)))
}

/// The transaction that takes a finalizer off an object that is being deleted, and removes the object where nothing
/// else holds it.
pub fn finalize(view: &View, object: &Object, finalizer: &str) -> Result<Transaction, Unreadable> {
    let mut value = draft::of(object)?;
    drop_finalizer(&mut value, finalizer);
    Ok(write(view, object, &value))
}

/// Writes what has become of an object that is being deleted: nothing where nothing holds it any more.
pub fn write(view: &View, object: &Object, value: &Value) -> Transaction {
    if is_complete(object.key.resource.as_str(), value) {
        remove(view, object)
    } else {
        draft::put(object, value)
    }
}

/// Removes the object as it is known here, and gives back what it has claimed.
pub fn remove(view: &View, object: &Object) -> Transaction {
    let mut removal = Transaction::delete(object.key.clone(), object.revision);
    removal.join(claims::release(view, object));
    removal
}
