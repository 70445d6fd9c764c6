//! What keeps the cluster's secrets: keys and certificates.

use std::{sync::Arc, time::Duration};

use coracle_api::{Storage, write};
use coracle_leader::node_object::{BoundTo, is_certified};
use coracle_objects::ObjectKey;
use coracle_pki::AuthorityName;
use coracle_proto::security::{
    AuthoritiesRequest, AuthoritiesResponse, AuthorityChange, ConfirmTrustRequest, ConfirmTrustResponse,
    DropKeyRequest, FetchKeysRequest, FetchKeysResponse, KeyInfo, KeysRequest, KeysResponse,
    RenewCertificateRequest, RenewCertificateResponse, RotateAuthoritiesRequest, RotateKeysRequest,
    security_client::SecurityClient, security_server::Security,
};
use coracle_storage::{
    ReplicatedStorage,
    encryption::{self, KeyRingState, KeysRefused, SecretBox},
};
use tonic::{Request, Response, Status, async_trait, transport::Channel};

use crate::{
    certificates::{self, ChangeRefused, Credentials, TrustState, Waiting},
    forwarding::{forwarding, leader_elsewhere},
    identity::{administrators_only, caller, members_only},
    standing::Lost,
};

/// For how long each step of a change of authorities waits for nodes that are away.
const GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);

pub struct SecurityService {
    pub storage: ReplicatedStorage,
    pub secrets: Arc<SecretBox>,
    pub credentials: Arc<Credentials>,
    pub cluster_id: String,
}

impl SecurityService {
    /// A client of the leader where this member does not lead.
    #[allow(clippy::result_large_err, reason = "the error type of tonic services")]
    fn elsewhere<T>(&self, request: &Request<T>) -> Result<Option<SecurityClient<Channel>>, Status> {
        Ok(leader_elsewhere(&self.storage, request)?.map(SecurityClient::new))
    }

    async fn present_authorities(&self) -> Result<AuthoritiesResponse, Status> {
        let view =
            self.storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let Some(trust) = TrustState::read(&view) else { return Ok(AuthoritiesResponse::default()) };
        let waiting = match trust.changing.is_empty() {
            true => Waiting::default(),
            false => Waiting::read(&self.storage, &view, &trust),
        };
        let changing = trust.changing.iter().map(|(name, stage)| AuthorityChange {
            authority: name.as_str().to_owned(),
            stage: stage.as_str().to_owned(),
        });
        Ok(AuthoritiesResponse {
            generation: trust.generation,
            changing: changing.collect(),
            began_unix: trust.began_unix,
            grace_seconds: trust.grace_seconds,
            waiting_members: waiting.members,
            waiting_nodes: waiting.nodes,
        })
    }

    async fn present_keys(&self) -> Result<KeysResponse, Status> {
        let view =
            self.storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let agreed = KeyRingState::read(&view).map(|(_, agreed)| agreed).unwrap_or_default();
        let counts = encryption::counts(&self.storage.hub().published().sealed);
        let status = self.storage.status();
        let ring = self.secrets.ring();
        let keys = agreed.keys.iter().map(|id| KeyInfo {
            id: id.to_string(),
            created_unix: ring.get(id.as_str()).map_or(0, |key| key.created.as_second()),
            writing: agreed.writing.as_ref() == Some(id),
            adding: agreed.adding.as_ref() == Some(id),
            objects: counts.get(&Some(id.to_string())).copied().unwrap_or(0),
            lacking: encryption::members_without(id, &view, &status),
        });
        Ok(KeysResponse { keys: keys.collect(), in_clear: counts.get(&None).copied().unwrap_or(0) })
    }
}

#[async_trait]
impl Security for SecurityService {
    async fn keys(&self, request: Request<KeysRequest>) -> Result<Response<KeysResponse>, Status> {
        administrators_only(&request)?;
        Ok(Response::new(self.present_keys().await?))
    }

    async fn rotate_keys(
        &self,
        request: Request<RotateKeysRequest>,
    ) -> Result<Response<KeysResponse>, Status> {
        administrators_only(&request)?;
        if let Some(mut leader) = self.elsewhere(&request)? {
            return leader.rotate_keys(forwarding(request.into_inner())).await;
        }
        encryption::begin_rotation(&self.storage, &self.secrets).await.map_err(refused)?;
        Ok(Response::new(self.present_keys().await?))
    }

