//! Event objects: named, counted where they repeat, and removed after an hour; most of those of objects that are gone sooner.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
};

use coracle_controllers::EventRecord;
use coracle_objects::{
    Expect, Object, ObjectKey, Transaction, View, by_kind, by_resource,
    draft::{editable, encode, new_draft, timestamp},
};
use jiff::{Span, Timestamp, ToSpan};
use serde::Deserialize;
use serde_json::{Value, json};

const EVENTS: &str = "events";

/// Events that are remembered so that a repetition is counted.
const REMEMBERED_MAX: usize = 4096;

/// How long an event is kept after it last happened.
const KEPT_HOURS: i64 = 1;

/// Of objects that are gone, how many events of each type are kept for so long, and for how long all of them are.
const GONE_KEPT_MAX: usize = 2000;
const GONE_KEPT_MINUTES: i64 = 3;

/// Characters of an object's name in the names of its events, which a dot and 16 digits follow; 253 is the most.
const INVOLVED_NAME_MAX: usize = 236;

/// What a controller or the scheduler reports, as a core v1 Event without a name.
pub fn of_record(record: &EventRecord) -> Value {
    let key = &record.regarding;
    let kind = by_resource(key.resource.as_str());
    json!({
        "involvedObject": {
            "kind": kind.map_or("", |kind| &*kind.kind),
            "apiVersion": kind.map_or_else(String::new, |kind| kind.api_version()),
            "namespace": *key.name.namespace,
            "name": *key.name.name,
            "uid": record.uid,
        },
        "type": record.type_.as_str(),
        "reason": record.reason,
        "message": record.message,
        "source": { "component": record.reporting_component },
    })
}

/// What makes two events the same.
type Sameness = [String; 6];

/// Names given to events, the oldest forgotten first.
#[derive(Default)]
pub struct Remembered {
    keys: BTreeMap<Sameness, ObjectKey>,
    order: VecDeque<Sameness>,
}

impl Remembered {
    /// Counts events that are the same, and names each: as before where it was named and is still there.
    pub fn name(
        &mut self,
        events: impl Iterator<Item = Value>,
        view: &View,
        mut chance: impl FnMut() -> u64,
    ) -> Vec<(ObjectKey, Value, u64)> {
        let mut counted: BTreeMap<Sameness, (Value, u64)> = BTreeMap::new();
        for event in events {
            counted.entry(sameness(&event)).or_insert((event, 0)).1 += 1;
        }
        let named = counted.into_iter().map(|(sameness, (event, times))| {
            let known = self.keys.get(&sameness).filter(|key| view.get(key).is_some());
            let key = known.cloned().unwrap_or_else(|| new_key(&event, chance()));
            self.insert(sameness, key.clone());
            (key, event, times)
        });
        named.collect()
    }

    fn insert(&mut self, sameness: Sameness, key: ObjectKey) {
        if self.keys.insert(sameness.clone(), key).is_none() {
            self.order.push_back(sameness);
        }
        while self.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }
}

/// What is written of an event that happened so many times; one that is made has this uid.
pub fn written(
    view: &View,
    key: &ObjectKey,
    event: &Value,
    times: u64,
    uid: &str,
    now: Timestamp,
) -> Option<Transaction> {
    if let Some(object) = view.get(key) {
        return Some(Transaction::update(key.clone(), repeated(object, times, now), object.revision));
    }
    // A namespace that ends takes no new events: they would keep it from ending.
    let namespace = ObjectKey::new("namespaces", "", &key.name.namespace);
    view.get(&namespace).filter(|namespace| namespace.meta.deletion_timestamp.is_none())?;
    let transaction = Transaction::create(key.clone(), first(key, event, times, uid, now));
    Some(transaction.expecting(namespace, Expect::NotDeleting))
}

