//! Tasks that wait to be run: each once, those of one controller and one namespace in the order in which they were marked,
//! the controllers in turn, and of each controller the namespaces, so that nobody's work starves another's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{controller::ALL, task::Task};

/// So many tasks of one controller are run before the next one has its turn.
const TURN_TASKS_MAX: usize = 32;

/// See the module. Bounded by the objects that there are.
#[derive(Debug, Default)]
pub struct Queue {
    /// By [`Task::place`].
    waiting: [Lane; ALL.len()],
    known: BTreeSet<Task>,
    /// Whose turn it is, and how many tasks of it were taken.
    turn: (usize, usize),
}

/// One controller's tasks.
#[derive(Debug, Default)]
struct Lane {
    /// Those that have tasks, the next in turn first.
    namespaces: VecDeque<String>,
    /// By namespace; none empty.
    tasks: BTreeMap<String, VecDeque<Task>>,
}

impl Lane {
    fn push(&mut self, task: Task) {
        let namespace = task.namespace();
        if let Some(tasks) = self.tasks.get_mut(namespace) {
            tasks.push_back(task);
            return;
        }
        let namespace = namespace.to_owned();
        self.namespaces.push_back(namespace.clone());
        self.tasks.insert(namespace, VecDeque::from([task]));
    }

    fn pop(&mut self) -> Option<Task> {
        let namespace = self.namespaces.pop_front()?;
        let tasks = self.tasks.get_mut(&namespace)?;
        let task = tasks.pop_front();
        if tasks.is_empty() {
            self.tasks.remove(&namespace);
        } else {
            self.namespaces.push_back(namespace);
        }
        task
    }

    /// All tasks, those of one namespace after those of another, in the order of their turns.
    fn into_tasks(mut self) -> impl Iterator<Item = Task> {
        self.namespaces.into_iter().filter_map(move |namespace| self.tasks.remove(&namespace)).flatten()
    }
}

impl Queue {
    pub fn insert(&mut self, task: Task) {
        if self.known.insert(task.clone()) {
            self.waiting[task.place()].push(task);
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
        for _ in 0..ALL.len() {
            if let Some(task) = self.waiting[self.turn.0].pop() {
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
        self.turn = ((self.turn.0 + 1) % ALL.len(), 0);
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes all tasks.
    pub fn drain(&mut self) -> impl Iterator<Item = Task> {
        std::mem::take(self).waiting.into_iter().flat_map(Lane::into_tasks)
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::ObjectName;

    use super::*;
    use crate::{endpoint_slice, node_lifecycle, replica_set};

    fn node() -> Task {
        Task::on(node_lifecycle::NAME, "nodes", &ObjectName::new("", "a"))
    }

    fn service() -> Task {
        Task::on(endpoint_slice::NAME, "services", &ObjectName::new("n", "s"))
    }

    fn set(namespace: &str, index: usize) -> Task {
        let name = ObjectName::new(namespace, &format!("s{index}"));
        Task::on(replica_set::NAME, "replicasets.apps", &name)
    }

    #[test]
    fn controllers_take_turns_and_tasks_keep_their_order() {
        let mut queue = Queue::default();
        let set = |index: usize| set("n", index);
        for index in (0..TURN_TASKS_MAX + 2).rev() {
            queue.insert(set(index));
            queue.insert(set(index));
        }
        queue.insert(node());
        queue.insert(service());
        let order: Vec<Task> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order.len(), TURN_TASKS_MAX + 4);
        assert_eq!(order[0], node());
        assert_eq!(order[1], set(TURN_TASKS_MAX + 1));
        assert_eq!(order[1 + TURN_TASKS_MAX], service());
        assert_eq!(order[TURN_TASKS_MAX + 3], set(0));
        assert!(queue.is_empty());
    }

    #[test]
    fn namespaces_take_turns() {
        let mut queue = Queue::default();
        for index in 0..1_000 {
            queue.insert(set("many", index));
        }
        queue.insert(set("few", 0));
        queue.insert(set("few", 1));
        let order: Vec<Task> = std::iter::from_fn(|| queue.pop()).take(4).collect();
        assert_eq!(order, [set("many", 0), set("few", 0), set("many", 1), set("few", 1)]);
        assert_eq!(queue.drain().count(), 998);
        assert!(queue.is_empty());
    }
}
