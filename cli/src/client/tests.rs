//! The client against control nodes that are no more than a TLS port with an opinion.

use std::{
    io,
    sync::{Arc, Mutex},
};

use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// What one CA makes: all servers of a test show the same certificate.
struct Identity {
    pem: String,
    key_pem: String,
}

impl Identity {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([coracle_proto::tls::SERVER_NAME.to_owned()]).unwrap();
        // Authorities have names of their own; one of the same name would be another fault.
        let name = hex::encode(&key.public_key_raw()[..16]);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self { pem: params.self_signed(&key).unwrap().pem(), key_pem: key.serialize_pem() }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let config = rustls::ServerConfig::builder_with_provider(coracle_proto::tls::provider());
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let chain = coracle_proto::tls::certificates(&self.pem, "certificate").unwrap();
        let key = coracle_proto::tls::private_key(&self.key_pem).unwrap();
        Arc::new(config.with_single_cert(chain, key).unwrap()).into()
    }
}

/// A control node that notes what it is asked.
struct Server {
    address: String,
    /// Method, path, and the bearer token.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers the requests in turn with these statuses, the last of them for ever; 0 breaks off the connection.
    async fn start(identity: &Identity, statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Self { address, asked: Arc::default() };
        let asked = server.asked.clone();
        let acceptor = identity.acceptor();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let asked = asked.clone();
                let answer = move |request: Request<Incoming>| {
                    let token =
                        request.headers().get("authorization").map_or("", |token| token.to_str().unwrap());
                    let mut asked = asked.lock().unwrap();
                    let status = statuses[asked.len().min(statuses.len() - 1)];
                    asked.push(format!("{} {} {token}", request.method(), request.uri()));
                    let body = format!("{{\"message\":\"said with {status}\"}}");
                    let response = StatusCode::from_u16(status).map_err(|_| io::Error::other("broken off"));
                    let response = response.map(|status| {
                        let mut response = HttpResponse::new(Full::new(Bytes::from(body)));
                        *response.status_mut() = status;
                        response
                    });
                    std::future::ready(response)
                };
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tls), service_fn(answer)));
            }
        });
        server
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// A client whose kubeconfig names these control nodes.
fn cluster(identity: &Identity, addresses: &[&str]) -> (TempDir, Cluster) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), &identity.pem).unwrap();
    let clusters: Vec<Value> = addresses
        .iter()
        .map(|address| {
            let server = format!("https://{address}");
            serde_json::json!({
                "name": address, "cluster": { "server": server, "certificate-authority": "ca.pem" },
            })
        })
        .collect();
    let config = serde_json::json!({
        "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": addresses[0], "user": "u" } }],
        "clusters": clusters,
        "users": [{ "name": "u", "user": { "token": "t" } }],
    });
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, config.to_string()).unwrap();
    let cluster = Cluster::open(&file, None).unwrap();
    (folder, cluster)
}

/// An address at which nobody listens.
async fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

fn post() -> Request<Body> {
    Request::post("/things?a=b").body(Body::from("thing")).unwrap()
}

#[tokio::test]
async fn the_api_may_be_below_a_path() {
    let identity = Identity::new();
    let server = Server::start(&identity, &[200]).await;
    let (_folder, cluster) = cluster(&identity, &[&format!("{}/below", server.address)]);
    let answer = cluster.get("/things?limit=5").await.unwrap().unwrap();
    assert_eq!(answer["message"], "said with 200");
    assert_eq!(server.asked(), ["GET /below/things?limit=5 Bearer t"]);
}

#[tokio::test]
async fn an_answer_that_asks_for_patience_is_waited_out() {
    let identity = Identity::new();
    let server = Server::start(&identity, &[429, 503, 201]).await;
    let (_folder, cluster) = cluster(&identity, &[&server.address]);
    cluster.send(post()).await.unwrap();
    assert_eq!(server.asked(), ["POST /things?a=b Bearer t"; 3]);
}

#[tokio::test]
async fn a_refusal_is_told_in_the_servers_words() {
    let identity = Identity::new();
    let server = Server::start(&identity, &[409, 404]).await;
    let (_folder, cluster) = cluster(&identity, &[&server.address]);
    let error = cluster.send(post()).await.unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.downcast_ref::<Refused>().unwrap().code),
        ("said with 409", 409)
    );
    assert_eq!(cluster.get("/thing").await.unwrap(), None);
}

