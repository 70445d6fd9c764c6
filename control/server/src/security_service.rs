//! What keeps the cluster's secrets: keys and certificates.

use std::sync::Arc;

use coracle_api::Storage;
use coracle_proto::security::{
    DropKeyRequest, FetchKeysRequest, FetchKeysResponse, KeyInfo, KeysRequest, KeysResponse,
    RenewCertificateRequest, RenewCertificateResponse, RotateKeysRequest, security_client::SecurityClient,
    security_server::Security,
};
use tonic::{Request, Response, Status, async_trait, transport::Channel};

use crate::{
    certificates::{self, Credentials},
    encryption::{self, KeyRingState, KeysRefused, SecretBox},
    identity::{administrators_only, caller, members_only},
    storage::ReplicatedStorage,
};

pub struct SecurityService {
    pub storage: ReplicatedStorage,
    pub secrets: Arc<SecretBox>,
    pub credentials: Arc<Credentials>,
}

impl SecurityService {
    /// A client of the leader where this member does not lead.
    #[allow(clippy::result_large_err, reason = "the error type of tonic services")]
    fn elsewhere(&self) -> Result<Option<SecurityClient<Channel>>, Status> {
        if self.storage.leads() {
            return Ok(None);
        }
        let leader =
            self.storage.leader_channel().ok_or_else(|| Status::unavailable("no leader is known"))?;
        Ok(Some(SecurityClient::new(leader)))
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
        if let Some(mut leader) = self.elsewhere()? {
            return leader.rotate_keys(request.into_inner()).await;
        }
        encryption::begin_rotation(&self.storage, &self.secrets).await.map_err(refused)?;
        Ok(Response::new(self.present_keys().await?))
    }

    async fn drop_key(&self, request: Request<DropKeyRequest>) -> Result<Response<KeysResponse>, Status> {
        administrators_only(&request)?;
        if let Some(mut leader) = self.elsewhere()? {
            return leader.drop_key(request.into_inner()).await;
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
        let authorities = self.credentials.authorities();
        let response = certificates::renew_nodes_certificate(&authorities, node, request.get_ref())?;
        tracing::info!(node, "the certificate of a node renewed");
        Ok(Response::new(response))
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
