//! Things that wait, in a line for each party that brought them. They are taken from the lines in turn, so that whoever
//! brings many waits for himself.

use super::callers::Party;
use std::collections::{HashMap, VecDeque};

/// `None` is the pod itself. Each thing has a weight.
#[derive(Debug)]
pub(super) struct Turns<T> {
    weight: usize,
    lines: HashMap<Option<Party>, Line<T>>,
    /// Parties with something in line: whose turn it is, first, and whose then.
    next: VecDeque<Option<Party>>,
}

#[derive(Debug)]
struct Line<T> {
    weight: usize,
    things: VecDeque<(T, usize)>,
}

impl<T> Turns<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// What all have in line.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    pub(super) fn weight_of(&self, party: &Option<Party>) -> usize {
        self.lines.get(party).map_or(0, |line| line.weight)
    }

    pub(super) fn push(&mut self, party: Option<Party>, thing: T, weight: usize) {
        let line = self.lines.entry(party.clone()).or_insert_with(|| {
            self.next.push_back(party);
            Line { weight: 0, things: VecDeque::new() }
        });
        line.things.push_back((thing, weight));
        line.weight += weight;
        self.weight += weight;
    }

    /// The first thing of the party whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(Option<Party>, T)> {
        let party = self.next.pop_front()?;
        let line = self.lines.get_mut(&party)?;
        let (thing, weight) = line.things.pop_front()?;
        line.weight -= weight;
        self.weight -= weight;
        if line.things.is_empty() {
            self.lines.remove(&party);
        } else {
            self.next.push_back(party.clone());
        }
        Some((party, thing))
    }

    pub(super) fn retain(&mut self, keeps: impl Fn(&T) -> bool) {
        self.lines.retain(|_, line| {
            line.things.retain(|(thing, _)| keeps(thing));
            line.weight = line.things.iter().map(|(_, weight)| weight).sum();
            !line.things.is_empty()
        });
        self.next.retain(|party| self.lines.contains_key(party));
        self.weight = self.lines.values().map(|line| line.weight).sum();
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { weight: 0, lines: HashMap::new(), next: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(number: u8) -> Option<Party> {
        Some(Party::Source([10, 128, 0, number].into()))
    }

    #[test]
    fn lines_are_taken_from_in_turn_and_nothing_is_left_of_empty_ones() {
        let mut turns = Turns::default();
        for thing in 0..3 {
            turns.push(party(1), thing, 10);
        }
        turns.push(party(2), 3, 1);
        turns.push(None, 4, 1);
        assert_eq!((turns.weight(), turns.weight_of(&party(1)), turns.weight_of(&party(3))), (32, 30, 0));
        let mut taken = Vec::new();
        taken.extend(turns.pop().map(|(_, thing)| thing));
        turns.push(party(2), 5, 1);
        taken.extend(std::iter::from_fn(|| turns.pop().map(|(_, thing)| thing)));
        assert_eq!(taken, [0, 3, 4, 1, 5, 2]);
        assert!(turns.is_empty() && turns.weight() == 0 && turns.lines.is_empty());
    }

    #[test]
    fn what_is_not_kept_weighs_nothing() {
        let mut turns = Turns::default();
        for (number, thing) in [(1, 1), (1, 2), (2, 3)] {
            turns.push(party(number), thing, 5);
        }
        turns.retain(|thing| *thing == 2);
        assert_eq!((turns.weight(), turns.weight_of(&party(1)), turns.weight_of(&party(2))), (5, 5, 0));
        assert_eq!(turns.pop(), Some((party(1), 2)));
        assert_eq!(turns.pop(), None);
    }
}
