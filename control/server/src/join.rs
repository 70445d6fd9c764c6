//! The join service: turns a token and a signing request into a member or a node.
//!
//! Any control node takes the call and hands it to the leader, which alone changes the members.

use std::{future::Future, sync::Arc, time::Duration};

use coracle_api::{Storage, fresh_uid, new_draft};
use coracle_leader::{node_object, references::node_of};
use coracle_node_link::Links;
use coracle_objects::{Expect, ObjectKey, Refusal, Transaction, View, Write};
use coracle_pki::{
    CONTROL_ORGANIZATION, MEMBER_PREFIX, NODE_USER_PREFIX, NODES_ORGANIZATION, PkiError, Subject,
};
use coracle_proto::{
    PROTOCOL_RANGE,
    cluster::{JoinRequest, JoinResponse, Member, join_client::JoinClient, join_server::Join},
    join::{REASON_CLOCK, REASON_PROTOCOL, REASON_TOKEN, Role, refuse},
};
use coracle_raft::{ChangeError, MemberChange};
use coracle_storage::{
    ReplicatedStorage,
    encryption::SecretBox,
    peers::{MEMBERS, MemberSpec, members},
    version::Agreed,
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status, async_trait};

use crate::{
    bootstrap::{self, CLUSTER_INFO},
    certificates::Credentials,
    forwarding::{forwarding, leader_elsewhere},
    membership::keeper,
    tokens,
};

pub use coracle_leader::node_object::host;

/// A joiner's clock may differ from ours by this much, in milliseconds.
const CLOCK_DIFFERENCE_MS_MAX: i64 = 60_000;

/// Until the change of members must have come about, and between two tries.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const CHANGE_PAUSE: Duration = Duration::from_millis(100);

/// How often an id is chosen anew where another joiner was faster.
const ID_TRIES: usize = 8;

/// Control nodes of a cluster, learners included.
const MEMBERS_MAX: usize = 9;

pub struct JoinService {
    pub storage: ReplicatedStorage,
    pub credentials: Arc<Credentials>,
    pub secrets: Arc<SecretBox>,
    pub cluster_id: String,
    pub links: Arc<Links>,
}

#[async_trait]
impl Join for JoinService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let leader = leader_elsewhere(&self.storage, &request)?;
        let request = request.into_inner();
        if let Some(leader) = leader {
            return JoinClient::new(leader).join(forwarding(request)).await;
        }
        check_clock(request.clock_unix_ms, Timestamp::now())?;
        check_protocol(request.protocol_min, request.protocol_max)?;
        let unknown_role = || refuse(Code::Unauthenticated, REASON_TOKEN, "its role is unknown here");
        let role: Role = request.role.parse().map_err(|_| unknown_role())?;
        check_name(&request.name)?;
        check_address(role, &request.advertise)?;
        let response = match role {
            Role::Node => self.join_node(request).await?,
            Role::Control => self.join_control(request).await?,
            Role::Reader | Role::Pusher => return Err(unknown_role()),
        };
        Ok(Response::new(response))
    }
}

impl JoinService {
    async fn join_node(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        let name = &request.name;
        let node_uid = self.admit_node(&request).await?;
        let user = format!("{NODE_USER_PREFIX}{name}");
        let subject = Subject {
            common_name: &user,
            organization: NODES_ORGANIZATION,
            names: vec![name.clone(), host(&request.advertise).to_owned()],
            server: true,
        };
        let client = &self.credentials.authorities().client;
        let certificate_pem =
            client.sign_nodes_request(&subject, &node_uid, &request.csr_pem).map_err(bad_request)?;
        // It has a moment to link before anybody wonders where it is.
        self.links.hear(name, None);
        tracing::info!(node = %name, "node joined");
        Ok(JoinResponse { certificate_pem, ..self.common() })
    }

