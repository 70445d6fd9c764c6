//! What functions and their revisions say of how they are.

use coracle_objects::{
    Object,
    fields::{condition, condition_true, integer, list, text},
    kinds::{own_hosts, tagged_host},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    revisions::{Revision, Revisions},
    traffic::Traffic,
};
use crate::{
    draft::{self, Unreadable, timestamp},
    ingress,
    model::Pod,
    state::State,
};

/// The condition of a revision that is in use.
const ACTIVE: &str = "Active";
/// Waiting reasons of a container that is only coming up.
const COMING_UP: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];
/// The default port of HTTP is not told.
const HTTP_PORT: u16 = 80;

/// Brings a revision's status to how it is; since when it is not in use, where it is not.
pub fn of_revision(
    state: &State,
    revision: &mut Revision<'_>,
    traffic: &Traffic,
    now: Timestamp,
) -> Result<Option<Timestamp>, Unreadable> {
    let (status, reason, message) = if revision.has_served() {
        ("True", "Serves", String::new())
    } else {
        match trouble(state, revision)? {
            Some((reason, message)) => ("False", reason, message),
            None => ("Unknown", "Starting", "no instance is ready yet".to_owned()),
        }
    };
    let is_needed = traffic.needs(revision.name());
    let counts = revision.set.map(|set| (set.status.replicas, set.status.ready_replicas)).unwrap_or_default();
    let percent = traffic.percent(revision.name());
    let value = &mut revision.value;
    set_condition(value, "Ready", (status, reason, &message), now);
    let active = if is_needed { ("True", "InUse", "") } else { ("False", "NotInUse", "") };
    set_condition(value, ACTIVE, active, now);
    put(value, [("percent", percent), ("replicas", counts.0), ("readyReplicas", counts.1)]);
    Ok((!is_needed).then(|| unused_since(&revision.value).unwrap_or(now)))
}

/// Since when a revision says that it is not in use.
pub fn unused_since(revision: &Value) -> Option<Timestamp> {
    let active = condition(revision, ACTIVE).filter(|active| text(active, "/status") == "False")?;
    text(active, "/lastTransitionTime").parse().ok()
}

/// Why no instance serves, as far as that is known: of the ReplicaSet, or of an instance.
fn trouble<'a>(state: &'a State, revision: &Revision<'_>) -> Result<Option<(&'a str, String)>, Unreadable> {
    let Some(set) = revision.set else { return Ok(None) };
    let failures = set.status.conditions.iter();
    if let Some(failure) =
        failures.clone().find(|failure| failure["type"] == "ReplicaFailure" && failure["status"] == "True")
    {
        return Ok(Some(("ReplicaFailure", text(failure, "/message").to_owned())));
    }
    for pod in state.pods_of(&set.object) {
        if let Some(found) = trouble_of_pod(pod)? {
            return Ok(Some(("InstanceFails", found)));
        }
    }
    Ok(None)
}

fn trouble_of_pod(pod: &Pod) -> Result<Option<String>, Unreadable> {
    let value = draft::of(&pod.object)?;
    let waiting =
        list(&value, "/status/containerStatuses").iter().find_map(|status| status.pointer("/state/waiting"));
    if let Some(waiting) = waiting.filter(|waiting| !COMING_UP.contains(&text(waiting, "/reason"))) {
        return Ok(Some(told(text(waiting, "/reason"), text(waiting, "/message"))));
    }
    let unplaced = condition(&value, "PodScheduled").filter(|placed| text(placed, "/status") == "False");
    Ok(unplaced.map(|placed| told(text(placed, "/reason"), text(placed, "/message"))))
}

