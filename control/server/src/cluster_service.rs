//! Administration of the cluster: its status, join tokens and members.

pub mod backup;
pub mod changes;
pub mod plan;
pub mod status;

use std::{path::PathBuf, sync::Arc, time::Duration};

use coracle_api::Storage;
use coracle_objects::{Refusal, Transaction, Write};
use coracle_proto::{
    cluster::{
        CreateTokenRequest, CreateTokenResponse, ListTokensRequest, ListTokensResponse, MemberReport,
        MemberRequest, MemberResponse, ReplaceRequest, ReportRequest, RevokeTokenRequest,
        RevokeTokenResponse, SaveSnapshotRequest, StatusRequest, StatusResponse,
        cluster_client::ClusterClient, cluster_server::Cluster,
    },
    join::Role,
};
use coracle_storage::{
    ReplicatedStorage,
    version::{Agreed, VERSION},
};
use jiff::Timestamp;
use tonic::{Request, Response, Status, async_trait};

use self::{
    changes::{carry_out, within},
    plan::Operation,
    status::Certificates,
};
use crate::{
    certificates::Credentials,
    forwarding::{forwarding, is_forwarded},
    identity::{Caller, administrators_only, caller},
    join::{check_address, check_name, known_members},
    membership::is_removed,
    tokens::{self, Purpose},
    whereabouts::Whereabouts,
};

/// Until the leader must have told its status; with reports, for which it asks others itself.
const LEADER_TIMEOUT: Duration = Duration::from_secs(1);
const LEADER_REPORTS_TIMEOUT: Duration = Duration::from_secs(4);

pub struct ClusterService {
    pub storage: ReplicatedStorage,
    pub credentials: Arc<Credentials>,
    pub cluster_id: String,
    /// Only the path: calls that go on for a moment must not keep the directory's lock.
    pub data_dir: PathBuf,
    pub certificates: Certificates,
    pub whereabouts: Arc<Whereabouts>,
}

impl ClusterService {
    async fn carry_out<T>(
        &self,
        request: Request<T>,
        operation: impl FnOnce(T) -> (Operation, String),
    ) -> Result<Response<MemberResponse>, Status> {
        administrators_only(&request)?;
        let forwarded = is_forwarded(&request);
        let (operation, done) = operation(request.into_inner());
        carry_out(&self.storage, operation, forwarded).await?;
        Ok(Response::new(MemberResponse { done }))
    }

    /// Takes note of where a member is that looks for the others, where no leader could.
    fn meet(&self, from: &Caller, member: u64, address: String) {
        let is_itself =
            matches!(from, Caller::Member(id) if *id == member) && member != self.storage.member();
        let leaderless = self.storage.status().leader.is_none();
        if is_itself && leaderless && check_address(Role::Control, &address).is_ok() {
            self.whereabouts.learn([(member, address)]);
        }
    }

    /// The leader's answer, where another member leads and answers soon.
    async fn of_leader(&self, reports: bool) -> Option<StatusResponse> {
        let mut leader = ClusterClient::new(self.storage.leader_channel()?);
        let answer = leader.status(forwarding(StatusRequest { reports, ..StatusRequest::default() }));
        let limit = if reports { LEADER_REPORTS_TIMEOUT } else { LEADER_TIMEOUT };
        within(limit, answer).await.map(Response::into_inner)
    }
}

