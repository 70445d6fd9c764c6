//! The node link: one gRPC stream to whichever control node leads, found again whenever it is lost.

mod event_line;
mod outbox;
mod race;

use std::{sync::Arc, time::Duration};

use coracle_core::race::{ANSWER_TIMEOUT, HEARTBEAT, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT};
use coracle_fabric::Fabric;
use coracle_proto::{
    MESSAGE_BYTES_MAX, PROTOCOL_RANGE,
    node::{
        Demand, FunctionDemand, Heartbeat, Hello, LogChunk, NodeDown, NodeUp, Welcome, node_down,
        node_link_client::NodeLinkClient, node_up::Body,
    },
    tls::{self, KeepAlive},
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use self::race::{Candidates, Refused, race};
use crate::{app::Event, machine};

pub use outbox::Outbox;

/// How soon a control node is noticed that has fallen silent and closed nothing.
const KEEP_ALIVE: KeepAlive = KeepAlive { interval: KEEP_ALIVE_INTERVAL, timeout: KEEP_ALIVE_TIMEOUT };
/// After so long without a link its pods may have been replaced on other nodes.
const CUT_OFF: Duration = Duration::from_secs(5);
/// Messages on their way into the stream.
const STREAM_QUEUE: usize = 256;
/// Pieces of logs that wait for the stream.
const LOG_QUEUE: usize = 64;
/// Between two looks at the machine's memory and disk.
const PRESSURE_EVERY: u32 = 10;

/// What the link needs to know of its node.
pub struct LinkConfig {
    /// With everything but the protocol range, which the link fills in.
    pub hello: Hello,
    /// Shows this node's certificate and trusts the serving CA.
    pub tls: tls::ClientTls,
    /// `host:port` of control nodes; kept current by the link.
    pub addresses: Arc<RwLock<Vec<String>>>,
    pub data_dir: std::path::PathBuf,
    /// Whose gateway tells what is asked of functions.
    pub fabric: Fabric,
}

/// What the link tells the node.
#[derive(Debug)]
pub enum FromLink {
    /// A link is open. Links are numbered, growing: what answers an older one is not sent over a newer one.
    Up {
        number: u64,
        welcome: Welcome,
    },
    Down,
    Message(node_down::Body),
}

/// The link's end of what the node wants to send.
pub struct Outgoing {
    outbox: Arc<Mutex<Outbox>>,
    wake: Arc<Notify>,
    /// What is asked of functions is to be told at once.
    demand: Arc<Notify>,
    /// With the number of the link that each answers.
    log_chunks: mpsc::Receiver<(u64, LogChunk)>,
    /// The present link's number.
    number: u64,
}

impl Outgoing {
    /// What is to be sent next, once there is something. It counts as sent; nothing is lost where this is cancelled.
    pub async fn next(&mut self) -> NodeUp {
        loop {
            let (message, due) = {
                let mut outbox = self.outbox.lock();
                (outbox.next(Instant::now()), outbox.next_due())
            };
            if let Some(message) = message {
                return message;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep_until(due), if due.is_some() => {}
                Some((number, chunk)) = self.log_chunks.recv() => {
                    if number == self.number {
                        return NodeUp { body: Some(Body::LogChunk(chunk)), sequence: 0 };
                    }
                }
            }
        }
    }

    async fn send_next(&mut self, up: &mpsc::Sender<NodeUp>) -> Result<(), mpsc::error::SendError<()>> {
        let permit = up.reserve().await?;
        permit.send(self.next().await);
        Ok(())
    }
}

/// The node's end of the link: what is given here is sent as soon as there is a link.
#[derive(Clone)]
pub struct LinkHandle {
    outbox: Arc<Mutex<Outbox>>,
    wake: Arc<Notify>,
    demand: Arc<Notify>,
    logs: mpsc::Sender<(u64, LogChunk)>,
}

impl LinkHandle {
    /// A handle without a link, and what is to be sent over one.
    pub fn new() -> (Self, Outgoing) {
        let (logs, log_chunks) = mpsc::channel(LOG_QUEUE);
        let outbox = Arc::new(Mutex::new(Outbox::default()));
        let wake = Arc::new(Notify::new());
        let demand = Arc::new(Notify::new());
        let (out, awake, asked) = (outbox.clone(), wake.clone(), demand.clone());
        let outgoing = Outgoing { outbox: out, wake: awake, demand: asked, log_chunks, number: 0 };
        (Self { outbox, wake, demand, logs }, outgoing)
    }

    /// Changes what is to be sent.
    pub fn post(&self, change: impl FnOnce(&mut Outbox)) {
        change(&mut self.outbox.lock());
        self.wake.notify_one();
    }

    /// Has the leader told at once what is asked of functions.
    pub fn tell_demand(&self) {
        self.demand.notify_one();
    }

    /// Sends a piece of a log that was asked for over the link of this number, and drops it where that link is not
    /// there any more. Slow where the link is; fails once the node stops.
    pub async fn send_log(&self, number: u64, chunk: LogChunk) -> Result<(), mpsc::error::SendError<()>> {
        self.logs.send((number, chunk)).await.map_err(|_| mpsc::error::SendError(()))
    }
}

/// Starts the link. It ends when nobody listens to `events` any more.
pub fn start(config: LinkConfig, events: mpsc::Sender<Event>) -> (LinkHandle, tokio::task::JoinHandle<()>) {
    let (handle, outgoing) = LinkHandle::new();
    let dialer = Dialer { hello: config.hello.clone(), tls: config.tls.clone() };
    let link =
        Link { config, dialer: Arc::new(dialer), events, outgoing, leader: None, lost: None, sequence: 0 };
    (handle, tokio::spawn(link.run()))
}

struct Link {
    config: LinkConfig,
    dialer: Arc<Dialer>,
    events: mpsc::Sender<Event>,
    outgoing: Outgoing,
    /// Who leads now, as the last link told when it ended.
    leader: Option<String>,
    /// Whose link was lost.
    lost: Option<String>,
    sequence: u64,
}

/// Opens links.
struct Dialer {
    hello: Hello,
    tls: tls::ClientTls,
}

/// An open link.
struct Session {
    up: mpsc::Sender<NodeUp>,
    down: Streaming<NodeDown>,
    acknowledges: bool,
}

/// What to do goes with the one reason that does not pass by itself.
fn explained(reason: &str) -> String {
    if !reason.contains("UnknownIssuer") {
        return reason.to_owned();
    }
    format!(
        "{reason}: it is of another cluster than this node. Where it was restored from a backup, it has new \
         authorities: join it with an empty --data-dir and a new token (`coracle token create --role node`)"
    )
}

impl Link {
    async fn run(mut self) {
        loop {
            let found = tokio::select! {
                found = self.find() => found,
                () = self.events.closed() => return,
            };
            let Some((address, (session, welcome))) = found else {
                tracing::error!("no control node is known");
                return;
            };
            tracing::info!(address, "linked to the cluster");
            let known = self.config.addresses.read().clone();
            *self.config.addresses.write() = merged(&welcome.control_addresses, &known, &address);
            self.outgoing.number += 1;
            let number = self.outgoing.number;
            if self.tell(FromLink::Up { number, welcome }).await.is_err() {
                return;
            }
            self.leader = None;
            let reason = self.pump(session).await;
            tracing::warn!(address, reason, "link to the cluster lost, pods keep running");
            if self.tell(FromLink::Down).await.is_err() {
                return;
            }
            self.lost = Some(address);
        }
    }

    /// Looks for the leader until it is found.
    async fn find(&self) -> Option<(String, (Session, Welcome))> {
        let known = self.config.addresses.read().clone();
        let candidates = Candidates { known, leader: self.leader.clone(), lost: self.lost.clone() };
        let finding = race(candidates, |address| {
            let dialer = self.dialer.clone();
            async move { dialer.open(&address).await }
        });
        let mut finding = std::pin::pin!(finding);
        if let Ok(found) = timeout(CUT_OFF, &mut finding).await {
            return found;
        }
        tracing::warn!(
            "no control node has been reached for {} s: others may have taken the place of this node's pods, \
             which keep running until a control node says otherwise",
            CUT_OFF.as_secs()
        );
        finding.await
    }

    async fn tell(&self, what: FromLink) -> Result<(), mpsc::error::SendError<Event>> {
        self.events.send(Event::Link(what)).await
    }

    /// Serves an open link; gives the reason for its end.
    async fn pump(&mut self, mut session: Session) -> String {
        self.outgoing.outbox.lock().resend(session.acknowledges);
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pressure = machine::Pressure::default();
        let demand = self.outgoing.demand.clone();
        loop {
            tokio::select! {
                message = session.down.message() => match message {
                    Ok(Some(NodeDown { body: Some(body) })) => {
                        if let node_down::Body::Redirect(redirect) = body {
                            self.leader = Some(redirect.leader_address).filter(|leader| !leader.is_empty());
                            return "another control node leads now".to_owned();
                        }
                        if let node_down::Body::Acknowledged(told) = &body {
                            let mut outbox = self.outgoing.outbox.lock();
                            outbox.done(&told.done);
                            outbox.again(&told.again, Instant::now());
                            continue;
                        }
                        if self.tell(FromLink::Message(body)).await.is_err() {
                            return "the node is stopping".to_owned();
                        }
                    }
                    // A kind of message that is newer than this node.
                    Ok(Some(NodeDown { body: None })) => {}
                    Ok(None) => return "the control node closed it".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
                sent = self.outgoing.send_next(&session.up) => {
                    if sent.is_err() {
                        return "the stream ended".to_owned();
                    }
                }
                _ = heartbeat.tick() => {
                    if self.sequence.is_multiple_of(PRESSURE_EVERY.into()) {
                        pressure = machine::pressure(&self.config.data_dir, pressure);
                    }
                    self.sequence += 1;
                    let beat = Heartbeat {
                        sequence: self.sequence,
                        memory_pressure: pressure.memory,
                        disk_pressure: pressure.disk,
                        pid_pressure: false,
                    };
                    // A full stream is as good a sign of life as a heartbeat.
                    let _ = session.up.try_send(NodeUp { body: Some(Body::Heartbeat(beat)), sequence: 0 });
                    self.tell_demand(&session.up);
                }
                () = demand.notified() => self.tell_demand(&session.up),
                () = self.events.closed() => return "the node is stopping".to_owned(),
            }
        }
    }
}

impl Link {
    /// Tells what was asked of functions. What a full stream does not take is asked again, or is over.
    fn tell_demand(&self, up: &mpsc::Sender<NodeUp>) {
        let Ok(permit) = up.try_reserve() else { return };
        let told = self.config.fabric.take_demand();
        if told.is_empty() {
            return;
        }
        let functions = told.into_iter().map(|asked| FunctionDemand {
            namespace: asked.namespace.to_string(),
            revision: asked.revision.to_string(),
            request_milliseconds: asked.under_way.as_millis().try_into().unwrap_or(u64::MAX),
            arrived: asked.arrived,
            waiting: asked.waiting,
        });
        let demand = Demand { functions: functions.collect() };
        permit.send(NodeUp { body: Some(Body::Demand(demand)), sequence: 0 });
    }
}

impl Dialer {
    async fn open(&self, address: &str) -> Result<(Session, Welcome), Refused> {
        let opening = async {
            let failed = |status: tonic::Status| Refused::Failed(explained(status.message()));
            let channel = tls::attentive_channel(address, self.tls.clone(), KEEP_ALIVE);
            let mut client = NodeLinkClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let (up, stream) = mpsc::channel(STREAM_QUEUE);
            let mut hello = self.hello.clone();
            hello.flow_control = true;
            (hello.protocol_min, hello.protocol_max) = (*PROTOCOL_RANGE.start(), *PROTOCOL_RANGE.end());
            // The queue is fresh: there is room.
            let _ = up.try_send(NodeUp { body: Some(Body::Hello(hello)), sequence: 0 });
            let mut down = client.link(ReceiverStream::new(stream)).await.map_err(failed)?.into_inner();
            match down.message().await.map_err(failed)?.and_then(|first| first.body) {
                Some(node_down::Body::Welcome(welcome)) => {
                    let acknowledges = welcome.acknowledges;
                    Ok((Session { up, down, acknowledges }, welcome))
                }
                Some(node_down::Body::Redirect(redirect)) => Err(Refused::Redirect(redirect.leader_address)),
                _ => Err(Refused::Failed("it closed the link without an answer".to_owned())),
            }
        };
        match timeout(ANSWER_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Refused::Failed("no answer in time".to_owned())),
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The members as the leader knows them, the one that answered first; the old ones where it names none.
fn merged(members: &[String], old: &[String], answered: &str) -> Vec<String> {
    let known = if members.is_empty() { old } else { members };
    let mut all = vec![answered.to_owned()];
    all.extend(known.iter().filter(|address| *address != answered && !address.is_empty()).cloned());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_gets_nothing_of_an_older_link() {
        let (handle, mut outgoing) = LinkHandle::new();
        outgoing.number = 1;
        let chunk = |data: &'static str| LogChunk { request: 1, data: data.into(), ..Default::default() };
        handle.send_log(1, chunk("old")).await.unwrap();
        outgoing.number = 2;
        handle.send_log(1, chunk("late")).await.unwrap();
        handle.send_log(2, chunk("new")).await.unwrap();
        assert_eq!(outgoing.next().await.body, Some(Body::LogChunk(chunk("new"))));
    }
}
