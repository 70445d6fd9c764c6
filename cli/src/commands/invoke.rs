//! `coracle invoke`: one request, or some, to what was deployed, through a gateway.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use coracle_objects::kinds::own_hosts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;

use super::{deploy::gateway, run::Ended};
use crate::{
    args::InvokeArgs,
    client::{Cluster, native_kind},
    input, output,
};

/// The most that is sent, and that is taken of an answer.
const BODY_BYTES_MAX: usize = 64 << 20;
/// How long the gateway may take to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// Until it began, and until it was whole.
    began: Duration,
    whole: Duration,
}

pub async fn run(args: &InvokeArgs) -> Result<()> {
    let body = body(args)?;
    let cluster = Cluster::find_in(&args.namespaced)?;
    let host = host(&cluster, &args.name).await?;
    let gateway = gateway(&cluster).await?;
    let begun = Instant::now();
    let mut sender =
        connect(&gateway).await.with_context(|| format!("connecting to the gateway at {gateway}"))?;
    let connected = begun.elapsed();
    let mut answers = Vec::new();
    for _ in 0..args.times {
        let request = request(args, &host, body.clone())?;
        if sender.ready().await.is_err() {
            sender =
                connect(&gateway).await.with_context(|| format!("connecting to the gateway at {gateway}"))?;
        }
        let answer = tokio::time::timeout(args.timeout, ask(&mut sender, request)).await;
        let answer = answer.with_context(|| format!("{} has not answered in time", args.name))?;
        let answer = answer.with_context(|| format!("asking {} at {gateway} for {host}", args.name))?;
        answers.push((answer.began, answer.whole));
        let is_last = answers.len() == args.times as usize;
        let has_failed = answer.status.is_client_error() || answer.status.is_server_error();
        if is_last || has_failed {
            told(args, &answer, connected, &answers)?;
            // As an exit code: 4 or 5, of the class of the status.
            return if has_failed { Err(Ended((answer.status.as_u16() / 100) as u8).into()) } else { Ok(()) };
        }
    }
    Ok(())
}

fn body(args: &InvokeArgs) -> Result<Bytes> {
    let most = BODY_BYTES_MAX as u64;
    Ok(match args.data.as_deref() {
        None => Bytes::new(),
        Some("@-") => input::stdin(most)?.into(),
        Some(file) if file.starts_with('@') => input::bytes(file[1..].as_ref(), most)?.into(),
        Some(text) => text.to_owned().into(),
    })
}

/// The host that the gateway answers for.
async fn host(cluster: &Cluster, name: &str) -> Result<String> {
    let path = native_kind("functions")?.object(&cluster.namespace, name)?;
    if let Some(function) = cluster.get(&path).await? {
        return Ok(own_hosts(&function).into_iter().next().unwrap_or_else(|| "localhost".to_owned()));
    }
    let path = native_kind("ingresses")?.object(&cluster.namespace, name)?;
    let Some(ingress) = cluster.get(&path).await? else {
        bail!(
            "there is no Function and no Ingress {name:?} in namespace {}: `coracle deploy` makes one, and `coracle get \
             functions,ingresses` lists them",
            cluster.namespace
        );
    };
    let rules = ingress["spec"]["rules"].as_array().into_iter().flatten();
    let mut hosts = rules.filter_map(|rule| rule["host"].as_str()).filter(|host| !host.starts_with('*'));
    Ok(hosts.next().unwrap_or("localhost").to_owned())
}

async fn connect(gateway: &str) -> Result<SendRequest<Full<Bytes>>> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(gateway)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end is seen by who sends.
    tokio::spawn(connection);
    Ok(sender)
}

fn request(args: &InvokeArgs, host: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    let method = match (&args.request, &args.data) {
        (Some(method), _) => method.clone(),
        (None, Some(_)) => Method::POST,
        (None, None) => Method::GET,
    };
    let mut request = Request::builder().method(method).uri(&args.path).body(Full::new(body))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(host)?);
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("coracle/", env!("CARGO_PKG_VERSION"))));
    let own: Vec<&HeaderName> = args.headers.iter().map(|(name, _)| name).collect();
    own.into_iter().for_each(|name| drop(headers.remove(name)));
    headers.extend(args.headers.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
    Ok(request)
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Result<Answer> {
    let begun = Instant::now();
    let (head, body) = sender.send_request(request).await?.into_parts();
    let began = begun.elapsed();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer breaks off: {error}"))?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body, began, whole: begun.elapsed() })
}

fn told(
    args: &InvokeArgs,
    answer: &Answer,
    connected: Duration,
    answers: &[(Duration, Duration)],
) -> Result<()> {
    if let Some(format) = args.format.output {
        return output::value(&described(answer, connected, answers), format);
    }
    if args.include {
        output::line(answer.status)?;
        for (name, value) in &answer.headers {
            output::line(format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))?;
        }
        output::line("")?;
    } else if !answer.status.is_success() {
        output::note(answer.status);
    }
    output::bytes(&answer.body)?;
    if args.timing {
        let (began, whole) = (answer.began, answer.whole);
        output::note(format!("connected {:.3?}, began {began:.3?}, whole {whole:.3?}", connected));
        if answers.len() > 1 {
            let [median, most] = spread(answers);
            output::note(format!("of {} calls: median {median:.3?}, longest {most:.3?}", answers.len()));
        }
    }
    Ok(())
}

/// The median and the longest of all answers.
fn spread(answers: &[(Duration, Duration)]) -> [Duration; 2] {
    let mut all: Vec<Duration> = answers.iter().map(|(_, whole)| *whole).collect();
    all.sort_unstable();
    [all.get(all.len() / 2), all.last()].map(|one| one.copied().unwrap_or_default())
}

/// For programs: what is no text is in base64. Times are in milliseconds.
fn described(answer: &Answer, connected: Duration, answers: &[(Duration, Duration)]) -> Value {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let mut headers = Map::new();
    for name in answer.headers.keys() {
        let values =
            answer.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        headers.insert(name.to_string(), values.collect::<Vec<_>>().join(", ").into());
    }
    let [median, most] = spread(answers);
    let mut described = json!({
        "status": answer.status.as_u16(),
        "headers": headers,
        "timing": {
            "connectMillis": millis(connected), "beginMillis": millis(answer.began), "totalMillis": millis(answer.whole),
            "calls": answers.len(), "medianMillis": millis(median), "longestMillis": millis(most),
        },
    });
    match std::str::from_utf8(&answer.body) {
        Ok(text) => described["body"] = text.into(),
        Err(_) => described["bodyBase64"] = BASE64_STANDARD.encode(&answer.body).into(),
    }
    described
}