fn first(key: &ObjectKey, event: &Value, times: u64, uid: &str, now: Timestamp) -> bytes::Bytes {
    let time = timestamp(now);
    let mut body = event.clone();
    body["metadata"] = json!({});
    body["firstTimestamp"] = time.as_str().into();
    body["lastTimestamp"] = time.into();
    body["count"] = times.into();
    body["eventTime"] = Value::Null;
    body["reportingComponent"] = event["source"]["component"].as_str().unwrap_or("").into();
    body["reportingInstance"] = event["source"]["host"].as_str().unwrap_or("").into();
    if let Some(body) = body.as_object_mut() {
        body.remove("apiVersion");
        body.remove("kind");
    }
    new_draft("v1", "Event", key, body, uid, now)
}

fn repeated(object: &Object, times: u64, now: Timestamp) -> bytes::Bytes {
    let mut draft = editable(object);
    draft["count"] = (draft["count"].as_u64().unwrap_or(1) + times).into();
    draft["lastTimestamp"] = timestamp(now).into();
    encode(&draft)
}

fn sameness(event: &Value) -> Sameness {
    let involved = &event["involvedObject"];
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    [
        text(&involved["uid"]),
        text(&involved["fieldPath"]),
        text(&event["type"]),
        text(&event["reason"]),
        text(&event["message"]),
        format!(
            "{} {}/{}",
            text(&event["source"]["host"]),
            text(&involved["namespace"]),
            text(&involved["name"])
        ),
    ]
}

/// Events about cluster-scoped objects live in `default`.
fn new_key(event: &Value, number: u64) -> ObjectKey {
    let involved = &event["involvedObject"];
    let namespace =
        involved["namespace"].as_str().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let name: String =
        involved["name"].as_str().unwrap_or("unknown").chars().take(INVOLVED_NAME_MAX).collect();
    let name = name.trim_end_matches(['.', '-']);
    ObjectKey::new(EVENTS, namespace, &format!("{name}.{number:016x}"))
}

/// Events that are to be removed: the last time that they happened is long ago, or they are of objects that are gone and
/// newer ones are enough.
pub fn old_events(view: &View, now: Timestamp) -> Vec<ObjectKey> {
    let before = |span: Span| now.checked_sub(span).ok();
    let Some((limit, of_gone)) = before(KEPT_HOURS.hours()).zip(before(GONE_KEPT_MINUTES.minutes())) else {
        return vec![];
    };
    let mut old = Vec::new();
    // Normal ones, and warnings.
    let mut gone = [Vec::new(), Vec::new()];
    for object in view.list(EVENTS, None) {
        // One of which nothing else can be read is as old as its object.
        let event = serde_json::from_slice::<Told<'_>>(&object.json).unwrap_or_default();
        let made = || object.meta.creation_timestamp.as_deref()?.parse().ok();
        let Some(last) = event.last().or_else(made) else { continue };
        if last < limit {
            old.push(object.key.clone());
        } else if last < of_gone && event.involved_object.is_gone(view) {
            gone[usize::from(event.type_ == "Warning")].push((last, &object.key));
        }
    }
    for mut gone in gone {
        gone.sort_unstable_by(|one, other| other.cmp(one));
        old.extend(gone.into_iter().skip(GONE_KEPT_MAX).map(|(_, key)| key.clone()));
    }
    old
}

/// What is read of an event to know whether it is old.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    #[serde(borrow, default, rename = "type")]
    type_: Cow<'a, str>,
    #[serde(borrow, default)]
    involved_object: Involved<'a>,
    #[serde(borrow, default)]
    last_timestamp: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    event_time: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    metadata: Made<'a>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Made<'a> {
    #[serde(borrow)]
    creation_timestamp: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Involved<'a> {
    #[serde(borrow)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

impl Told<'_> {
    /// When it last happened.
    fn last(&self) -> Option<Timestamp> {
        let times = [&self.last_timestamp, &self.event_time, &self.metadata.creation_timestamp];
        times.into_iter().flatten().find_map(|time| time.parse().ok())
    }
}

