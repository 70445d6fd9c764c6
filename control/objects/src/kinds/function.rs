//! Functions: components that gateways call by HTTP. Each change of what runs makes a FunctionRevision, and the traffic
//! says which of them have what part of the requests.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    age,
    pod::{Place, template_defaults, validate_spec},
};
use crate::{
    field_error::FieldError,
    fields::{child, condition, default, flag, integer, list, text},
    kind::{Column, NameRule, Native, Subresource},
    schema::refer,
    validate::{
        rules::{immutable, or_none},
        syntax::{label_1035_faults, subdomain_faults},
    },
};

pub const FUNCTIONS: &str = "functions.coracle.dev";
pub const FUNCTION_REVISIONS: &str = "functionrevisions.coracle.dev";
/// Label of what is of a function: its name.
pub const FUNCTION_LABEL: &str = "coracle.dev/function";
/// Label of what is of a revision: its name.
pub const REVISION_LABEL: &str = "coracle.dev/revision";
/// The one container of a function's pods, and the port of its revisions' Services.
pub const FUNCTION_CONTAINER: &str = "function";
/// Where the gateway reaches a revision, by its Service.
pub const FUNCTION_PORT: u16 = 80;

const GROUP: &str = "coracle.dev";
/// A name leaves room for a revision's number, and both for a pod's suffix, in a DNS label.
const NAME_BYTES_MAX: usize = 50;
const HOSTS_MAX: usize = 32;
const PATHS_MAX: usize = 64;
/// Parts of a function's traffic.
pub const TRAFFIC_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 1_024;
/// Hosts, with those of tags, by paths: every gateway has a route for each.
const ROUTES_MAX: usize = 4_096;
/// Of what runs: each revision has it.
const RUNS_BYTES_MAX: usize = 128 << 10;
const TAG_BYTES_MAX: usize = 20;
const INSTANCES_DEFAULT: i64 = 100;
/// Requests under way in an instance, before another is made.
const CONCURRENCY_DEFAULT: i64 = 50;
/// How long nobody has asked before the last instance goes.
const IDLE_SECONDS_DEFAULT: i64 = 60;
const INSTANCES_MAX: i64 = 10_000;
const CONCURRENCY_MAX: i64 = 1_000;
const IDLE_SECONDS_MAX: i64 = 86_400;

/// How long a program may take until it listens.
const START_SECONDS_MAX: u32 = 60;

/// The fields of a function that say what runs: those of a container, and of its pod.
const CONTAINER_FIELDS: [&str; 8] =
    ["image", "imagePullPolicy", "command", "args", "env", "envFrom", "resources", "volumeMounts"];
const POD_FIELDS: [&str; 2] = ["volumes", "serviceAccountName"];
const PORT: &str = "port";

pub(super) const FUNCTION: Native = Native {
    group: GROUP,
    kind: "Function",
    plural: "functions",
    singular: "function",
    short_names: &["fn"],
    categories: &["all"],
    subresources: &[Subresource::status(GROUP, "Function")],
    schema: "dev.coracle.v1.Function",
    columns: &[
        Column::name(),
        Column::text("Ready", "Whether its latest revision serves, and the traffic is as it is asked for"),
        Column::text("URL", "Where it is called"),
        Column::text("Latest", "The latest revision that serves"),
        Column::text("Traffic", "Which revision has how much of the requests, in percent"),
        Column::integer("Replicas", "How many instances there are"),
        Column::age(),
        Column::wide("Image", "What runs"),
        Column::wide("Reason", "Why it is not ready"),
    ],
    cells: |function, now| {
        vec![
            text(function, "/metadata/name").into(),
            ready(function).into(),
            or_none(text(function, "/status/url")).into(),
            or_none(text(function, "/status/latestReadyRevision")).into(),
            or_none(&shares(function)).into(),
            integer(function, "/status/replicas").unwrap_or(0).into(),
            age(text(function, "/metadata/creationTimestamp"), now).into(),
            text(function, "/spec/image").into(),
            condition(function, "Ready").map_or("", |ready| text(ready, "/reason")).into(),
        ]
    },
    defaults: function_defaults,
    validate: validate_function,
    generational: &["spec"],
    name_rule: NameRule::Label1035,
    ..Native::BASE
};

