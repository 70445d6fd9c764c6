//! Makes the checks of probes: HTTP, HTTPS and TCP, straight into the pod's network.

mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use coracle_core::{probe::ProbeCheck, spec::HttpHeader};
use http_body_util::Empty;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;

use crate::runtime::{Dialed, Reply};

/// What probes say they are, followed by the version. Source: kubelet's is `kube-probe/<major>.<minor>`.
const USER_AGENT: &str = "kube-probe/1.33";

/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Makes one check of the pod that has this address. The text says what was wrong, as kubelet would.
pub async fn check(
    dial: impl Fn(SocketAddr) -> Reply<Result<Dialed, String>>,
    ip: IpAddr,
    check: &ProbeCheck,
    timeout: Duration,
) -> Result<(), String> {
    let attempt = async {
        match check {
            ProbeCheck::Impossible(reason) => Err(reason.clone()),
            ProbeCheck::Tcp { port } => {
                let to = SocketAddr::new(ip, *port);
                dial(to).await.map(drop).map_err(|error| format!("dial tcp {to}: connect: {error}"))
            }
            ProbeCheck::Http { port, tls, path, headers } => {
                let to = SocketAddr::new(ip, *port);
                get(dial(to), to, *tls, (path.as_str(), headers.as_slice())).await
            }
        }
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {timeout:?} (context deadline exceeded)")),
    }
}

