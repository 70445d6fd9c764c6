//! What is counted of requests: tables of fixed size, found by numbers, so that counting neither waits nor allocates.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_api::{Asked, METRIC_VERBS, Meter};
use coracle_objects::{Kind, kinds};
use coracle_proto::metrics::{Counter, Histogram, Text};

/// The status codes that have counters of their own. The last stands for all others.
const CODES: &[u16] = &[
    200, 201, 202, 204, 301, 304, 307, 400, 401, 403, 404, 405, 406, 409, 410, 412, 413, 415, 422, 429, 500,
    501, 503, 504, 0,
];

/// Upper bounds of the buckets for a request's duration, in microseconds: 500 us to 60 s.
const BOUNDS_US: &[u64] = &[
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// HTTP methods of the registry that have counters of their own. The last stands for all others.
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "other"];

/// gRPC services by the beginning of their paths. The last stands for all others.
const SERVICES: &[&str] = &[
    "coracle.raft.v1.RaftTransport",
    "coracle.cluster.v1.Join",
    "coracle.cluster.v1.Cluster",
    "coracle.cluster.v1.Leader",
    "coracle.cluster.v1.Blobs",
    "coracle.node.v1.NodeLink",
    "coracle.store.v1.Store",
    "coracle.security.v1.Security",
    "other",
];

/// The first of them.
const RAFT: usize = 0;

/// The counters. A row is a verb and a kind; the last kind stands for paths without one.
pub struct Requests {
    codes: Vec<Counter>,
    durations: Vec<Histogram>,
    long_running: Vec<AtomicI64>,
    watch_events: Vec<Counter>,
    mutating: AtomicI64,
    reading: AtomicI64,
    registry: Vec<Counter>,
    registry_durations: Vec<Histogram>,
    grpc: Vec<Counter>,
    grpc_durations: Vec<Histogram>,
}

impl Default for Requests {
    fn default() -> Self {
        let kinds = kinds().len() + 1;
        let rows = METRIC_VERBS.len() * kinds;
        let histograms = |count: usize| (0..count).map(|_| Histogram::new(BOUNDS_US)).collect();
        let counters = |count: usize| (0..count).map(|_| Counter::default()).collect();
        Self {
            codes: counters(rows * CODES.len()),
            durations: histograms(rows),
            long_running: (0..rows).map(|_| AtomicI64::new(0)).collect(),
            watch_events: counters(kinds),
            mutating: AtomicI64::new(0),
            reading: AtomicI64::new(0),
            registry: counters(METHODS.len() * CODES.len()),
            registry_durations: histograms(METHODS.len()),
            grpc: counters(SERVICES.len()),
            grpc_durations: histograms(SERVICES.len()),
        }
    }
}

fn row(asked: Asked) -> usize {
    asked.verb * (kinds().len() + 1) + asked.kind.unwrap_or(kinds().len())
}

fn watch_row(kind: usize) -> usize {
    let verb = METRIC_VERBS.iter().position(|verb| *verb == "WATCH").unwrap_or(0);
    row(Asked { verb, kind: Some(kind) })
}

fn code_column(code: u16) -> usize {
    CODES.iter().position(|known| *known == code).unwrap_or(CODES.len() - 1)
}

impl Meter for Requests {
    fn began(&self, asked: Asked) {
        if let Some(gauge) = self.in_flight(asked) {
            gauge.fetch_add(1, Relaxed);
        }
    }

    fn answered(&self, asked: Asked, code: u16, took: Duration) {
        self.codes[row(asked) * CODES.len() + code_column(code)].add(1);
        if !asked.is_long_running() {
            self.durations[row(asked)].observe(took);
        }
    }

    fn ended(&self, asked: Asked) {
        if let Some(gauge) = self.in_flight(asked) {
            gauge.fetch_sub(1, Relaxed);
        }
    }

    fn watch_began(&self, kind: usize) {
        self.long_running[watch_row(kind)].fetch_add(1, Relaxed);
    }

    fn watch_sent(&self, kind: usize, events: u64) {
        self.watch_events[kind].add(events);
    }

    fn watch_ended(&self, kind: usize) {
        self.long_running[watch_row(kind)].fetch_sub(1, Relaxed);
    }
}

impl Requests {
    fn in_flight(&self, asked: Asked) -> Option<&AtomicI64> {
        match asked {
            asked if asked.is_long_running() => None,
            asked if asked.is_read_only() => Some(&self.reading),
            _ => Some(&self.mutating),
        }
    }