/// What a function ran as of one change; its name is the function's with a number. Spec {function, number, what runs}.
pub(super) const FUNCTION_REVISION: Native = Native {
    group: GROUP,
    kind: "FunctionRevision",
    plural: "functionrevisions",
    singular: "functionrevision",
    short_names: &["fnrev"],
    verbs: &["delete", "deletecollection", "get", "list", "watch"],
    subresources: &[Subresource::new(crate::Endpoint::Status, GROUP, "FunctionRevision", &["get"])],
    schema: "dev.coracle.v1.FunctionRevision",
    columns: &[
        Column::name(),
        Column::text("Function", "Whose revision it is"),
        Column::text("Ready", "Whether it serves, or has served"),
        Column::integer("Percent", "Which part of the requests it has"),
        Column::integer("Replicas", "How many instances there are"),
        Column::age(),
        Column::wide("Image", "What runs"),
    ],
    cells: |revision, now| {
        vec![
            text(revision, "/metadata/name").into(),
            text(revision, "/spec/function").into(),
            ready(revision).into(),
            integer(revision, "/status/percent").unwrap_or(0).into(),
            integer(revision, "/status/replicas").unwrap_or(0).into(),
            age(text(revision, "/metadata/creationTimestamp"), now).into(),
            text(revision, "/spec/image").into(),
        ]
    },
    validate: |revision, old| {
        let mut errors = Vec::new();
        if let Some(old) = old {
            immutable(revision, old, "/spec", &mut errors);
        }
        errors
    },
    selectable_fields: &["spec.function"],
    generational: &["spec"],
    name_rule: NameRule::Label1035,
    ..Native::BASE
};

fn ready(object: &Value) -> &str {
    condition(object, "Ready").map_or("Unknown", |ready| text(ready, "/status"))
}

/// `hello-2=90,hello-1=10`.
fn shares(function: &Value) -> String {
    let of = |part: &Value| {
        let percent = integer(part, "/percent").filter(|percent| *percent > 0)?;
        Some(format!("{}={percent}", text(part, "/revision")))
    };
    list(function, "/status/traffic").iter().filter_map(of).collect::<Vec<_>>().join(",")
}

/// The hosts at which gateways answer for a function, in lower case: its own, by default its name below `localhost`.
pub fn own_hosts(function: &Value) -> Vec<String> {
    let named: Vec<String> =
        list(function, "/spec/hosts").iter().filter_map(Value::as_str).map(str::to_ascii_lowercase).collect();
    match (named.is_empty(), text(function, "/metadata/name")) {
        (false, _) | (true, "") => named,
        (true, name) => vec![format!("{name}.localhost")],
    }
}

/// A host of the revision that has this tag.
pub fn tagged_host(tag: &str, host: &str) -> String {
    format!("{tag}-{host}")
}

/// All hosts that a function asks for: its own, and those of its tags.
pub fn function_hosts(function: &Value) -> BTreeSet<String> {
    let own = own_hosts(function);
    let tags = list(function, "/spec/traffic").iter().map(|part| text(part, "/tag"));
    let tagged =
        tags.filter(|tag| !tag.is_empty()).flat_map(|tag| own.iter().map(|host| tagged_host(tag, host)));
    let tagged: Vec<String> = tagged.collect();
    own.into_iter().chain(tagged).collect()
}

/// The paths, with all below each, at which gateways answer.
pub fn function_paths(function: &Value) -> Vec<&str> {
    match list(function, "/spec/paths") {
        [] => vec!["/"],
        paths => paths.iter().filter_map(Value::as_str).collect(),
    }
}

/// What of a function's or a revision's spec says what runs. Two of which this is equal run the same.
pub fn what_runs(spec: &Value) -> Map<String, Value> {
    let fields = CONTAINER_FIELDS.iter().chain(&POD_FIELDS).chain(&[PORT]);
    fields.filter_map(|field| Some(((*field).to_owned(), spec.get(*field)?.clone()))).collect()
}

