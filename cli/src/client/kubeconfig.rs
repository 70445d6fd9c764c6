//! A kubeconfig as it is written. Source: Kubernetes' `clientcmd/api/v1`.
//!
//! What is not supported is refused and not passed over: who asks for a proxy does not want a connection without.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::Scheme};
use rustls::pki_types::ServerName;
use serde::{Deserialize, de::IgnoredAny};

use super::access::{Certificate, Token};
use crate::names;

/// How users may prove who they are.
pub const SUPPORTED: &str =
    "coracle takes client-certificate and client-key (or their -data), token or tokenFile";

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    current_context: Option<String>,
    contexts: Option<Vec<NamedContext>>,
    pub clusters: Option<Vec<Cluster>>,
    users: Option<Vec<User>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Deserialize)]
pub struct Context {
    cluster: Option<String>,
    user: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
pub struct Cluster {
    name: String,
    #[serde(default, rename = "cluster")]
    is: ClusterFields,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterFields {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
pub struct User {
    pub name: String,
    #[serde(default, rename = "user")]
    is: UserFields,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UserFields {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    r#as: Option<String>,
    as_uid: Option<String>,
    as_groups: Option<Vec<String>>,
    as_user_extra: Option<BTreeMap<String, Vec<String>>>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
}

impl Kubeconfig {
    /// The current one.
    pub fn context(&self) -> Result<&Context> {
        let name = filled(&self.current_context).context("it has no current-context")?;
        let found = self.contexts.iter().flatten().find(|context| context.name == name);
        let found =
            found.with_context(|| format!("its current-context {name:?} is not among its contexts"))?;
        found.context.as_ref().with_context(|| format!("its context {name:?} says nothing"))
    }

    pub fn cluster(&self, context: &Context) -> Result<&Cluster> {
        let name = filled(&context.cluster).context("its current context has no cluster")?;
        let found = self.clusters.iter().flatten().find(|cluster| cluster.name == name);
        found
            .with_context(|| format!("the cluster {name:?} of its current context is not among its clusters"))
    }

    pub fn user(&self, context: &Context) -> Result<&User> {
        let name = filled(&context.user).context("its current context has no user")?;
        let found = self.users.iter().flatten().find(|user| user.name == name);
        found.with_context(|| format!("the user {name:?} of its current context is not among its users"))
    }
}

impl Context {
    pub fn namespace(&self) -> &str {
        filled(&self.namespace).unwrap_or("default")
    }
}

impl Cluster {
    /// `host:port`, 443 where none is given, and a path below which the API is, where there is one.
    pub fn address(&self) -> Result<String> {
        let name = &self.name;
        let server =
            filled(&self.is.server).with_context(|| format!("the cluster {name:?} has no server"))?;
        let uri: Uri =
            server.parse().with_context(|| format!("the server {server:?} of the cluster {name:?}"))?;
        ensure!(
            uri.scheme() == Some(&Scheme::HTTPS),
            "the server {server:?} of the cluster {name:?} does not begin with https://"
        );
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let port = if uri.port().is_some() { "" } else { ":443" };
        Ok(format!("{authority}{port}{}", uri.path().trim_end_matches('/')))
    }

    pub fn ca_pem(&self, folder: &Path) -> Result<String> {
        let (name, is) = (&self.name, &self.is);
        let field = "certificate-authority";
        pem(field, &is.certificate_authority_data, &is.certificate_authority, folder)
            .with_context(|| format!("the cluster {name:?}"))?
            .with_context(|| format!("the cluster {name:?} has neither {field}-data nor {field}"))
    }

    pub fn server_name(&self) -> Result<Option<ServerName<'static>>> {
        let Some(given) = filled(&self.is.tls_server_name) else { return Ok(None) };
        let parsed = ServerName::try_from(given.to_owned());
        Ok(Some(
            parsed
                .with_context(|| format!("the tls-server-name {given:?} of the cluster {:?}", self.name))?,
        ))
    }

    /// Refuses what would take the server on trust, or lead elsewhere.
    pub fn ensure_direct(&self) -> Result<()> {
        let name = &self.name;
        if self.is.insecure_skip_tls_verify == Some(true) {
            bail!(
                "the cluster {name:?} has insecure-skip-tls-verify, but coracle always verifies whom it talks to: remove it, \
                 and name the cluster's CA by certificate-authority"
            );
        }
        if filled(&self.is.proxy_url).is_some() {
            bail!(
                "the cluster {name:?} has proxy-url, but coracle connects to clusters directly only: remove it"
            );
        }
        Ok(())
    }
}

impl User {
    /// Refuses ways to prove oneself that are not supported.
    pub fn ensure_supported(&self) -> Result<()> {
        for (field, given) in [("exec", &self.is.exec), ("auth-provider", &self.is.auth_provider)] {
            if given.is_some() {
                bail!("the user {:?} has {field}, which coracle does not run: {SUPPORTED}", self.name);
            }
        }
        Ok(())
    }

    pub fn certificate(&self, folder: &Path) -> Result<Option<Certificate>> {
        let (name, is) = (&self.name, &self.is);
        let read =
            |field, data, file| pem(field, data, file, folder).with_context(|| format!("the user {name:?}"));
        let chain = read("client-certificate", &is.client_certificate_data, &is.client_certificate)?;
        let key = read("client-key", &is.client_key_data, &is.client_key)?;
        let lacks = |field| format!("the user {name:?} has neither {field}-data nor {field}");
        match (chain, key) {
            (Some(pem), Some(key_pem)) => Ok(Some(Certificate { pem, key_pem })),
            (None, None) => Ok(None),
            (Some(_), None) => bail!(lacks("client-key")),
            (None, Some(_)) => bail!(lacks("client-certificate")),
        }
    }

    pub fn token(&self, folder: &Path) -> Option<Token> {
        let written = filled(&self.is.token).map(str::to_owned);
        let file = filled(&self.is.token_file).map(|file| folder.join(file));
        (written.is_some() || file.is_some()).then_some(Token { written, file })
    }

    /// Headers of Kubernetes' user impersonation.
    pub fn impersonation(&self) -> Result<HeaderMap> {
        let is = &self.is;
        let mut wanted = Vec::new();
        wanted.extend(filled(&is.r#as).map(|name| ("as", "user".to_owned(), name)));
        wanted.extend(filled(&is.as_uid).map(|uid| ("as-uid", "uid".to_owned(), uid)));
        let groups = is.as_groups.iter().flatten();
        wanted.extend(groups.map(|group| ("as-groups", "group".to_owned(), group.as_str())));
        for (key, values) in is.as_user_extra.iter().flatten() {
            let name = format!("extra-{}", names::encode(key));
            wanted.extend(values.iter().map(|value| ("as-user-extra", name.clone(), value.as_str())));
        }
        let mut headers = HeaderMap::new();
        for (field, name, text) in wanted {
            let fault = || format!("the user {:?} has {field} {text:?}, which cannot be sent", self.name);
            let name = HeaderName::try_from(format!("impersonate-{name}")).with_context(fault)?;
            headers.append(name, HeaderValue::try_from(text).with_context(fault)?);
        }
        Ok(headers)
    }
}

/// The text of a field; what is empty is as good as missing, as for kubectl.
fn filled(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

/// A PEM that stands in the kubeconfig itself (`FIELD-data`, base64) or in a file that it names (`FIELD`).
fn pem(field: &str, data: &Option<String>, file: &Option<String>, folder: &Path) -> Result<Option<String>> {
    use base64::Engine;
    if let Some(text) = filled(data) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text);
        let bytes = bytes.with_context(|| format!("its {field}-data is not base64"))?;
        let pem = String::from_utf8(bytes).with_context(|| format!("its {field}-data is not PEM"))?;
        return Ok(Some(pem));
    }
    let Some(file) = filled(file).map(|file| folder.join(file)) else { return Ok(None) };
    let pem = std::fs::read_to_string(&file);
    Ok(Some(pem.with_context(|| format!("reading its {field} {}", file.display()))?))
}
