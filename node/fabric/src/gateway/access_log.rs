//! A line of JSON for each request that the gateway has answered, where somebody wants it.
//!
//! A request's line is written when its answer has ended, by a thread of its own: a disk that is slow or full holds nobody up,
//! and lines that there is no room for are counted. What stands behind `?` in a path may be a secret, and is left out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use coracle_proto::metrics::{Counter, Text};
use coracle_wasi_host::net::{BoxError, HttpBody, RequestId};
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use jiff::Timestamp;
use serde::Serialize;

use super::headers::host_of;
use crate::tables::Service;

/// Lines that wait to be written. More are dropped, and counted.
const LINES_WAITING_MAX: usize = 8192;
/// Bytes of a host, path, user agent or id that are kept.
const TEXT_BYTES_MAX: usize = 1024;
/// Lines are written together where they come together, after so many bytes in any case.
const WRITE_BYTES: usize = 64 * 1024;
/// How often it is looked whether the file was moved away, by what rotates it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the lines go, and of which requests. Clones write to the same.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
    /// The part of the requests that have lines, 0 to 1. Those that the gateway or an endpoint failed at all have.
    sample: f64,
}

#[derive(Debug, Default)]
struct Counts {
    taken: Counter,
    dropped: Counter,
}

impl AccessLog {
    /// Opens the file, to be written at its end (0600 where it is made), and starts the thread that writes; `-` is standard
    /// output.
    pub fn open(path: &Path, sample: f64) -> io::Result<AccessLog> {
        let output = if path == Path::new("-") { Output::Stdout } else { Output::file(path)? };
        let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
        thread::Builder::new().name("access log".into()).spawn(move || write_all(output, &waiting))?;
        Ok(AccessLog { lines, counts: Arc::default(), sample })
    }

    /// Takes note of a request that has come.
    pub(super) fn begin(&self, peer: SocketAddr, request: &Request<HttpBody>) -> Line {
        let text = |name: &str| Some(cut(request.headers().get(name)?.to_str().ok()?));
        Line {
            log: self.clone(),
            begun: Instant::now(),
            is_sampled: self.sample >= 1.0 || rand::random::<f64>() < self.sample,
            bytes: 0,
            record: Record {
                time: Timestamp::now(),
                client: peer.ip(),
                method: cut(request.method().as_str()),
                host: host_of(request).map(|host| cut(without_user(&host))),
                path: cut(request.uri().path()),
                protocol: protocol(request.version()),
                user_agent: text(header::USER_AGENT.as_str()),
                request_id: RequestId::given(request.headers()).map(|id| id.to_string()),
                trace_id: text("traceparent").and_then(|parent| trace_id(&parent)),
                ..Record::default()
            },
        }
    }

    /// What has become of the lines.
    pub(crate) fn write(&self, text: &mut Text) {
        let help = "Lines of the access log, by whether there was room for them.";
        let mut family = text.counter("coracle_gateway_access_log_lines_total", help);
        family.with(&[("outcome", "taken")], self.counts.taken.get());
        family.with(&[("outcome", "dropped")], self.counts.dropped.get());
    }
}

/// A request under way. Its line is written when this is dropped.
pub(super) struct Line {
    log: AccessLog,
    begun: Instant,
    is_sampled: bool,
    bytes: u64,
    record: Record,
}

/// What a line says; times in milliseconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    time: Timestamp,
    client: IpAddr,
    method: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    path: String,
    protocol: &'static str,
    status: u16,
    /// Until the answer began.
    head_millis: f64,
    total_millis: f64,
    /// Of the answer's body, as far as it was taken.
    bytes: u64,
    /// Whether it has come to its end.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl Default for Record {
    fn default() -> Self {
        Record {
            time: Timestamp::UNIX_EPOCH,
            client: IpAddr::from([0, 0, 0, 0]),
            method: String::new(),
            host: None,
            path: String::new(),
            protocol: "",
            status: 0,
            head_millis: 0.0,
            total_millis: 0.0,
            bytes: 0,
            complete: false,
            service: None,
            user_agent: None,
            request_id: None,
            trace_id: None,
        }
    }
}

/// Who was asked, and for whom, as an answer tells of it.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) client: IpAddr,
    pub(super) service: Arc<Service>,
}

impl Line {
    /// The answer, which is followed to its end.
    pub(super) fn answered(mut self, mut response: Response<HttpBody>) -> Response<HttpBody> {
        self.record.status = response.status().as_u16();
        self.record.head_millis = millis(self.begun.elapsed());
        if let Some(Asked { client, service }) = response.extensions_mut().remove() {
            self.record.client = client;
            self.record.service = Some(service.full_name());
        }
        // What is wrong has an id that the log of a pod or of the node has too.
        let id = RequestId::given(response.headers()).map(|id| id.to_string());
        self.record.request_id = id.or(self.record.request_id.take());
        // What becomes of an upgraded connection is not the answer's.
        let is_whole =
            response.body().is_end_stream() || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        self.record.complete = is_whole;
        if is_whole {
            return response;
        }
        response.map(|body| Followed { body, line: self }.boxed_unsync())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // One without a status was given up by its client.
        if !self.is_sampled && (1..500).contains(&self.record.status) {
            return;
        }
        self.record.bytes = self.bytes;
        self.record.total_millis = millis(self.begun.elapsed());
        let Ok(mut line) = serde_json::to_vec(&self.record) else { return };
        line.push(b'\n');
        let counts = &self.log.counts;
        match self.log.lines.try_send(line) {
            Ok(()) => counts.taken.add(1),
            Err(_) => counts.dropped.add(1),
        }
    }
}

/// A body whose end is told.
struct Followed {
    body: HttpBody,
    line: Line,
}

