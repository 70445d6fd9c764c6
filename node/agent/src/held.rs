//! What a node holds, counted, and the page on which it says so: what was not given back shows in figures that grow.

use std::{fmt::Write, sync::Arc};

use coracle_fabric::Fabric;
use tokio::sync::{mpsc, oneshot};

use crate::{
    app::{App, Event},
    runtime::Runtime,
};

/// How many there are of each.
pub type Held = Vec<(&'static str, usize)>;

/// Where a node's figures come from.
#[derive(Clone)]
pub struct Page {
    pub events: mpsc::Sender<Event>,
    pub fabric: Fabric,
    pub runtime: Arc<dyn Runtime>,
}

impl Page {
    /// In Prometheus' text format.
    pub async fn write(self) -> String {
        let (counted, answer) = oneshot::channel();
        let mut held = match self.events.send(Event::Count(counted)).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Held::default(),
        };
        held.extend(self.fabric.held());
        let of_runtime = self.runtime.held().await;
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        // Writing to memory does not fail.
        let mut text = String::new();
        let _ = writeln!(text, "# HELP coracle_node_tasks Tasks of the process that have not ended.");
        let _ = writeln!(text, "# TYPE coracle_node_tasks gauge\ncoracle_node_tasks {tasks}");
        let _ = writeln!(text, "# HELP coracle_node_held What the node holds now, by what it is.");
        let _ = writeln!(text, "# TYPE coracle_node_held gauge");
        let held = held.into_iter().map(|(what, count)| (what.to_owned(), count));
        for (what, count) in held.chain(of_runtime) {
            let _ = writeln!(text, "coracle_node_held{{what=\"{what}\"}} {count}");
        }
        text
    }
}

impl App {
    /// What the loop and the tasks that it has begun hold.
    pub(crate) fn held(&self) -> Held {
        let context = self.executor.context();
        let mut held = vec![
            ("pods wanted", self.desired.pods.len()),
            ("pods looked after", self.observed.pods.len()),
            ("names of pods", self.names.len()),
            ("objects", self.known.len()),
            ("objects of this link", self.seen.len()),
            ("pods to look at", self.dirty.len()),
            ("wakes", self.wakes.held()),
            ("config maps and secrets", {
                let sources = &self.desired.sources;
                sources.config_maps.len() + sources.secrets.len()
            }),
            ("services", self.desired.sources.services.len()),
            ("objects of the network", context.network.held()),
            ("readers of logs", self.logs.held()),
            ("logs", context.logs.held()),
            ("removals", context.removals.held()),
        ];
        held.extend(self.executor.held());
        held.extend(context.artifacts.held());
        context.link.post(|outbox| held.extend(outbox.held()));
        held
    }
}