impl Involved<'_> {
    /// Whether the object is known to be there no more, or only as another of its name. Of what is of no kind of this
    /// binary that is not known.
    fn is_gone(&self, view: &View) -> bool {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let Some(kind) = by_kind(group, version, &self.kind) else { return false };
        let resource = kind.storage_resource();
        let key = ObjectKey::new(resource.as_str(), &self.namespace, &self.name);
        !self.uid.is_empty() && view.get(&key).is_none_or(|object| object.meta.uid != self.uid)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NOW: &str = "2026-01-01T12:00:00Z";

    fn put(view: &mut View, resource: &str, name: &str, body: Value) {
        let key = ObjectKey::new(resource, "default", name);
        let object = Object::from_draft(key.clone(), body.to_string().as_bytes(), 1).unwrap();
        view.tables.entry(key.resource).or_default().insert(key.name, Arc::new(object));
    }

    /// An event of a pod that happened so many seconds ago.
    fn event(view: &mut View, name: &str, pod: (&str, &str), type_: &str, seconds: i64) {
        let (pod, uid) = pod;
        let last = NOW.parse::<Timestamp>().unwrap() - seconds.seconds();
        let body = json!({
            "metadata": { "name": name, "creationTimestamp": timestamp(last - 1.second()) },
            "involvedObject":
                { "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": pod, "uid": uid },
            "type": type_, "lastTimestamp": timestamp(last), "eventTime": null,
        });
        put(view, "events", name, body);
    }

    fn old(view: &View) -> Vec<String> {
        let old = old_events(view, NOW.parse().unwrap());
        old.into_iter().map(|key| key.name.name.to_string()).collect()
    }

    #[test]
    fn events_go_an_hour_after_they_last_happened() {
        let mut view = View::default();
        put(&mut view, "pods", "there", json!({ "metadata": { "name": "there", "uid": "1" } }));
        event(&mut view, "new", ("there", "1"), "Normal", 3599);
        event(&mut view, "old", ("there", "1"), "Normal", 3601);
        event(&mut view, "of-gone", ("gone", "2"), "Warning", 3599);
        let unknown = json!({ "metadata": { "name": "unread" }, "lastTimestamp": "never" });
        put(&mut view, "events", "unread", unknown);
        let first = json!({ "metadata": { "name": "first", "creationTimestamp": "2026-01-01T10:00:00Z" } });
        put(&mut view, "events", "first", first);
        let nonsense =
            json!({ "metadata": { "name": "odd", "creationTimestamp": "2026-01-01T10:00:00Z" }, "type": 5 });
        put(&mut view, "events", "odd", nonsense);
        assert_eq!(old(&view), ["first", "odd", "old"]);
    }

    #[test]
    fn of_objects_that_are_gone_the_newest_events_of_each_type_are_kept() {
        let mut view = View::default();
        put(&mut view, "pods", "there", json!({ "metadata": { "name": "there", "uid": "1" } }));
        let kept = GONE_KEPT_MAX as i64;
        for number in 0..kept + 2 {
            // The last two are the oldest.
            event(&mut view, &format!("normal-{number:05}"), ("gone", "2"), "Normal", 400 + number);
            event(
                &mut view,
                &format!("warning-{number:05}"),
                ("there", "of before"),
                "Warning",
                400 + number,
            );
            event(&mut view, &format!("of-there-{number:05}"), ("there", "1"), "Normal", 400 + number);
            event(&mut view, &format!("just-now-{number:05}"), ("gone", "2"), "Normal", 10);
        }
        let body = json!({
            "metadata": { "name": "of-unknown" }, "lastTimestamp": "2026-01-01T11:10:00Z",
            "involvedObject": { "apiVersion": "example.com/v1", "kind": "Backup", "name": "b", "uid": "3" },
        });
        put(&mut view, "events", "of-unknown", body);
        let beyond = [kept, kept + 1].map(|number| format!("{number:05}"));
        let mut old = old(&view);
        old.sort();
        let of = |type_: &str| beyond.clone().map(|number| format!("{type_}-{number}"));
        assert_eq!(old, [of("normal"), of("warning")].concat());
    }
}
