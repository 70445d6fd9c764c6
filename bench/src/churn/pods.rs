//! What becomes of pods: one watch for all of them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::client::Rest;

/// After a watch that failed.
const PAUSE: Duration = Duration::from_millis(100);
const PODS: &str = "/api/v1/pods";

/// What was seen of one pod.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub phase: String,
    pub ready: bool,
    /// A container of it has ended, or waits for its restart.
    pub ended_once: bool,
    pub gone: bool,
}

impl Seen {
    fn of(pod: &Value) -> Self {
        let status = &pod["status"];
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let container = &status["containerStatuses"][0];
        Self {
            phase: status["phase"].as_str().unwrap_or_default().to_owned(),
            ready: conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True"),
            ended_once: container["lastState"]["terminated"].is_object()
                || container["state"]["terminated"].is_object()
                || container["restartCount"].as_u64().is_some_and(|count| count > 0),
            gone: false,
        }
    }

    pub fn is_over(&self) -> bool {
        self.gone || self.phase == "Succeeded" || self.phase == "Failed"
    }
}

/// The pods that somebody waits for, by namespace and name.
#[derive(Clone, Default)]
pub struct Pods {
    known: Arc<Mutex<HashMap<String, watch::Sender<Seen>>>>,
}

impl Pods {
    /// Watches as long as the tasks are kept.
    pub fn watch(rest: Rest) -> (Self, JoinSet<()>) {
        let pods = Self::default();
        let watching = pods.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                if let Err(error) = watching.once(&rest).await {
                    eprintln!("the watch of pods begins anew: {error:#}");
                }
                sleep(PAUSE).await;
            }
        });
        (pods, tasks)
    }

    async fn once(&self, rest: &Rest) -> Result<()> {
        let list = rest.get(PODS).await?;
        let revision = list["metadata"]["resourceVersion"].as_str().context("a list has a revision")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let there: HashMap<String, Seen> = items.iter().map(|pod| (name_of(pod), Seen::of(pod))).collect();
        for (name, sender) in &*self.known.lock() {
            match there.get(name) {
                Some(seen) => drop(sender.send_replace(seen.clone())),
                // One that is about to be made is not there either.
                None if !sender.borrow().phase.is_empty() => sender.send_modify(|seen| seen.gone = true),
                None => {}
            }
        }
        let path = format!("{PODS}?watch=true&resourceVersion={revision}");
        let (status, mut body) = rest.send("GET", &path, Vec::new()).await?;
        if status != 200 {
            bail!("watching pods: HTTP {status}");
        }
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            buffer.extend_from_slice(&frame?.into_data().unwrap_or_default());
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let event: Value = serde_json::from_slice(&buffer[..end])?;
                buffer.advance(end + 1);
                self.take(&event)?;
            }
        }
        Ok(())
    }

    fn take(&self, event: &Value) -> Result<()> {
        let pod = &event["object"];
        if event["type"] == "ERROR" {
            bail!("{pod}");
        }
        if let Some(sender) = self.known.lock().get(&name_of(pod)) {
            let gone = event["type"] == "DELETED";
            sender.send_replace(Seen { gone, ..Seen::of(pod) });
        }
        Ok(())
    }

    /// Begins to look at a pod, before it is made.
    pub fn expect(&self, namespace: &str, name: &str) -> Watched {
        let key = format!("{namespace}/{name}");
        let (sender, seen) = watch::channel(Seen::default());
        self.known.lock().insert(key.clone(), sender);
        Watched { pods: self.clone(), key, seen }
    }
}

fn name_of(pod: &Value) -> String {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// One pod, looked at as long as this lives.
pub struct Watched {
    pods: Pods,
    key: String,
    seen: watch::Receiver<Seen>,
}

impl Watched {
    /// Waits until the pod is as wanted.
    pub async fn until(&mut self, patience: Duration, wanted: impl Fn(&Seen) -> bool) -> Result<()> {
        if timeout(patience, self.seen.wait_for(wanted)).await.is_err() {
            bail!("{} after {} s: {:?}", self.key, patience.as_secs(), *self.seen.borrow());
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.pods.known.lock().remove(&self.key);
    }
}
