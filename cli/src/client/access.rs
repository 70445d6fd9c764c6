//! What the current context of a kubeconfig gives: where the control nodes are, and what proves both sides.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coracle_proto::tls::{self, TlsError};
use http::{HeaderMap, HeaderValue, header};
use rustls::{ClientConfig, pki_types::ServerName};

use super::kubeconfig::{self, Kubeconfig};

/// The control nodes' addresses, and what proves both sides.
pub struct Access {
    /// `host:port`, and a path below which the API is, where there is one; that of the current context first, then those of all other clusters with the same CA.
    pub addresses: Vec<String>,
    pub ca_pem: String,
    /// The name that the serving certificate must have, where it is not that of all control nodes.
    pub server_name: Option<ServerName<'static>>,
    pub namespace: String,
    pub user: String,
    /// What proves the user: a certificate, a token, or both.
    pub certificate: Option<Certificate>,
    pub token: Option<Token>,
    /// As whom requests are made, where the user is not to act as themselves.
    pub impersonation: HeaderMap,
}

pub struct Certificate {
    pub pem: String,
    pub key_pem: String,
}

/// What is in the file, as long as it can be read, goes before what is written.
#[derive(Debug, Default, PartialEq)]
pub struct Token {
    pub written: Option<String>,
    /// Read at each request: whoever keeps such a file replaces it from time to time.
    pub file: Option<PathBuf>,
}

impl Access {
    /// Paths in the kubeconfig begin in the folder that it lies in, as for kubectl.
    pub fn read(kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig).context("it cannot be read")?;
        Self::parse(&text, kubeconfig.parent().unwrap_or(Path::new("")))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let config: Kubeconfig =
            serde_yaml_ng::from_str(text).context("it is not the YAML of a kubeconfig")?;
        let context = config.context()?;
        let cluster = config.cluster(context)?;
        cluster.ensure_direct()?;
        let ca_pem = cluster.ca_pem(folder)?;
        let mut addresses = vec![cluster.address()?];
        for other in config.clusters.iter().flatten() {
            // What is wrong with others is nothing to this cluster.
            let is_same =
                other.ca_pem(folder).is_ok_and(|pem| pem == ca_pem) && other.ensure_direct().is_ok();
            if let Some(address) = other.address().ok().filter(|_| is_same)
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        let user = config.user(context)?;
        user.ensure_supported()?;
        let (certificate, token) = (user.certificate(folder)?, user.token(folder));
        ensure!(
            certificate.is_some() || token.is_some(),
            "the user {:?} has neither client-certificate-data nor client-certificate, and no token: {}",
            user.name,
            kubeconfig::SUPPORTED
        );
        Ok(Self {
            addresses,
            ca_pem,
            server_name: cluster.server_name()?,
            namespace: context.namespace().to_owned(),
            user: user.name.clone(),
            certificate,
            token,
            impersonation: user.impersonation()?,
        })
    }

    /// Trusts the cluster's CA and shows the user's certificate, if there is one. Without ALPN.
    pub fn tls(&self) -> Result<ClientConfig, TlsError> {
        match &self.certificate {
            Some(user) => tls::client_config(&self.ca_pem, &user.pem, &user.key_pem),
            None => tls::anonymous_client_config(&self.ca_pem),
        }
    }

    /// Adds to a request who makes it, as far as the connection's certificate does not say so.
    pub async fn introduce(&self, headers: &mut HeaderMap) -> Result<()> {
        headers.extend(self.impersonation.clone());
        let user = &self.user;
        let Some(Token { written, file }) = &self.token else { return Ok(()) };
        let read = match file {
            None => None,
            Some(file) => match (tokio::fs::read_to_string(file).await, written) {
                (Ok(token), _) => Some(token),
                (Err(_), Some(_)) => None,
                (Err(error), None) => {
                    return Err(error).with_context(|| {
                        format!("reading the tokenFile {} of the user {user:?}", file.display())
                    });
                }
            },
        };
        let token = read.or_else(|| written.clone()).unwrap_or_default();
        let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
        let mut value = value.with_context(|| format!("the token of the user {user:?} cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