/// Whether the spec of a revision names objects that a node may not have been sent: ConfigMaps, Secrets, volumes other than
/// emptyDir, an account of its own.
pub fn function_names_others(spec: &Value) -> bool {
    let is_plain = |env: &Value| match env.get("valueFrom") {
        None | Some(Value::Null) => true,
        Some(from) => from.get("fieldRef").is_some() || from.get("resourceFieldRef").is_some(),
    };
    !list(spec, "/env").iter().all(is_plain)
        || !list(spec, "/envFrom").is_empty()
        || !list(spec, "/volumes").iter().all(|volume| volume.get("emptyDir").is_some())
        || !["", "default"].contains(&text(spec, "/serviceAccountName"))
}

/// The template of the pods that run the spec of a function or a revision, without its labels.
pub fn function_template(spec: &Value) -> Value {
    let mut container = Map::from_iter([("name".to_owned(), Value::from(FUNCTION_CONTAINER))]);
    let mut pod = Map::new();
    for (fields, of) in [(&CONTAINER_FIELDS[..], &mut container), (&POD_FIELDS[..], &mut pod)] {
        let given = fields.iter().filter_map(|field| Some(((*field).to_owned(), spec.get(*field)?.clone())));
        of.extend(given);
    }
    let port = integer(spec, "/port").unwrap_or(i64::from(FUNCTION_PORT));
    container.insert("ports".to_owned(), json!([{ "containerPort": port }]));
    // A program is ready once it listens; a component that is called by HTTP is at once.
    let listens =
        json!({ "tcpSocket": { "port": port }, "periodSeconds": 1, "failureThreshold": START_SECONDS_MAX });
    container.insert("startupProbe".to_owned(), listens);
    pod.insert("containers".to_owned(), json!([container]));
    let mut holder = json!({ "template": { "metadata": {}, "spec": pod } });
    template_defaults(&mut holder);
    holder["template"].take()
}

fn function_defaults(function: &mut Value) {
    if let Some(spec) = child(function, "spec") {
        default(spec, PORT, 80);
        if let Some(scale) = child(spec, "scale") {
            default(scale, "min", 0);
            let least = integer(scale, "/min").unwrap_or(0);
            default(scale, "max", least.max(INSTANCES_DEFAULT));
            default(scale, "targetConcurrency", CONCURRENCY_DEFAULT);
            default(scale, "idleSeconds", IDLE_SECONDS_DEFAULT);
        }
    }
    default(function, "status", json!({}));
}

