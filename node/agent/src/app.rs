//! The node's event loop: what happened, then what it means, then what is done about it.

mod functions;
mod objects;
mod offline;
mod refusals;
mod relief;
mod seats;
mod settle;
mod stop;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coracle_core::{Desired, Observation, Observed, PodUid, observe::News};
use coracle_fabric::Name;
use coracle_proto::node::{BlockClaimed, LogRequest, ObjectEvent, TrustChanged, node_down::Body};
use coracle_wasi_host::refusals::Told;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

pub use self::{functions::Template, offline::LAST_RUN_AFTER, refusals::tell};
use self::{relief::Relief, seats::Seats, settle::Wakes};
use crate::{
    decode::{Decoded, Key},
    execute::{At, Executor},
    held::Held,
    identity::Identity,
    last_word::LastWord,
    link::FromLink,
    log_streams::LogStreams,
    runtime::{ContainerId, Usage},
    usage,
};

/// Events that wait for the loop.
pub const EVENTS_MAX: usize = 4096;
/// Events taken before the pods that they concern are looked at.
const BATCH_MAX: usize = 256;

/// Everything that can happen to a node.
#[derive(Debug)]
pub enum Event {
    Link(FromLink),
    /// What the link says of an object, read.
    Object(Box<Decoded>),
    Observed(Observation),
    /// A container runs; and where the message of its end will be.
    Started(ContainerId, LastWord),
    /// What containers use, as it was asked.
    Metered(Vec<(ContainerId, Usage)>),
    /// What pods were refused, to be told.
    Refused(Vec<Told>),
    /// Somebody asks what the node holds.
    Count(oneshot::Sender<Held>),
    /// Requests wait for instances of these revisions of functions.
    InstancesWanted(Vec<Name>),
    /// An image found no room: what only waits to be used goes, of this namespace or of all.
    RoomWanted(Option<String>),
    /// The node is to stop.
    Stop,
}

pub struct App {
    identity: Arc<Identity>,
    /// The generation of the cluster's authorities.
    trust: watch::Sender<u64>,
    pub(crate) desired: Desired,
    pub(crate) observed: Observed,
    pub(crate) executor: Executor,
    pub(crate) logs: LogStreams,
    /// Pods by namespace and name: a new uid under an old name replaces the old pod.
    pub(crate) names: BTreeMap<(String, String), PodUid>,
    /// All objects that the leader sent, and those of the present link.
    pub(crate) known: BTreeSet<Key>,
    pub(crate) seen: BTreeSet<Key>,
    /// The whole of what this node needs has been seen at least once: nothing is decided before.
    synced: bool,
    /// Whether the present link has said that everything was sent.
    link_synced: bool,
    pub(crate) dirty: BTreeSet<PodUid>,
    /// What instances of functions are made of, by namespace and revision.
    pub(crate) templates: BTreeMap<(String, String), Template>,
    /// Pods that were started here and that the cluster does not know yet.
    woken: BTreeSet<PodUid>,
    /// The node is cordoned, or has taints.
    takes_no_pods: bool,
    pods_max: u64,
    pub(crate) wakes: Wakes,
    seats: Seats,
    relief: Relief,
    /// The longest that a pod may take to end when the node stops.
    stop_grace_max: Duration,
    /// What the cluster wanted last, until it says what it wants now, or it is clear that it says nothing.
    last: Vec<ObjectEvent>,
    last_after: Duration,
    last_due: Option<Instant>,
    /// What pods of an earlier life left behind is being removed.
    cleaned_up: bool,
}

