//! What pods were refused, told where their owners look: events of the pod, and this node's log.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use coracle_core::{EventRecord, PodUid};
use coracle_wasi_host::refusals::{Refusals, Told};
use tokio::sync::mpsc;

use super::{App, Event};

/// The reason of the events.
const REASON: &str = "LimitReached";

/// What is refused within this time is told together: what a guest can cause is no more of the loop's turns than that.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Hands what is to be told to the loop, as long as that takes it.
pub async fn tell(refusals: Refusals, events: mpsc::Sender<Event>) {
    loop {
        let told = tokio::select! {
            told = refusals.next() => told,
            () = events.closed() => return,
        };
        if events.send(Event::Refused(told)).await.is_err() {
            return;
        }
        tokio::time::sleep(TOLD_EVERY).await;
    }
}

impl App {
    pub(super) fn refused(&self, all: Vec<Told>) {
        // One that has ended meanwhile had its address until then, unless another has it now.
        let ended = self.observed.pods.iter();
        let ended = ended.flat_map(|(uid, state)| state.addresses.iter().map(move |address| (*address, uid)));
        let mut pods: BTreeMap<IpAddr, &PodUid> = ended.collect();
        pods.extend(self.executor.addresses());
        for told in all {
            let namespace = &*told.holder.namespace;
            // Its address may be another's by now, of whatever namespace.
            let uid = told.holder.pod.and_then(|address| pods.get(&address));
            let pod = uid.and_then(|uid| self.observed.pods.get(*uid)).map(|state| &state.pod);
            match pod.filter(|pod| pod.metadata.namespace == namespace) {
                Some(pod) => {
                    tracing::warn!(pod = %pod.full_name(), refused = %told, "a pod was refused what it asked for");
                    self.executor.emit(
                        pod,
                        &EventRecord {
                            warning: true,
                            reason: REASON,
                            message: told.refused.lasting_words(),
                            field_path: String::new(),
                        },
                    );
                }
                None => tracing::warn!(namespace, refused = %told, "who came to this node was refused"),
            }
        }
    }
}
