//! Lists in pages: snapshots that stay for a while, so that all pages of a list are of one revision.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coracle_objects::{ObjectName, Revision, View};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// How many snapshots stay. Each shares nearly everything with the present state.
const SNAPSHOTS_MAX: usize = 32;

/// How long a snapshot stays after the last page that was given from it.
const KEPT_FOR: Duration = Duration::from_secs(5 * 60);

/// Where a list goes on. Opaque to clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continue {
    /// The revision of the first page; 0 goes on at whatever revision is present then.
    #[serde(rename = "rv")]
    pub revision: Revision,
    /// The last object that was given.
    #[serde(rename = "ns")]
    pub namespace: String,
    #[serde(rename = "n")]
    pub name: String,
}

impl Continue {
    pub fn after(revision: Revision, name: &ObjectName) -> Self {
        Self { revision, namespace: name.namespace.to_string(), name: name.name.to_string() }
    }

    pub fn parse(token: &str) -> Result<Self, ApiError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or_else(|| ApiError::BadRequest("continue key is not valid".to_owned()))
    }

    pub fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::json!(self).to_string())
    }

    pub fn object(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }

    /// The refusal of a token whose revision is gone, with one that goes on inconsistently.
    pub fn expired(&self) -> ApiError {
        let inconsistent = Self { revision: 0, ..self.clone() };
        ApiError::Expired {
            message: "The provided continue parameter is too old to display a consistent list result. You can start \
                      a new list without the continue parameter, or use the continue token in this response to \
                      retrieve the remainder of the results. Continuing with the provided token results in an \
                      inconsistent list - objects that were created, modified, or deleted between the time the \
                      first chunk was returned and now may show up in the list."
                .to_owned(),
            continuation: Some(inconsistent.token()),
        }
    }
}

/// Recent states, and when a page was last given from each; the longest unused first.
#[derive(Debug, Default)]
pub struct Snapshots(Mutex<VecDeque<(Instant, Arc<View>)>>);

impl Snapshots {
    /// Keeps a state of which not all pages were given.
    pub fn keep(&self, view: &Arc<View>) {
        self.keep_at(view, Instant::now());
    }

    /// The state of a revision, where it is kept still.
    pub fn get(&self, revision: Revision) -> Option<Arc<View>> {
        self.get_at(revision, Instant::now())
    }

    fn keep_at(&self, view: &Arc<View>, now: Instant) {
        let mut kept = self.0.lock();
        expire(&mut kept, now);
        kept.retain(|(_, known)| known.revision != view.revision);
        if kept.len() == SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back((now, view.clone()));
    }

    fn get_at(&self, revision: Revision, now: Instant) -> Option<Arc<View>> {
        let mut kept = self.0.lock();
        expire(&mut kept, now);
        kept.iter().find(|(_, view)| view.revision == revision).map(|(_, view)| view.clone())
    }
}

fn expire(kept: &mut VecDeque<(Instant, Arc<View>)>, now: Instant) {
    kept.retain(|(at, _)| now.saturating_duration_since(*at) < KEPT_FOR);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_round_trip() {
        let token = Continue::after(7, &ObjectName::new("default", "a")).token();
        let parsed = Continue::parse(&token).unwrap();
        assert_eq!((parsed.revision, parsed.object()), (7, ObjectName::new("default", "a")));
        assert!(Continue::parse("nonsense").is_err());
        let ApiError::Expired { continuation: Some(token), .. } = parsed.expired() else {
            panic!("not expired")
        };
        assert_eq!(Continue::parse(&token).unwrap().revision, 0);
    }

    #[test]
    fn the_oldest_snapshot_goes_first() {
        let snapshots = Snapshots::default();
        for revision in 0..=SNAPSHOTS_MAX as u64 {
            snapshots.keep(&Arc::new(View { revision, ..View::default() }));
        }
        assert!(snapshots.get(0).is_none());
        assert!(snapshots.get(1).is_some());
    }

    #[test]
    fn snapshots_expire() {
        let (snapshots, start) = (Snapshots::default(), Instant::now());
        let view = Arc::new(View { revision: 7, ..View::default() });
        snapshots.keep_at(&view, start);
        assert!(snapshots.get_at(7, start + KEPT_FOR / 2).is_some());
        assert!(snapshots.get_at(7, start + KEPT_FOR).is_none());
        assert_eq!(Arc::strong_count(&view), 1);
    }
}