    /// Answers the uid of the Node that the joiner's certificate will be bound to: of one made here, or of the one that
    /// its token names. Any other name that a node has is refused, or who has a token that many share would be given
    /// what that node may see.
    async fn admit_node(&self, request: &JoinRequest) -> Result<String, Status> {
        let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        let name = &request.name;
        let key = node_object::key(name);
        for _ in 0..ID_TRIES {
            let view = self.storage.linearizable().await.map_err(|error| unavailable(&error))?;
            let now = Timestamp::now();
            let refused = |reason| refuse(Code::Unauthenticated, REASON_TOKEN, reason);
            let token = tokens::verify(&view, &request.token, Role::Node, now).map_err(refused)?;
            if let Some(node) = token.node.as_ref().filter(|node| *node != name) {
                return Err(refused(format!("it is for the node {node} alone, not for {name}")));
            }
            if self.links.connected(name) {
                let mend = "choose another --name, or stop the other node first";
                return Err(Status::already_exists(format!("a node named {name} is connected now; {mend}")));
            }
            let transaction = match view.get(&key) {
                None if token.node.is_none() && has_pods(&view, name) => {
                    let mend = format!(
                        "wait until they are gone, or make a token for it: `coracle token create --node {name}`"
                    );
                    let message = format!("there are pods of a former node named {name} still; {mend}");
                    return Err(Status::already_exists(message));
                }
                None => node_object::joined(name, &fresh_uid(), now),
                Some(object) if token.node.is_some() || bootstrap::joins_anew(&view, object) => {
                    match node_object::joined_again(object) {
                        Some(transaction) => transaction,
                        None => return Ok(object.meta.uid.clone()),
                    }
                }
                // Nothing was ever given to it: a joiner that has not had its answer comes again.
                Some(object) if node_object::never_linked(object) => {
                    Transaction::delete(key.clone(), object.revision)
                }
                Some(_) => {
                    let mend = format!(
                        "choose another --name; or where it is this machine's, delete the node or make a token for it: \
                         `coracle token create --node {name}`"
                    );
                    return Err(Status::already_exists(format!(
                        "there is a node named {name} already; {mend}"
                    )));
                }
            };
            let made = !matches!(transaction.writes[..], [Write::Delete { .. }]);
            match self.storage.propose(transaction).await.map_err(|error| unavailable(&error))? {
                Ok(_) if made => {
                    // Unless it is gone again, which the next look at it tells.
                    if let Some(object) = self.storage.view().get(&key) {
                        return Ok(object.meta.uid.clone());
                    }
                }
                Ok(_) | Err(Refusal::Precondition { .. } | Refusal::NotFound { .. }) => {}
                Err(refusal) => return Err(Status::internal(format!("the node was refused: {refusal:?}"))),
            }
        }
        Err(Status::unavailable("too many nodes join under this name at the same time"))
    }

    async fn join_control(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        let subject = Subject {
            common_name: &request.name,
            organization: CONTROL_ORGANIZATION,
            names: vec![host(&request.advertise).to_owned()],
            server: true,
        };
        let authorities = self.credentials.authorities();
        let serving_certificate_pem =
            authorities.serving.sign_request(&subject, &request.csr_pem).map_err(bad_request)?;
        let member_id = self.register(&request).await?;
        if let Err((error, outcome)) = self.add_learner(member_id).await {
            self.take_back(member_id, outcome).await;
            return Err(Status::aborted(format!(
                "the member could not be added: {error}; make a new token and retry"
            )));
        }
        // Towards other members it is known by its id, which it has only now.
        let name = format!("{MEMBER_PREFIX}{member_id}");
        let subject = Subject { common_name: &name, names: vec![], server: false, ..subject };
        let certificate_pem =
            authorities.peer.sign_request(&subject, &request.csr_pem).map_err(bad_request)?;
        tracing::info!(member = member_id, name = %request.name, address = %request.advertise, "control node joined");
        Ok(JoinResponse {
            certificate_pem,
            serving_certificate_pem,
            member_id,
            ca_keys_pem: authorities.to_bytes().into(),
            key_ring: self.secrets.ring().to_bytes().into(),
            service_account_key_pem: authorities.service_account_key_pem.clone().into(),
            ..self.common()
        })
    }

    fn common(&self) -> JoinResponse {
        let authorities = self.credentials.authorities();
        JoinResponse {
            cluster_id: self.cluster_id.clone(),
            peer_ca_pem: authorities.peer.bundle(),
            serving_ca_pem: authorities.serving.bundle(),
            client_ca_pem: authorities.client.bundle(),
            members: known_members(&self.storage),
            ..JoinResponse::default()
        }
    }

