//! Clients that ask and do not read.

use std::io::ErrorKind;

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction};
use coracle_proto::tls;
use futures::{StreamExt, future::join_all, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;

use crate::bench::{admin, init, send, until};

/// Answers of one user that may be under way.
const SHARE: usize = 200;
/// Handshakes at a time.
const HANDSHAKES: usize = 8;

const LIST: &str = "/api/v1/namespaces/default/configmaps";
const ONE: &str = "/api/v1/namespaces/default";

/// A list of 8 MB: more than the sockets of a connection hold.
async fn fill(control: &coracle_server::Control) {
    for at in 0..8 {
        let name = format!("large-{at}");
        let text = "x".repeat(1_000_000);
        let draft =
            format!(r#"{{"metadata":{{"name":"{name}","namespace":"default"}},"data":{{"x":"{text}"}}}}"#);
        let key = ObjectKey::new("configmaps", "default", &name);
        control.storage().propose(Transaction::create(key, draft.into())).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_read_keep_their_users_turns_until_they_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    fill(&control).await;
    let (address, config) = (control.address(), admin(&control));
    let open = || async {
        // On a busy machine so many handshakes take their time.
        let mut stream = loop {
            match tls::connect(&address, config.clone().into()).await {
                Ok(stream) => break stream,
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) => panic!("{error}"),
            }
        };
        let request = format!("GET {LIST} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let unread: Vec<_> = stream::iter(0..SHARE).map(|_| open()).buffered(HANDSHAKES).collect().await;
    let status = || async { send(&address, &config, Method::GET, ONE, b"").await.status() };
    until("the user's turns to be taken", || async { status().await == StatusCode::TOO_MANY_REQUESTS }).await;
    until("connections to be ended", || async { status().await == StatusCode::OK }).await;
    drop(unread);
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_holds_no_other_of_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    fill(&control).await;
    let (address, config) = (control.address(), admin(&control));
    let stream = tls::connect(&address, tls::with_alpn(&config, b"h2")).await.unwrap();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_connection_window_size(64 * 1024 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let get = |path: &str| {
        let uri = format!("https://{address}{path}");
        sender.clone().send_request(Request::get(uri).body(Empty::<Bytes>::new()).unwrap())
    };
    let mut unread = join_all((0..20).map(|_| get(LIST))).await;
    let one = get(ONE).await.unwrap();
    assert_eq!(one.status(), StatusCode::OK);
    assert!(!one.into_body().collect().await.unwrap().to_bytes().is_empty());
    let late = unread.pop().unwrap().unwrap();
    assert_eq!(late.status(), StatusCode::OK);
    let list: serde_json::Value =
        serde_json::from_slice(&late.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert!(list["items"].as_array().unwrap().len() >= 8);
    drop(unread);
    control.shutdown().await;
}
