//! The strategy Recreate: no new pod before the last old one has ended.

use super::Round;
use crate::planner::Planner;

impl Round<'_> {
    pub(super) fn recreate(&mut self, planner: &mut Planner<'_>) {
        self.adopt_new_set();
        let mut changed = false;
        for index in self.sets.active_old() {
            changed |= self.scale(index, 0);
        }
        let old_runs = self.sets.old().into_iter().any(|index| self.sets.all[index].running > 0);
        if changed || old_runs {
            return;
        }
        self.ensure_new_set(planner);
        if self.scale_new_set() {
            return;
        }
        if self.is_complete() {
            self.clean_up();
        }
    }
}
