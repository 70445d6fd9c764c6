//! Old replica sets beyond `revisionHistoryLimit`.

use super::Round;

/// The most sets that one round deletes. The next comes when these are gone.
const DELETIONS_MAX: usize = 100;

impl Round<'_> {
    /// Deletes the oldest revisions' sets that want no pods, have none and know that.
    pub(super) fn clean_up(&mut self) {
        let mut old = self.sets.old();
        let surplus = old.len() as i64 - self.spec.revision_history_limit;
        if surplus <= 0 {
            return;
        }
        old.sort_by_key(|&index| self.sets.all[index].revision());
        for index in old.into_iter().take((surplus as usize).min(DELETIONS_MAX)) {
            let set = &self.sets.all[index];
            let Some(known) = set.known else { continue };
            let settled = known.status.observed_generation >= known.object.meta.generation;
            if known.status.replicas == 0
                && known.replicas == 0
                && set.replicas == 0
                && set.pods == 0
                && settled
            {
                self.deletions.push(known.object.key.name.clone());
                // A set that goes is not written as well.
                self.sets.all[index].edited = None;
            }
        }
    }
}