    /// Uses up the token and takes an id that was never used before, with the member's object, all in one.
    async fn register(&self, request: &JoinRequest) -> Result<u64, Status> {
        let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        for _ in 0..ID_TRIES {
            let view = self.storage.linearizable().await.map_err(|error| unavailable(&error))?;
            let now = Timestamp::now();
            let token = tokens::verify(&view, &request.token, Role::Control, now)
                .map_err(|reason| refuse(Code::Unauthenticated, REASON_TOKEN, reason))?;
            let known = members(&view);
            if known.len() >= MEMBERS_MAX {
                return Err(Status::resource_exhausted(format!(
                    "a cluster has at most {MEMBERS_MAX} control nodes"
                )));
            }
            if let Some(other) = known.values().find(|member| member.address == request.advertise) {
                let (address, mend) =
                    (&request.advertise, "remove it with `coracle cluster remove`, or use another");
                let message = format!("member {} has the address {address} already; {mend}", other.id);
                return Err(Status::already_exists(message));
            }
            let info = view
                .get(&CLUSTER_INFO.key())
                .ok_or_else(|| Status::unavailable("the cluster is starting"))?;
            let id = bootstrap::next_member_id(info).max(known.keys().max().copied().unwrap_or(0) + 1);
            let member = ObjectKey::new(MEMBERS, "", &id.to_string());
            let level = u8::try_from(request.entry_format).unwrap_or(u8::MAX);
            if let Some(refusal) = Agreed::read(&view).refusal_of(&request.version, level) {
                return Err(refuse(Code::FailedPrecondition, REASON_PROTOCOL, refusal));
            }
            let spec = MemberSpec {
                id,
                name: request.name.clone(),
                address: request.advertise.clone(),
                version: request.version.clone(),
                level,
            };
            let transaction = Transaction {
                preconditions: vec![],
                writes: vec![
                    Write::Put { key: token.key.clone(), draft: token.used_draft() },
                    Write::Put { key: info.key.clone(), draft: bootstrap::with_next_member_id(info, id + 1) },
                    Write::Put {
                        key: member.clone(),
                        draft: new_draft("coracle.dev/v1", "Member", &member, spec.to_body(), now),
                    },
                ],
            }
            .expecting(token.key, Expect::Revision(token.revision))
            .expecting(info.key.clone(), Expect::Revision(info.revision))
            .expecting(member, Expect::Absent);
            match self.storage.propose(transaction).await.map_err(|error| unavailable(&error))? {
                Ok(_) => return Ok(id),
                Err(Refusal::Precondition { .. }) => {}
                Err(refusal) => return Err(Status::internal(format!("the member was refused: {refusal:?}"))),
            }
        }
        Err(Status::unavailable("too many members join at the same time"))
    }

    async fn add_learner(&self, id: u64) -> Result<(), (ChangeError, Outcome)> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let change = || self.storage.raft().change_membership(MemberChange::AddLearner(id));
        add(change, deadline).await
    }

    /// Leaves nothing of a member that did not join. Where its change may still come into force its object stays, so
    /// that the member is seen: the leader removes the one of the two that is left alone for long.
    async fn take_back(&self, id: u64, outcome: Outcome) {
        if outcome == Outcome::Unknown {
            match self.storage.raft().change_membership(MemberChange::Remove(id)).await {
                // It is out again, or certainly never came in.
                Ok(()) | Err(ChangeError::UnknownMember { .. }) => {}
                Err(error) => {
                    tracing::warn!(member = id, %error, "a member that did not join stays for now");
                    return;
                }
            }
        }
        keeper::forget(&self.storage, id).await;
    }
}

/// Whether a change that was given up may still come into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Never,
    Unknown,
}

/// Asks for a change until it is made. To ask again after an unknown outcome is harmless: what is so already is no
/// change.
async fn add<F>(change: impl Fn() -> F, deadline: Instant) -> Result<(), (ChangeError, Outcome)>
where
    F: Future<Output = Result<(), ChangeError>>,
{
    let mut outcome = Outcome::Never;
    loop {
        let Err(error) = change().await else { return Ok(()) };
        if matches!(error, ChangeError::TimedOut | ChangeError::Stopped) {
            outcome = Outcome::Unknown;
        }
        let again = matches!(error, ChangeError::InProgress | ChangeError::Rejected | ChangeError::TimedOut);
        if !again || Instant::now() >= deadline {
            return Err((error, outcome));
        }
        sleep(CHANGE_PAUSE).await;
    }
}

/// Whether pods are bound to a node of this name: who has the name is sent what they use.
fn has_pods(view: &View, node: &str) -> bool {
    view.list("pods", None).any(|pod| node_of(pod).as_deref() == Some(node))
}

/// The members as this member knows them.
pub fn known_members(storage: &ReplicatedStorage) -> Vec<Member> {
    let status = storage.status();
    let specs = members(&storage.view());
    let progress = |id: u64| status.progress.iter().find(|(member, _, _)| *member == id);
    let ids = status.voters.iter().chain(&status.learners).copied();
    let mut known: Vec<Member> = ids
        .map(|id| {
            let spec = specs.get(&id);
            // Where a member was met lately, it is; its object may be older.
            let address = storage.peers().address(id).or_else(|| spec.map(|spec| spec.address.clone()));
            Member {
                id,
                name: spec.map(|spec| spec.name.clone()).unwrap_or_default(),
                address: address.unwrap_or_default(),
                voter: status.voters.contains(&id),
                leader: status.leader == Some(id),
                matched_index: progress(id).map_or(0, |(_, matched, _)| *matched),
                healthy: status.leader == Some(id) || progress(id).is_some_and(|(_, _, active)| *active),
                lag_entries: progress(id).map_or(0, |(_, matched, _)| status.last.saturating_sub(*matched)),
                version: spec.map(|spec| spec.version.clone()).unwrap_or_default(),
                entry_format: spec.map_or(0, |spec| spec.level.into()),
                report: None,
            }
        })
        .collect();
    known.sort_by_key(|member| member.id);
    known.dedup_by_key(|member| member.id);
    known
}

