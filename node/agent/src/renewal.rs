//! Renews the node's certificate before it ends, over the connection that the present one opens.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use coracle_fabric::FabricTls;
use coracle_proto::{
    join,
    security::{ConfirmTrustRequest, RenewCertificateRequest, security_client::SecurityClient},
    tls::{self, ClientTls, ServerTls},
};
use parking_lot::RwLock;
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Response, Status, transport::Channel};

use crate::identity::{Certificates, Identity};

/// How long is slept at most: a clock that was set meanwhile is noticed after so long.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// Until a control node must have answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two tries to renew; less where little life is left.
const RETRY_MAX: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(200);

/// Where the node's certificate is used. New connections take the present one.
#[derive(Clone)]
pub struct NodeTls {
    /// Towards control nodes.
    pub control: ClientTls,
    /// The same for what is asked in another's name: without the certificate, which says that it is the node.
    pub anonymous: ClientTls,
    /// Between nodes.
    pub fabric: FabricTls,
    /// For who reads the node's metrics, and needs no certificate.
    pub metrics: ServerTls,
    tunnels_in: ServerTls,
    tunnels_out: ClientTls,
}

impl NodeTls {
    pub fn new(certificates: &Certificates) -> Result<Self, tls::TlsError> {
        let made = Configurations::new(certificates)?;
        let (tunnels_in, tunnels_out) = (ServerTls::from(made.tunnels_in), ClientTls::from(made.tunnels_out));
        let fabric = FabricTls { server: tunnels_in.shared(), client: tunnels_out.shared() };
        let (control, anonymous) = (made.control.into(), made.anonymous.into());
        Ok(Self { control, anonymous, fabric, metrics: made.metrics.into(), tunnels_in, tunnels_out })
    }

    /// Shows another certificate from the next connection on.
    fn set(&self, certificates: &Certificates) -> Result<(), tls::TlsError> {
        let made = Configurations::new(certificates)?;
        self.control.set(made.control);
        self.anonymous.set(made.anonymous);
        self.metrics.set(made.metrics);
        self.tunnels_in.set(made.tunnels_in);
        self.tunnels_out.set(made.tunnels_out);
        Ok(())
    }
}

/// What a certificate comes to, wherever it is used.
struct Configurations {
    control: rustls::ClientConfig,
    anonymous: rustls::ClientConfig,
    metrics: rustls::ServerConfig,
    tunnels_in: rustls::ServerConfig,
    tunnels_out: rustls::ClientConfig,
}

impl Configurations {
    fn new(certificates: &Certificates) -> Result<Self, tls::TlsError> {
        let Certificates { certificate_pem, key_pem, serving_ca_pem, client_ca_pem, .. } = certificates;
        let server = |required| tls::server_config(certificate_pem, key_pem, &[client_ca_pem], required);
        Ok(Self {
            control: tls::client_config(serving_ca_pem, certificate_pem, key_pem)?,
            anonymous: tls::anonymous_client_config(serving_ca_pem)?,
            metrics: server(false)?,
            tunnels_in: server(true)?,
            tunnels_out: tls::client_config(client_ca_pem, certificate_pem, key_pem)?,
        })
    }
}

/// Keeps the node's certificate good.
pub struct Renewal {
    pub identity: Arc<Identity>,
    pub tls: NodeTls,
    /// `host:port` of control nodes.
    pub addresses: Arc<RwLock<Vec<String>>>,
    /// host:port of the node's fabric.
    pub advertise: String,
    /// The generation of the cluster's authorities, as the link has told it.
    pub wanted: watch::Receiver<u64>,
}

#[derive(Debug, Error)]
enum RenewalError {
    #[error("no control node helped: {0}")]
    Refused(String),
    #[error(transparent)]
    Key(#[from] join::JoinError),
    #[error("the new certificate cannot be used")]
    Tls(#[from] tls::TlsError),
    #[error("the new certificate could not be written: {0}")]
    Disk(#[from] io::Error),
}

impl Renewal {
    /// Renews when two thirds of the certificate's life are over, and when the cluster has other authorities, for as
    /// long as the node runs.
    pub async fn run(mut self) {
        let mut confirmed = 0;
        loop {
            let Certificates { certificate_pem, generation, .. } = self.identity.certificates();
            let (Ok(due), Ok((_, ends))) = (tls::renewal_due(&certificate_pem), tls::life(&certificate_pem))
            else {
                return tracing::error!("the node's certificate cannot be read, it is not renewed");
            };
            let wanted = *self.wanted.borrow_and_update();
            let done = if until(due).is_zero() || generation < wanted {
                self.renew().await
            } else if confirmed < generation.min(wanted) {
                self.confirm(generation).await.map(|()| confirmed = generation)
            } else {
                tokio::select! {
                    () = sleep(until(due).min(SLEEP_MAX)) => {}
                    told = self.wanted.changed() => if told.is_err() { return },
                }
                continue;
            };
            if let Err(error) = done {
                tracing::warn!(%error, seconds_left = until(ends).as_secs(), "certificate not renewed yet");
                sleep((until(ends) / 20).clamp(RETRY_MIN, RETRY_MAX)).await;
            }
        }
    }

    async fn renew(&self) -> Result<(), RenewalError> {
        let (key_pem, csr_pem) = join::signing_request()?;
        let request = RenewCertificateRequest { csr_pem, advertise: self.advertise.clone() };
        let renew = |mut client: SecurityClient<Channel>| {
            let request = request.clone();
            async move { client.renew_certificate(request).await }
        };
        let response = self.ask(renew).await?;
        let certificates = Certificates {
            certificate_pem: response.certificate_pem,
            key_pem,
            serving_ca_pem: response.serving_ca_pem,
            peer_ca_pem: response.peer_ca_pem,
            client_ca_pem: response.client_ca_pem,
            generation: response.generation,
        };
        // What cannot be used is neither kept nor shown.
        NodeTls::new(&certificates)?;
        self.identity.renew(certificates.clone())?;
        self.tls.set(&certificates)?;
        tracing::info!(generation = certificates.generation, "certificate renewed");
        Ok(())
    }

    /// Tells the cluster, over a connection that shows it, that the node goes by a generation of the authorities.
    async fn confirm(&self, generation: u64) -> Result<(), RenewalError> {
        let confirm = |mut client: SecurityClient<Channel>| async move {
            client.confirm_trust(ConfirmTrustRequest { generation }).await
        };
        self.ask(confirm).await.map(drop)
    }

    /// Any control node will do: one after the other is asked.
    async fn ask<T, F>(&self, call: impl Fn(SecurityClient<Channel>) -> F) -> Result<T, RenewalError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut tried = Vec::new();
        let addresses = self.addresses.read().clone();
        for address in addresses {
            let client = SecurityClient::new(tls::channel(&address, self.tls.control.clone()));
            match timeout(ANSWER_TIMEOUT, call(client)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => tried.push(format!("{address} ({})", status.message())),
                Err(_) => tried.push(format!("{address} (no answer in time)")),
            }
        }
        Err(RenewalError::Refused(tried.join(", ")))
    }
}

fn until(moment: SystemTime) -> Duration {
    moment.duration_since(SystemTime::now()).unwrap_or_default()
}
