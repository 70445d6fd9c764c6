//! The node's event loop: what happened, then what it means, then what is done about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coracle_core::{
    Desired, Observation, Observed, Pod, PodUid,
    observe::News,
    reconcile::{next_wake, reconcile_pod},
    sources::{KeyedData, Service},
};
use coracle_proto::node::{
    BlockClaimed, LogRequest, ObjectEvent, TrustChanged, node_down::Body, object_event,
};
use coracle_wasi_host::Container;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    execute::{At, Executor},
    identity::Identity,
    link::FromLink,
    log_streams::LogStreams,
    network::NetworkObjects,
    usage, volumes,
};

/// Events that wait for the loop.
pub const EVENTS_MAX: usize = 4096;
/// Events taken before the pods that they concern are looked at.
const BATCH_MAX: usize = 256;
/// Rounds until a pod must have come to rest. More would be a fault of reconcile, and ends in the log.
const ROUNDS_MAX: usize = 32;
/// Changes of the network within this time go to the fabric together.
const NETWORK_SETTLES: Duration = Duration::from_millis(10);
/// How long containers may take to end by themselves when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The reason with which the node lifecycle marks the pods of a node that was not heard.
const NODE_NOT_READY: &str = "NodeNotReady";

/// Everything that can happen to a node.
#[derive(Debug)]
pub enum Event {
    Link(FromLink),
    Observed(Observation),
    /// A container runs; its handle comes with the news.
    Started {
        at: At,
        container: Container,
    },
    /// The node is to stop.
    Stop,
}

/// An object as it is named on the link: resource, namespace, name.
type Key = (String, String, String);

pub struct App {
    identity: Arc<Identity>,
    /// The generation of the cluster's authorities.
    trust: watch::Sender<u64>,
    desired: Desired,
    observed: Observed,
    executor: Executor,
    network: NetworkObjects,
    logs: LogStreams,
    /// Pods by namespace and name: a new uid under an old name replaces the old pod.
    names: BTreeMap<(String, String), PodUid>,
    /// All objects that the leader sent, and those of the present link.
    known: BTreeSet<Key>,
    seen: BTreeSet<Key>,
    /// The whole of what this node needs has been seen at least once: nothing is decided before.
    synced: bool,
    /// Whether the present link has said that everything was sent.
    link_synced: bool,
    dirty: BTreeSet<PodUid>,
    wakes: BTreeSet<(Timestamp, PodUid)>,
    wake_of: BTreeMap<PodUid, Timestamp>,
    network_due: Option<Instant>,
}

impl App {
    pub fn new(identity: Arc<Identity>, observed: Observed, executor: Executor) -> Self {
        let logs = LogStreams::new(executor.context().logs.clone(), executor.context().link.clone());
        Self {
            identity,
            trust: watch::Sender::new(0),
            desired: Desired::default(),
            observed,
            executor,
            network: NetworkObjects::default(),
            logs,
            names: BTreeMap::new(),
            known: BTreeSet::new(),
            seen: BTreeSet::new(),
            synced: false,
            link_synced: false,
            dirty: BTreeSet::new(),
            wakes: BTreeSet::new(),
            wake_of: BTreeMap::new(),
            network_due: None,
        }
    }

    /// What the cluster says of the generation of its authorities.
    pub fn trust(&self) -> watch::Receiver<u64> {
        self.trust.subscribe()
    }