impl Body for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = polled.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.line.bytes += data.len() as u64;
        }
        let is_last = self.body.is_end_stream() && !matches!(polled, Some(Err(_)));
        self.line.record.complete |= polled.is_none() || is_last;
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// A host without the name and the password that may stand before it.
fn without_user(host: &str) -> &str {
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

/// The second part of a `traceparent` (W3C Trace Context, 3.2): 32 digits.
fn trace_id(parent: &str) -> Option<String> {
    let id = parent.split('-').nth(1)?;
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

enum Output {
    Stdout,
    File { file: File, path: PathBuf, looked: Instant },
}

impl Output {
    fn file(path: &Path) -> io::Result<Output> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Output::File { file, path: path.to_owned(), looked: Instant::now() })
    }

    /// Opens the file anew where another is there by its name, or none.
    fn look(&mut self) {
        let Output::File { file, path, looked } = self else { return };
        if looked.elapsed() < LOOK_EVERY {
            return;
        }
        *looked = Instant::now();
        let at = |found: &std::fs::Metadata| (found.dev(), found.ino());
        let is_there = std::fs::metadata(&*path).ok().zip(file.metadata().ok());
        if is_there.is_none_or(|(named, open)| at(&named) != at(&open))
            && let Ok(new) = Output::file(path)
        {
            *self = new;
        }
    }

    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Output::File { file, .. } => file.write_all(lines),
        }
    }
}

/// Writes lines until nobody sends any more. What cannot be written is lost, and told once until it works again.
fn write_all(mut output: Output, lines: &Receiver<Vec<u8>>) {
    let mut has_failed = false;
    loop {
        let mut some = match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                output.look();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while some.len() < WRITE_BYTES
            && let Ok(line) = lines.try_recv()
        {
            some.extend_from_slice(&line);
        }
        output.look();
        if has_failed {
            // What failed may have left a part of a line.
            some.insert(0, b'\n');
        }
        let written = output.put(&some);
        if let Err(error) = &written
            && !has_failed
        {
            tracing::warn!(%error, "lines of the access log are lost");
        }
        has_failed = written.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use coracle_wasi_host::net::empty_body;
    use http_body_util::Full;

    fn body(text: &'static str) -> HttpBody {
        Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
    }

    fn lines(path: &Path, count: usize) -> Vec<serde_json::Value> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= count || begun.elapsed() > Duration::from_secs(20) {
                return text
                    .lines()
                    .map(|line| serde_json::from_str(line).expect("a line of JSON"))
                    .collect();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn begun(log: &AccessLog, path: &str) -> Line {
        let request = Request::builder()
            .uri(path)
            .header("host", "a.example")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        log.begin(
            "192.0.2.1:4000".parse().expect("an address"),
            &request.body(empty_body()).expect("a request"),
        )
    }

    async fn taken(response: Response<HttpBody>) {
        response.into_body().collect().await.expect("whole");
    }

    #[tokio::test]
    async fn a_line_tells_of_a_request_and_its_answer_and_of_no_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let log = AccessLog::open(&path, 1.0).expect("opened");
        taken(begun(&log, "/door?token=secret").answered(Response::new(body("words")))).await;
        // One that is given up is not complete.
        drop(begun(&log, "/cut").answered(Response::new(body("words"))));
        let mut failed = Response::new(empty_body());
        *failed.status_mut() = StatusCode::BAD_GATEWAY;
        failed.headers_mut().insert("x-request-id", "own".parse().expect("a value"));
        taken(begun(&log, "/bad").answered(failed)).await;
        let lines = lines(&path, 3);
        let [first, cut, bad] = &lines[..] else { panic!("{lines:?}") };
        for (field, value) in [
            ("client", "192.0.2.1"),
            ("method", "GET"),
            ("host", "a.example"),
            ("path", "/door"),
            ("protocol", "HTTP/1.1"),
            ("traceId", "0af7651916cd43dd8448eb211c80319c"),
        ] {
            assert_eq!(first[field], value, "{first}");
        }
        assert_eq!(
            (&first["status"], &first["bytes"], &first["complete"]),
            (&200.into(), &5.into(), &true.into())
        );
        assert_eq!((&cut["path"], &cut["complete"]), (&"/cut".into(), &false.into()));
        assert_eq!((&bad["status"], &bad["requestId"]), (&502.into(), &"own".into()));
        assert!(!std::fs::read_to_string(&path).expect("readable").contains("secret"));
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn of_a_part_those_that_fail_are_told_and_a_file_that_is_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let log = AccessLog::open(&path, 0.0).expect("opened");
        taken(begun(&log, "/good").answered(Response::new(body("words")))).await;
        let failed = || {
            let mut failed = Response::new(body("no"));
            *failed.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            failed
        };
        taken(begun(&log, "/bad").answered(failed())).await;
        assert_eq!(lines(&path, 1)[0]["path"], "/bad");
        let moved = dir.path().join("log.1");
        std::fs::rename(&path, &moved).expect("moved");
        thread::sleep(LOOK_EVERY * 2);
        taken(begun(&log, "/later").answered(failed())).await;
        let later = lines(&path, 1);
        assert_eq!((later.len(), &later[0]["path"]), (1, &"/later".into()));
        assert_eq!(lines(&moved, 1).len(), 1);
    }

    #[test]
    fn ids_of_traces_are_of_their_form() {
        assert_eq!(trace_id("00-x-y-01"), None);
        assert_eq!(trace_id(""), None);
        assert_eq!(cut(&"ä".repeat(600)).len(), TEXT_BYTES_MAX);
        assert_eq!(without_user("u:pw@a.example:80"), "a.example:80");
    }
}
