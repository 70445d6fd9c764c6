//! The question whether a token may read metrics, put to control nodes in the token's name: to them it is a review that a user
//! asks for itself, so that one authorizer decides, there as here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coracle_fabric::Verdict;
use coracle_proto::tls::{self, ClientTls};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Until a control node must have answered, the connection included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest answer that is read, in bytes: the review that was sent, and some words.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whom to ask, and how.
#[derive(Clone)]
pub struct Controls {
    /// `host:port`.
    pub addresses: Arc<RwLock<Vec<String>>>,
    /// Without the node's certificate, which would speak for the node.
    pub tls: ClientTls,
}

impl Controls {
    /// Asks one control node after the other. That nobody has the token counts once all have said so: one may lag behind.
    pub async fn ask(&self, token: &str) -> Verdict {
        let addresses = self.addresses.read().clone();
        let mut said = Verdict::Unanswered;
        for address in &addresses {
            match timeout(ANSWER_TIMEOUT, self.ask_one(address, token)).await {
                Ok(Ok(Verdict::Unanswered)) => tracing::debug!(address, "a review of a token was not made"),
                Ok(Ok(Verdict::Unknown)) => said = Verdict::Unknown,
                Ok(Ok(verdict)) => return verdict,
                Ok(Err(error)) => tracing::debug!(address, %error, "a review of a token failed"),
                Err(_) => tracing::debug!(address, "a review of a token was not made in time"),
            }
        }
        said
    }

    async fn ask_one(&self, address: &str, token: &str) -> Result<Verdict, BoxError> {
        let request = request(address, token)?;
        let stream = tls::connect(address, tls::with_alpn(&self.tls.get(), b"http/1.1")).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?;
        Ok(verdict(status, &body.to_bytes()))
    }
}

fn request(address: &str, token: &str) -> Result<Request<Full<Bytes>>, BoxError> {
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
    bearer.set_sensitive(true);
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "nonResourceAttributes": { "path": "/metrics", "verb": "get" } },
    });
    Ok(Request::post(PATH)
        .header(HOST, address)
        .header(AUTHORIZATION, bearer)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(review.to_string().into()))?)
}

/// What an answer means.
fn verdict(status: StatusCode, body: &[u8]) -> Verdict {
    let allowed = || serde_json::from_slice::<Value>(body).ok()?.pointer("/status/allowed")?.as_bool();
    match status {
        StatusCode::UNAUTHORIZED => Verdict::Unknown,
        StatusCode::FORBIDDEN => Verdict::Forbidden,
        status if status.is_success() => match allowed() {
            Some(true) => Verdict::Allowed,
            Some(false) => Verdict::Forbidden,
            None => Verdict::Unanswered,
        },
        _ => Verdict::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::atomic::AtomicUsize, sync::atomic::Ordering::SeqCst};

    use hyper::{Response, body::Incoming, server::conn::http1 as server, service::service_fn};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[test]
    fn an_answer_is_what_it_says_of_the_token() {
        let review = |allowed: &str| format!(r#"{{"kind":"x","status":{{"allowed":{allowed}}}}}"#);
        for (status, body, expected) in [
            (201, review("true"), Verdict::Allowed),
            (201, review("false"), Verdict::Forbidden),
            (201, review("1"), Verdict::Unanswered),
            (200, "a proxy's greeting".to_owned(), Verdict::Unanswered),
            (401, review("true"), Verdict::Unknown),
            (403, String::new(), Verdict::Forbidden),
            (404, review("true"), Verdict::Unanswered),
            (429, String::new(), Verdict::Unanswered),
            (503, String::new(), Verdict::Unanswered),
        ] {
            let found = verdict(StatusCode::from_u16(status).unwrap(), body.as_bytes());
            assert_eq!(found, expected, "{status} {body}");
        }
    }

    struct Control {
        address: String,
        asked: Arc<AtomicUsize>,
    }

    /// Answers what a control node would that knows `reader`, and `late` where it does not lag behind.
    async fn control(pem: &(String, String), lags: bool) -> Control {
        let (certificate, key) = pem;
        let config = tls::server_config(certificate, key, &[certificate], false).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::<AtomicUsize>::default();
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                count.fetch_add(1, SeqCst);
                let answer = service_fn(move |request: Request<Incoming>| async move {
                    let path = request.uri().path() == PATH;
                    let token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
                    let known = token == "Bearer reader" || (token == "Bearer late" && !lags);
                    let review = request.into_body().collect().await.unwrap().to_bytes();
                    let review: Value = serde_json::from_slice(&review).unwrap();
                    let asked = review["spec"]["nonResourceAttributes"]["path"] == "/metrics";
                    let answer = json!({ "status": { "allowed": path && asked } }).to_string();
                    let answer = Response::builder().status(if known { 201 } else { 401 }).body(answer);
                    Ok::<_, Infallible>(answer.unwrap())
                });
                tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Control { address, asked }
    }

    #[tokio::test]
    async fn control_nodes_are_asked_in_turn() {
        let made = rcgen::generate_simple_self_signed(vec![tls::SERVER_NAME.to_owned()]).unwrap();
        let pem = (made.cert.pem(), made.signing_key.serialize_pem());
        let (lagging, other) = (control(&pem, true).await, control(&pem, false).await);
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let addresses = vec![gone.clone(), lagging.address, other.address];
        let tls: ClientTls = tls::anonymous_client_config(&pem.0).unwrap().into();
        let controls = Controls { addresses: Arc::new(RwLock::new(addresses)), tls };
        for (token, expected, asked) in [
            ("reader", Verdict::Allowed, (1, 0)),
            ("late", Verdict::Allowed, (2, 1)),
            ("nobody's", Verdict::Unknown, (3, 2)),
            ("no\nheader", Verdict::Unanswered, (3, 2)),
        ] {
            assert_eq!(controls.ask(token).await, expected, "{token}");
            assert_eq!((lagging.asked.load(SeqCst), other.asked.load(SeqCst)), asked, "{token}");
        }
        *controls.addresses.write() = vec![gone];
        assert_eq!(controls.ask("reader").await, Verdict::Unanswered);
    }
}
