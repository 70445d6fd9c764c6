//! The page of a node: to whom it is served, and where.

use super::cluster::{Cluster, address};
use crate::{Page, Verdict};
use rustls_pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The page of the node `a`, and how often it was written.
async fn serve(cluster: &Cluster) -> (SocketAddr, Arc<AtomicUsize>) {
    let written = Arc::<AtomicUsize>::default();
    let count = written.clone();
    let page = Page {
        tls: cluster.authority.node("a").server,
        judge: Box::new(|token| {
            Box::pin(async move {
                match token.as_str() {
                    "reader" => Verdict::Allowed,
                    "pusher" => Verdict::Forbidden,
                    "lost" => Verdict::Unanswered,
                    _ => Verdict::Unknown,
                }
            })
        }),
        write: Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { "figures".to_owned() })
        }),
    };
    (cluster.a.serve_page(address("127.0.0.1:0"), page).await.unwrap(), written)
}

/// What is answered to `request` with this `Authorization`, over a connection of its own.
async fn ask(cluster: &Cluster, at: SocketAddr, request: &str, authorization: &str) -> String {
    let connector = TlsConnector::from(cluster.authority.node("b").client.load_full());
    let stream = TcpStream::connect(at).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("a").unwrap(), stream).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nhost: h\r\n{authorization}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_page_is_served_where_it_was_asked_for() {
    let cluster = Cluster::new().await;
    let (at, _) = serve(&cluster).await;
    let reader = "authorization: bearer reader\r\n";
    let answer = ask(&cluster, at, "GET /metrics", reader).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("figures"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(ask(&cluster, at, "POST /metrics", reader).await.starts_with("HTTP/1.1 405"));
    assert!(ask(&cluster, at, "GET /", reader).await.starts_with("HTTP/1.1 404"));
    cluster.a.shutdown();
    while TcpStream::connect(at).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn without_the_judges_consent_nothing_is_served() {
    let cluster = Cluster::new().await;
    let (at, written) = serve(&cluster).await;
    for (authorization, status, told) in [
        ("", 401, "www-authenticate: Bearer\r\n"),
        ("authorization: Basic cmVhZGVyOg==\r\n", 401, "www-authenticate: Bearer\r\n"),
        ("authorization: Bearer \r\n", 401, "www-authenticate: Bearer\r\n"),
        ("authorization: Bearer other\r\n", 401, "www-authenticate: Bearer error=\"invalid_token\"\r\n"),
        (
            "authorization: Bearer pusher\r\n",
            403,
            "www-authenticate: Bearer error=\"insufficient_scope\"\r\n",
        ),
        ("authorization: Bearer lost\r\n", 503, "retry-after: 1\r\n"),
    ] {
        for request in ["GET /metrics", "GET /", "POST /metrics"] {
            let answer = ask(&cluster, at, request, authorization).await;
            let is_refused = answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(told);
            assert!(is_refused, "{request} with {authorization:?}: {answer}");
        }
    }
    let mut plain = TcpStream::connect(at).await.unwrap();
    let asked = b"GET /metrics HTTP/1.1\r\nhost: h\r\nauthorization: Bearer reader\r\n\r\n";
    plain.write_all(asked).await.unwrap();
    let mut answer = Vec::new();
    // It may be told by a reset.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "in clear nothing is said");
    assert_eq!(written.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_come_to_tls_is_given_up() {
    let cluster = Cluster::new().await;
    let (at, _) = serve(&cluster).await;
    let mut silent = TcpStream::connect(at).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut [0])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
}