    async fn drop_key(&self, request: Request<DropKeyRequest>) -> Result<Response<KeysResponse>, Status> {
        administrators_only(&request)?;
        if let Some(mut leader) = self.elsewhere(&request)? {
            return leader.drop_key(forwarding(request.into_inner())).await;
        }
        encryption::drop_key(&self.storage, &request.into_inner().id).await.map_err(refused)?;
        Ok(Response::new(self.present_keys().await?))
    }

    async fn fetch_keys(
        &self,
        request: Request<FetchKeysRequest>,
    ) -> Result<Response<FetchKeysResponse>, Status> {
        members_only(&request)?;
        let ring = self.secrets.ring();
        let ids = request.into_inner().ids;
        let keys = ids.iter().filter_map(|id| ring.get(id));
        let keys = keys
            .map(|key| serde_json::to_vec(&key.kept()).expect("a plain value encodes into memory").into());
        Ok(Response::new(FetchKeysResponse { keys: keys.collect() }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = caller(&request);
        let node = caller.node().ok_or_else(|| Status::permission_denied("only nodes may call this"))?;
        let view =
            self.storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
        // As it is now, and not only as this member knew it when it took the call.
        let object = view.get(&ObjectKey::new("nodes", "", node));
        let object = object.filter(|object| is_certified(object, request.extensions().get::<BoundTo>()));
        let Some(object) = object else {
            return Err(Status::permission_denied(Lost::NodeGone(node.to_owned()).to_string()));
        };
        let authorities = self.credentials.authorities();
        let uid = &object.meta.uid;
        let response = certificates::renew_nodes_certificate(&authorities, node, uid, request.get_ref())?;
        tracing::info!(node, "the certificate of a node renewed");
        Ok(Response::new(response))
    }

    async fn confirm_trust(
        &self,
        request: Request<ConfirmTrustRequest>,
    ) -> Result<Response<ConfirmTrustResponse>, Status> {
        let caller = caller(&request);
        let node = caller.node().ok_or_else(|| Status::permission_denied("only nodes may call this"))?;
        let generation = request.get_ref().generation;
        let said = write(&self.storage, |view| certificates::node_announcement(view, node, generation));
        said.await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ConfirmTrustResponse {}))
    }

    async fn authorities(
        &self,
        request: Request<AuthoritiesRequest>,
    ) -> Result<Response<AuthoritiesResponse>, Status> {
        administrators_only(&request)?;
        Ok(Response::new(self.present_authorities().await?))
    }

    async fn rotate_authorities(
        &self,
        request: Request<RotateAuthoritiesRequest>,
    ) -> Result<Response<AuthoritiesResponse>, Status> {
        administrators_only(&request)?;
        let leader = self.elsewhere(&request)?;
        let request = request.into_inner();
        if let Some(mut leader) = leader {
            return leader.rotate_authorities(forwarding(request)).await;
        }
        let chosen = [
            (request.peer, AuthorityName::Peer),
            (request.serving, AuthorityName::Serving),
            (request.client, AuthorityName::Client),
        ];
        let names: Vec<_> = chosen.into_iter().filter(|(chosen, _)| *chosen).map(|(_, name)| name).collect();
        let grace = match request.grace_seconds {
            0 => GRACE_DEFAULT,
            seconds => Duration::from_secs(seconds),
        };
        certificates::begin_change(&self.storage, &self.credentials, &self.cluster_id, &names, grace)
            .await
            .map_err(change_refused)?;
        Ok(Response::new(self.present_authorities().await?))
    }
}

fn refused(error: KeysRefused) -> Status {
    match error {
        KeysRefused::Unknown(_) => Status::not_found(error.to_string()),
        KeysRefused::NoRing | KeysRefused::NotWritten(_) => Status::unavailable(error.to_string()),
        KeysRefused::Ring(_) => Status::internal(error.to_string()),
        _ => Status::failed_precondition(error.to_string()),
    }
}

fn change_refused(error: ChangeRefused) -> Status {
    match error {
        ChangeRefused::Nothing => Status::invalid_argument(error.to_string()),
        ChangeRefused::Behind | ChangeRefused::NotWritten(_) => Status::unavailable(error.to_string()),
        ChangeRefused::Pki(_) => Status::internal(error.to_string()),
        ChangeRefused::UnderWay => Status::failed_precondition(error.to_string()),
    }
}
