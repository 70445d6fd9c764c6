//! Lists in pages: snapshots that stay for a while, so that all pages of a list are of one revision.
//!
//! A token says all that is needed to go on, at whatever member: the revision and the last object. What a member has not
//! kept, as another one gave the first page, the storage makes anew as far as it reaches back.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use coracle_objects::{ObjectName, ResourceName, Revision, View};
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
pub struct Snapshots(Mutex<VecDeque<Kept>>);

#[derive(Debug)]
struct Kept {
    at: Instant,
    view: Arc<View>,
    /// The one that the view has; all where there is none.
    resource: Option<ResourceName>,
}

impl Snapshots {
    /// Keeps a state of which not all pages were given.
    pub fn keep(&self, view: &Arc<View>) {
        self.keep_at(view, None, Instant::now());
    }

    /// Keeps a state that has one resource only.
    pub fn keep_of(&self, resource: &ResourceName, view: &Arc<View>) {
        self.keep_at(view, Some(resource), Instant::now());
    }

    /// The state of a revision, where it is kept still: at least this resource of it.
    pub fn get(&self, resource: &ResourceName, revision: Revision) -> Option<Arc<View>> {
        self.get_at(resource, revision, Instant::now())
    }

    /// A page was given from the state of a revision.
    pub fn used(&self, resource: &ResourceName, revision: Revision) {
        let mut kept = self.0.lock();
        let given = |kept: &Kept| kept.resource.as_ref().is_none_or(|only| only == resource);
        let at = kept.iter().position(|kept| kept.view.revision == revision && given(kept));
        if let Some(found) = at.and_then(|at| kept.remove(at)) {
            kept.push_back(Kept { at: Instant::now(), ..found });
        }
    }

    fn keep_at(&self, view: &Arc<View>, resource: Option<&ResourceName>, now: Instant) {
        let mut kept = self.0.lock();
        expire(&mut kept, now);
        kept.retain(|known| known.view.revision != view.revision || known.resource.as_ref() != resource);
        if kept.len() == SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept { at: now, view: view.clone(), resource: resource.cloned() });
    }

    fn get_at(&self, resource: &ResourceName, revision: Revision, now: Instant) -> Option<Arc<View>> {
        let mut kept = self.0.lock();
        expire(&mut kept, now);
        let has = |kept: &Kept| kept.resource.as_ref().is_none_or(|only| only == resource);
        kept.iter().find(|kept| kept.view.revision == revision && has(kept)).map(|kept| kept.view.clone())
    }
}

fn expire(kept: &mut VecDeque<Kept>, now: Instant) {
    kept.retain(|kept| now.saturating_duration_since(kept.at) < KEPT_FOR);
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
        assert!(snapshots.get(&"pods".into(), 0).is_none());
        assert!(snapshots.get(&"pods".into(), 1).is_some());
        let view = Arc::new(View { revision: 99, ..View::default() });
        snapshots.keep_of(&"pods".into(), &view);
        assert!(
            snapshots.get(&"pods".into(), 99).is_some() && snapshots.get(&"secrets".into(), 99).is_none()
        );
    }

    #[test]
    fn snapshots_expire() {
        let (snapshots, start) = (Snapshots::default(), Instant::now());
        let view = Arc::new(View { revision: 7, ..View::default() });
        snapshots.keep_at(&view, None, start);
        assert!(snapshots.get_at(&"pods".into(), 7, start + KEPT_FOR / 2).is_some());
        assert!(snapshots.get_at(&"pods".into(), 7, start + KEPT_FOR).is_none());
        assert_eq!(Arc::strong_count(&view), 1);
    }
}
