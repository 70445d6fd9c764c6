//! Scaling: of one set, and of all sets in proportion where `spec.replicas` changes in the middle of a rollout.

use super::{Round, spec::Strategy};
use crate::model::{DESIRED_REPLICAS, MAX_REPLICAS};

impl Round<'_> {
    /// Whether `spec.replicas` changed since the sets were last scaled. Recreate needs no proportions: its own rounds
    /// bring the one set to its size.
    pub(super) fn is_scaling(&self) -> bool {
        if self.spec.strategy == Strategy::Recreate && !self.spec.paused {
            return false;
        }
        let wanted = self.spec.replicas;
        let active = self.sets.all.iter().filter(|set| set.replicas > 0);
        active.filter_map(|set| set.number(DESIRED_REPLICAS)).any(|desired| desired != wanted)
    }

    /// Sets one set's size and notes what was wanted; answers whether the size changed.
    pub(super) fn scale(&mut self, index: usize, size: i64) -> bool {
        let spec = self.spec.clone();
        let set = &mut self.sets.all[index];
        let before = set.replicas;
        set.replicas = size;
        if before == size && (set.known.is_none() || size == 0) {
            return false;
        }
        set.annotate_sizes(&spec);
        if before == size {
            return false;
        }
        let name = set.name().to_owned();
        let direction = if size > before { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
        self.record("ScalingReplicaSet", message);
        true
    }

    /// Outside of a rollout scales the one set there is; within one, all sets in proportion to their sizes, so that
    /// the risk stays spread as it was.
    pub(super) fn scale_proportionally(&mut self) {
        if let Some(index) = self.active_or_latest() {
            self.scale(index, self.spec.replicas);
            return;
        }
        if self.is_saturated() {
            for index in self.sets.active_old() {
                self.scale(index, 0);
            }
            return;
        }
        if self.spec.strategy == Strategy::RollingUpdate {
            self.share_out();
        }
    }

    /// The one set that wants pods; where none does, the new one or else the youngest. None where several do.
    fn active_or_latest(&self) -> Option<usize> {
        let active: Vec<usize> =
            (0..self.sets.all.len()).filter(|&index| self.sets.all[index].replicas > 0).collect();
        match active[..] {
            [] => self.sets.new.or_else(|| self.sets.all.len().checked_sub(1)),
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether the new set has all pods that are wanted, available.
    fn is_saturated(&self) -> bool {
        let Some(set) = self.sets.new.map(|index| &self.sets.all[index]) else { return false };
        let wanted = self.spec.replicas;
        set.replicas == wanted && set.available == wanted && set.number(DESIRED_REPLICAS) == Some(wanted)
    }

    fn share_out(&mut self) {
        let mut active: Vec<usize> =
            (0..self.sets.all.len()).filter(|&index| self.sets.all[index].replicas > 0).collect();
        let total: i64 = active.iter().map(|&index| self.sets.all[index].replicas).sum();
        let allowed = if self.spec.replicas > 0 { self.spec.replicas + self.spec.max_surge } else { 0 };
        let to_add = allowed - total;
        // The largest first; of equal ones the youngest grows first and the oldest shrinks first. `all` is by age.
        active.sort_by_key(|&index| {
            let age = index as i64;
            (-self.sets.all[index].replicas, if to_add > 0 { -age } else { age })
        });
        let mut added = 0;
        let mut sizes = Vec::new();
        for &index in &active {
            let share = self.share(index, to_add, added);
            added += share;
            sizes.push(self.sets.all[index].replicas + share);
        }
        // What rounding left over goes to the first.
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (index, size) in active.into_iter().zip(sizes) {
            self.scale(index, size);
        }
    }

    /// A set's share of what is to be added (or, negative, taken).
    fn share(&self, index: usize, to_add: i64, added: i64) -> i64 {
        let set = &self.sets.all[index];
        if to_add == 0 || to_add == added {
            return 0;
        }
        let fraction = if self.spec.replicas == 0 {
            -set.replicas
        } else {
            let allowed = self.spec.replicas + self.spec.max_surge;
            let before =
                set.number(MAX_REPLICAS).filter(|max| *max > 0).unwrap_or(self.old_status.replicas.max(1));
            rounded(set.replicas * allowed, before) - set.replicas
        };
        let left = to_add - added;
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }
}

/// The quotient of two numbers that are not negative, rounded half up.
fn rounded(dividend: i64, divisor: i64) -> i64 {
    // The divisor is an annotation's, of whatever size.
    let (dividend, divisor) = (i128::from(dividend), i128::from(divisor));
    i64::try_from((2 * dividend + divisor) / (2 * divisor)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_round_half_up() {
        assert_eq!(rounded(5, 2), 3);
        assert_eq!(rounded(4, 3), 1);
        assert_eq!(rounded(0, 7), 0);
        assert_eq!(rounded(7, i64::MAX), 0);
    }
}
