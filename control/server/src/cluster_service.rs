//! Administration of the cluster: its status, join tokens and members.

use std::sync::Arc;

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Refusal, Transaction, Write};
use coracle_proto::{
    cluster::{
        CreateTokenRequest, CreateTokenResponse, ListTokensRequest, ListTokensResponse, MemberRequest,
        MemberResponse, RevokeTokenRequest, RevokeTokenResponse, StatusRequest, StatusResponse,
        cluster_client::ClusterClient, cluster_server::Cluster,
    },
    join::Role,
};
use coracle_raft::{ChangeError, MemberChange};
use jiff::Timestamp;
use tonic::{Request, Response, Status, async_trait, transport::Channel};

use crate::{
    config::VERSION, identity::administrators_only, join::known_members, peers::MEMBERS, pki::Authorities,
    storage::ReplicatedStorage, tokens,
};

pub struct ClusterService {
    pub storage: ReplicatedStorage,
    pub authorities: Arc<Authorities>,
    pub cluster_id: String,
}

impl ClusterService {
    /// A client of the leader where this member does not lead.
    #[allow(clippy::result_large_err, reason = "the error type of tonic services")]
    fn elsewhere(&self) -> Result<Option<ClusterClient<Channel>>, Status> {
        if self.storage.leads() {
            return Ok(None);
        }
        let channel =
            self.storage.leader_channel().ok_or_else(|| Status::unavailable("no leader is known"))?;
        Ok(Some(ClusterClient::new(channel)))
    }

    async fn change(&self, change: MemberChange) -> Result<(), Status> {
        self.storage.raft().change_membership(change).await.map_err(change_status)
    }
}

#[async_trait]
impl Cluster for ClusterService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        administrators_only(&request)?;
        let status = self.storage.status();
        let mut members = known_members(&self.storage);
        // Only the leader knows how far the others are. Without one the rest is still worth knowing.
        if let Ok(Some(mut leader)) = self.elsewhere()
            && let Ok(answer) = leader.status(StatusRequest {}).await
        {
            members = answer.into_inner().members;
        }
        Ok(Response::new(StatusResponse {
            cluster_id: self.cluster_id.clone(),
            member_id: status.id,
            leader_id: status.leader.unwrap_or(0),
            term: status.term,
            commit_index: status.commit,
            applied_index: status.applied,
            revision: self.storage.view().revision,
            members,
            version: VERSION.into(),
            state_hash: hex::encode(self.storage.hub().state_hash()),
        }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        let role: Role =
            request.role.parse().map_err(|_| Status::invalid_argument("the role is control or node"))?;
        let pin = self.authorities.serving_pin().map_err(|error| Status::internal(error.to_string()))?;
        let token = tokens::create(&self.storage, pin, role, request.ttl_seconds, Timestamp::now())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?
            .map_err(|refusal| Status::aborted(format!("the token was refused: {refusal:?}")))?;
        Ok(Response::new(CreateTokenResponse { token: token.to_string() }))
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

    async fn promote(&self, request: Request<MemberRequest>) -> Result<Response<MemberResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        if let Some(mut leader) = self.elsewhere()? {
            return leader.promote(request).await;
        }
        self.change(MemberChange::Promote(request.member_id)).await?;
        Ok(Response::new(MemberResponse {}))
    }

    async fn remove(&self, request: Request<MemberRequest>) -> Result<Response<MemberResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        if let Some(mut leader) = self.elsewhere()? {
            return leader.remove(request).await;
        }
        self.change(MemberChange::Remove(request.member_id)).await?;
        let key = ObjectKey::new(MEMBERS, "", &request.member_id.to_string());
        let writes = vec![Write::Delete { key }];
        if let Err(error) = self.storage.propose(Transaction { preconditions: vec![], writes }).await {
            tracing::warn!(member = request.member_id, %error, "the object of a removed member stays");
        }
        Ok(Response::new(MemberResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<MemberRequest>,
    ) -> Result<Response<MemberResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        if let Some(mut leader) = self.elsewhere()? {
            return leader.transfer_leader(request).await;
        }
        self.storage.raft().transfer_leader(request.member_id).await.map_err(change_status)?;
        Ok(Response::new(MemberResponse {}))
    }
}

fn change_status(error: ChangeError) -> Status {
    match error {
        ChangeError::UnknownMember { .. } => Status::not_found(error.to_string()),
        ChangeError::NotLeader { .. }
        | ChangeError::InProgress
        | ChangeError::TimedOut
        | ChangeError::Stopped => Status::unavailable(error.to_string()),
        _ => Status::failed_precondition(error.to_string()),
    }
}
