//! When tasks are to be run although nothing is observed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::task::Task;

/// At most one moment a task: the earliest that was asked for.
#[derive(Debug, Default)]
pub struct Timers {
    by_time: BTreeSet<(Timestamp, Task)>,
    by_task: BTreeMap<Task, Timestamp>,
}

impl Timers {
    pub fn len(&self) -> usize {
        self.by_task.len()
    }

    pub fn set(&mut self, task: &Task, at: Timestamp) {
        match self.by_task.get(task) {
            Some(known) if *known <= at => return,
            Some(known) => {
                self.by_time.remove(&(*known, task.clone()));
            }
            None => {}
        }
        self.by_task.insert(task.clone(), at);
        self.by_time.insert((at, task.clone()));
    }

    pub fn clear(&mut self, task: &Task) {
        if let Some(at) = self.by_task.remove(task) {
            self.by_time.remove(&(at, task.clone()));
        }
    }

    /// Takes the tasks whose time has come.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<Task> {
        let mut due = Vec::new();
        while let Some((at, task)) = self.by_time.first().cloned()
            && at <= now
        {
            self.by_time.pop_first();
            self.by_task.remove(&task);
            due.push(task);
        }
        due
    }

    pub fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::ObjectKey;

    use super::*;

    #[test]
    fn the_earliest_moment_of_a_task_counts() {
        let moment = |second| Timestamp::from_second(second).unwrap();
        let mut timers = Timers::default();
        let (a, b) = (
            Task::new("c", ObjectKey::new("nodes", "", "a")),
            Task::new("c", ObjectKey::new("nodes", "", "b")),
        );
        timers.set(&a, moment(5));
        timers.set(&a, moment(3));
        timers.set(&a, moment(9));
        timers.set(&b, moment(4));
        assert_eq!(timers.next(), Some(moment(3)));
        assert_eq!(timers.take_due(moment(3)), vec![a]);
        timers.clear(&b);
        assert_eq!(timers.next(), None);
    }
}
