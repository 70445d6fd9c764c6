//! Objects of the cluster, read before they come to the loop: what one object sizes delays no pod.

use std::{
    pin::{Pin, pin},
    sync::Arc,
};

use coracle_core::{
    CoreError, Pod,
    sources::{Keyed, KeyedData, Service, Source},
};
use coracle_objects::kinds::FUNCTION_REVISIONS;
use coracle_proto::node::{ObjectEvent, node_down::Body, object_event};
use coracle_wasi_host::{pool::Pool, shares::Holder};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    app::{Event, Template},
    line::{Line, Waits},
    link::FromLink,
    wishes::Recorder,
};

/// Events between the link and what reads them.
pub const QUEUE_MAX: usize = 256;
/// Objects of more bytes are read on a thread of their own, which nothing else has work for: they are all that the node
/// hears of.
const SMALL_BYTES_MAX: usize = 32 * 1024;

/// Of objects that wait to be read, each in its newest version only: beyond that the link is not read for so long.
const WAITING_BYTES_MAX: usize = 256 << 20;

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
    /// One that the node is not sent, with the reason; no more than which it is, and whether it is deleted.
    WithheldPod(Box<Pod>, String),
    Source(Source),
    /// A revision of a function: what its instances are made of.
    Template(Box<Template>),
    /// Of the network only.
    Other,
    Deleted,
    /// With the reason.
    Unreadable(String),
}

