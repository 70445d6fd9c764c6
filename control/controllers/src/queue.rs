//! Tasks that wait to be run: each once, those of one controller in the order in which they were marked, the controllers
//! in turn, so that no controller's work and no object's work starves another's.

use std::collections::{BTreeSet, VecDeque};

use crate::dirty::Task;

/// So many tasks of one controller are run before the next one has its turn.
const TURN_TASKS_MAX: usize = 32;

/// See the module. Bounded by the objects that there are.
#[derive(Debug, Default)]
pub struct Queue {
    /// By [`Task::controller`].
    waiting: [VecDeque<Task>; Task::CONTROLLERS],
    known: BTreeSet<Task>,
    /// Whose turn it is, and how many tasks of it were taken.
    turn: (usize, usize),
}

impl Queue {
    pub fn insert(&mut self, task: Task) {
        if self.known.insert(task.clone()) {
            self.waiting[task.controller()].push_back(task);
        }
    }

    pub fn extend(&mut self, tasks: impl IntoIterator<Item = Task>) {
        tasks.into_iter().for_each(|task| self.insert(task));
    }

    /// Takes the next task.
    pub fn pop(&mut self) -> Option<Task> {
        if self.turn.1 >= TURN_TASKS_MAX {
            self.end_turn();
        }
        for _ in 0..Task::CONTROLLERS {
            if let Some(task) = self.waiting[self.turn.0].pop_front() {
                self.known.remove(&task);
                self.turn.1 += 1;
                return Some(task);
            }
            self.end_turn();
        }
        self.turn = (0, 0);
        None
    }

    /// Has the next controller go on, for the present one has done enough for now.
    pub fn end_turn(&mut self) {
        self.turn = ((self.turn.0 + 1) % Task::CONTROLLERS, 0);
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes all tasks.
    pub fn drain(&mut self) -> impl Iterator<Item = Task> {
        std::mem::take(self).waiting.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::ObjectName;

    use super::*;

    #[test]
    fn controllers_take_turns_and_tasks_keep_their_order() {
        let mut queue = Queue::default();
        let set = |index: usize| Task::ReplicaSet(ObjectName::new("n", &format!("s{index}")));
        for index in (0..TURN_TASKS_MAX + 2).rev() {
            queue.insert(set(index));
            queue.insert(set(index));
        }
        queue.insert(Task::Node("a".into()));
        queue.insert(Task::Service(ObjectName::new("n", "s")));
        let order: Vec<Task> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order.len(), TURN_TASKS_MAX + 4);
        assert_eq!(order[0], Task::Node("a".into()));
        assert_eq!(order[1], set(TURN_TASKS_MAX + 1));
        assert_eq!(order[1 + TURN_TASKS_MAX], Task::Service(ObjectName::new("n", "s")));
        assert_eq!(order[TURN_TASKS_MAX + 3], set(0));
        assert!(queue.is_empty());
    }
}
