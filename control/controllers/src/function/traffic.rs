//! Which revisions are to have which part of the requests, and which have it.

use std::collections::BTreeSet;

use coracle_objects::fields::{flag, integer, list, text};
use serde_json::{Value, json};

use super::revisions::Revisions;

/// One part of the traffic: of `percent` of the requests, and of all to the hosts of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub revision: String,
    pub percent: i64,
    /// Empty for none.
    pub tag: String,
}

/// See the module.
pub struct Traffic {
    /// What gateways are to do from now on.
    pub now: Vec<Part>,
    /// What the function asks for, as far as its revisions are there.
    wanted: Vec<Part>,
    latest: Option<String>,
    /// A revision that the function names and that is not there.
    pub missing: Option<String>,
    /// One that has no instance yet.
    pub awaited: Option<String>,
}

impl Traffic {
    /// What is asked for is done where all that it names is there and serves; until then what was done before goes on.
    pub fn of(function: &Value, revisions: &Revisions<'_>) -> Self {
        let before = parts(function, "/status/traffic");
        let before: Vec<Part> =
            before.into_iter().filter(|part| revisions.get(&part.revision).is_some()).collect();
        let latest_ready = revisions.latest_ready().map(|revision| revision.name().to_owned());
        let (mut wanted, mut missing, mut awaited) = (Vec::new(), None, None);
        for part in asked_for(function) {
            let name = match part.revision.as_str() {
                "" => latest_ready.clone().or_else(|| Some(revisions.latest()?.name().to_owned())),
                _ => Some(part.revision.clone()),
            };
            let Some(name) = name else { continue };
            match revisions.get(&name) {
                None => missing = missing.or(Some(name)),
                Some(revision) => {
                    // One that has nothing but a tag may be at rest, as one that has requests already.
                    let is_known =
                        |known: &Part| known.revision == name && (known.percent > 0 || part.percent == 0);
                    let has_it = before.iter().any(is_known);
                    if !revision.serves() && !has_it {
                        awaited = awaited.or_else(|| Some(name.clone()));
                    }
                    wanted.push(Part { revision: name, ..part });
                }
            }
        }
        let now = if missing.is_none() && awaited.is_none() { wanted.clone() } else { before };
        let latest = revisions.latest().map(|revision| revision.name().to_owned());
        Self { now, wanted, latest, missing, awaited }
    }

    /// Whether a revision is to have instances: it has requests, or is to have some, or is the latest.
    pub fn needs(&self, revision: &str) -> bool {
        let mut parts = self.now.iter().chain(&self.wanted);
        parts.any(|part| part.revision == revision) || self.latest.as_deref() == Some(revision)
    }

    /// Whether requests wait for it to have an instance before they go to it.
    pub fn awaits(&self, revision: &str) -> bool {
        self.awaited.is_some() && self.wanted.iter().any(|part| part.revision == revision)
    }

    /// The part of the requests, in percent, that a revision has.
    pub fn percent(&self, revision: &str) -> i64 {
        self.now.iter().filter(|part| part.revision == revision).map(|part| part.percent).sum()
    }

    /// Whether gateways do what is asked for.
    pub fn is_settled(&self) -> bool {
        self.missing.is_none() && self.awaited.is_none() && !self.now.is_empty()
    }

    /// `hello-2=90 hello-1=10`.
    pub fn shares(&self) -> String {
        let names: BTreeSet<&str> = self.now.iter().map(|part| part.revision.as_str()).collect();
        let shares =
            names.into_iter().map(|name| (name, self.percent(name))).filter(|(_, percent)| *percent > 0);
        shares.map(|(name, percent)| format!("{name}={percent}")).collect::<Vec<_>>().join(" ")
    }
}

/// What the function asks for; an empty name is that of the latest revision.
fn asked_for(function: &Value) -> Vec<Part> {
    let latest = || Part { revision: String::new(), percent: 100, tag: String::new() };
    match list(function, "/spec/traffic") {
        [] => vec![latest()],
        _ => parts(function, "/spec/traffic"),
    }
}

fn parts(function: &Value, path: &str) -> Vec<Part> {
    let part = |part: &Value| Part {
        revision: if flag(part, "/latestRevision") {
            String::new()
        } else {
            text(part, "/revision").to_owned()
        },
        percent: integer(part, "/percent").unwrap_or(0),
        tag: text(part, "/tag").to_owned(),
    };
    list(function, path).iter().map(part).collect()
}

impl Part {
    /// As `status.traffic` has it, with its own URL where it has a tag.
    pub fn told(&self, url: impl FnOnce(&str) -> String) -> Value {
        let mut told = json!({ "revision": self.revision, "percent": self.percent });
        if !self.tag.is_empty() {
            told["tag"] = self.tag.as_str().into();
            told["url"] = url(&self.tag).into();
        }
        told
    }
}