fn validate_function(function: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(function, "/metadata/name");
    if name.len() > NAME_BYTES_MAX {
        errors.push(FieldError::too_long("metadata.name", NAME_BYTES_MAX));
    }
    let spec = &function["spec"];
    if text(spec, "/image").is_empty() {
        errors.push(FieldError::required("spec.image", ""));
    } else {
        let mut of_pod = Vec::new();
        validate_spec(&function_template(spec)["spec"], "spec", Place::LastingTemplate, &mut of_pod);
        for error in of_pod.into_iter().map(of_function) {
            // A port stands in several places of a pod.
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
    }
    if Value::from(what_runs(spec)).to_string().len() > RUNS_BYTES_MAX {
        errors.push(FieldError::too_long("spec", RUNS_BYTES_MAX));
    }
    hosts(spec, &mut errors);
    scale(spec, &mut errors);
    traffic(function, &mut errors);
    errors
}

/// What is wrong with a pod's field, as the field of the function that it comes from.
fn of_function(mut error: FieldError) -> FieldError {
    error.field = error.field.replacen("spec.containers[0].ports[0].containerPort", "spec.port", 1);
    error.field = error.field.replacen("spec.containers[0].startupProbe.tcpSocket.port", "spec.port", 1);
    error.field = error.field.replacen("spec.containers[0]", "spec", 1);
    error
}

fn hosts(spec: &Value, errors: &mut Vec<FieldError>) {
    for (field, most) in [("hosts", HOSTS_MAX), ("paths", PATHS_MAX)] {
        let count = list(spec, &format!("/{field}")).len();
        if count > most {
            errors.push(FieldError::too_many(format!("spec.{field}"), count, most));
        }
    }
    let mut known = BTreeSet::new();
    for (index, host) in list(spec, "/hosts").iter().enumerate() {
        let (host, at) = (host.as_str().unwrap_or_default(), format!("spec.hosts[{index}]"));
        if !known.insert(host.to_ascii_lowercase()) {
            errors.push(FieldError::duplicate(&at, host));
        }
        let faults = subdomain_faults(&host.to_ascii_lowercase());
        errors.extend(faults.into_iter().map(|fault| FieldError::invalid(&at, host, fault)));
    }
    let mut known = BTreeSet::new();
    for (index, path) in list(spec, "/paths").iter().enumerate() {
        let (path, at) = (path.as_str().unwrap_or_default(), format!("spec.paths[{index}]"));
        if !known.insert(path) {
            errors.push(FieldError::duplicate(&at, path));
        }
        if path.len() > PATH_BYTES_MAX {
            errors.push(FieldError::too_long(at, PATH_BYTES_MAX));
        } else if !path.starts_with('/') {
            errors.push(FieldError::invalid(at, path, "must be an absolute path"));
        }
    }
    let tags = list(spec, "/traffic").iter().filter(|part| !text(part, "/tag").is_empty()).count();
    let each = |field: &str| list(spec, field).len().max(1);
    let routes = each("/hosts") * (tags + 1) * each("/paths");
    if routes > ROUTES_MAX {
        let detail =
            format!("hosts, those of tags too, by paths are {routes}: must be no more than {ROUTES_MAX}");
        errors.push(FieldError::invalid("spec.hosts", each("/hosts"), detail));
    }
}

fn scale(spec: &Value, errors: &mut Vec<FieldError>) {
    let mut within = |field: &str, least: i64, most: i64| {
        let value = integer(spec, &format!("/scale/{field}"))?;
        if !(least..=most).contains(&value) {
            let detail = format!("must be between {least} and {most}, inclusive");
            errors.push(FieldError::invalid(format!("spec.scale.{field}"), value, detail));
        }
        Some(value)
    };
    let least = within("min", 0, INSTANCES_MAX);
    let most = within("max", 1, INSTANCES_MAX);
    within("targetConcurrency", 1, CONCURRENCY_MAX);
    within("idleSeconds", 1, IDLE_SECONDS_MAX);
    if let (Some(least), Some(most)) = (least, most)
        && least > most
    {
        errors.push(FieldError::invalid("spec.scale.min", least, "must not be greater than max"));
    }
}

fn traffic(function: &Value, errors: &mut Vec<FieldError>) {
    let parts = list(function, "/spec/traffic");
    if parts.len() > TRAFFIC_MAX {
        errors.push(FieldError::too_many("spec.traffic", parts.len(), TRAFFIC_MAX));
        return;
    }
    let hosts = own_hosts(function);
    let (mut sum, mut tags, mut named) = (0, BTreeMap::new(), BTreeSet::new());
    for (index, part) in parts.iter().enumerate() {
        let at = |field: &str| format!("spec.traffic[{index}].{field}");
        let (revision, is_latest) = (text(part, "/revision"), flag(part, "/latestRevision"));
        match (revision.is_empty(), is_latest) {
            (true, false) => errors.push(FieldError::required(at("revision"), "or `latestRevision: true`")),
            (false, true) => {
                let detail = "may not be specified when `latestRevision` is true";
                errors.push(FieldError::forbidden(at("revision"), detail));
            }
            (false, false) => {
                let faults = label_1035_faults(revision);
                errors.extend(
                    faults.into_iter().map(|fault| FieldError::invalid(at("revision"), revision, fault)),
                );
            }
            (true, true) => {}
        }
        let tag = text(part, "/tag");
        if tag.is_empty() && !named.insert(revision) {
            errors.push(FieldError::duplicate(at("revision"), revision));
        }
        let percent = integer(part, "/percent").unwrap_or(0);
        if !(0..=100).contains(&percent) {
            errors.push(FieldError::invalid(at("percent"), percent, "must be between 0 and 100, inclusive"));
        }
        sum += percent.clamp(0, 100);
        if tag.is_empty() {
            continue;
        }
        let mut faults = label_1035_faults(tag);
        if tag.len() > TAG_BYTES_MAX {
            faults.push(format!("must be no more than {TAG_BYTES_MAX} bytes"));
        }
        let too_long =
            hosts.iter().map(|host| tagged_host(tag, host)).find(|host| !subdomain_faults(host).is_empty());
        faults.extend(too_long.map(|host| format!("{host:?} would be no host")));
        errors.extend(faults.into_iter().map(|fault| FieldError::invalid(at("tag"), tag, fault)));
        if tags.insert(tag, index).is_some() {
            errors.push(FieldError::duplicate(at("tag"), tag));
        }
    }
    if !parts.is_empty() && sum != 100 {
        errors.push(FieldError::invalid("spec.traffic", sum, "the percentages must be 100 in sum"));
    }
}

/// The OpenAPI schema of both kinds, by [`crate::Kind::schema`].
pub(super) fn openapi(schema: &str) -> Option<Value> {
    let (text, integer) = (|| json!({"type": "string"}), || json!({"type": "integer", "format": "int64"}));
    let texts = || json!({"type": "array", "items": text(), "x-kubernetes-list-type": "atomic"});
    let listed = |of: &str, key: &str| {
        json!({"type": "array", "items": {"allOf": [refer(of)]}, "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": [key], "x-kubernetes-patch-merge-key": key,
            "x-kubernetes-patch-strategy": "merge"})
    };
    let atomic = |of: Value| json!({"type": "array", "items": of, "x-kubernetes-list-type": "atomic"});
    let core = |kind: &str| format!("io.k8s.api.core.v1.{kind}");
    let conditions = listed("io.k8s.apimachinery.pkg.apis.meta.v1.Condition", "type");
    let runs = json!({
        "image": text(), "imagePullPolicy": text(), "command": texts(), "args": texts(), "port": integer(),
        "env": listed(&core("EnvVar"), "name"),
        "envFrom": atomic(json!({"allOf": [refer(&core("EnvFromSource"))]})),
        "resources": {"allOf": [refer(&core("ResourceRequirements"))]},
        "volumeMounts": listed(&core("VolumeMount"), "mountPath"),
        "volumes": listed(&core("Volume"), "name"),
        "serviceAccountName": text(),
    });
    let with = |own: Value| {
        let mut all = runs.clone();
        all.as_object_mut()
            .into_iter()
            .for_each(|all| all.extend(own.as_object().cloned().unwrap_or_default()));
        all
    };
    let (description, spec, required, status) = match schema {
        "dev.coracle.v1.Function" => {
            let part = json!({"type": "object", "properties": {"revision": text(),
                "latestRevision": {"type": "boolean"}, "percent": integer(), "tag": text()}});
            let stands = json!({"type": "object", "properties": {"revision": text(), "percent": integer(),
                "tag": text(), "url": text()}});
            let scale = json!({"type": "object", "properties": {"min": integer(), "max": integer(),
                "targetConcurrency": integer(), "idleSeconds": integer()}});
            let spec =
                with(json!({"hosts": texts(), "paths": texts(), "scale": scale, "traffic": atomic(part)}));
            let status = json!({"observedGeneration": integer(), "url": text(), "latestCreatedRevision": text(),
                "latestReadyRevision": text(), "replicas": integer(), "readyReplicas": integer(),
                "traffic": atomic(stands), "conditions": conditions});
            ("A component that gateways call by HTTP.", spec, json!(["image"]), status)
        }
        "dev.coracle.v1.FunctionRevision" => (
            "What a function ran as of one change.",
            with(json!({"function": text(), "number": integer()})),
            json!(["function", "number", "image"]),
            json!({"percent": integer(), "replicas": integer(), "readyReplicas": integer(), "conditions": conditions}),
        ),
        _ => return None,
    };
    let metadata = refer("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    let (mut spec, mut status) = (
        json!({"type": "object", "properties": spec, "required": required}),
        json!({"type": "object", "properties": status}),
    );
    [&mut spec, &mut status].into_iter().for_each(describe);
    Some(json!({
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": text(),
            "kind": text(),
            "metadata": {"allOf": [metadata]},
            "spec": spec,
            "status": status,
        },
    }))
}