impl App {
    pub fn new(
        identity: Arc<Identity>,
        observed: Observed,
        executor: Executor,
        (stop_grace_max, pods_max): (Duration, u64),
    ) -> Self {
        let logs = LogStreams::new(executor.context().logs.clone(), executor.context().link.clone());
        let seats = Seats::new(executor.context().runtime.room_freed());
        Self {
            identity,
            trust: watch::Sender::new(0),
            desired: Desired::default(),
            observed,
            executor,
            logs,
            names: BTreeMap::new(),
            known: BTreeSet::new(),
            seen: BTreeSet::new(),
            synced: false,
            link_synced: false,
            dirty: BTreeSet::new(),
            templates: BTreeMap::new(),
            woken: BTreeSet::new(),
            takes_no_pods: false,
            pods_max,
            wakes: Wakes::default(),
            seats,
            relief: Relief::default(),
            stop_grace_max,
            last: Vec::new(),
            last_after: Duration::ZERO,
            last_due: None,
            cleaned_up: false,
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
            let wake = self.wakes.first().map(|at| self.executor.context().clock.until(at));
            let tries = self.seats.due;
            tokio::select! {
                received = events.recv_many(&mut batch, BATCH_MAX) => {
                    if received == 0 {
                        break;
                    }
                }
                () = sleep(wake), if wake.is_some() => self.wake(),
                () = self.seats.changed() => self.seats_freed(),
                () = sleep_until(tries), if tries.is_some() => self.try_for_seats(),
                () = sleep_until(self.last_due), if self.last_due.is_some() => self.run_last(),
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
                self.executor.doubt_blocks();
                self.linked_again();
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
                self.wait_for_a_link();
            }
            Event::Link(FromLink::Message(body)) => self.message(body),
            Event::Object(object) => self.object(*object),
            Event::Observed(observation) => self.observe(observation),
            Event::Started(id, last_word) => {
                if self.waited_for_a_seat(&At::from(&id)) {
                    // There may be one for the next too.
                    self.seats_freed();
                }
                if let Some(pod) = self.desired.pods.get(&id.sandbox.pod) {
                    self.executor.keep_for_revision(&At::from(&id), pod);
                }
                let observation = self.executor.started(id, last_word);
                self.observe(observation);
            }
            Event::Metered(used) => {
                if self.link_synced {
                    let usage = usage::report(used);
                    self.executor.context().link.post(|outbox| outbox.usage(usage));
                }
            }
            Event::Refused(told) => self.refused(told),
            Event::Count(asked) => {
                // Who asked may be gone.
                let _ = asked.send(self.held());
            }
            Event::RoomWanted(namespace) => self.executor.let_go_of_images(namespace.as_deref()),
            Event::InstancesWanted(revisions) => self.instances_wanted(&revisions),
            Event::Stop => {}
        }
    }

    fn observe(&mut self, observation: Observation) {
        let uid = observation.uid().clone();
        if let Observation::Container { uid, container, attempt, news } = &observation {
            match news {
                News::Exited { .. } => self.executor.exited(uid, container, *attempt),
                News::NoSeat { .. } => self.seat_missed(),
                // It may be for want of what the namespace may have loaded.
                News::StartFailed { .. } => {
                    if let Some(pod) = self.desired.pods.get(uid) {
                        self.executor.let_go_of_images(Some(&pod.metadata.namespace));
                    }
                }
                _ => {}
            }
        }
        self.observed.apply(observation, self.executor.context().clock.now());
        self.dirty.insert(uid);
    }

    fn message(&mut self, body: Body) {
        match body {
            Body::Object(object) => self.object(Decoded::from(object)),
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
            Body::WakeRefused(refused) => self.instance_refused(&refused.uid, &refused.reason),
            Body::TrustChanged(TrustChanged { generation }) => {
                self.trust.send_replace(generation);
            }
            Body::Welcome(_) | Body::Redirect(_) | Body::Acknowledged(_) => {}
        }
    }

    fn report_usage(&mut self) {
        self.logs.forget_ended();
        self.executor.context().artifacts.tend();
        self.make_room();
        if self.link_synced {
            self.executor.context().link.post(|outbox| outbox.woken_again());
            self.executor.meter();
        }
    }

    fn log_request(&mut self, request: LogRequest) {
        let uid = request.pod_uid.as_str();
        let pod = self.desired.pods.get(uid).map(|pod| &**pod);
        let state = self.observed.pods.get(uid);
        self.logs.serve(request, pod, state);
    }
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
