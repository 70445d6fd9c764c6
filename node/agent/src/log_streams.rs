//! Logs that somebody reads over the link.
//!
//! Errors begin with `not found: ` or `waiting: ` where the API answers them so.

use std::{collections::BTreeMap, sync::Arc};

use coracle_core::{Pod, PodState, PodUid};
use coracle_objects::log_options::LogOptions;
use coracle_proto::node::{LogChunk, LogRequest};
use coracle_wasi_host::{
    refusals::What,
    shares::{Holder, Permit, Shares},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use crate::{
    link::LinkHandle,
    logs::{Logs, Missing},
};

/// Logs that are read at the same time. A namespace has at most as many as are free.
const STREAMS_MAX: usize = 256;
/// Pieces of one log on their way to the link.
const PIECES_MAX: usize = 4;

/// The readers of this node's logs, by the leader's request number.
pub struct LogStreams {
    logs: Arc<Logs>,
    link: LinkHandle,
    /// The number of the present link: request numbers begin anew with each.
    number: u64,
    streams: BTreeMap<u64, Stream>,
    shares: Arc<Shares>,
}

struct Stream {
    task: JoinHandle<()>,
    /// Chunks that the leader has room for.
    granted: Arc<Semaphore>,
}

impl LogStreams {
    pub fn new(logs: Arc<Logs>, link: LinkHandle) -> Self {
        Self {
            logs,
            link,
            number: 0,
            streams: BTreeMap::new(),
            shares: Shares::new(What::LogReaders, STREAMS_MAX),
        }
    }

    /// What is asked for from here on is asked over this link.
    pub fn linked(&mut self, number: u64) {
        self.cancel_all();
        self.number = number;
    }

    /// Begins to send a log. `pod` is the pod where it is wanted on this node, `state` what became of it.
    pub fn serve(&mut self, request: LogRequest, pod: Option<&Pod>, state: Option<&PodState>) {
        self.forget_ended();
        let (id, link, logs) = (request.request, self.link.clone(), self.logs.clone());
        let number = self.number;
        let asked = self.check(&request, pod, state);
        // A leader of a version that grants nothing takes what comes.
        let granted = if request.chunks == 0 { Semaphore::MAX_PERMITS } else { request.chunks as usize };
        let granted = Arc::new(Semaphore::new(granted));
        let allowed = granted.clone();
        let task = tokio::spawn(async move {
            let reader = Reader { link: &link, number, request: id, granted: &allowed };
            let served = match asked {
                Ok(asked) => send(&logs, &reader, asked).await,
                Err(error) => Err(error),
            };
            let end = LogChunk {
                request: id,
                end: true,
                error: served.err().unwrap_or_default(),
                ..Default::default()
            };
            // A closed link has no reader either.
            let _ = link.send_log(number, end).await;
        });
        if let Some(old) = self.streams.insert(id, Stream { task, granted }) {
            old.task.abort();
        }
    }

    /// Lets go of what has been sent to its end.
    pub fn forget_ended(&mut self) {
        self.streams.retain(|_, stream| !stream.task.is_finished());
    }

    pub fn held(&self) -> usize {
        self.streams.len()
    }

    fn check(
        &self,
        request: &LogRequest,
        pod: Option<&Pod>,
        state: Option<&PodState>,
    ) -> Result<Asked, String> {
        let options: LogOptions = match request.options_json.is_empty() {
            true => LogOptions::default(),
            false => serde_json::from_slice(&request.options_json)
                .map_err(|error| format!("the log options cannot be read: {error}"))?,
        };
        let pod = state.map(|state| &*state.pod).or(pod);
        let pod = pod.ok_or("not found: the pod is not on this node any more")?;
        let named = [&request.container, &options.container].into_iter().find(|name| !name.is_empty());
        let container = match (named, pod.spec.containers.first()) {
            (Some(name), _) => name.clone(),
            (None, Some(first)) => first.name.clone(),
            (None, None) => return Err("the pod has no container".to_owned()),
        };
        if pod.container(&container).is_none() {
            return Err(format!(
                "not found: container {container} is not valid for pod {}",
                pod.metadata.name
            ));
        }
        let name = &pod.metadata.name;
        let waiting = waiting_for(state, &container);
        let missing = Missing {
            waiting: format!(
                "waiting: container {container:?} in pod {name:?} is waiting to start: {waiting}"
            ),
            previous: format!(
                "not found: previous terminated container {container:?} in pod {name:?} not found"
            ),
        };
        let namespace: Arc<str> = pod.metadata.namespace.as_str().into();
        let permit = self.shares.take(&Holder { namespace: namespace.clone(), pod: None });
        let permit = permit
            .map_err(|refused| format!("{refused}; close one of namespace {namespace} and try again"))?;
        Ok(Asked { namespace, uid: pod.uid().clone(), container, options, missing, _permit: permit })
    }

    /// The reader has taken chunks: so many more may be sent.
    pub fn grant(&mut self, request: u64, chunks: u32) {
        if let Some(Stream { granted, .. }) = self.streams.get(&request)
            && granted.available_permits() + (chunks as usize) < Semaphore::MAX_PERMITS
        {
            granted.add_permits(chunks as usize);
        }
    }

    pub fn cancel(&mut self, request: u64) {
        if let Some(stream) = self.streams.remove(&request) {
            stream.task.abort();
        }
    }

    pub fn cancel_all(&mut self) {
        std::mem::take(&mut self.streams).into_values().for_each(|stream| stream.task.abort());
    }
}

struct Asked {
    namespace: Arc<str>,
    uid: PodUid,
    container: String,
    options: LogOptions,
    missing: Missing,
    /// Held as long as the log is sent.
    _permit: Permit,
}

/// What a container waits for, as its status says it. Source of the words: kubelet's `validateContainerLogStatus`.
fn waiting_for(state: Option<&PodState>, container: &str) -> String {
    let reported = state.and_then(|state| state.reported.as_ref());
    let lists = ["containerStatuses", "initContainerStatuses"];
    let statuses = lists.iter().filter_map(|list| reported?.get(list)?.as_array()).flatten();
    let status = statuses.into_iter().find(|status| status["name"] == *container);
    let reason = status.and_then(|status| status["state"]["waiting"]["reason"].as_str());
    match reason.unwrap_or("ContainerCreating") {
        "ErrImagePull" => "image can't be pulled".to_owned(),
        "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
        other => other.to_owned(),
    }
}

/// Who reads a log over the link, and how much of it for now.
struct Reader<'a> {
    link: &'a LinkHandle,
    number: u64,
    request: u64,
    granted: &'a Semaphore,
}