#[async_trait]
impl Cluster for ClusterService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        if let Caller::FormerMember(_) = caller(&request) {
            // All that it has to know.
            let cluster_id = self.cluster_id.clone();
            let asking_member_removed = true;
            return Ok(Response::new(StatusResponse {
                cluster_id,
                asking_member_removed,
                ..StatusResponse::default()
            }));
        }
        administrators_only(&request)?;
        let forwarded = is_forwarded(&request);
        let from = caller(&request).clone();
        let StatusRequest { reports, asking_member, asking_address } = request.into_inner();
        self.meet(&from, asking_member, asking_address);
        // Only the leader knows how far the others are. Without one the rest is still worth knowing.
        let of_leader = if forwarded { None } else { self.of_leader(reports).await };
        let members = match of_leader {
            Some(answer) => answer.members,
            None => {
                let mut members = known_members(&self.storage);
                if reports {
                    let own = status::own_report(&self.storage, &self.data_dir, &self.certificates).await;
                    status::ask_all(&self.storage, &mut members, own).await;
                }
                members
            }
        };
        let (status, view) = (self.storage.status(), self.storage.view());
        let agreed = Agreed::read(&view);
        let mut alarms = status::alarms(&view, &members, reports, Timestamp::now());
        alarms.extend(self.storage.notes().lock().disputed.map(status::disputed));
        Ok(Response::new(StatusResponse {
            cluster_id: self.cluster_id.clone(),
            member_id: status.id,
            leader_id: status.leader.unwrap_or(0),
            term: status.term,
            commit_index: status.commit,
            applied_index: status.applied,
            revision: view.revision,
            alarms,
            asking_member_removed: is_removed(&view, &status, asking_member),
            members,
            version: VERSION.into(),
            state_hash: hex::encode(self.storage.hub().state_hash()),
            cluster_version: agreed.version,
            entry_format: agreed.level.into(),
            authorities_change: status::authorities_change(&self.storage, &view),
        }))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<MemberReport>, Status> {
        administrators_only(&request)?;
        Ok(Response::new(status::own_report(&self.storage, &self.data_dir, &self.certificates).await))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        let role: Role = request
            .role
            .parse()
            .map_err(|_| Status::invalid_argument("the role is control, node, reader or pusher"))?;
        let node = Some(request.node).filter(|node| !node.is_empty());
        if let Some(node) = &node {
            if role != Role::Node {
                return Err(Status::invalid_argument("node: only a token of the role node names a node"));
            }
            check_name(node)?;
        }
        let purpose = Purpose { role, node };
        let pin = self.credentials.serving_pin().map_err(|error| Status::internal(error.to_string()))?;
        let token = tokens::create(&self.storage, pin, &purpose, request.ttl_seconds, Timestamp::now())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?
            .map_err(|refusal| Status::aborted(format!("the token was refused: {refusal:?}")))?;
        // Who reads or pushes shows the token alone: they join nothing.
        let token = if role.joins() { token.to_string() } else { token.proof() };
        Ok(Response::new(CreateTokenResponse { token }))
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        administrators_only(&request)?;
        let view =
            self.storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let tokens = tokens::list(&view).iter().map(tokens::Kept::info).collect();
        Ok(Response::new(ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        administrators_only(&request)?;
        // The whole token is taken as well: it is what people have at hand.
        let id = request.into_inner().id;
        let id = id.rsplit_once(':').map_or(id.as_str(), |(_, proof)| proof);
        let id = id.split_once('.').map_or(id, |(id, _)| id);
        let writes = vec![Write::Delete { key: tokens::key(id) }];
        let outcome = self.storage.propose(Transaction { preconditions: vec![], writes }).await;
        match outcome.map_err(|error| Status::unavailable(error.to_string()))? {
            Ok(_) => Ok(Response::new(RevokeTokenResponse {})),
            Err(Refusal::NotFound { .. }) => Err(Status::not_found(format!("there is no token {id:?}"))),
            Err(refusal) => Err(Status::aborted(format!("revoking was refused: {refusal:?}"))),
        }
    }

    type SaveSnapshotStream = backup::Chunks;

    async fn save_snapshot(
        &self,
        request: Request<SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        administrators_only(&request)?;
        Ok(Response::new(backup::stream(&self.storage).await?))
    }

    async fn promote(&self, request: Request<MemberRequest>) -> Result<Response<MemberResponse>, Status> {
        self.carry_out(request, |MemberRequest { members }| {
            let done = format!("{} promoted to voter", members.join(", "));
            (Operation::Promote(members), done)
        })
        .await
    }

    async fn remove(&self, request: Request<MemberRequest>) -> Result<Response<MemberResponse>, Status> {
        self.carry_out(request, |MemberRequest { members }| {
            let done = format!("{} removed; its data directory can be deleted", members.join(", "));
            (Operation::Remove(members), done)
        })
        .await
    }

    async fn replace(&self, request: Request<ReplaceRequest>) -> Result<Response<MemberResponse>, Status> {
        self.carry_out(request, |ReplaceRequest { old, new }| {
            let done = format!("{new} is a voter in the place of {old}, whose data directory can be deleted");
            (Operation::Replace { old, new }, done)
        })
        .await
    }

    async fn transfer_leader(
        &self,
        request: Request<MemberRequest>,
    ) -> Result<Response<MemberResponse>, Status> {
        self.carry_out(request, |MemberRequest { members }| {
            let member = members.into_iter().next().unwrap_or_default();
            let done = format!("{member} leads the cluster");
            (Operation::Transfer(member), done)
        })
        .await
    }
}
