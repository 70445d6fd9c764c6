//! Containers that wait for a seat of the sandbox: how long, and who is tried first when some get free.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use crate::{
    pod::{Observed, Phase, PodState, Unseated},
    restart::after,
    spec::PodUid,
};

/// The reason in `state.waiting`, and of the event, where a container waits for a seat.
pub const NO_SEAT: &str = "InstancesExhausted";
/// The longest that a container waits for a seat before it is tried again, told of a free one or not.
pub const SEAT_WAIT_MAX: Duration = Duration::from_secs(60);

/// A container that waits for a seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub uid: PodUid,
    pub container: String,
    pub attempt: u32,
}

impl PodState {
    /// Has a container wait for a seat; what that is about is told once, in the words of the first try: with each further one
    /// the figures in them are others, and whoever waits would write his status with each.
    pub(crate) fn unseat(&mut self, container: &str, message: String, now: Timestamp) {
        let Some(state) = self.containers.get_mut(container) else { return };
        state.refusals.grant(now, now);
        let retry_at = after(now, state.refusals.wait().min(SEAT_WAIT_MAX));
        state.phase = Phase::Unseated(Unseated { since: now, retry_at });
        if state.no_seat.is_none() {
            state.no_seat = Some(message.clone());
            self.container_event(container, true, NO_SEAT, message);
        }
    }
}

impl Observed {
    /// At most `most` containers that wait for a seat: of each namespace the one that was tried longest ago, since what
    /// one namespace has in excess says nothing about another, and the longest-waiting namespaces first. Each that gets
    /// a seat is reason to ask again.
    pub fn next_for_seats(&self, most: usize) -> Vec<Waiting> {
        let mut first: BTreeMap<&str, (Timestamp, Waiting)> = BTreeMap::new();
        for (uid, state) in &self.pods {
            for (name, container) in &state.containers {
                let Phase::Unseated(unseated) = &container.phase else { continue };
                let namespace = state.pod.metadata.namespace.as_str();
                if first.get(namespace).is_some_and(|(since, _)| *since <= unseated.since) {
                    continue;
                }
                let attempt = container.restart_count;
                let waiting = Waiting { uid: uid.clone(), container: name.clone(), attempt };
                first.insert(namespace, (unseated.since, waiting));
            }
        }
        let mut all: Vec<_> = first.into_values().collect();
        all.sort_by_key(|(since, _)| *since);
        all.into_iter().take(most).map(|(_, waiting)| waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use jiff::SignedDuration;

    use super::*;
    use crate::{
        action::Action,
        observe::{News, Observation},
        spec::Pod,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    /// A pod of one container that waits since then.
    fn waits(observed: &mut Observed, namespace: &str, name: &str, since: i64) {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}","uid":"{name}"}},
                "spec":{{"containers":[{{"name":"c","image":"i"}}]}}}}"#
        );
        let uid = PodUid::from(name);
        let pods = BTreeMap::from([(uid.clone(), Arc::new(Pod::parse(json.as_bytes()).unwrap()))]);
        observed.begin(&Action::Admit { uid: uid.clone() }, &pods, at(0));
        let container = observed.pods.get_mut(&uid).unwrap().containers.get_mut("c").unwrap();
        container.phase = Phase::Unseated(Unseated { since: at(since), retry_at: at(1_000) });
    }

    fn next(observed: &mut Observed, now: i64) -> Vec<String> {
        let next = observed.next_for_seats(2);
        for Waiting { uid, container, attempt } in next.clone() {
            let news = News::SeatFreed;
            observed.apply(Observation::Container { uid, container, attempt, news }, at(now));
        }
        next.into_iter().map(|waiting| waiting.uid.to_string()).collect()
    }

    #[test]
    fn namespaces_and_their_pods_take_turns() {
        let mut observed = Observed::default();
        for (number, name) in ["a1", "a2", "a3"].into_iter().enumerate() {
            waits(&mut observed, "a", name, number as i64);
        }
        waits(&mut observed, "b", "b1", 10);
        waits(&mut observed, "c", "c1", 20);
        assert_eq!(next(&mut observed, 30), ["a1", "b1"]);
        assert_eq!(next(&mut observed, 31), ["a2", "c1"]);
        assert_eq!(next(&mut observed, 32), ["a3", "b1"]);
        assert_eq!(next(&mut observed, 33), ["a1", "c1"]);
    }
}