#[tokio::test]
async fn what_was_never_sent_is_sent_to_the_next() {
    let identity = Identity::new();
    let (dead, server) = (nobody().await, Server::start(&identity, &[201]).await);
    let (_folder, cluster) = cluster(&identity, &[&dead, &server.address]);
    cluster.send(post()).await.unwrap();
    assert_eq!(cluster.address(), server.address, "it is asked first from now on");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn what_one_says_counts_more_than_that_others_are_away() {
    let identity = Identity::new();
    let (busy, dead) = (Server::start(&identity, &[503]).await, nobody().await);
    let (_folder, cluster) = cluster(&identity, &[&busy.address, &dead]);
    let error = cluster.ask(&post()).await.map(|response| response.status());
    assert_eq!(error.unwrap(), 503);
    let readiness = cluster.readiness().await;
    assert_eq!(readiness[0].1.as_deref().unwrap(), "{\"message\":\"said with 503\"}");
    assert!(readiness[1].1.is_err() && readiness[1].0 == dead);
}

#[tokio::test]
async fn one_that_takes_connections_and_never_answers_is_passed_over() {
    let identity = Identity::new();
    // As a process that is stopped: the kernel takes its connections.
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = frozen.local_addr().unwrap().to_string();
    let server = Server::start(&identity, &[200]).await;
    let (_folder, cluster) = cluster(&identity, &[&address, &server.address]);
    let began = Instant::now();
    cluster.send(post()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(cluster.readiness().await[0].1.is_err());
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again() {
    let identity = Identity::new();
    let (broken, whole) = (Server::start(&identity, &[0]).await, Server::start(&identity, &[200]).await);
    let (_folder, cluster) = cluster(&identity, &[&broken.address, &whole.address]);
    let said = format!("{:#}", cluster.send(post()).await.unwrap_err());
    let expected = format!("the cluster at {} does not answer: is it running?", broken.address);
    assert!(said.starts_with(&expected), "{said}");
    assert_eq!((broken.asked().len(), whole.asked().len()), (1, 0));
    cluster.get("/things").await.unwrap();
    assert_eq!(whole.asked(), ["GET /things Bearer t"], "what changes nothing is asked of the next");
}

#[tokio::test]
async fn a_server_of_another_ca_is_told_apart_from_one_that_is_away() {
    let (identity, other) = (Identity::new(), Identity::new());
    let server = Server::start(&other, &[200]).await;
    let (_folder, cluster) = cluster(&identity, &[&server.address]);
    let said = format!("{:#}", cluster.send(post()).await.unwrap_err());
    assert!(said.contains("is not of the CA that") && said.contains("it is another cluster"), "{said}");
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn administration_is_not_done_as_somebody_else_nor_below_a_path() {
    let identity = Identity::new();
    let folder = tempfile::tempdir().unwrap();
    for (name, pem) in [("own.pem", &identity.pem), ("own.key", &identity.key_pem)] {
        std::fs::write(folder.path().join(name), pem).unwrap();
    }
    let said = async |server: &str, more: Value| {
        let mut user = serde_json::json!({ "client-certificate": "own.pem", "client-key": "own.key" });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = serde_json::json!({
            "current-context": "c",
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
            "clusters": [{ "name": "k", "cluster": { "server": server, "certificate-authority": "own.pem" } }],
            "users": [{ "name": "u", "user": user }],
        });
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        let cluster = Cluster::open(&file, None).unwrap();
        let asked = cluster.call(|_| async { Ok(Response::new(())) }).await;
        asked.map_or_else(|error| error.to_string(), |()| "done".to_owned())
    };
    let (plain, own) = ("https://127.0.0.1:1", serde_json::json!({}));
    assert_eq!(said(plain, own.clone()).await, "done");
    let as_reader = said(plain, serde_json::json!({ "as": "reader" })).await;
    assert!(as_reader.contains("acts as somebody else"), "{as_reader}");
    let below = said("https://127.0.0.1:1/below", own).await;
    assert!(below.contains("has a path"), "{below}");
}

#[tokio::test]
async fn administration_asks_for_a_certificate() {
    let identity = Identity::new();
    let (_folder, cluster) = cluster(&identity, &["127.0.0.1:1"]);
    let asked = cluster.call(|_| async { Ok(Response::new(())) }).await;
    let said = asked.unwrap_err().to_string();
    assert!(
        said.starts_with("the user \"u\" of the kubeconfig ") && said.contains("client-certificate"),
        "{said}"
    );
}
