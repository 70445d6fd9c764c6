//! Objects that cannot be read: an event says so, and all else goes on without them.

use coracle_objects::ObjectKey;

use crate::{draft::Unreadable, event_record::EventRecord, planner::Planner};

const COMPONENT: &str = "controller-manager";

/// Tells of an object that a controller cannot read. It counts as existing, and nothing is done to it.
pub fn plan(planner: &mut Planner<'_>, key: &ObjectKey) -> Result<(), Unreadable> {
    if let Some(reason) = planner.state.unreadable.get(key).cloned() {
        tell(planner, &Unreadable { key: key.clone(), reason });
    }
    Ok(())
}

/// Records the event.
pub fn tell(planner: &mut Planner<'_>, unreadable: &Unreadable) {
    let Some(object) = planner.state.get(&unreadable.key).cloned() else { return };
    let message = format!(
        "This object cannot be read and is left as it is: {}. Correct the field with kubectl edit, or delete the object",
        unreadable.reason
    );
    planner.record(EventRecord::warning(&object, COMPONENT, "Unreadable", message));
}
