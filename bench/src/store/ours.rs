//! Our doors: the store's gRPC service, and REST.

use anyhow::{Context, Result, bail, ensure};
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::store::{RangeRequest, WatchRequest};
use futures::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use http_body_util::BodyExt;

use super::{Arrived, CONNECTIONS, Door, object};
use crate::client::{Client, Rest, Store, new_request};

const RESOURCE: &str = "configmaps";
const NAMESPACE: &str = "default";
const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";

/// The bench is one client of the store; its requests are told apart by their sequence.
pub struct GrpcDoor {
    stores: Vec<Store>,
    id: u64,
}

impl GrpcDoor {
    pub fn new(client: &Client) -> Self {
        let stores = (0..CONNECTIONS).map(|_| client.store()).collect();
        Self { stores, id: u64::from(std::process::id()) }
    }

    fn store(&self, client: usize) -> Store {
        self.stores[client % self.stores.len()].clone()
    }
}

impl Door for GrpcDoor {
    fn name(&self) -> &'static str {
        "coracle, gRPC"
    }

    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let (store, client) = (self.store(client), self.id);
        Box::pin(async move {
            let id = new_request(client);
            let draft = object(key).into();
            let key = ObjectKey::new(RESOURCE, NAMESPACE, &format!("bench-{key}"));
            let writes = vec![Write::Put { key, draft }];
            let outcome = store.txn(id, Transaction { preconditions: Vec::new(), writes }).await?;
            ensure!(outcome.is_ok(), "refused: {outcome:?}");
            Ok(())
        })
    }

    fn get(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let mut store = self.store(client);
        Box::pin(async move {
            let (resource, namespace) = (RESOURCE.to_owned(), NAMESPACE.to_owned());
            let name = format!("bench-{key}");
            let request = RangeRequest { resource, namespace, name, ..RangeRequest::default() };
            let answer = store.client.range(request).await?.into_inner();
            ensure!(answer.objects.len() == 1, "coracle lost key {key}");
            Ok(())
        })
    }

    fn watch(&self, watcher: usize) -> BoxFuture<'static, Result<BoxStream<'static, Result<Arrived>>>> {
        let mut store = self.store(watcher);
        Box::pin(async move {
            let (resource, namespace) = (RESOURCE.to_owned(), NAMESPACE.to_owned());
            let request = WatchRequest { resource, namespace, after: None };
            let mut answers = store.client.watch(request).await?.into_inner();
            answers.message().await?.context("the watch ended before it began")?;
            let arrived = answers.filter_map(async |answer| match answer {
                Ok(answer) => {
                    let first = answer.events.first()?.object.as_ref()?.json.clone();
                    Some(Ok(Arrived { events: answer.events.len() as u64, first }))
                }
                Err(status) => Some(Err(status.into())),
            });
            Ok(arrived.boxed())
        })
    }
}

pub struct RestDoor {
    rests: Vec<Rest>,
}

impl RestDoor {
    pub async fn new(client: &Client) -> Result<Self> {
        let mut rests = Vec::new();
        for _ in 0..CONNECTIONS {
            rests.push(client.rest().await?);
        }
        Ok(Self { rests })
    }

    fn rest(&self, client: usize) -> Rest {
        self.rests[client % self.rests.len()].clone()
    }
}

impl Door for RestDoor {
    fn name(&self) -> &'static str {
        "coracle, REST"
    }

    fn put(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let rest = self.rest(client);
        Box::pin(async move {
            let path = format!("{COLLECTION}/bench-{key}");
            match rest.call("PUT", &path, object(key)).await? {
                (404, _) => match rest.call("POST", COLLECTION, object(key)).await? {
                    (201, _) => Ok(()),
                    (status, body) => bail!("POST: HTTP {status}: {}", String::from_utf8_lossy(&body)),
                },
                (200 | 201, _) => Ok(()),
                (status, body) => bail!("PUT: HTTP {status}: {}", String::from_utf8_lossy(&body)),
            }
        })
    }

    fn get(&self, client: usize, key: u64) -> BoxFuture<'static, Result<()>> {
        let rest = self.rest(client);
        Box::pin(async move {
            let (status, _) = rest.call("GET", &format!("{COLLECTION}/bench-{key}"), Vec::new()).await?;
            ensure!(status == 200, "coracle lost key {key}: HTTP {status}");
            Ok(())
        })
    }

    fn watch(&self, watcher: usize) -> BoxFuture<'static, Result<BoxStream<'static, Result<Arrived>>>> {
        let rest = self.rest(watcher);
        Box::pin(async move {
            let list = rest.get(&format!("{COLLECTION}?limit=1")).await?;
            let revision = list["metadata"]["resourceVersion"].as_str().context("a list has a revision")?;
            let path = format!("{COLLECTION}?watch=true&resourceVersion={revision}");
            let (status, body) = rest.send("GET", &path, Vec::new()).await?;
            ensure!(status == 200, "the watch was refused: HTTP {status}");
            // A line is an event; a frame may hold many, and the beginning and end of others.
            let arrived = stream::unfold(body, |mut body| async move {
                loop {
                    let data = match body.frame().await? {
                        Ok(frame) => frame.into_data().unwrap_or_default(),
                        Err(error) => return Some((Err(error.into()), body)),
                    };
                    let events = data.iter().filter(|byte| **byte == b'\n').count() as u64;
                    if events > 0 {
                        return Some((Ok(Arrived { events, first: data }), body));
                    }
                }
            });
            Ok(arrived.boxed())
        })
    }
}
