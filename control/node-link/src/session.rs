//! One node's link from its Hello to its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use coracle_api::{Storage, UserInfo, WriteError, fresh_uid, write};
use coracle_leader::{
    node_events::{self, Allowance},
    node_object::{self, Pressures, node_gone},
    pod_status::Report,
    untaken::Taken,
    validation,
    woken::ACCOUNT as WOKEN_ACCOUNT,
};
use coracle_proto::{
    PROTOCOL_RANGE,
    node::{
        BlockClaimed, ClaimBlock, Heartbeat, Hello, NodeEvent, NodeUp, PodWoken, Redirect, Synced,
        TrustChanged, Welcome, node_down::Body as DownBody, node_up::Body as UpBody,
    },
};
use coracle_storage::peers::members;
use jiff::Timestamp;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

use crate::{
    acknowledgements::{Acknowledgements, Ticket},
    description,
    down::{Down, Unsent},
    links::Session,
    pod_blocks,
    pod_status::{Reports, write_reports},
    service::NodeLinkService,
    woken,
};

/// Until a new link must have said Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the reason of a link's end may wait for a node that does not read.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);

/// Until a node must have taken what waits for it. One that only says it is alive would go on with what is outdated.
const SEND_PATIENCE: Duration = Duration::from_secs(20);

/// Claims of a node that may wait.
const CLAIMS_MAX: usize = 8;

/// Runs a link until either side ends it.
pub async fn run(service: NodeLinkService, node: String, bound: bool, mut up: Streaming<NodeUp>, down: Down) {
    let hello = match first_message(&service, &node, &mut up).await {
        Ok(hello) => hello,
        Err(status) => {
            tracing::debug!(node, reason = status.message(), "link refused");
            // The node may have gone away already.
            let _ = down.end(status, FAREWELL_PATIENCE).await;
            return;
        }
    };
    let Some(session) = service.links.begin(&node, &down, hello.flow_control) else {
        redirect(&service, &down).await;
        return;
    };
    tracing::info!(node, boot_id = hello.boot_id, "node linked");
    let reason = tokio::select! {
        () = session.ended.cancelled() => "another link has taken its place, or this member no longer leads".to_owned(),
        ended = serve(&service, &session, &hello, bound, up) => ended.err().map_or("the node closed it".into(), |e| e.message().into()),
    };
    // Where the node does not read or has gone away, it finds out by itself.
    let _ = down.end(Status::unavailable(reason.clone()), FAREWELL_PATIENCE).await;
    service.links.end(&node, &session);
    tracing::info!(node, reason, "node link ended");
}