async fn send(logs: &Logs, reader: &Reader<'_>, asked: Asked) -> Result<(), String> {
    let (out, mut pieces) = mpsc::channel(PIECES_MAX);
    let Asked { namespace, uid, container, options, missing, _permit } = asked;
    let read = logs.serve(&namespace, &uid, &container, &options, missing, out);
    let forward = async move {
        while let Some(data) = pieces.recv().await {
            // A slow reader waits here, where it holds up nobody else.
            let Ok(permit) = reader.granted.acquire().await else { return };
            permit.forget();
            let chunk = LogChunk { request: reader.request, data, ..Default::default() };
            if reader.link.send_log(reader.number, chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, forward).0
}

#[cfg(test)]
mod tests {
    use coracle_proto::node::node_up::Body;

    use super::*;

    async fn error_of(pod: Option<&Pod>, container: &str, options: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let (link, mut outgoing) = LinkHandle::new();
        let mut streams = LogStreams::new(Arc::new(Logs::start(dir.path().join("logs")).unwrap()), link);
        let (container, options_json) = (container.to_owned(), options.to_owned().into());
        streams.serve(LogRequest { request: 1, container, options_json, ..Default::default() }, pod, None);
        match outgoing.next().await.body {
            Some(Body::LogChunk(LogChunk { end: true, error, .. })) => error,
            other => panic!("no end of the log, but {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_namespace_leaves_logs_to_read_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let streams =
            LogStreams::new(Arc::new(Logs::start(dir.path().join("logs")).unwrap()), LinkHandle::new().0);
        let ask = |namespace: &str| {
            let pod = format!(
                r#"{{"metadata":{{"name":"p","namespace":"{namespace}","uid":"{namespace}"}},
                    "spec":{{"containers":[{{"name":"c","image":"i"}}]}}}}"#
            );
            streams.check(&LogRequest::default(), Some(&Pod::parse(pod.as_bytes()).unwrap()), None)
        };
        let greedy: Vec<Asked> = std::iter::from_fn(|| ask("greedy").ok()).collect();
        assert_eq!(greedy.len(), STREAMS_MAX / 2);
        let other = ask("other").map(drop);
        assert_eq!(other, Ok(()));
        drop(greedy);
        assert_eq!(streams.shares.held(), 0);
    }

    #[tokio::test]
    async fn nothing_is_left_of_the_streams_of_another_link() {
        let dir = tempfile::tempdir().unwrap();
        let (link, _outgoing) = LinkHandle::new();
        let mut streams = LogStreams::new(Arc::new(Logs::start(dir.path().join("logs")).unwrap()), link);
        for request in 0..10 {
            streams.serve(
                LogRequest { request, container: "c".to_owned(), ..Default::default() },
                None,
                None,
            );
        }
        assert_eq!(streams.held(), 10);
        streams.linked(2);
        assert_eq!(streams.held(), 0);
    }

    #[tokio::test]
    async fn errors_are_told_apart_and_read_as_on_kubernetes() {
        let pod = br#"{"metadata":{"name":"p","namespace":"d","uid":"u"},
                       "spec":{"containers":[{"name":"c","image":"i"}]}}"#;
        let pod = Pod::parse(pod).unwrap();
        for (container, options, error) in [
            ("c", "", "waiting: container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ("", "", "waiting: container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ("x", "", "not found: container x is not valid for pod p"),
            (
                "c",
                r#"{"previous":true}"#,
                "not found: previous terminated container \"c\" in pod \"p\" not found",
            ),
        ] {
            assert_eq!(error_of(Some(&pod), container, options).await, error);
        }
        assert_eq!(error_of(None, "c", "").await, "not found: the pod is not on this node any more");
    }
}