    /// Runs until Stop, or until nobody can send events any more.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, link: JoinHandle<()>) {
        let mut usage_at = tokio::time::interval(usage::USAGE_EVERY);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let wake = self.wakes.first().map(|(at, _)| self.executor.context().clock.until(*at));
            tokio::select! {
                received = events.recv_many(&mut batch, BATCH_MAX) => {
                    if received == 0 {
                        break;
                    }
                }
                () = sleep(wake), if wake.is_some() => self.wake(),
                () = sleep_until(self.network_due), if self.network_due.is_some() => self.update_network(),
                _ = usage_at.tick() => self.report_usage(),
            }
            let mut stop = false;
            for event in batch.drain(..) {
                stop |= matches!(event, Event::Stop);
                self.handle(event);
            }
            if stop {
                break;
            }
            self.step();
        }
        self.stop(events).await;
        link.abort();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Link(FromLink::Up { number, welcome }) => {
                self.logs.linked(number);
                self.seen.clear();
                self.link_synced = false;
                let addresses = welcome.control_addresses;
                if !addresses.is_empty()
                    && let Err(error) = self.identity.keep(&addresses)
                {
                    tracing::warn!(%error, "the control nodes' addresses could not be kept");
                }
            }
            Event::Link(FromLink::Down) => {
                self.link_synced = false;
                self.logs.cancel_all();
            }
            Event::Link(FromLink::Message(body)) => self.message(body),
            Event::Observed(observation) => self.observe(observation),
            Event::Started { at, container } => {
                let observation = self.executor.started(at, container);
                self.observe(observation);
            }
            Event::Stop => {}
        }
    }

    fn observe(&mut self, observation: Observation) {
        let uid = match &observation {
            Observation::SandboxReady { uid, .. }
            | Observation::SandboxFailed { uid, .. }
            | Observation::SandboxStopped { uid }
            | Observation::Mounted { uid, .. }
            | Observation::MountFailed { uid, .. } => uid.clone(),
            Observation::Container { uid, container, attempt, news } => {
                if matches!(news, News::Exited(_)) {
                    self.executor.exited(uid, container, *attempt);
                }
                uid.clone()
            }
        };
        self.observed.apply(observation, self.executor.context().clock.now());
        self.dirty.insert(uid);
    }

    fn message(&mut self, body: Body) {
        match body {
            Body::Object(object) => self.object(object),
            Body::Synced(_) => self.sync_done(),
            Body::BlockClaimed(BlockClaimed { request, cidr, error }) => {
                if !error.is_empty() {
                    tracing::warn!(error, "no more pod addresses for this node");
                }
                for observation in self.executor.block_claimed(request, &cidr, &error) {
                    self.observe(observation);
                }
            }
            Body::LogRequest(request) => self.log_request(request),
            Body::LogCancel(cancel) => self.logs.cancel(cancel.request),
            Body::LogGrant(grant) => self.logs.grant(grant.request, grant.chunks),
            Body::TrustChanged(TrustChanged { generation }) => {
                self.trust.send_replace(generation);
            }
            Body::Welcome(_) | Body::Redirect(_) | Body::Acknowledged(_) => {}
        }
    }

    fn object(&mut self, event: ObjectEvent) {
        let key = (event.resource.clone(), event.namespace.clone(), event.name.clone());
        if event.r#type() == object_event::Type::Delete {
            self.known.remove(&key);
            self.seen.remove(&key);
            self.delete(&key);
            return;
        }
        self.seen.insert(key.clone());
        self.known.insert(key.clone());
        if let Err(error) = self.put(&key, &event) {
            tracing::warn!(object = ?key, error = &*error, "an object of the cluster cannot be read");
        }
    }

    fn put(&mut self, key: &Key, event: &ObjectEvent) -> Result<(), Box<dyn std::error::Error>> {
        let (resource, namespace, name) = key;
        let own = (namespace.clone(), name.clone());
        let json = &event.object_json;
        match resource.as_str() {
            "pods" => match Pod::parse(json) {
                Ok(pod) => self.put_pod(pod),
                Err(error) => {
                    let Some(pod) = Pod::unreadable(json) else { return Err(error.into()) };
                    tracing::warn!(pod = %pod.full_name(), %error, "a pod that cannot be read is not run");
                    self.put_pod(pod);
                }
            },
            "configmaps" => {
                let data = KeyedData::from_config_map(json, event.revision)?;
                self.desired.sources.config_maps.insert(own, Arc::new(data));
                self.touch_namespace(namespace);
            }
            "secrets" => {
                let data = KeyedData::from_secret(json, event.revision)?;
                self.desired.sources.secrets.insert(own, Arc::new(data));
                self.touch_namespace(namespace);
            }
            "services" => {
                self.desired.sources.services.insert(own, Arc::new(Service::parse(json)?));
            }
            _ => {}
        }
        if is_network(resource) {
            let object: Value = serde_json::from_slice(json)?;
            if self.network.put(resource, namespace, name, &object) {
                self.network_changed();
            }
            let block = &object["spec"];
            if resource == "podblocks.coracle.dev"
                && block["nodeName"] == *self.identity.name
                && let Some(cidr) = block["cidr"].as_str()
            {
                self.executor.add_block(cidr);
            }
        }
        Ok(())
    }

    fn put_pod(&mut self, pod: Pod) {
        let pod = Arc::new(pod);
        let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let old = self.names.insert(name, pod.uid().clone());
        if let Some(old) = old.filter(|old| old != pod.uid()) {
            self.desired.pods.remove(&old);
            self.dirty.insert(old);
        }
        self.observed.see(&pod);
        if was_given_up(&pod) {
            // The cluster had lost sight of this node for a moment: it is told again.
            self.executor.context().link.post(|outbox| outbox.status_again(pod.uid().as_str()));
        }
        self.dirty.insert(pod.uid().clone());
        self.desired.pods.insert(pod.uid().clone(), pod);
    }

    fn delete(&mut self, (resource, namespace, name): &Key) {
        let own = (namespace.clone(), name.clone());
        match resource.as_str() {
            "pods" => {
                if let Some(uid) = self.names.remove(&own) {
                    self.desired.pods.remove(&uid);
                    self.dirty.insert(uid);
                }
            }
            "configmaps" => {
                self.desired.sources.config_maps.remove(&own);
                self.touch_namespace(namespace);
            }
            "secrets" => {
                self.desired.sources.secrets.remove(&own);
                self.touch_namespace(namespace);
            }
            "services" => {
                self.desired.sources.services.remove(&own);
            }
            _ => {}
        }
        if is_network(resource) && self.network.delete(resource, namespace, name) {
            self.network_changed();
        }
    }

    /// A config map or secret changed: the pods of its namespace that use any are looked at.
    fn touch_namespace(&mut self, namespace: &str) {
        let users =
            self.desired.pods.values().filter(|pod| pod.metadata.namespace == namespace && pod.has_sources());
        self.dirty.extend(users.map(|pod| pod.uid().clone()));
    }

    /// Everything was sent: what was not is gone.
    fn sync_done(&mut self) {
        let lost: Vec<Key> = self.known.difference(&self.seen).cloned().collect();
        for key in &lost {
            self.delete(key);
        }
        self.known = self.seen.clone();
        self.link_synced = true;
        if !self.synced {
            self.synced = true;
            tracing::info!(pods = self.desired.pods.len(), "the cluster's wishes are known");
            self.clean_up();
        }
        let all = self.desired.pods.keys().chain(self.observed.pods.keys());
        self.dirty.extend(all.cloned().collect::<Vec<_>>());
    }

    /// Removes what pods of an earlier life left behind that are not wanted any more. What that is, is settled here,
    /// before any pod of this life has a directory; only the removal takes its time.
    fn clean_up(&self) {
        let context = self.executor.context();
        let mut left = Vec::new();
        for root in [context.logs.root(), &*context.pods_dir] {
            match volumes::left_over(root, |uid| self.desired.pods.contains_key(uid)) {
                Ok(found) => left.extend(found),
                Err(error) => {
                    tracing::warn!(path = %root.display(), %error, "what former pods left cannot be listed")
                }
            }
        }
        tokio::task::spawn_blocking(move || {
            for path in left {
                if let Err(error) = volumes::remove_dir(&path) {
                    tracing::warn!(path = %path.display(), %error, "what a former pod left cannot be removed");
                }
            }
        });
    }

    fn network_changed(&mut self) {
        self.network_due.get_or_insert_with(|| Instant::now() + NETWORK_SETTLES);
    }

    fn update_network(&mut self) {
        self.network_due = None;
        self.executor.context().network.update(self.network.state());
    }

    fn report_usage(&self) {
        if self.link_synced {
            let usage = usage::report(self.executor.containers());
            self.executor.context().link.post(|outbox| outbox.usage(usage));
        }
    }

    fn log_request(&mut self, request: LogRequest) {
        let uid = request.pod_uid.as_str();
        let pod = self.desired.pods.get(uid).map(|pod| &**pod);
        let state = self.observed.pods.get(uid);
        self.logs.serve(request, pod, state);
    }

    /// Pods whose time has come.
    fn wake(&mut self) {
        let now = self.executor.context().clock.now();
        while self.wakes.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, uid)) = self.wakes.pop_first() else { break };
            self.wake_of.remove(&uid);
            self.dirty.insert(uid);
        }
    }

    /// Brings every pod that something happened to to rest.
    fn step(&mut self) {
        if !self.synced {
            return;
        }
        while let Some(uid) = self.dirty.pop_first() {
            self.settle(&uid);
            self.schedule(uid);
        }
    }

    fn settle(&mut self, uid: &PodUid) {
        for _ in 0..ROUNDS_MAX {
            let now = self.executor.context().clock.now();
            let actions = reconcile_pod(uid, &self.desired, &self.observed, now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                let pod = self.observed.pods.get(uid).map(|state| state.pod.clone());
                tracing::debug!(pod.uid = %uid, action = action.name(), "action");
                self.observed.begin(&action, &self.desired.pods, now);
                let outcome = pod.and_then(|pod| self.executor.execute(action, &pod));
                if let Some(observation) = outcome {
                    self.observed.apply(observation, now);
                }
            }
        }
        tracing::error!(pod.uid = %uid, "the pod does not come to rest");
    }

    fn schedule(&mut self, uid: PodUid) {
        if let Some(old) = self.wake_of.remove(&uid) {
            self.wakes.remove(&(old, uid.clone()));
        }
        match self.observed.pods.get(&uid) {
            Some(state) => {
                if let Some(at) = next_wake(state) {
                    self.wakes.insert((at, uid.clone()));
                    self.wake_of.insert(uid, at);
                }
            }
            // Neither the cluster nor the node knows it any more.
            None if !self.desired.pods.contains_key(&uid) => {
                self.executor.context().link.post(|outbox| outbox.forget(uid.as_str()));
            }
            None => {}
        }
    }

    /// Gives containers a moment to end by themselves. The cluster is told nothing: the pods are to run again.
    async fn stop(&mut self, mut events: mpsc::Receiver<Event>) {
        self.executor.stop_all();
        let deadline = Instant::now() + STOP_GRACE;
        while self.executor.containers().next().is_some() {
            match tokio::time::timeout_at(deadline, events.recv()).await {
                Ok(Some(Event::Observed(Observation::Container {
                    uid,
                    container,
                    attempt,
                    news: News::Exited(_),
                }))) => {
                    self.executor.exited(&uid, &container, attempt);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        self.logs.cancel_all();
        self.executor.drop_all();
    }
}

/// The node lifecycle took the pod for not ready because its node was not heard.
fn was_given_up(pod: &Pod) -> bool {
    let conditions = pod.status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["reason"] == NODE_NOT_READY)
}

fn is_network(resource: &str) -> bool {
    matches!(
        resource,
        "services"
            | "endpointslices.discovery.k8s.io"
            | "podblocks.coracle.dev"
            | "nodes"
            | "ingresses.networking.k8s.io"
            | "ipaddresses.networking.k8s.io"
            | "portallocations.coracle.dev"
            | "namespaces"
            | "pods"
    )
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