/// What `kubectl explain` says of fields, by their names.
const DESCRIPTIONS: [(&str, &str); 32] = [
    ("args", "Arguments of a program."),
    ("command", "What stands before them."),
    ("conditions", "How it stands: Ready, and why not."),
    ("env", "Environment variables, as of a container."),
    ("envFrom", "ConfigMaps and Secrets whose keys are environment variables, as of a container."),
    ("function", "The function whose revision it is."),
    ("hosts", "The hosts at which gateways answer; by default its name below localhost."),
    ("idleSeconds", "How long nobody has asked before the last instance goes; 60 by default."),
    ("image", "What runs: a component called by HTTP, or a program that listens on `port`."),
    ("imagePullPolicy", "As of a container."),
    ("latestCreatedRevision", "The revision of the newest change of what runs."),
    ("latestReadyRevision", "The latest revision that serves, or has served."),
    ("latestRevision", "The part is that of the latest revision that serves."),
    ("max", "How many instances of one revision there are at most; 100 by default."),
    ("min", "How many there are at least; none by default."),
    ("number", "Which revision it is of its function, from 1."),
    ("observedGeneration", "The generation of the spec that this is about."),
    ("paths", "The paths, with all below each, for which gateways answer; by default all."),
    ("percent", "Which part of the requests it has, of 100."),
    ("port", "Where it listens; 80 by default."),
    ("readyReplicas", "How many instances serve."),
    ("replicas", "How many instances there are."),
    ("resources", "What an instance has and is bounded by, as of a container."),
    ("revision", "The name of a revision."),
    ("scale", "How many instances there are."),
    ("serviceAccountName", "As of a pod."),
    ("tag", "A name: requests to hosts that begin with it and `-` all go to this revision."),
    ("targetConcurrency", "Requests under way in an instance before there is another; 50 by default."),
    (
        "traffic",
        "Which revisions have which part of the requests; by default all go to the latest that serves.",
    ),
    ("url", "Where it is called."),
    ("volumeMounts", "As of a container."),
    ("volumes", "As of a pod."),
];

