//! Objects that cannot be read: an event says so, and all else goes on without them.

use coracle_objects::{Event, ObjectKey};

use crate::{
    controller::Controller, draft::Unreadable, event_record::EventRecord, planner::Planner, queue::Queue,
    state::State, task::Task,
};

/// See the module.
pub struct Reports;

const NAME: &str = "unreadable-object-reporter";

const COMPONENT: &str = "controller-manager";

impl Controller for Reports {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let key = &event.object.key;
        if state.models.unreadable.contains_key(key) {
            tasks.insert(Task::new(NAME, key.clone()));
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, subject)
    }
}

/// Tells of an object that a controller cannot read. It counts as existing, and nothing is done to it.
fn plan(planner: &mut Planner<'_>, key: &ObjectKey) -> Result<(), Unreadable> {
    if let Some(reason) = planner.state.models.unreadable.get(key).cloned() {
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
