//! Logs that somebody reads over the link.
//!
//! Errors begin with `not found: ` or `waiting: ` where the API answers them so.

use std::{collections::BTreeMap, sync::Arc};

use coracle_core::{PodState, PodUid};
use coracle_objects::log_options::LogOptions;
use coracle_proto::node::{LogChunk, LogRequest};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{link::LinkHandle, logs::Logs};

/// Logs that are read at the same time.
const STREAMS_MAX: usize = 256;
/// Pieces of one log on their way to the link.
const PIECES_MAX: usize = 4;

/// The readers of this node's logs, by the leader's request number.
pub struct LogStreams {
    logs: Arc<Logs>,
    link: LinkHandle,
    streams: BTreeMap<u64, JoinHandle<()>>,
}

impl LogStreams {
    pub fn new(logs: Arc<Logs>, link: LinkHandle) -> Self {
        Self { logs, link, streams: BTreeMap::new() }
    }

    /// Begins to send a log. `state` is the pod, where it is on this node.
    pub fn serve(&mut self, request: LogRequest, state: Option<&PodState>) {
        self.streams.retain(|_, stream| !stream.is_finished());
        let (id, link, logs) = (request.request, self.link.clone(), self.logs.clone());
        let asked = self.check(&request, state);
        let stream = tokio::spawn(async move {
            let served = match asked {
                Ok(asked) => send(&logs, &link, id, asked).await,
                Err(error) => Err(error),
            };
            let end = LogChunk {
                request: id,
                end: true,
                error: served.err().unwrap_or_default(),
                ..Default::default()
            };
            // A closed link has no reader either.
            let _ = link.logs().send(end).await;
        });
        if let Some(old) = self.streams.insert(id, stream) {
            old.abort();
        }
    }

    fn check(&self, request: &LogRequest, state: Option<&PodState>) -> Result<Asked, String> {
        if self.streams.len() >= STREAMS_MAX {
            return Err(format!("this node serves {STREAMS_MAX} logs already; close one and try again"));
        }
        let options: LogOptions = match request.options_json.is_empty() {
            true => LogOptions::default(),
            false => serde_json::from_slice(&request.options_json)
                .map_err(|error| format!("the log options cannot be read: {error}"))?,
        };
        let state = state.ok_or("not found: the pod is not on this node any more")?;
        let pod = &state.pod;
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
        let waiting = waiting_reason(state, &container);
        let waiting = format!(
            "waiting: container {container:?} in pod {:?} is waiting to start: {waiting}",
            pod.metadata.name
        );
        Ok(Asked { uid: pod.uid().clone(), container, options, waiting })
    }

    pub fn cancel(&mut self, request: u64) {
        if let Some(stream) = self.streams.remove(&request) {
            stream.abort();
        }
    }

    pub fn cancel_all(&mut self) {
        std::mem::take(&mut self.streams).into_values().for_each(|stream| stream.abort());
    }
}

struct Asked {
    uid: PodUid,
    container: String,
    options: LogOptions,
    /// The error where the container has never written.
    waiting: String,
}

/// As the status says it.
fn waiting_reason(state: &PodState, container: &str) -> String {
    let reported = state.reported.as_ref();
    let lists = ["containerStatuses", "initContainerStatuses"];
    let statuses = lists.iter().filter_map(|list| reported?.get(list)?.as_array()).flatten();
    let status = statuses.into_iter().find(|status| status["name"] == *container);
    let reason = status.and_then(|status| status["state"]["waiting"]["reason"].as_str());
    reason.unwrap_or("ContainerCreating").to_owned()
}

async fn send(logs: &Logs, link: &LinkHandle, request: u64, asked: Asked) -> Result<(), String> {
    let (out, mut pieces) = mpsc::channel(PIECES_MAX);
    let Asked { uid, container, options, waiting } = asked;
    let read = logs.serve(&uid, &container, &options, waiting, out);
    let forward = async move {
        while let Some(data) = pieces.recv().await {
            let chunk = LogChunk { request, data, ..Default::default() };
            if link.logs().send(chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, forward).0
}
