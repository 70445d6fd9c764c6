//! Events: core/v1 and events.k8s.io/v1, two forms of the same stored objects.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::age;
use crate::{
    field_error::FieldError,
    fields::{entries, integer, present, text},
    kind::{Column, Native},
};

pub(super) const EVENT: Native = Native {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    columns: COLUMNS,
    cells,
    validate,
    selectable_fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    ..Native::BASE
};

pub(super) const EVENTS_EVENT: Native = Native {
    group: "events.k8s.io",
    schema: "io.k8s.api.events.v1.Event",
    selectable_fields: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "type",
    ],
    cells: |object, now| {
        let mut core = object.clone();
        to_core(&mut core);
        cells(&core, now)
    },
    validate: |object, old| {
        let mut core = object.clone();
        to_core(&mut core);
        validate(&core, old)
    },
    storage: Some(&EVENT),
    from_storage: to_events,
    to_storage: to_core,
    storage_field,
    ..EVENT
};

const COLUMNS: &[Column] = &[
    Column::text("Last Seen", "When it happened last"),
    Column::text("Type", "Normal or Warning"),
    Column::text("Reason", "Why, in one word"),
    Column::text("Object", "What it is about"),
    Column::wide("Subobject", "The part of the object that it is about"),
    Column::wide("Source", "Who reports it"),
    Column::text("Message", "What happened"),
    Column::wide("First Seen", "When it happened first"),
    Column::new("Count", "integer", "", "How often it happened", 1),
    Column::new("Name", "string", "name", "The event's name", 1),
];

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |paths: &[&'static str]| {
        paths.iter().map(|path| text(object, path)).find(|found| !found.is_empty()).unwrap_or("")
    };
    let first = age(first_of(&["/firstTimestamp", "/eventTime", "/lastTimestamp"]), now);
    let last = if present(object, "/series") {
        age(text(object, "/series/lastObservedTime"), now)
    } else {
        age(first_of(&["/lastTimestamp", "/eventTime", "/firstTimestamp"]), now)
    };
    let count = integer(object, "/series/count")
        .or(integer(object, "/count"))
        .filter(|count| *count > 0)
        .unwrap_or(1);
    let kind = text(object, "/involvedObject/kind").to_lowercase();
    let about = text(object, "/involvedObject/name");
    let about = if kind.is_empty() { about.to_owned() } else { format!("{kind}/{about}") };
    vec![
        last.into(),
        text(object, "/type").into(),
        text(object, "/reason").into(),
        about.into(),
        text(object, "/involvedObject/fieldPath").into(),
        source(object).into(),
        text(object, "/message").trim().into(),
        first.into(),
        count.into(),
        text(object, "/metadata/name").into(),
    ]
}

fn source(object: &Value) -> String {
    let pair = match text(object, "/source/component") {
        "" => (text(object, "/reportingComponent"), text(object, "/reportingInstance")),
        component => (component, text(object, "/source/host")),
    };
    if pair.1.is_empty() { pair.0.to_owned() } else { format!("{}, {}", pair.0, pair.1) }
}

fn validate(object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let namespace = text(object, "/metadata/namespace");
    let about = text(object, "/involvedObject/namespace");
    if about.is_empty() {
        if !namespace.is_empty() && namespace != "default" && namespace != "kube-system" {
            errors.push(FieldError::invalid(
                "involvedObject.namespace",
                about,
                "does not match event.namespace",
            ));
        }
    } else if namespace != about {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
    errors
}

/// (core/v1, events.k8s.io/v1): the fields that have two names.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn storage_field(field: &str) -> Option<String> {
    let (first, rest) = field.split_once('.').map_or((field, None), |(first, rest)| (first, Some(rest)));
    let core = NAMES.iter().find(|(_, events)| *events == first).map(|names| names.0)?;
    Some(rest.map_or_else(|| core.to_owned(), |rest| format!("{core}.{rest}")))
}

fn to_events(object: &mut Value) {
    rename(object, "events.k8s.io/v1", |key| {
        NAMES.iter().find(|(core, _)| *core == key).map(|names| names.1)
    });
}

fn to_core(object: &mut Value) {
    rename(object, "v1", |key| NAMES.iter().find(|(_, events)| *events == key).map(|names| names.0));
}

fn rename(object: &mut Value, api_version: &str, name: impl Fn(&str) -> Option<&'static str>) {
    if !object.is_object() {
        return;
    }
    let renamed: Map<String, Value> = entries(object, "")
        .map(|(key, value)| (name(key).map_or_else(|| key.clone(), str::to_owned), value.clone()))
        .collect();
    *object = Value::Object(renamed);
    object["apiVersion"] = api_version.into();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::by_plural;

    fn event() -> Value {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a.1", "namespace": "n"}, "message": " started\n",
            "involvedObject": {"kind": "Pod", "name": "a", "namespace": "n", "fieldPath": "spec.containers{c}"},
            "reason": "Started", "type": "Normal", "source": {"component": "node", "host": "one"}, "count": 3,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:04:00Z"})
    }

    #[test]
    fn rows() {
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        let expected = json!([
            "60s",
            "Normal",
            "Started",
            "pod/a",
            "spec.containers{c}",
            "node, one",
            "started",
            "5m",
            3,
            "a.1"
        ]);
        assert_eq!(Value::from(cells(&event(), now)), expected);
        let mut other = event();
        to_events(&mut other);
        assert_eq!(Value::from((EVENTS_EVENT.cells)(&other, now)), expected);
    }

    #[test]
    fn the_two_forms_convert_into_each_other() {
        let mut object = event();
        to_events(&mut object);
        assert_eq!((text(&object, "/note"), text(&object, "/regarding/name")), (" started\n", "a"));
        assert_eq!(text(&object, "/apiVersion"), "events.k8s.io/v1");
        to_core(&mut object);
        assert_eq!(object, event());
    }

    #[test]
    fn selectors_of_the_newer_form_match_what_is_stored() {
        let selector =
            crate::FieldSelector::parse("regarding.name=a,reportingController=,type=Normal").unwrap();
        assert_eq!(selector.check(by_plural("events.k8s.io", "v1", "events").unwrap()), Ok(()));
        assert!(!selector.matches_value(&event()));
        assert!(
            selector.in_storage(by_plural("events.k8s.io", "v1", "events").unwrap()).matches_value(&event())
        );
    }

    #[test]
    fn namespaces_must_agree() {
        assert!(validate(&event(), None).is_empty());
        let mut stray = event();
        stray["involvedObject"]["namespace"] = "other".into();
        assert_eq!(validate(&stray, None)[0].field, "involvedObject.namespace");
    }
}