impl From<ObjectEvent> for Decoded {
    fn from(event: ObjectEvent) -> Self {
        let said = event.r#type();
        let key = (event.resource, event.namespace, event.name);
        match said {
            object_event::Type::Put => {}
            object_event::Type::Delete => return Self { key, content: Content::Deleted, network: None },
            object_event::Type::Withheld => return Self::withheld(key, &event.outline_json, event.reason),
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
    /// It is there, and the node is not sent it.
    fn withheld(key: Key, json: &[u8], reason: String) -> Self {
        let content = if let Some(source) = Source::withheld(&key.0, &reason) {
            Content::Source(source)
        } else if key.0 == "pods"
            && let Some(pod) = Pod::withheld(json)
        {
            Content::WithheldPod(Box::new(pod), reason)
        } else {
            Content::Unreadable(reason)
        };
        Self { key, content, network: None }
    }

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
        "configmaps" => {
            let data = KeyedData::from_config_map(json, revision)?;
            Content::Source(Source::ConfigMap(Keyed::Data(Arc::new(data))))
        }
        "secrets" => {
            let data = KeyedData::from_secret(json, revision)?;
            Content::Source(Source::Secret(Keyed::Data(Arc::new(data))))
        }
        FUNCTION_REVISIONS => {
            let revision = serde_json::from_slice(json)
                .map_err(|source| CoreError::Json { what: "function's revision", source })?;
            Content::Template(Box::new(Template::of(&revision)?))
        }
        "services" => Content::Source(Source::Service(Arc::new(Service::parse(json)?))),
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
            | "functions.coracle.dev"
            | "ipaddresses.networking.k8s.io"
            | "portallocations.coracle.dev"
            | "namespaces"
            | "pods"
    )
}

impl Waits for Event {
    fn object(&self) -> Option<&ObjectEvent> {
        match self {
            Self::Link(FromLink::Message(Body::Object(object))) => Some(object),
            _ => None,
        }
    }
}

/// Hands on what the link says, in its order, objects read, after it was put down for the next start. The link does not
/// wait for that: what is written faster than it is read is read in its newest version only. Ends when nobody listens
/// any more.
pub async fn run(mut link: mpsc::Receiver<Event>, events: mpsc::Sender<Event>, mut recorder: Recorder) {
    let objects = Pool::new("objects", 1, 0);
    let mut line = Line::default();
    let mut handing = pin!(None);
    let mut is_open = true;
    loop {
        if handing.is_none() {
            match line.pop() {
                Some(event) => handing.set(Some(hand_on(event, &objects, &events))),
                None if is_open => {}
                None => return,
            }
        }
        tokio::select! {
            event = link.recv(), if is_open && line.bytes() < WAITING_BYTES_MAX => {
                if let Some(event) = event {
                    recorder.note(&event);
                    if matches!(event, Event::Link(FromLink::Up { .. })) {
                        // What a link has not named until it has named all is gone.
                        line.divide();
                    }
                    line.push(event);
                } else {
                    is_open = false;
                }
            }
            somebody_listens = ended(handing.as_mut()) => {
                if !somebody_listens {
                    return;
                }
                handing.set(None);
            }
            () = events.closed() => return,
        }
    }
}

/// The outcome of what is under way, if anything is.
async fn ended<T>(under_way: Pin<&mut Option<impl Future<Output = T>>>) -> T {
    match under_way.as_pin_mut() {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}

/// False where nobody listens any more.
async fn hand_on(event: Event, objects: &Pool, events: &mpsc::Sender<Event>) -> bool {
    let event = match event {
        Event::Link(FromLink::Message(Body::Object(object))) => {
            Event::Object(Box::new(read(object, objects).await))
        }
        other => other,
    };
    events.send(event).await.is_ok()
}

async fn read(object: ObjectEvent, objects: &Pool) -> Decoded {
    if object.object_json.len() <= SMALL_BYTES_MAX {
        return Decoded::from(object);
    }
    let key = (object.resource.clone(), object.namespace.clone(), object.name.clone());
    let decoded = objects.call(&Holder::default(), || Decoded::from(object)).await;
    decoded.unwrap_or_else(|error| Decoded::unreadable(key, error.to_string()))
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
            assert!(matches!(object.content, Content::Source(Source::ConfigMap(Keyed::Data(_)))));
        });
    }

    #[test]
    fn what_is_withheld_is_read_as_that_and_what_this_build_does_not_know_as_unreadable() {
        let event = |resource: &str, r#type: i32| ObjectEvent {
            r#type,
            resource: resource.into(),
            reason: "too much; less".into(),
            ..Default::default()
        };
        let read = |resource: &str, r#type: i32| Decoded::from(event(resource, r#type)).content;
        let withheld = object_event::Type::Withheld.into();
        let why = Keyed::Withheld("too much; less".into());
        let Content::Source(source) = read("configmaps", withheld) else { panic!("a source") };
        assert_eq!(source, Source::ConfigMap(why.clone()));
        let Content::Source(source) = read("secrets", withheld) else { panic!("a source") };
        assert_eq!(source, Source::Secret(why));
        assert!(matches!(read("nodes", withheld), Content::Unreadable(_)));
        assert!(matches!(read("pods", withheld), Content::Unreadable(_)), "of which nothing is said");
        // So is this type on a node of an older build.
        assert!(matches!(read("configmaps", 99), Content::Unreadable(_)));
    }

    fn config_map(name: &str, revision: u64, bytes: usize) -> Event {
        let data = serde_json::json!({ "data": { "key": "x".repeat(bytes) } });
        let object = ObjectEvent {
            resource: "configmaps".into(),
            namespace: "d".into(),
            name: name.into(),
            revision,
            object_json: serde_json::to_vec(&data).unwrap().into(),
            ..Default::default()
        };
        Event::Link(FromLink::Message(Body::Object(object)))
    }

    #[tokio::test]
    async fn an_object_written_faster_than_it_is_read_holds_up_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (said, heard) = mpsc::channel(1);
        let (events, mut received) = mpsc::channel(1);
        tokio::spawn(run(heard, events, Recorder::start(dir.path().to_owned())));
        let told = async {
            for revision in 1..=3000 {
                said.send(config_map("large", revision, 2 * SMALL_BYTES_MAX)).await.unwrap();
            }
            said.send(config_map("after", 1, 1)).await.unwrap();
        };
        // Nothing is taken meanwhile.
        tokio::time::timeout(Duration::from_secs(60), told).await.expect("the link waits");
        drop(said);
        let mut revisions = Vec::new();
        while let Some(event) = received.recv().await {
            let Event::Object(object) = event else { panic!("an object, not {event:?}") };
            let Content::Source(Source::ConfigMap(Keyed::Data(data))) = object.content else {
                panic!("a config map")
            };
            revisions.push((object.key.2, data.revision));
        }
        let (after, versions) = revisions.split_last().unwrap();
        assert_eq!(*after, ("after".to_owned(), 1));
        assert!(versions.is_sorted_by_key(|(_, revision)| *revision), "{versions:?}");
        assert_eq!(versions.last(), Some(&("large".to_owned(), 3000)));
        // One has been handed on, one is on its way, and the newest is left.
        assert!(versions.len() <= 3, "{versions:?}");
    }
}