async fn first_message(
    service: &NodeLinkService,
    node: &str,
    up: &mut Streaming<NodeUp>,
) -> Result<Hello, Status> {
    let first = timeout(HELLO_TIMEOUT, up.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello came in time"))??;
    let Some(NodeUp { body: Some(UpBody::Hello(hello)), .. }) = first else {
        return Err(Status::invalid_argument("a link begins with Hello"));
    };
    if hello.name != node {
        let message = format!("the certificate is for node {node}, the Hello for {}", hello.name);
        return Err(Status::permission_denied(message));
    }
    let former = || (service.former_ids)(&service.storage.view()).contains(&hello.cluster_id);
    if hello.cluster_id != service.cluster_id && !former() {
        let (theirs, ours) = (&hello.cluster_id, &service.cluster_id);
        let mend = "start the node with an empty data directory to join this cluster";
        return Err(Status::failed_precondition(format!(
            "the node is of cluster {theirs}, this is {ours}; {mend}"
        )));
    }
    validation::check_hello(&hello).map_err(Status::invalid_argument)?;
    if hello.protocol_min > *PROTOCOL_RANGE.end() || hello.protocol_max < *PROTOCOL_RANGE.start() {
        let (min, max) = (PROTOCOL_RANGE.start(), PROTOCOL_RANGE.end());
        return Err(Status::failed_precondition(format!(
            "the node speaks link protocol {} to {}, this member {min} to {max}: upgrade the older one",
            hello.protocol_min, hello.protocol_max,
        )));
    }
    Ok(hello)
}

async fn redirect(service: &NodeLinkService, down: &Down) {
    let storage = &service.storage;
    let leader = storage.status().leader.filter(|leader| *leader != storage.member());
    let leader_address = leader.and_then(|leader| storage.peers().address(leader)).unwrap_or_default();
    let _ = down.send(DownBody::Redirect(Redirect { leader_address })).await;
}

async fn serve(
    service: &NodeLinkService,
    session: &Session,
    hello: &Hello,
    bound: bool,
    up: Streaming<NodeUp>,
) -> Result<(), Status> {
    let storage = &service.storage;
    let own = service.admission.storage_of(storage.clone(), UserInfo::node(&hello.name));
    let unavailable = |error: WriteError| Status::unavailable(error.to_string());
    let register = |view: &_| node_object::registration(view, hello, bound, Timestamp::now());
    write(&own, register).await.map_err(unavailable)?;
    if storage.view().get(&node_object::key(&hello.name)).is_none() {
        return Err(Status::permission_denied(node_gone(&hello.name)));
    }
    session.registered.store(true, Ordering::Relaxed);
    let lease = node_object::lease(&storage.view(), &hello.name, &fresh_uid(), Timestamp::now());
    if let Err(error) = own.propose(lease).await {
        tracing::debug!(node = hello.name, %error, "the lease was not renewed");
    }
    send(session, DownBody::Welcome(welcome(service))).await?;
    let (reports, waiting) = Reports::new();
    let (claims, claimed) = mpsc::channel(CLAIMS_MAX);
    let (woken, told) = mpsc::channel(woken::WAITING_MAX);
    let functions = service.admission.storage_of(storage.clone(), UserInfo::component(WOKEN_ACCOUNT));
    let node = &hello.name;
    let reader = Reader { service, session, node, reports, claims, woken, acknowledgements: Arc::default() };
    let acknowledgements = reader.acknowledgements.clone();
    tokio::try_join!(
        push(service, session, &hello.name),
        reader.read(up),
        claim_blocks(&own, session, &hello.name, claimed),
        acknowledge(session, &acknowledgements),
        description::keep(&own, hello),
        grant_logs(session),
        async {
            woken::write_pods(&functions, node, told, async |refused| {
                // A node that has gone away tells the next leader.
                let _ = send(session, DownBody::WakeRefused(refused)).await;
            })
            .await;
            Ok(())
        },
        async {
            write_reports(own.clone(), service.events.clone(), hello.name.clone(), waiting).await;
            Ok(())
        }
    )?;
    Ok(())
}

fn welcome(service: &NodeLinkService) -> Welcome {
    Welcome {
        cluster_id: service.cluster_id.clone(),
        protocol: *PROTOCOL_RANGE.end(),
        control_addresses: members(&service.storage.view())
            .into_values()
            .map(|member| member.address)
            .collect(),
        acknowledges: true,
    }
}

/// Sends the node what it needs, first all of it, then what changes: each object as it is when there is room for it.
async fn push(service: &NodeLinkService, session: &Session, node: &str) -> Result<(), Status> {
    let routing = &service.links.routing;
    let more = routing.attach(node, session.number).await;
    let mut told = 0;
    while let Ok(taken) = routing.take(node, session.number) {
        match taken {
            None => more.notified().await,
            Some(Taken::Object(object)) => send(session, DownBody::Object(object)).await?,
            Some(Taken::Synced(revision)) => {
                send(session, DownBody::Synced(Synced { revision })).await?;
                tell_trust(service, session, &mut told).await?;
            }
            Some(Taken::Trust) => tell_trust(service, session, &mut told).await?,
        }
    }
    Err(Status::unavailable("another link has taken its place, or this member no longer leads"))
}

/// Has the node renew its certificate where the authorities are of another generation than it was told.
async fn tell_trust(service: &NodeLinkService, session: &Session, told: &mut u64) -> Result<(), Status> {
    let generation = (service.trust_generation)(&service.storage.view());
    if generation > *told {
        *told = generation;
        send(session, DownBody::TrustChanged(TrustChanged { generation })).await?;
    }
    Ok(())
}

async fn send(session: &Session, body: DownBody) -> Result<(), Status> {
    let gone = || Status::cancelled("the node has gone away");
    tokio::select! {
        sent = session.down.send_within(body, SEND_PATIENCE) => sent.map_err(|unsent| match unsent {
            Unsent::Gone => gone(),
            Unsent::Full => Status::deadline_exceeded("the node does not take what it is sent"),
        }),
        () = session.ended.cancelled() => Err(gone()),
    }
}

/// Takes what a node says.
struct Reader<'a> {
    service: &'a NodeLinkService,
    session: &'a Session,
    node: &'a str,
    reports: Reports,
    claims: mpsc::Sender<ClaimBlock>,
    woken: mpsc::Sender<PodWoken>,
    acknowledgements: Arc<Acknowledgements>,
}

