//! Renews what ends: this control node's certificates by itself, a node's when it asks.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use coracle_pki::{Authorities, NODE_USER_PREFIX, NODES_ORGANIZATION, Subject};
use coracle_proto::security::{RenewCertificateRequest, RenewCertificateResponse};
use coracle_raft::chain;
use tokio::time::sleep;
use tonic::Status;

use super::{Credentials, KubeconfigFile};
use crate::{error::ServerError, join::host};

/// How long is slept at most: a clock that was set meanwhile is noticed after so long.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// Before a renewal that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Renews this control node's certificates when two thirds of their life are over, for as long as the process lives.
pub async fn run(credentials: Arc<Credentials>, kubeconfig: Arc<KubeconfigFile>) {
    let mut news = credentials.news();
    loop {
        let wait = renew_when_due(&credentials).unwrap_or_else(|error| {
            tracing::error!(%error, "the certificates are not renewed");
            RETRY_PAUSE
        });
        // Also what could not be written when it changed.
        if let Err(error) = kubeconfig.write() {
            tracing::warn!(error = chain(&error), "the kubeconfig is not written");
        }
        tokio::select! {
            () = sleep(wait.min(SLEEP_MAX)) => {}
            _ = news.changed() => {}
        }
    }
}

/// How long there is nothing to do.
fn renew_when_due(credentials: &Credentials) -> Result<Duration, ServerError> {
    let left = |due: SystemTime| due.duration_since(SystemTime::now()).unwrap_or_default();
    let wait = left(credentials.due()?);
    if !wait.is_zero() {
        return Ok(wait);
    }
    credentials.renew()?;
    let due = credentials.due()?;
    tracing::info!(next = %jiff::Timestamp::try_from(due).unwrap_or_default(), "certificates renewed");
    Ok(left(due))
}

/// A certificate for the same node and a new key.
#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
pub fn renew_nodes_certificate(
    authorities: &Authorities,
    node: &str,
    node_uid: &str,
    request: &RenewCertificateRequest,
) -> Result<RenewCertificateResponse, Status> {
    let user = format!("{NODE_USER_PREFIX}{node}");
    let mut names = vec![node.to_owned()];
    names.extend(Some(host(&request.advertise).to_owned()).filter(|host| !host.is_empty()));
    let subject = Subject { common_name: &user, organization: NODES_ORGANIZATION, names, server: true };
    let signed = authorities.client.sign_nodes_request(&subject, node_uid, &request.csr_pem);
    let certificate_pem = signed.map_err(|error| {
        Status::invalid_argument(format!("the certificate signing request cannot be signed: {error}"))
    })?;
    Ok(RenewCertificateResponse {
        certificate_pem,
        serving_ca_pem: authorities.serving.bundle(),
        peer_ca_pem: authorities.peer.bundle(),
        client_ca_pem: authorities.client.bundle(),
        generation: authorities.generation,
    })
}