    /// Methods are free text on the wire: what is not known shares a counter.
    pub fn registry_answered(&self, method: &str, code: u16, took: Duration) {
        let method = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1);
        self.registry[method * CODES.len() + code_column(code)].add(1);
        self.registry_durations[method].observe(took);
    }

    /// `path` is `/<service>/<method>`. Answers the service's number.
    pub fn grpc_began(&self, path: &str) -> usize {
        let service = path.trim_start_matches('/').split('/').next().unwrap_or("");
        let service = SERVICES.iter().position(|known| *known == service).unwrap_or(SERVICES.len() - 1);
        self.grpc[service].add(1);
        service
    }

    /// The head of the answer came. Raft's streams have no answer as long as they last.
    pub fn grpc_answered(&self, service: usize, took: Duration) {
        if service != RAFT {
            self.grpc_durations[service].observe(took);
        }
    }

    pub fn write(&self, text: &mut Text) {
        let mut family =
            text.counter("apiserver_request_total", "Requests of the API, by what they ask and answer.");
        for (verb, kind, row) in rows() {
            for (column, code) in CODES.iter().enumerate() {
                let count = self.codes[row * CODES.len() + column].get();
                if count > 0 {
                    let code = code_name(*code);
                    let [group, version, resource] = names(kind);
                    family.with(&[("verb", verb), group, version, resource, ("code", &code)], count);
                }
            }
        }
        let help = "Time until the head of the answer. Watches and logs have none.";
        let mut family = text.histogram("apiserver_request_duration_seconds", help);
        for (verb, kind, row) in rows() {
            if self.durations[row].count() > 0 {
                let [group, version, resource] = names(kind);
                family.counts(&[("verb", verb), group, version, resource], &self.durations[row]);
            }
        }
        let help = "Requests of the API under way, watches and logs aside.";
        let mut family = text.gauge("apiserver_current_inflight_requests", help);
        family.with(&[("request_kind", "mutating")], self.mutating.load(Relaxed));
        family.with(&[("request_kind", "readOnly")], self.reading.load(Relaxed));
        let mut family = text.gauge("apiserver_longrunning_requests", "Watches of the REST API under way.");
        for (verb, kind, row) in rows().filter(|(verb, ..)| *verb == "WATCH") {
            let count = self.long_running[row].load(Relaxed);
            if count > 0 {
                let [group, version, resource] = names(kind);
                family.with(&[("verb", verb), group, version, resource], count);
            }
        }
        let mut family =
            text.counter("apiserver_watch_events_total", "Events and bookmarks that REST watches sent.");
        for (index, kind) in kinds().iter().enumerate() {
            let count = self.watch_events[index].get();
            if count > 0 {
                let [group, version, resource] = names(Some(kind));
                family.with(&[group, version, resource], count);
            }
        }
        self.write_others(text);
    }

    fn write_others(&self, text: &mut Text) {
        let mut family =
            text.counter("coracle_registry_requests_total", "Requests of the cluster's own registry.");
        for (row, method) in METHODS.iter().enumerate() {
            for (column, code) in CODES.iter().enumerate() {
                let count = self.registry[row * CODES.len() + column].get();
                if count > 0 {
                    family.with(&[("method", method), ("code", &code_name(*code))], count);
                }
            }
        }
        let mut family = text.counter("grpc_server_started_total", "gRPC calls begun, streams among them.");
        for (service, count) in SERVICES.iter().zip(&self.grpc) {
            family.with(&[("grpc_service", service)], count.get());
        }
        let help = "Time until the head of the answer of a gRPC call; streams of raft's messages have none.";
        let mut family = text.histogram("grpc_server_handling_seconds", help);
        for (service, durations) in SERVICES.iter().zip(&self.grpc_durations) {
            if durations.count() > 0 {
                family.counts(&[("grpc_service", service)], durations);
            }
        }
        let help = "Time until the head of the registry's answer, what was pushed included.";
        let mut family = text.histogram("coracle_registry_request_duration_seconds", help);
        for (method, durations) in METHODS.iter().zip(&self.registry_durations) {
            if durations.count() > 0 {
                family.counts(&[("method", method)], durations);
            }
        }
    }
}

type Row = (&'static str, Option<&'static Arc<Kind>>, usize);

fn rows() -> impl Iterator<Item = Row> {
    METRIC_VERBS.iter().enumerate().flat_map(|(verb, name)| {
        (0..=kinds().len()).map(move |kind| {
            let row = row(Asked { verb, kind: Some(kind) });
            (*name, kinds().get(kind), row)
        })
    })
}

fn names(kind: Option<&'static Arc<Kind>>) -> [(&'static str, &'static str); 3] {
    let (group, version, resource) =
        kind.map_or(("", "", ""), |kind| (&*kind.group, &*kind.version, &*kind.plural));
    [("group", group), ("version", version), ("resource", resource)]
}

fn code_name(code: u16) -> String {
    if code == 0 { "other".to_owned() } else { code.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_under_their_labels() {
        let requests = Requests::default();
        let pods = kinds().iter().position(|kind| kind.plural == "pods").unwrap();
        let get = Asked { verb: 0, kind: Some(pods) };
        requests.began(get);
        requests.answered(get, 418, Duration::from_millis(3));
        requests.watch_began(pods);
        requests.watch_sent(pods, 5);
        requests.grpc_began("/coracle.store.v1.Store/Txn");
        let security = requests.grpc_began("/coracle.security.v1.Security/Keys");
        requests.grpc_answered(security, Duration::from_millis(3));
        requests.registry_answered("BREW", 200, Duration::from_millis(3));
        let mut text = Text::default();
        requests.write(&mut text);
        let text = text.finish();
        let labels = r#"group="",version="v1",resource="pods""#;
        for line in [
            format!(r#"apiserver_request_total{{verb="GET",{labels},code="other"}} 1"#),
            format!(r#"apiserver_request_duration_seconds_bucket{{verb="GET",{labels},le="0.0025"}} 0"#),
            format!(r#"apiserver_request_duration_seconds_bucket{{verb="GET",{labels},le="0.005"}} 1"#),
            r#"apiserver_current_inflight_requests{request_kind="readOnly"} 1"#.to_owned(),
            format!(r#"apiserver_longrunning_requests{{verb="WATCH",{labels}}} 1"#),
            format!(r#"apiserver_watch_events_total{{{labels}}} 5"#),
            r#"grpc_server_started_total{grpc_service="coracle.store.v1.Store"} 1"#.to_owned(),
            r#"grpc_server_started_total{grpc_service="coracle.security.v1.Security"} 1"#.to_owned(),
            r#"grpc_server_handling_seconds_count{grpc_service="coracle.security.v1.Security"} 1"#.to_owned(),
            r#"coracle_registry_request_duration_seconds_count{method="other"} 1"#.to_owned(),
            r#"coracle_registry_requests_total{method="other",code="200"} 1"#.to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        requests.ended(get);
        assert_eq!(requests.reading.load(Relaxed), 0);
    }
}