impl Reader<'_> {
    /// Reads until the node closes the link.
    async fn read(self, mut up: Streaming<NodeUp>) -> Result<(), Status> {
        let mut events = Allowance::new(self.service.links.now());
        while let Some(NodeUp { body, sequence }) = up.message().await? {
            self.service.links.hear(self.node, None);
            let ticket = Ticket::new(sequence, &self.acknowledgements);
            match body {
                Some(UpBody::Heartbeat(heartbeat)) => hear(self.service, self.node, &heartbeat),
                Some(UpBody::PodStatus(status)) => self.report(Report::Status(status), ticket).await,
                Some(UpBody::PodGone(gone)) => self.report(Report::Gone(gone), ticket).await,
                Some(UpBody::Event(event)) => self.event(&event, &mut events, ticket),
                Some(UpBody::ClaimBlock(claim)) => self.claim(claim).await?,
                Some(UpBody::LogChunk(chunk)) => self.session.logs.deliver(chunk),
                // Kept for the metrics API, which is not served yet.
                Some(UpBody::Usage(_)) => {}
                // What finds no room is told again.
                Some(UpBody::PodWoken(woken)) => drop(self.woken.try_send(woken)),
                Some(UpBody::Demand(demand)) => self.service.links.demands.hear(&demand.functions),
                Some(UpBody::Hello(_)) => return Err(Status::invalid_argument("a link has one Hello")),
                None => {
                    tracing::debug!(node = self.node, "a message of a newer node is passed over");
                    ticket.done();
                }
            }
            if self.acknowledgements.is_full() {
                return Err(Status::resource_exhausted("the node does not take its acknowledgements"));
            }
        }
        // The end of the link ends its other halves too.
        Err(Status::ok("the node closed it"))
    }

    async fn report(&self, report: Report, ticket: Ticket) {
        self.reports.put(&self.service.storage.view(), self.node, report, ticket).await;
    }

    /// An event beyond the allowance is not taken now; a node that waits for acknowledgements sends it again.
    fn event(&self, event: &NodeEvent, allowance: &mut Allowance, ticket: Ticket) {
        if !allowance.take(self.service.links.now()) {
            return;
        }
        let view = self.service.storage.view();
        if let Some(told) = node_events::dropped(&view, self.node, event.dropped) {
            tracing::warn!(node = self.node, events = event.dropped, "a node had no room for events");
            self.service.events.take(told);
        }
        match node_events::admit(&view, self.node, &event.event_json) {
            Ok(event) => match self.service.events.take(event) {
                true => ticket.done(),
                false => tracing::debug!(node = self.node, "an event is not taken: too many are waiting"),
            },
            Err(reason) => {
                tracing::debug!(node = self.node, reason, "an event of a node is dropped");
                ticket.done();
            }
        }
    }

    async fn claim(&self, claim: ClaimBlock) -> Result<(), Status> {
        let Err(refused) = self.claims.try_send(claim) else { return Ok(()) };
        let (request, cidr) = (refused.into_inner().request, String::new());
        let error = format!("more than {CLAIMS_MAX} claims wait already");
        send(self.session, DownBody::BlockClaimed(BlockClaimed { request, cidr, error })).await
    }
}

/// Tells the node what became of its messages.
async fn acknowledge(session: &Session, acknowledgements: &Acknowledgements) -> Result<(), Status> {
    loop {
        let told = acknowledgements.next().await;
        send(session, DownBody::Acknowledged(told)).await?;
    }
}

/// Lets the node go on with logs whose readers have taken what there was.
async fn grant_logs(session: &Session) -> Result<(), Status> {
    loop {
        for grant in session.logs.next_grants().await {
            send(session, DownBody::LogGrant(grant)).await?;
        }
    }
}

fn hear(service: &NodeLinkService, node: &str, heartbeat: &Heartbeat) {
    let pressures = Pressures {
        memory: heartbeat.memory_pressure,
        disk: heartbeat.disk_pressure,
        pid: heartbeat.pid_pressure,
    };
    service.links.hear(node, Some(pressures));
}

/// Claims blocks for the node, one after the other.
async fn claim_blocks(
    own: &impl Storage,
    session: &Session,
    node: &str,
    mut claims: mpsc::Receiver<ClaimBlock>,
) -> Result<(), Status> {
    while let Some(claim) = claims.recv().await {
        let (cidr, error) = match pod_blocks::claim(own, node).await {
            Ok(cidr) => (cidr, String::new()),
            Err(error) => (String::new(), error),
        };
        // Where the link ends the node finds its block among the objects.
        send(session, DownBody::BlockClaimed(BlockClaimed { request: claim.request, cidr, error })).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use coracle_objects::View;
    use futures::StreamExt;
    use tokio::time::Instant;

    use super::*;
    use crate::{down, links::Links};

    #[tokio::test(start_paused = true)]
    async fn a_node_that_takes_nothing_loses_its_link() {
        let links = Links::default();
        links.open(&View::default());
        let (down, mut taken) = down::channel_of(1);
        let session = links.begin("n1", &down, true).unwrap();
        let synced = |revision| DownBody::Synced(Synced { revision });
        send(&session, synced(1)).await.unwrap();
        let (slow, ()) = tokio::join!(send(&session, synced(2)), async {
            tokio::time::sleep(SEND_PATIENCE / 2).await;
            taken.next().await.unwrap().unwrap();
        });
        slow.unwrap();
        let begun = Instant::now();
        let refused = send(&session, synced(3)).await.unwrap_err();
        assert!(refused.message().contains("does not take"), "{refused}");
        assert_eq!(begun.elapsed(), SEND_PATIENCE);
        session.ended.cancel();
        send(&session, synced(3)).await.unwrap_err();
        assert_eq!(begun.elapsed(), SEND_PATIENCE);
    }
}