#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
fn check_clock(theirs_ms: i64, now: Timestamp) -> Result<(), Status> {
    let difference_ms = theirs_ms.saturating_sub(now.as_millisecond());
    if difference_ms.saturating_abs() <= CLOCK_DIFFERENCE_MS_MAX {
        return Ok(());
    }
    let seconds = difference_ms.saturating_abs() / 1000;
    let side = if difference_ms > 0 { "ahead of" } else { "behind" };
    let message = format!("the joiner's clock is {seconds} s {side} the cluster's, at most 60 s are allowed");
    Err(refuse(Code::FailedPrecondition, REASON_CLOCK, message))
}

#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
fn check_protocol(min: u32, max: u32) -> Result<(), Status> {
    let (ours_min, ours_max) = (*PROTOCOL_RANGE.start(), *PROTOCOL_RANGE.end());
    if min <= ours_max && max >= ours_min {
        return Ok(());
    }
    let mend = if max < ours_min { "upgrade the joiner" } else { "upgrade the cluster first" };
    let message = format!("the joiner speaks {min} to {max}, the cluster {ours_min} to {ours_max}; {mend}");
    Err(refuse(Code::FailedPrecondition, REASON_PROTOCOL, message))
}

#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
pub fn check_name(name: &str) -> Result<(), Status> {
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let edges = name.starts_with(['-', '.']) || name.ends_with(['-', '.']);
    if !name.is_empty() && name.len() <= 63 && name.chars().all(label) && !edges {
        return Ok(());
    }
    let rule = "lower case letters, digits, `-` and `.`, at most 63, a letter or digit at both ends";
    Err(Status::invalid_argument(format!("{name:?} cannot be a name: it takes {rule}")))
}

#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
pub fn check_address(role: Role, address: &str) -> Result<(), Status> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    // A node needs its certificate before it can listen: its port may still be open, and comes with its Hello.
    let usable = port.is_some_and(|port| port != 0 || role == Role::Node);
    if usable && !host(address).is_empty() {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{address:?} is not an address that others can reach: give host:port"
    )))
}

fn bad_request(error: PkiError) -> Status {
    Status::invalid_argument(format!("the certificate signing request cannot be signed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_refused_with_its_difference() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        check_clock(1_000_000_000 + 59_000, now).unwrap();
        let status = check_clock(1_000_000_000 - 300_000, now).unwrap_err();
        assert!(status.message().contains("300 s behind"), "{}", status.message());
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_asked_for_until_it_is_known_what_became_of_it() {
        let tries = |answers: Vec<Result<(), ChangeError>>| async move {
            let answers = std::cell::RefCell::new(answers.into_iter());
            let last = || Err(ChangeError::TimedOut);
            add(|| std::future::ready(answers.borrow_mut().next().unwrap_or_else(last)), {
                Instant::now() + CHANGE_TIMEOUT
            })
            .await
        };
        let late = vec![Err(ChangeError::TimedOut), Err(ChangeError::InProgress), Ok(())];
        assert_eq!(tries(late).await, Ok(()), "it came into force after all");
        assert_eq!(tries(vec![]).await, Err((ChangeError::TimedOut, Outcome::Unknown)));
        let not_leader = ChangeError::NotLeader { leader: None };
        let refused = vec![Err(ChangeError::InProgress), Err(not_leader.clone())];
        assert_eq!(tries(refused).await, Err((not_leader.clone(), Outcome::Never)));
        let lost = vec![Err(ChangeError::TimedOut), Err(not_leader.clone())];
        assert_eq!(tries(lost).await, Err((not_leader, Outcome::Unknown)));
    }

    #[test]
    fn protocol_ranges_must_meet() {
        check_protocol(1, 7).unwrap();
        assert!(check_protocol(2, 7).unwrap_err().message().contains("upgrade the cluster"));
        assert!(check_protocol(0, 0).unwrap_err().message().contains("upgrade the joiner"));
    }

    #[test]
    fn names_and_addresses_are_checked() {
        assert!(check_name("node-1.rack").is_ok());
        assert!(["", "Node", "-a", "a b", "a."].iter().all(|name| check_name(name).is_err()));
        assert!(check_address(Role::Control, "10.0.0.1:6443").is_ok());
        assert!(check_address(Role::Node, "10.0.0.1:0").is_ok());
        assert!(
            ["", "host", "host:0", ":1", "host:x"].iter().all(|address| check_address(
                Role::Control,
                address
            )
            .is_err())
        );
        assert_eq!(host("[::1]:80"), "::1");
    }
}
