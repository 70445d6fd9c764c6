//! The cluster as client commands see it: found by kubeconfig, spoken to over its REST API and over gRPC.
//!
//! Any control node answers, so where one does not the next of the kubeconfig is tried.

mod access;
mod http;
mod kinds;
mod kubeconfig;

use std::{
    error::Error as StdError,
    future::Future,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use ::http::{HeaderMap, Request, Response as HttpResponse, StatusCode};
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use coracle_proto::cluster::cluster_client::ClusterClient;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use serde_json::Value;
use tonic::{Code, Response, Status, transport::Channel};

use self::{
    access::Access,
    http::{SendError, Server},
};
pub use self::{
    http::Body,
    kinds::{NoSuchKind, ServedKind, native_kind},
};
use crate::{
    args::{Connection, Namespaced},
    names,
};

/// How long a cluster is asked again that says it cannot answer now: another leader is there within seconds.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Between two such questions at first, doubled each time.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Until a control node must have answered a gRPC call. Those that change members wait for the cluster.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Until a control node must have begun to answer a request of REST; more where much is sent before. It gives up itself
/// within 10 s where it has no quorum.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes a second that a request may take its time for.
const UPLOAD_BYTES_A_SECOND: u64 = 256 << 10;

/// After so long no further control node is tried: without a quorum each takes some seconds to say so.
const TRYING_MAX: Duration = Duration::from_secs(8);

/// Until a control node must have said whether it is ready.
const READINESS_TIMEOUT: Duration = Duration::from_secs(4);

/// A connection to a cluster's API.
pub struct Cluster {
    /// Each of `access.addresses`.
    servers: Vec<Server>,
    /// The one that answered last.
    current: AtomicUsize,
    pub access: Access,
    /// The namespace that commands work in.
    pub namespace: String,
    /// Where the kubeconfig was found.
    pub kubeconfig: PathBuf,
}

/// An answer that is no success, in the server's words.
#[derive(Debug)]
pub struct Refused {
    pub code: u16,
    /// In one word, as `NotFound`; empty where it gives none.
    pub reason: String,
    pub message: String,
}

impl Refused {
    /// Whether an error is the answer of a control node that has no quorum, or no time.
    pub fn is_for_now(error: &anyhow::Error) -> bool {
        let refused = error.root_cause().downcast_ref::<Refused>();
        refused.is_some_and(|refused| matches!(refused.code, 503 | 504))
    }

    /// Whether an error is the answer that there is no such thing.
    pub fn is_absence(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 404)
    }
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
    pub fn find(connection: &Connection) -> Result<Self> {
        Self::open(&find_kubeconfig(connection.kubeconfig.as_deref())?, None)
    }

    /// The same for a command that works in a namespace.
    pub fn find_in(namespaced: &Namespaced) -> Result<Self> {
        let kubeconfig = find_kubeconfig(namespaced.connection.kubeconfig.as_deref())?;
        Self::open(&kubeconfig, namespaced.namespace.as_deref())
    }

    /// A client of this kubeconfig.
    pub fn open(kubeconfig: &Path, namespace: Option<&str>) -> Result<Self> {
        let access = Access::read(kubeconfig)
            .with_context(|| format!("using the kubeconfig {}", kubeconfig.display()))?;
        let namespace = namespace.unwrap_or(&access.namespace).to_owned();
        names::namespace(&namespace)
            .map_err(|fault| anyhow!("{namespace:?} is no name of a namespace: {fault}"))?;
        let servers = access.addresses.iter().map(|address| Server::new(address, &access));
        let servers = servers.collect::<Result<_, _>>();
        let servers = servers.with_context(|| format!("using the kubeconfig {}", kubeconfig.display()))?;
        let kubeconfig = kubeconfig.to_path_buf();
        Ok(Self { servers, current: AtomicUsize::new(0), access, namespace, kubeconfig })
    }

    /// The control node that answered last; at first the kubeconfig's.
    pub fn address(&self) -> &str {
        &self.access.addresses[self.current.load(Ordering::Relaxed)]
    }

    /// All control nodes in the order in which they are tried.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, all) = (self.current.load(Ordering::Relaxed), self.servers.len());
        (0..all).map(move |step| (first + step) % all)
    }

    /// Sends one request and collects its answer: (headers, body). An error status becomes [`Refused`].
    pub async fn send(&self, request: Request<Body>) -> Result<(HeaderMap, Bytes)> {
        let (head, body) = self.stream(request).await?.into_parts();
        let body = body.collect().await.context("reading the answer")?.to_bytes();
        Ok((head.headers, body))
    }

    /// Sends one request and hands out the answer's body as it comes. An error status becomes [`Refused`].
    ///
    /// Where all say that they cannot now (429, 503: it is certainly not done), they are asked again for a while.
    pub async fn stream(&self, mut request: Request<Body>) -> Result<HttpResponse<Incoming>> {
        self.access.introduce(request.headers_mut()).await?;
        let (began, mut pause) = (Instant::now(), BUSY_PAUSE);
        let response = loop {
            let response = self.ask(&request).await?;
            if !is_busy(response.status()) || began.elapsed() + pause > BUSY_PATIENCE {
                break response;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        };
        if response.status().is_success() || response.status().is_redirection() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = status["message"].as_str().or_else(|| status["errors"][0]["message"].as_str());
        let message =
            text.map_or_else(|| format!("HTTP {code}: {}", String::from_utf8_lossy(&body)), str::to_string);
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        Err(Refused { code, reason, message }.into())
    }

    /// The answer of the first control node that has one.
    ///
    /// One that takes no connection or cannot answer now has done nothing: the next is tried. One that breaks off is another
    /// matter: only what changes nothing is tried again. Where all others fail, what one could not do now is the answer.
    async fn ask(&self, request: &Request<Body>) -> Result<HttpResponse<Incoming>> {
        let harmless = request.method().is_safe();
        let began = Instant::now();
        let mut order = self.order().peekable();
        let (mut busy, mut failed) = (None, Vec::new());
        loop {
            let at = order.next().context("the kubeconfig names no server")?;
            let is_last = order.peek().is_none() || began.elapsed() > TRYING_MAX;
            match self.send_to(at, request.clone()).await {
                Ok(response) if !is_busy(response.status()) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(response);
                }
                Ok(response) => {
                    busy.get_or_insert((at, response));
                }
                Err(error) => {
                    let again = harmless || matches!(error, SendError::NotSent(_));
                    failed.push(self.access.addresses[at].as_str());
                    if !again || is_last && busy.is_none() {
                        return Err(self.explained(error.into(), &failed));
                    }
                }
            }
            if is_last && let Some((at, response)) = busy {
                self.current.store(at, Ordering::Relaxed);
                return Ok(response);
            }
        }
    }

    /// Asks one control node, which must begin to answer in time.
    async fn send_to(&self, at: usize, request: Request<Body>) -> Result<HttpResponse<Incoming>, SendError> {
        let sent = request.body().size_hint().exact().unwrap_or(0);
        let limit = HEAD_TIMEOUT + Duration::from_secs(sent / UPLOAD_BYTES_A_SECOND);
        let answer = tokio::time::timeout(limit, self.servers[at].send(request)).await;
        answer.unwrap_or(Err(SendError::Silent(limit.as_secs())))
    }

    /// Asks all control nodes at once whether they are ready: the address, and what it said or why it did not. The first
    /// that said anything is asked first from now on.
    pub async fn readiness(&self) -> Vec<(&str, Result<String>)> {
        let ask = |at: usize| async move {
            let answer = tokio::time::timeout(READINESS_TIMEOUT, async {
                let mut request = Request::get("/readyz?verbose").body(Body::default())?;
                self.access.introduce(request.headers_mut()).await?;
                let body = self.servers[at].send(request).await?.into_body();
                let text = body.collect().await.context("reading the answer")?.to_bytes();
                anyhow::Ok(String::from_utf8_lossy(&text).into_owned())
            });
            let silent = || anyhow!("it does not answer within {} s", READINESS_TIMEOUT.as_secs());
            (self.access.addresses[at].as_str(), answer.await.unwrap_or_else(|_| Err(silent())))
        };
        let answers = futures::future::join_all((0..self.servers.len()).map(ask)).await;
        if let Some(first) = answers.iter().position(|(_, answer)| answer.is_ok()) {
            self.current.store(first, Ordering::Relaxed);
        }
        answers
    }

    /// GET of JSON; `None` where there is no such thing.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        let request = Request::get(path).header("accept", "application/json").body(Body::default())?;
        match self.send(request).await {
            Ok((_, body)) => Ok(Some(serde_json::from_slice(&body).context("the answer is not JSON")?)),
            Err(error) if Refused::is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates the object, or merges it over the one of that name. `collection` is the path without the name.
    pub async fn apply(&self, collection: &str, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("the object has no name")?;
        names::given(name).map_err(|fault| anyhow!("the object has no name: {fault}"))?;
        let path = format!("{collection}/{}", names::encode(name));
        let body = serde_json::to_vec(object)?;
        let request = if self.get(&path).await?.is_some() {
            Request::patch(&path).header("content-type", "application/merge-patch+json")
        } else {
            Request::post(collection).header("content-type", "application/json")
        };
        self.send(request.body(Body::from(body))?).await.with_context(|| format!("applying {path}"))?;
        Ok(())
    }

    fn explained(&self, error: anyhow::Error, failed: &[&str]) -> anyhow::Error {
        let addresses = failed.join(", ");
        let context = if format!("{error:#} {error:?}").contains("UnknownIssuer") {
            format!(
                "the server at {addresses} is not of the CA that {} names: it is another cluster, or was made anew; \
                 take the kubeconfig of its data dir",
                self.kubeconfig.display()
            )
        } else {
            format!(
                "the cluster at {addresses} does not answer: is it running? (`coracle up`, or see `coracle doctor`)"
            )
        };
        error.context(context)
    }

    /// Calls the cluster's administration as the kubeconfig's user, at the first control node that answers.
    pub async fn administer<T, F>(&self, call: impl Fn(ClusterClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(|channel| call(ClusterClient::new(channel))).await
    }

    /// Calls a gRPC service as the kubeconfig's user, at the first control node that answers.
    pub async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (began, mut tried) = (Instant::now(), Vec::new());
        for at in self.order() {
            if began.elapsed() > TRYING_MAX {
                break;
            }
            let answer = match tokio::time::timeout(ANSWER_TIMEOUT, call(self.channel(at)?)).await {
                Ok(answer) => answer,
                Err(_) => Err(Status::unavailable("it does not answer in time")),
            };
            match answer {
                Ok(answer) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer.into_inner());
                }
                Err(status) if status.code() == Code::Unavailable => {
                    tried.push(format!("{}: {}", self.access.addresses[at], unavailable(&status)));
                }
                Err(status) => bail!("{}", status.message()),
            }
        }
        bail!("the cluster does not answer ({}); is it running? See `coracle doctor`", tried.join("; "))
    }

    fn channel(&self, at: usize) -> Result<Channel> {
        let access = &self.access;
        ensure!(
            access.certificate.is_some(),
            "the user {:?} of the kubeconfig {} has a token only, but this takes a client-certificate",
            access.user,
            self.kubeconfig.display()
        );
        ensure!(
            access.impersonation.is_empty(),
            "the user {:?} of the kubeconfig {} acts as somebody else (as), but this is done as oneself only",
            access.user,
            self.kubeconfig.display()
        );
        ensure!(
            !access.addresses[at].contains('/'),
            "the server {} of the kubeconfig {} has a path, below which there is the REST API alone",
            access.addresses[at],
            self.kubeconfig.display()
        );
        Ok(coracle_proto::tls::channel(&access.addresses[at], access.tls()?))
    }
}

/// Whether an answer says that nothing was done for now.
fn is_busy(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
}

/// Why a call did not get through, down to the cause.
fn unavailable(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
