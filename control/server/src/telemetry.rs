//! Metrics for Prometheus.

use std::sync::Arc;

use coracle_api::Storage;
use http::{Method, StatusCode, header};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{node_link::Links, storage::ReplicatedStorage};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: u16,
}

/// What is measured. Gauges are read when somebody scrapes.
pub struct Telemetry {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    gauges: Gauges,
    storage: ReplicatedStorage,
    links: Arc<Links>,
}

#[derive(Default)]
struct Gauges {
    term: Gauge,
    is_leader: Gauge,
    commit: Gauge,
    applied: Gauge,
    voters: Gauge,
    learners: Gauge,
    revision: Gauge,
    objects: Gauge,
    nodes: Gauge,
    links: Gauge,
}

impl Telemetry {
    pub fn new(storage: ReplicatedStorage, links: Arc<Links>) -> Self {
        let mut registry = Registry::with_prefix("coracle");
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("http_requests", "HTTP requests answered", requests.clone());
        let gauges = Gauges::default();
        for (name, help, gauge) in [
            ("raft_term", "Raft term of this member", &gauges.term),
            ("raft_is_leader", "1 where this member leads", &gauges.is_leader),
            ("raft_commit_index", "Highest committed log index", &gauges.commit),
            ("raft_applied_index", "Highest applied log index", &gauges.applied),
            ("raft_voters", "Voting members", &gauges.voters),
            ("raft_learners", "Members that do not vote", &gauges.learners),
            ("store_revision", "Revision of the store", &gauges.revision),
            ("store_objects", "Objects in the store", &gauges.objects),
            ("nodes", "Nodes of the cluster", &gauges.nodes),
            ("node_links", "Nodes linked to this member", &gauges.links),
        ] {
            registry.register(name, help, gauge.clone());
        }
        Self { registry: Mutex::new(registry), requests, gauges, storage, links }
    }

    pub fn count(&self, method: &Method, status: StatusCode) {
        // Methods are free text on the wire: what is not known shares a label.
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            _ => "other",
        };
        self.requests.get_or_create(&RequestLabels { method, code: status.as_u16() }).inc();
    }

    /// The metrics in OpenMetrics text.
    pub fn scrape(&self) -> ([(header::HeaderName, &'static str); 1], String) {
        let status = self.storage.status();
        let view = self.storage.view();
        let set = |gauge: &Gauge, value: u64| gauge.set(value as i64);
        set(&self.gauges.term, status.term);
        set(&self.gauges.is_leader, self.storage.leads().into());
        set(&self.gauges.commit, status.commit);
        set(&self.gauges.applied, status.applied);
        set(&self.gauges.voters, status.voters.len() as u64);
        set(&self.gauges.learners, status.learners.len() as u64);
        set(&self.gauges.revision, view.revision);
        set(&self.gauges.objects, view.tables.values().map(|table| table.len() as u64).sum());
        set(&self.gauges.nodes, view.count("nodes") as u64);
        set(&self.gauges.links, self.links.count() as u64);
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            tracing::warn!(%error, "metrics cannot be encoded");
        }
        ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
    }
}
