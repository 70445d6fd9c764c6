//! Events that wait for a link. Namespaces take turns, and where there are too many the one with the most loses its oldest:
//! what one makes many of has others' neither dropped nor late.

use std::collections::{BTreeMap, VecDeque};

use coracle_proto::node::NodeEvent;

/// Events that wait. They matter least of what is on its way up.
pub const EVENTS_MAX: usize = 1024;

#[derive(Default)]
pub struct EventLine {
    /// By namespace, the oldest first; none empty.
    waiting: BTreeMap<String, VecDeque<NodeEvent>>,
    /// The namespaces that have some, the next in turn first.
    turns: VecDeque<String>,
    len: usize,
}

impl EventLine {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Answers how many events were dropped for it.
    pub fn push(&mut self, namespace: String, event: NodeEvent) -> u64 {
        self.of(namespace).push_back(event);
        self.bound()
    }

    /// Puts one back that was taken: before those of its namespace that came after it.
    pub fn put_back(&mut self, namespace: String, event: NodeEvent) -> u64 {
        self.of(namespace).push_front(event);
        self.bound()
    }

    /// The next, with its namespace.
    pub fn pop(&mut self) -> Option<(String, NodeEvent)> {
        let namespace = self.turns.pop_front()?;
        let event = self.take(&namespace)?;
        if self.waiting.contains_key(&namespace) {
            self.turns.push_back(namespace.clone());
        }
        Some((namespace, event))
    }

    /// Those of a namespace, for one that comes.
    fn of(&mut self, namespace: String) -> &mut VecDeque<NodeEvent> {
        self.len += 1;
        if !self.waiting.contains_key(&namespace) {
            self.turns.push_back(namespace.clone());
        }
        self.waiting.entry(namespace).or_default()
    }

    fn take(&mut self, namespace: &str) -> Option<NodeEvent> {
        let own = self.waiting.get_mut(namespace)?;
        let event = own.pop_front();
        self.len -= usize::from(event.is_some());
        if own.is_empty() {
            self.waiting.remove(namespace);
        }
        event
    }

    fn bound(&mut self) -> u64 {
        let mut dropped = 0;
        while self.len > EVENTS_MAX {
            let most = self.waiting.iter().max_by_key(|(_, own)| own.len());
            let Some(namespace) = most.map(|(namespace, _)| namespace.clone()) else { break };
            dropped += 1 + self.take(&namespace).map_or(0, |event| event.dropped);
            if !self.waiting.contains_key(&namespace) {
                self.turns.retain(|one| *one != namespace);
            }
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &'static str) -> NodeEvent {
        NodeEvent { event_json: text.into(), dropped: 0 }
    }

    #[test]
    fn who_has_many_drops_his_own_and_others_have_their_turns() {
        let mut line = EventLine::default();
        line.push("modest".into(), event("first"));
        let dropped: u64 = (0..3 * EVENTS_MAX).map(|_| line.push("greedy".into(), event("e"))).sum();
        assert_eq!((line.len(), dropped as usize), (EVENTS_MAX, 2 * EVENTS_MAX + 1));
        line.push("modest".into(), event("second"));
        line.push("late".into(), event("third"));
        let next: Vec<String> =
            std::iter::from_fn(|| line.pop()).take(6).map(|(namespace, _)| namespace).collect();
        assert_eq!(next, ["modest", "greedy", "late", "modest", "greedy", "greedy"]);
        line.put_back("late".into(), event("third"));
        let left: Vec<_> = std::iter::from_fn(|| line.pop()).collect();
        assert_eq!((left.len(), line.len()), (EVENTS_MAX - 5, 0));
        assert_eq!(left[1], ("late".into(), event("third")));
        assert!(line.waiting.is_empty() && line.turns.is_empty());
    }
}