/// Gives each field its description, at all depths.
fn describe(schema: &mut Value) {
    for (name, field) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some((_, text)) = DESCRIPTIONS.iter().find(|(known, _)| known == name) {
            field["description"] = (*text).into();
        }
        describe(field);
        if let Some(items) = field.get_mut("items") {
            describe(items);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn function(spec: Value) -> Value {
        let mut function = json!({"apiVersion": "coracle.dev/v1", "kind": "Function",
            "metadata": {"name": "hello"}, "spec": {"image": "hello:1"}});
        crate::patch::merge(&mut function["spec"], &spec);
        function_defaults(&mut function);
        function
    }

    fn lines(function: &Value) -> String {
        validate_function(function, None).iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn a_function_has_hosts_of_its_own_and_of_its_tags() {
        assert_eq!(own_hosts(&function(json!({}))), ["hello.localhost"]);
        let tagged = function(json!({"hosts": ["A.example", "b.example"],
            "traffic": [{"latestRevision": true, "percent": 100}, {"revision": "hello-1", "tag": "old"}]}));
        let hosts = ["a.example", "b.example", "old-a.example", "old-b.example"];
        assert_eq!(function_hosts(&tagged).into_iter().collect::<Vec<_>>(), hosts);
        assert_eq!(lines(&tagged), "");
    }

    #[test]
    fn what_is_wrong_is_told_by_the_field_of_the_function() {
        let wrong = function(json!({"image": "a b", "port": 70000, "env": [{"name": "1=2"}],
            "volumeMounts": [{"name": "none", "mountPath": "/x"}], "hosts": ["a_b", "c.example", "C.example"],
            "paths": ["x"], "scale": {"min": 3, "max": 2}, "traffic": [{"percent": 50}, {"revision": "hello-1", "percent": 20},
            {"revision": "hello-1", "latestRevision": true, "tag": "-", "percent": -1}]}));
        expect![[r#"
            spec.port: Invalid value: 70000: must be between 1 and 65535, inclusive
            spec.env[0].name: Invalid value: "1=2": a valid environment variable name must consist only of printable ASCII characters other than '='
            spec.volumeMounts[0].name: Not found: "none"
            spec.hosts[0]: Invalid value: "a_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.hosts[2]: Duplicate value: "C.example"
            spec.paths[0]: Invalid value: "x": must be an absolute path
            spec.scale.min: Invalid value: 3: must not be greater than max
            spec.traffic[0].revision: Required value: or `latestRevision: true`
            spec.traffic[2].revision: Forbidden: may not be specified when `latestRevision` is true
            spec.traffic[2].percent: Invalid value: -1: must be between 0 and 100, inclusive
            spec.traffic[2].tag: Invalid value: "-": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
            spec.traffic[2].tag: Invalid value: "-": "--a_b" would be no host
            spec.traffic: Invalid value: 70: the percentages must be 100 in sum
        "#]].assert_eq(&lines(&wrong));
        expect![[r#"
            spec.image: Required value
        "#]]
        .assert_eq(&lines(&function(json!({"image": null}))));
    }

    #[test]
    fn what_gateways_and_revisions_keep_is_bounded() {
        let many = |count: usize, of: fn(usize) -> String| (0..count).map(of).collect::<Vec<_>>();
        let host = |at: usize| format!("h{at}.example");
        let path = |at: usize| format!("/p{at}");
        assert_eq!(lines(&function(json!({"hosts": many(32, host), "paths": many(64, path)}))), "");
        let tags: Vec<Value> =
            (0..31).map(|at| json!({"revision": "hello-1", "tag": format!("t{at}")})).collect();
        let traffic = [vec![json!({"latestRevision": true, "percent": 100})], tags].concat();
        let wide = function(json!({"hosts": many(32, host), "paths": many(64, path), "traffic": traffic}));
        assert!(lines(&wide).contains("must be no more than 4096"), "{}", lines(&wide));
        let long = function(json!({"paths": [format!("/{}", "x".repeat(2_000))]}));
        assert!(lines(&long).starts_with("spec.paths[0]: Too long"), "{}", lines(&long));
        let large = function(json!({"env": [{"name": "A", "value": "x".repeat(200_000)}]}));
        assert!(lines(&large).starts_with("spec: Too long"), "{}", lines(&large));
    }

    #[test]
    fn every_field_says_what_it_is() {
        for kind in ["dev.coracle.v1.Function", "dev.coracle.v1.FunctionRevision"] {
            let schema = openapi(kind).unwrap();
            for part in ["spec", "status"] {
                for (name, field) in schema["properties"][part]["properties"].as_object().unwrap() {
                    assert!(field["description"].is_string(), "{kind} {part}.{name}");
                }
            }
        }
        let scale = &openapi("dev.coracle.v1.Function").unwrap()["properties"]["spec"]["properties"]["scale"];
        assert!(scale["properties"]["idleSeconds"]["description"].is_string());
    }

    #[test]
    fn what_runs_is_what_makes_a_revision() {
        let one = function(
            json!({"hosts": ["a.example"], "scale": {"min": 1}, "env": [{"name": "A", "value": "1"}]}),
        );
        let other = function(json!({"env": [{"name": "A", "value": "1"}]}));
        assert_eq!(what_runs(&one["spec"]), what_runs(&other["spec"]));
        let third = function(json!({"env": [{"name": "A", "value": "2"}]}));
        assert_ne!(what_runs(&one["spec"]), what_runs(&third["spec"]));
        let template = function_template(&one["spec"]);
        assert_eq!(template["spec"]["containers"][0]["ports"][0]["containerPort"], 80);
        assert_eq!(template["spec"]["containers"][0]["env"][0]["value"], "1");
        assert_eq!(template["spec"]["restartPolicy"], "Always");
    }
}
