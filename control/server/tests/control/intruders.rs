//! What callers may not do: who shows no certificate, and a node whose Node is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction};
use coracle_proto::{
    join::{JoinError, JoinToken, Joined, Role, join, signing_request},
    security::{RenewCertificateRequest, security_client::SecurityClient},
    tls,
};
use coracle_server::Control;
use futures::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Bytes, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use rustls::ClientConfig;
use serde_json::json;

use crate::bench::{client, init, send, stranger, until};

/// Of one request here; a message may not be larger.
const BODY_BYTES: usize = 8 * 1024 * 1024;
const PIECE_BYTES: usize = 32 * 1024;

/// What a caller without a certificate may have on its way into a control node, with what its own side buffers.
const ON_ITS_WAY_MAX: usize = 4 * 1024 * 1024;

/// A body of one gRPC message that never ends; counts what is taken of it.
fn endless(taken: Arc<AtomicUsize>) -> impl hyper::body::Body<Data = Bytes, Error = std::io::Error> + Unpin {
    let mut head = vec![0];
    head.extend((BODY_BYTES as u32).to_be_bytes());
    let piece = Bytes::from(vec![0x41; PIECE_BYTES]);
    let pieces = stream::iter(std::iter::once(Bytes::from(head)).chain(std::iter::repeat(piece)));
    let pieces = pieces.take(BODY_BYTES / PIECE_BYTES).chain(stream::pending());
    StreamBody::new(pieces.map(move |piece| {
        taken.fetch_add(piece.len(), Relaxed);
        Ok(Frame::data(piece))
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_of_who_shows_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let config = tls::with_alpn(&stranger(&control), b"h2");
    let stream = tls::connect(&control.address(), config).await.unwrap();
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let taken = Arc::new(AtomicUsize::new(0));
    let paths = [
        ("/coracle.raft.v1.RaftTransport/Send", "16"),
        ("/coracle.node.v1.NodeLink/Link", "16"),
        ("/coracle.cluster.v1.Cluster/CreateToken", "16"),
        ("/coracle.cluster.v1.Leader/Propose", "16"),
        ("/coracle.cluster.v1.Blobs/Put", "16"),
        ("/coracle.store.v1.Store/Txn", "16"),
        ("/coracle.security.v1.Security/FetchKeys", "16"),
        ("/coracle.security.v1.Security/RenewCertificate", "16"),
        ("/coracle.cluster.v1.Cluster/Unknown", "16"),
        ("/coracle.future.v1.Future/Call", "12"),
        // It may call this one, with little to say.
        ("/coracle.cluster.v1.Join/Join", "11"),
    ];
    let ask = async |(path, code): &(&str, &str)| {
        let request = Request::post(format!("https://control{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(endless(taken.clone()))
            .unwrap();
        let answer = sender.clone().send_request(request).await.unwrap();
        let head = answer.headers().get("grpc-status").cloned();
        let trailers = answer.into_body().collect().await.ok().and_then(|body| body.trailers().cloned());
        let status = head.or_else(|| trailers?.get("grpc-status").cloned());
        let status = status.map(|status| status.to_str().unwrap().to_owned());
        // What is larger than may be joined with ends the body, whatever of tonic's codes that becomes.
        match *code {
            "11" => assert!(status.as_deref().is_some_and(|status| status != "0"), "{path}: {status:?}"),
            code => assert_eq!(status.as_deref(), Some(code), "{path}"),
        }
    };
    let asked = stream::iter(paths.iter().cycle().take(20 * paths.len())).map(ask).buffer_unordered(8);
    tokio::time::timeout(Duration::from_secs(20), asked.collect::<()>()).await.expect("refused at once");
    let taken = taken.load(Relaxed);
    assert!(taken < 220 * ON_ITS_WAY_MAX / 16, "{taken} bytes were taken");
    for path in ["/api/v1/namespaces", "/v2/app/blobs/uploads/", "/metrics"] {
        let answer = send(&control.address(), &stranger(&control), Method::POST, path, &[7; 4096]).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    control.shutdown().await;
}

fn config_of(joined: &Joined) -> ClientConfig {
    let response = &joined.response;
    tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem).unwrap()
}

async fn join_as(control: &Control, token: &JoinToken, name: &str) -> Result<Joined, JoinError> {
    join(&[control.address()], token, name, "127.0.0.1:7443").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_deleted_is_nobody_until_it_joins_again() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let token = control.create_token(Role::Node, 60).await.unwrap();
    let joined = join_as(&control, &token, "n1").await.unwrap();
    let mut kept = SecurityClient::new(tls::channel(&control.address(), config_of(&joined)));
    let (_, csr_pem) = signing_request().unwrap();
    let request = RenewCertificateRequest { csr_pem, advertise: "127.0.0.1:7443".into() };
    kept.renew_certificate(request.clone()).await.unwrap();

    let nodes: Api<Node> = Api::all(client(&control).await);
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    let gone = || async { control.storage().view().get(&ObjectKey::new("nodes", "", "n1")).is_none() };
    until("the node to be gone", gone).await;
    kept.renew_certificate(request.clone()).await.expect_err("over the connection that it has");
    let mut anew = SecurityClient::new(tls::channel(&control.address(), config_of(&joined)));
    let refused = anew.renew_certificate(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("token create"), "{refused}");
    let pull = send(&control.address(), &config_of(&joined), Method::GET, "/v2/", b"").await;
    assert_eq!(pull.status(), StatusCode::UNAUTHORIZED, "nor does it pull");

    let again = join_as(&control, &token, "n1").await.expect("the name is new");
    let mut again = SecurityClient::new(tls::channel(&control.address(), config_of(&again)));
    again.renew_certificate(request.clone()).await.unwrap();
    anew.renew_certificate(request).await.expect_err("the first certificate is of another Node");
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_takes_the_name_of_a_node_only_where_it_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let shared = control.create_token(Role::Node, 60).await.unwrap();
    let nodes: Api<Node> = Api::all(client(&control).await);
    for name in ["linked-once", "made-by-hand"] {
        let node = json!({ "metadata": { "name": name } });
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let refused = join_as(&control, &shared, name).await.err().expect("a node has this name");
        assert!(refused.to_string().contains(&format!("token create --node {name}")), "{refused}");
    }
    let named = control.create_node_token("linked-once", 60).await.unwrap();
    let refused = join_as(&control, &named, "another").await.err().expect("it names one node");
    assert!(matches!(&refused, JoinError::Token { message } if message.contains("alone")), "{refused}");
    let joined = join_as(&control, &named, "linked-once").await.expect("it names the node");
    let mut security = SecurityClient::new(tls::channel(&control.address(), config_of(&joined)));
    let (_, csr_pem) = signing_request().unwrap();
    let request = RenewCertificateRequest { csr_pem, advertise: String::new() };
    security.renew_certificate(request.clone()).await.unwrap();
    join_as(&control, &shared, "linked-once").await.err().expect("it is still a node that there is");

    // A joiner whose answer was lost comes again; what was given out first is of nobody.
    let lost = join_as(&control, &shared, "fresh").await.unwrap();
    join_as(&control, &shared, "fresh").await.unwrap();
    let mut lost = SecurityClient::new(tls::channel(&control.address(), config_of(&lost)));
    lost.renew_certificate(request).await.expect_err("another has joined under the name");

    // Who has the name is sent what the pods of it use.
    let pod = json!({
        "metadata": { "name": "p", "namespace": "default", "uid": "u" },
        "spec": { "nodeName": "former", "containers": [{ "name": "c", "image": "i" }] },
    });
    let made = Transaction::create(ObjectKey::new("pods", "default", "p"), pod.to_string().into());
    control.storage().propose(made).await.unwrap().unwrap();
    let refused = join_as(&control, &shared, "former").await.err().expect("pods are bound to it");
    assert!(refused.to_string().contains("pods of a former node"), "{refused}");
    control.shutdown().await;
}