/// 200 to 399 is success. Source: kubelet `DoHTTPProbe`.
async fn get(
    dialed: Reply<Result<Dialed, String>>,
    to: SocketAddr,
    by_tls: bool,
    (path, headers): (&str, &[HttpHeader]),
) -> Result<(), String> {
    let scheme = if by_tls { "https" } else { "http" };
    let url = format!("{scheme}://{to}{path}");
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let conn = dialed.await.map_err(|error| failed(&format_args!("dial tcp {to}: connect: {error}")))?;
    let conn = if by_tls { tls::connect(conn, to.ip()).await.map_err(|error| failed(&error))? } else { conn };
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(conn));
    let (mut sender, connection) = handshake.await.map_err(|error| failed(&error))?;
    let mut request = Request::get(path);
    for (name, value) in sent(headers, &to.to_string()) {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let (mut answer, mut connection) =
        (std::pin::pin!(sender.send_request(request)), std::pin::pin!(connection));
    let answered = tokio::select! {
        biased;
        answered = &mut answer => answered,
        ended = &mut connection => match ended {
            Err(error) => return Err(failed(&error)),
            // The answer was the last that came over it.
            Ok(()) => answer.await,
        },
    };
    let status = answered.map_err(|error| failed(&error))?.status();
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

/// The headers of a request: those of the probe, and what is sent where it names none of its own. Source: kubelet
/// `newProbeRequest`: an empty `Accept` or `User-Agent` is none, an empty `Host` is the default, and of several the first counts.
fn sent<'a>(own: &'a [HttpHeader], address: &'a str) -> Vec<(&'a str, &'a str)> {
    let named = |name: &str| own.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let host = named("host").map(|header| header.value.as_str()).filter(|host| !host.is_empty());
    let mut sent = vec![("host", host.unwrap_or(address))];
    let defaults = [("accept", "*/*"), ("connection", "close"), ("user-agent", USER_AGENT)];
    sent.extend(defaults.into_iter().filter(|&(name, _)| named(name).is_none()));
    let own = own.iter().filter(|header| {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        !is("host") && !(header.value.is_empty() && (is("accept") || is("user-agent")))
    });
    sent.extend(own.map(|header| (header.name.as_str(), header.value.as_str())));
    sent
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_wasi_host::net::{Isolated, Namespace, NamespaceConfig, NetLimits};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::runtime::in_process;

    fn namespace() -> Namespace {
        namespace_within(NetLimits::default())
    }

    fn namespace_within(limits: NetLimits) -> Namespace {
        let config = NamespaceConfig {
            hostname: "p".into(),
            tenant: "default".into(),
            addresses: vec!["10.128.0.2".parse().unwrap()],
            limits,
        };
        Namespace::new(config, Arc::new(Isolated))
    }

    fn http(path: &str) -> ProbeCheck {
        ProbeCheck::Http { port: 80, tls: false, path: path.into(), headers: vec![] }
    }

    fn https(path: &str) -> ProbeCheck {
        ProbeCheck::Http { port: 80, tls: true, path: path.into(), headers: vec![] }
    }

    async fn run(namespace: &Namespace, what: &ProbeCheck) -> Result<(), String> {
        let dial = |to| -> Reply<Result<Dialed, String>> {
            let namespace = namespace.clone();
            Box::pin(async move { in_process::dial(&namespace, "10.128.0.1:1".parse().unwrap(), to).await })
        };
        check(dial, "10.128.0.2".parse().unwrap(), what, Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn answers_decide_over_http_probes() {
        let namespace = namespace();
        let refused = run(&namespace, &http("/")).await.unwrap_err();
        assert_eq!(
            refused,
            "Get \"http://10.128.0.2:80/\": dial tcp 10.128.0.2:80: connect: connection refused"
        );
        let listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut conn, peer) = listener.accept().await.unwrap();
                assert_eq!(peer.ip().to_string(), "10.128.0.1");
                let mut buffer = [0; 1024];
                let read = conn.read(&mut buffer).await.unwrap();
                let status = if buffer[..read].starts_with(b"GET /good ") { "204 No" } else { "503 Un" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                conn.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        assert_eq!(run(&namespace, &http("/good")).await, Ok(()));
        assert_eq!(
            run(&namespace, &http("/bad")).await,
            Err("HTTP probe failed with statuscode: 503".into())
        );
        server.await.unwrap();
    }

    #[test]
    fn a_probes_own_headers_replace_the_defaults() {
        let own = |headers: &[(&str, &str)]| -> Vec<HttpHeader> {
            let header =
                |(name, value): &(&str, &str)| HttpHeader { name: (*name).into(), value: (*value).into() };
            headers.iter().map(header).collect()
        };
        let defaults =
            [("host", "a:80"), ("accept", "*/*"), ("connection", "close"), ("user-agent", USER_AGENT)];
        assert_eq!(sent(&[], "a:80"), defaults);
        let all = own(&[
            ("HOST", "b"),
            ("Accept", "text/html"),
            ("Connection", "keep-alive"),
            ("User-Agent", "me"),
            ("X-A", "1"),
            ("X-A", "2"),
        ]);
        let sent_then = [
            ("host", "b"),
            ("Accept", "text/html"),
            ("Connection", "keep-alive"),
            ("User-Agent", "me"),
            ("X-A", "1"),
            ("X-A", "2"),
        ];
        assert_eq!(sent(&all, "a:80"), sent_then);
        let empty = own(&[("Accept", ""), ("user-agent", ""), ("Host", ""), ("X-A", "")]);
        assert_eq!(sent(&empty, "a:80"), [("host", "a:80"), ("connection", "close"), ("X-A", "")]);
    }

    #[tokio::test]
    async fn a_probes_own_accept_is_the_only_one_that_is_sent() {
        let namespace = namespace();
        let listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        let server = tokio::spawn(async move {
            let (mut conn, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let read = conn.read(&mut buffer).await.unwrap();
            conn.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&buffer[..read]).to_lowercase()
        });
        let headers = vec![HttpHeader { name: "Accept".into(), value: "text/html".into() }];
        let probe = ProbeCheck::Http { port: 80, tls: false, path: "/".into(), headers };
        assert_eq!(run(&namespace, &probe).await, Ok(()));
        let asked = server.await.unwrap();
        assert_eq!(asked.matches("accept:").count(), 1, "{asked}");
        assert!(asked.contains("accept: text/html\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn https_probes_speak_tls_and_verify_no_certificate() {
        let namespace = namespace();
        let listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        let acceptor = tls::tests::acceptor();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (conn, _) = listener.accept().await.unwrap();
                let mut conn = acceptor.accept(conn).await.unwrap();
                let mut buffer = [0; 1024];
                let read = conn.read(&mut buffer).await.unwrap();
                let status = if buffer[..read].starts_with(b"GET /good ") { "204 No" } else { "503 Un" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                conn.write_all(answer.as_bytes()).await.unwrap();
                conn.shutdown().await.unwrap();
            }
            let (mut conn, _) = listener.accept().await.unwrap();
            conn.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        assert_eq!(run(&namespace, &https("/good")).await, Ok(()));
        let refused = run(&namespace, &https("/bad")).await;
        assert_eq!(refused, Err("HTTP probe failed with statuscode: 503".into()));
        let plain = run(&namespace, &https("/good")).await.unwrap_err();
        assert!(plain.starts_with("Get \"https://10.128.0.2:80/good\": "), "{plain}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_does_not_begin_with_a_small_head_fails_at_once() {
        let namespace = namespace();
        let listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        let server = tokio::spawn(async move {
            let (mut conn, _) = listener.accept().await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(2 * HEAD_BYTES_MAX));
            conn.write_all(head.as_bytes()).await.unwrap();
            conn
        });
        let failed = run(&namespace, &http("/")).await.unwrap_err();
        assert!(!failed.contains("deadline"), "{failed}");
        drop(server);
    }

    #[tokio::test]
    async fn clients_that_hold_all_sockets_of_a_pod_fail_no_probe() {
        let namespace = namespace_within(NetLimits { sockets_max: 8, ..NetLimits::default() });
        let _listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        let to = "10.128.0.2:80".parse().unwrap();
        let mut held = Vec::new();
        // The last ones are the pod's own: clients from elsewhere have not all.
        let clients = (1..=9).map(|last| SocketAddr::from(([10, 128, 9, last], 1)));
        for client in clients.chain(["10.128.0.2:1".parse().unwrap()]) {
            held.extend(std::iter::from_fn(|| namespace.deliver(client, to).ok()));
        }
        assert_eq!(held.len(), 7);
        assert_eq!(run(&namespace, &ProbeCheck::Tcp { port: 80 }).await, Ok(()));
        drop(held);
    }

    #[tokio::test]
    async fn tcp_probes_connect_and_silence_is_a_failure() {
        let namespace = namespace();
        let tcp = ProbeCheck::Tcp { port: 80 };
        assert!(run(&namespace, &tcp).await.is_err());
        let _listener = namespace.listen("0.0.0.0:80".parse().unwrap()).unwrap();
        assert_eq!(run(&namespace, &tcp).await, Ok(()));
        tokio::time::pause();
        assert!(run(&namespace, &http("/")).await.unwrap_err().contains("context deadline exceeded"));
        assert_eq!(run(&namespace, &ProbeCheck::Impossible("no".into())).await, Err("no".into()));
    }
}
