//! Objects of the cluster, read before they come to the loop: what one object sizes delays no pod.

use std::sync::Arc;

use coracle_core::{
    CoreError, Pod,
    sources::{KeyedData, Service},
};
use coracle_proto::node::{ObjectEvent, node_down::Body, object_event};
use coracle_wasi_host::{pool::Pool, shares::Holder};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{app::Event, link::FromLink, wishes::Recorder};

/// Events between the link and what reads them.
pub const QUEUE_MAX: usize = 256;
/// Objects of more bytes are read on a thread of their own, which nothing else has work for: they are all that the node
/// hears of.
const SMALL_BYTES_MAX: usize = 32 * 1024;

/// An object as it is named on the link: resource, namespace, name.
pub type Key = (String, String, String);

/// What the cluster says of one object.
#[derive(Debug)]
pub struct Decoded {
    pub key: Key,
    pub content: Content,
    /// The whole of an object that the network is made of.
    pub network: Option<Value>,
}

#[derive(Debug)]
pub enum Content {
    Pod(Arc<Pod>),
    ConfigMap(Arc<KeyedData>),
    Secret(Arc<KeyedData>),
    Service(Arc<Service>),
    /// Of the network only.
    Other,
    Deleted,
    /// With the reason.
    Unreadable(String),
}

impl From<ObjectEvent> for Decoded {
    fn from(event: ObjectEvent) -> Self {
        let deleted = event.r#type() == object_event::Type::Delete;
        let key = (event.resource, event.namespace, event.name);
        if deleted {
            return Self { key, content: Content::Deleted, network: None };
        }
        let json = &event.object_json;
        let network = is_network(&key.0).then(|| serde_json::from_slice(json)).transpose();
        let content = content(&key.0, json, event.revision);
        match (content, network) {
            (Ok(content), Ok(network)) => Self { key, content, network },
            (Err(error), _) => Self::unreadable(key, error.to_string()),
            (_, Err(error)) => Self::unreadable(key, error.to_string()),
        }
    }
}

impl Decoded {
    fn unreadable(key: Key, reason: String) -> Self {
        Self { key, content: Content::Unreadable(reason), network: None }
    }
}

fn content(resource: &str, json: &[u8], revision: u64) -> Result<Content, CoreError> {
    Ok(match resource {
        "pods" => Content::Pod(Arc::new(match Pod::parse(json) {
            Ok(pod) => pod,
            Err(error) => {
                let Some(pod) = Pod::unreadable(json) else { return Err(error) };
                tracing::warn!(pod = %pod.full_name(), %error, "a pod that cannot be read is not run");
                pod
            }
        })),
        "configmaps" => Content::ConfigMap(Arc::new(KeyedData::from_config_map(json, revision)?)),
        "secrets" => Content::Secret(Arc::new(KeyedData::from_secret(json, revision)?)),
        "services" => Content::Service(Arc::new(Service::parse(json)?)),
        _ => Content::Other,
    })
}

pub fn is_network(resource: &str) -> bool {
    matches!(
        resource,
        "services"
            | "endpointslices.discovery.k8s.io"
            | "podblocks.coracle.dev"
            | "nodes"
            | "ingresses.networking.k8s.io"
            | "ipaddresses.networking.k8s.io"
            | "portallocations.coracle.dev"
            | "namespaces"
            | "pods"
    )
}

/// Hands on what the link says, in its order, objects read, after it was put down for the next start. Ends when nobody
/// listens any more.
pub async fn run(mut link: mpsc::Receiver<Event>, events: mpsc::Sender<Event>, mut recorder: Recorder) {
    let objects = Pool::new("objects", 1, 0);
    loop {
        let event = tokio::select! {
            event = link.recv() => event,
            () = events.closed() => return,
        };
        if let Some(event) = &event {
            recorder.note(event);
        }
        let event = match event {
            Some(Event::Link(FromLink::Message(Body::Object(object)))) => {
                let name = (object.resource.clone(), object.namespace.clone(), object.name.clone());
                let decoded = if object.object_json.len() <= SMALL_BYTES_MAX {
                    Ok(Decoded::from(object))
                } else {
                    objects.call(&Holder::default(), || Decoded::from(object)).await
                };
                let decoded = decoded.unwrap_or_else(|error| Decoded::unreadable(name, error.to_string()));
                Event::Object(Box::new(decoded))
            }
            Some(event) => event,
            None => return,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_large_object_waits_for_no_blocking_thread_of_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        // The recorder has the only one.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (said, heard) = mpsc::channel(QUEUE_MAX);
            let (events, mut received) = mpsc::channel(QUEUE_MAX);
            tokio::spawn(run(heard, events, Recorder::start(dir.path().to_owned())));
            let data = serde_json::json!({ "metadata": { "name": "c", "namespace": "d" },
                "data": { "key": "x".repeat(SMALL_BYTES_MAX) } });
            let object = ObjectEvent {
                resource: "configmaps".into(),
                namespace: "d".into(),
                name: "c".into(),
                object_json: serde_json::to_vec(&data).unwrap().into(),
                ..Default::default()
            };
            said.send(Event::Link(FromLink::Message(Body::Object(object)))).await.unwrap();
            let read = tokio::time::timeout(Duration::from_secs(60), received.recv()).await;
            let Some(Event::Object(object)) = read.expect("in time") else { panic!("an object") };
            assert!(matches!(object.content, Content::ConfigMap(_)));
        });
    }
}
