//! The cluster as client commands see it: found by kubeconfig, spoken to over its REST API.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use crate::args::Connection;

/// A connection to a cluster's API.
pub struct Cluster {
    pub client: Client,
    /// The server's host:port, and the PEM blocks that prove both sides.
    pub access: Access,
    /// The namespace that commands work in.
    pub namespace: String,
    /// Where the kubeconfig was found.
    pub kubeconfig: PathBuf,
}

/// What gRPC needs to reach the same server.
pub struct Access {
    pub address: String,
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: String,
}

/// An answer that is no success, in the server's words.
#[derive(Debug)]
pub struct Refused {
    pub code: u16,
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

/// The data dir that `coracle up` uses where none is named.
pub fn default_data_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return PathBuf::from(dir).join("coracle");
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    home.join(".local/share/coracle")
}

fn find_kubeconfig(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_path_buf());
    }
    if let Some(paths) = std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
        return std::env::split_paths(&paths).next().context("$KUBECONFIG names no file");
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let candidates = [default_data_dir().join("kubeconfig"), home.join(".kube/config")];
    candidates.iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        anyhow!(
            "no cluster found: start one with `coracle up`, or name a kubeconfig with --kubeconfig or $KUBECONFIG"
        )
    })
}

impl Cluster {
    /// Finds the kubeconfig and makes a client of it. Does not talk to the server yet.
    pub async fn find(connection: &Connection) -> Result<Self> {
        Self::open(&find_kubeconfig(connection.kubeconfig.as_deref())?, connection.namespace.as_deref()).await
    }

    /// A client of this kubeconfig.
    pub async fn open(kubeconfig: &Path, namespace: Option<&str>) -> Result<Self> {
        let parsed = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("reading the kubeconfig {}", kubeconfig.display()))?;
        let access = Access::read(kubeconfig)
            .with_context(|| format!("using the kubeconfig {}", kubeconfig.display()))?;
        let config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("using the kubeconfig {}", kubeconfig.display()))?;
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_string);
        let client = Client::try_from(config).context("making a client of the kubeconfig")?;
        Ok(Self { client, access, namespace, kubeconfig: kubeconfig.to_path_buf() })
    }

    /// Sends one request and collects its answer: (headers, body). An error status becomes [`Refused`].
    pub async fn send(&self, request: http::Request<Body>) -> Result<(http::HeaderMap, Bytes)> {
        let (head, body) = self.stream(request).await?.into_parts();
        let body = body.collect().await.context("reading the answer")?.to_bytes();
        Ok((head.headers, body))
    }

    /// Sends one request and hands out the answer's body as it comes. An error status becomes [`Refused`].
    pub async fn stream(&self, request: http::Request<Body>) -> Result<http::Response<Body>> {
        let address = self.access.address.clone();
        let response = self.client.send(request).await.map_err(|error| {
            let error = anyhow::Error::new(error);
            let context = if format!("{error:#} {error:?}").contains("UnknownIssuer") {
                format!(
                    "the server at {address} is not of the CA that {} names: it is another cluster, or was made anew; \
                     take the kubeconfig of its data dir",
                    self.kubeconfig.display()
                )
            } else {
                format!("the cluster at {address} does not answer: is it running? (`coracle up`, or see `coracle doctor`)")
            };
            error.context(context)
        })?;
        if response.status().is_success() || response.status().is_redirection() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = status["message"].as_str().or_else(|| status["errors"][0]["message"].as_str());
        let message =
            text.map_or_else(|| format!("HTTP {code}: {}", String::from_utf8_lossy(&body)), str::to_string);
        Err(Refused { code, message }.into())
    }

    /// GET of JSON; `None` where there is no such thing.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        let request = http::Request::get(path).header("accept", "application/json").body(Body::empty())?;
        match self.send(request).await {
            Ok((_, body)) => Ok(Some(serde_json::from_slice(&body).context("the answer is not JSON")?)),
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 404) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Creates the object, or merges it over the one of that name. `collection` is the path without the name.
    pub async fn apply(&self, collection: &str, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("the object has no name")?;
        let path = format!("{collection}/{name}");
        let body = serde_json::to_vec(object)?;
        let request = if self.get(&path).await?.is_some() {
            http::Request::patch(&path).header("content-type", "application/merge-patch+json")
        } else {
            http::Request::post(collection).header("content-type", "application/json")
        };
        self.send(request.body(Body::from(body))?).await.with_context(|| format!("applying {path}"))?;
        Ok(())
    }

    /// A gRPC channel to the same server with the same identity.
    pub fn channel(&self) -> Result<tonic::transport::Channel> {
        let access = &self.access;
        let tls =
            coracle_proto::tls::client_config(&access.ca_pem, &access.certificate_pem, &access.key_pem)?;
        Ok(coracle_proto::tls::channel(&access.address, tls))
    }
}

impl Access {
    fn read(kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig).context("it cannot be read")?;
        let config: Value = serde_yaml_ng::from_str(&text).context("it is not YAML")?;
        let named = |list: &str, name: &Value, part: &str| {
            let entries = config[list].as_array().cloned().unwrap_or_default();
            entries.into_iter().find(|entry| &entry["name"] == name).map(|mut entry| entry[part].take())
        };
        let context =
            named("contexts", &config["current-context"], "context").context("it has no current context")?;
        let cluster =
            named("clusters", &context["cluster"], "cluster").context("its context names no cluster")?;
        let user = named("users", &context["user"], "user").context("its context names no user")?;
        let server = cluster["server"].as_str().context("its cluster names no server")?;
        Ok(Self {
            address: server.trim_start_matches("https://").trim_end_matches('/').to_string(),
            ca_pem: pem(&cluster, "certificate-authority")?,
            certificate_pem: pem(&user, "client-certificate")?,
            key_pem: pem(&user, "client-key")?,
        })
    }
}

/// A PEM that stands in the kubeconfig itself (`FIELD-data`, base64) or in a file that it names (`FIELD`).
fn pem(part: &Value, field: &str) -> Result<String> {
    use base64::Engine;
    if let Some(text) = part[format!("{field}-data")].as_str() {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text)
            .with_context(|| format!("its {field}-data is not base64"))?;
        return String::from_utf8(bytes).with_context(|| format!("its {field}-data is not PEM"));
    }
    let file = part[field].as_str().with_context(|| format!("it has neither {field}-data nor {field}"))?;
    std::fs::read_to_string(file).with_context(|| format!("reading {file}"))
}

/// The paths of a kind: of its objects in one namespace, in all, and of one.
pub struct KindPath {
    pub collection: String,
    pub everywhere: String,
}

/// Finds a kind by plural, singular or short name, as kubectl does.
pub fn kind_path(name: &str, namespace: &str) -> Result<KindPath> {
    let name = name.to_ascii_lowercase();
    let (plain, group) =
        name.split_once('.').map_or((name.as_str(), None), |(plain, group)| (plain, Some(group)));
    let kind = coracle_objects::registry::kinds().iter().find(|kind| {
        let named = kind.plural == plain || kind.singular == plain || kind.short_names.contains(&plain);
        named && group.is_none_or(|group| kind.group == group)
    });
    let Some(kind) = kind else {
        bail!("the server has no kind named `{name}`: see `kubectl api-resources`");
    };
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let everywhere = format!("{root}/{}", kind.plural);
    let collection = if kind.namespaced {
        format!("{root}/namespaces/{namespace}/{}", kind.plural)
    } else {
        everywhere.clone()
    };
    Ok(KindPath { collection, everywhere })
}
