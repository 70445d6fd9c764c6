//! Which of the owners that wait for each other would do so for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Object, ObjectKey};

use crate::state::State;

/// The most steps from an owner to what it waits for, in search of something that goes by itself. Where there are more,
/// and none of so many leads to such, they are taken for a circle: all that follows from a wrong guess is that an owner
/// goes before its dependents. Once a plan has made so many, what is left to search is for the next one.
const STEPS_MAX: usize = 100_000;

/// What is to become of an owner that waits for those that block it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// There is something among what it waits for, directly or round about, that does not wait in turn.
    Waits,
    /// It waits for nothing but such as wait for it, or for nothing at all.
    Goes,
}

/// What one plan knows of owners that wait. Each of them is searched from once, and what was found serves all others.
#[derive(Debug, Default)]
pub struct Circles {
    fates: BTreeMap<ObjectKey, Fate>,
    pub steps: usize,
}

impl Circles {
    /// None where the plan has searched enough.
    pub fn fate(&mut self, state: &State, owner: &Arc<Object>) -> Option<Fate> {
        if let Some(fate) = self.fates.get(&owner.key) {
            return Some(*fate);
        }
        if waits_for_others(state, owner) {
            return Some(Fate::Waits);
        }
        if waits_for_none(state, owner) {
            return Some(Fate::Goes);
        }
        (self.steps < STEPS_MAX).then(|| self.search(state, owner))
    }

    fn search(&mut self, state: &State, owner: &Arc<Object>) -> Fate {
        // Each with the place of the one by which it was found.
        let mut seen: Vec<(&Arc<Object>, usize)> = vec![(owner, 0)];
        let mut keys: BTreeSet<&ObjectKey> = BTreeSet::from([&owner.key]);
        let mut open = vec![0];
        let most = self.steps + STEPS_MAX;
        while let Some(at) = open.pop() {
            let blocking = state.ownership.dependents(seen[at].0).flat_map(|all| &all.blocking_in_turn);
            for key in blocking.take(most - self.steps) {
                self.steps += 1;
                if !keys.insert(key) {
                    continue;
                }
                let known = self.fates.get(key);
                let Some(object) = state.get(key).filter(|_| known != Some(&Fate::Goes)) else { continue };
                let found = seen.len();
                seen.push((object, at));
                // The end of a chain goes now, so that there is something to wait for.
                let leads_on = known == Some(&Fate::Waits)
                    || waits_for_others(state, object)
                    || waits_for_none(state, object);
                if leads_on {
                    return self.wait(&seen, at);
                }
                open.push(found);
            }
        }
        self.fates.extend(seen.into_iter().map(|(object, _)| (object.key.clone(), Fate::Goes)));
        Fate::Goes
    }

    /// Those on the way from the first one to this place wait.
    fn wait(&mut self, seen: &[(&Arc<Object>, usize)], mut place: usize) -> Fate {
        loop {
            let (object, before) = seen[place];
            self.fates.insert(object.key.clone(), Fate::Waits);
            if place == 0 {
                return Fate::Waits;
            }
            place = before;
        }
    }
}

/// Whether it waits for something that does not itself wait for such as block it.
fn waits_for_others(state: &State, owner: &Object) -> bool {
    state.ownership.dependents(owner).any(|all| !all.blocking.is_empty())
}

/// Whether nothing blocks it but itself.
fn waits_for_none(state: &State, owner: &Object) -> bool {
    let mut blocking = state.ownership.dependents(owner).flat_map(|all| &all.blocking_in_turn);
    blocking.all(|key| *key == owner.key) && !waits_for_others(state, owner)
}