fn told(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

/// Brings a function's status to how it is; which revisions have the requests, where that has changed.
pub fn of_function(
    state: &State,
    function: &Object,
    value: &mut Value,
    (revisions, traffic): (&Revisions<'_>, &Traffic),
    now: Timestamp,
) -> Option<String> {
    let before = value["status"]["traffic"].clone();
    let urls = Urls { hosts: own_hosts(value), port: state.gateways.port() };
    let parts: Vec<Value> = traffic.now.iter().map(|part| part.told(|tag| urls.of_tag(tag))).collect();
    let name = |revision: Option<&Revision<'_>>| revision.map(|revision| Value::from(revision.name()));
    let status = draft::child(value, "status");
    status.insert("observedGeneration".to_owned(), function_generation(function));
    status.insert("url".to_owned(), urls.own().into());
    status.insert("traffic".to_owned(), parts.into());
    for (field, revision) in [
        ("latestCreatedRevision", name(revisions.latest())),
        ("latestReadyRevision", name(revisions.latest_ready())),
    ] {
        match revision {
            Some(revision) => drop(status.insert(field.to_owned(), revision)),
            None => drop(status.remove(field)),
        }
    }
    let sum = |count: fn(&crate::model::ReplicaSet) -> i64| {
        revisions.all.iter().filter_map(|revision| revision.set.map(count)).sum::<i64>()
    };
    put(
        value,
        [
            ("replicas", sum(|set| set.status.replicas)),
            ("readyReplicas", sum(|set| set.status.ready_replicas)),
        ],
    );
    let held = ingress::held(&state.hosts, function);
    conditions(value, (revisions, traffic), &held, now);
    (before != value["status"]["traffic"] && !traffic.now.is_empty())
        .then(|| format!("Requests go to {}", traffic.shares()))
}

fn conditions(
    value: &mut Value,
    (revisions, traffic): (&Revisions<'_>, &Traffic),
    held: &[String],
    now: Timestamp,
) {
    let latest = revisions.latest().and_then(|latest| condition(&latest.value, "Ready"));
    let part = |field: &str| latest.map(|latest| text(latest, field).to_owned()).unwrap_or_default();
    let (status, reason, message) = (part("/status"), part("/reason"), part("/message"));
    set_condition(value, "RevisionReady", (&status, &reason, &message), now);
    let routes = match (&traffic.missing, &traffic.awaited) {
        _ if !held.is_empty() => ("False", "HostHeld", ingress::held_by_others(held)),
        (Some(missing), _) => ("False", "RevisionMissing", format!("there is no revision {missing}")),
        (None, Some(awaited)) => {
            ("Unknown", "RevisionStarting", format!("revision {awaited} serves not yet"))
        }
        (None, None) => ("True", "Routed", String::new()),
    };
    set_condition(value, "RoutesReady", (routes.0, routes.1, &routes.2), now);
    // Of what is asked for: that the latest fails is told even where the requests go to others.
    let whole = if condition_true(value, "RevisionReady") && traffic.is_settled() && held.is_empty() {
        ("True", "Serves".to_owned(), String::new())
    } else if routes.0 == "False" {
        (routes.0, routes.1.to_owned(), routes.2)
    } else if status == "True" {
        ("Unknown", routes.1.to_owned(), routes.2)
    } else {
        (if status == "False" { "False" } else { "Unknown" }, reason, message)
    };
    set_condition(value, "Ready", (whole.0, &whole.1, &whole.2), now);
}

/// Where gateways answer for a function.
struct Urls {
    hosts: Vec<String>,
    port: Option<u16>,
}

impl Urls {
    fn own(&self) -> String {
        self.hosts.first().map(|host| self.of(host)).unwrap_or_default()
    }

    fn of_tag(&self, tag: &str) -> String {
        self.hosts.first().map(|host| self.of(&tagged_host(tag, host))).unwrap_or_default()
    }

    fn of(&self, host: &str) -> String {
        match self.port {
            Some(port) if port != HTTP_PORT => format!("http://{host}:{port}"),
            _ => format!("http://{host}"),
        }
    }
}

fn function_generation(function: &Object) -> Value {
    function
        .parse::<Value>()
        .ok()
        .and_then(|value| integer(&value, "/metadata/generation"))
        .unwrap_or(1)
        .into()
}

fn set_condition(
    value: &mut Value,
    type_: &str,
    (status, reason, message): (&str, &str, &str),
    now: Timestamp,
) {
    let status = if status.is_empty() { "Unknown" } else { status };
    let reason = if reason.is_empty() { "Starting" } else { reason };
    let condition = json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": timestamp(now),
    });
    draft::set_condition(value, condition);
}

fn put<const N: usize>(value: &mut Value, counts: [(&str, i64); N]) {
    let status = draft::child(value, "status");
    counts.into_iter().for_each(|(field, count)| drop(status.insert(field.to_owned(), count.into())));
}
