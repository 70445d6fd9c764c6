//! `/metrics` of a node: what it is, does and holds, in Prometheus' text format. docs/metrics.md names it all.
//!
//! Hot paths only add to atomics; everything else is read when somebody scrapes.

use std::{path::PathBuf, sync::Arc};

use coracle_fabric::{Fabric, Page};
use coracle_proto::metrics::{Text, process};
use parking_lot::RwLock;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use crate::{
    app::Event,
    renewal::NodeTls,
    runtime::{Compiles, Figures, Runtime},
    scrapers::{Controls, Scrapers},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where a node's figures come from.
#[derive(Clone)]
pub struct Metrics {
    pub events: mpsc::Sender<Event>,
    pub fabric: Fabric,
    pub runtime: Arc<dyn Runtime>,
    pub data_dir: PathBuf,
}

impl Metrics {
    /// The page, for those whom one of the control nodes at these addresses (`host:port`) allows to read it.
    pub fn page(self, tls: &NodeTls, addresses: Arc<RwLock<Vec<String>>>) -> Page {
        let controls = Controls { addresses, tls: tls.anonymous.clone() };
        let scrapers = Scrapers::start(move |token| {
            let controls = controls.clone();
            async move { controls.ask(&token).await }
        });
        Page {
            tls: tls.metrics.shared(),
            judge: Box::new(move |token| {
                let scrapers = scrapers.clone();
                Box::pin(async move { scrapers.judge(token).await })
            }),
            write: Box::new(move || Box::pin(self.clone().write())),
        }
    }

    async fn write(self) -> String {
        let held = self.held().await;
        let figures = self.runtime.figures().await;
        let mut text = Text::default();
        text.gauge("coracle_build_info", "The version of this build.").with(&[("version", VERSION)], 1);
        self.fabric.write_gateway(&mut text);
        write_guests(&mut text, &figures);
        write_compiles(&mut text, &figures.totals.compiles);
        let tasks = Handle::current().metrics().num_alive_tasks();
        text.gauge("coracle_node_tasks", "Tasks of the process that have not ended.").is(tasks);
        let mut family = text.gauge("coracle_node_held", "What the node holds now, by what it is.");
        for (what, count) in held {
            family.with(&[("what", &what)], count);
        }
        // It asks the disk.
        let written = tokio::task::spawn_blocking(move || {
            process::write(&mut text, &self.data_dir);
            text.finish()
        });
        written.await.unwrap_or_default()
    }

    /// How many there are of each.
    async fn held(&self) -> Vec<(String, usize)> {
        let (counted, answer) = oneshot::channel();
        let mut held = match self.events.send(Event::Count(counted)).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        held.extend(self.fabric.held());
        let held = held.into_iter().map(|(what, count)| (what.to_owned(), count));
        held.chain(self.runtime.held().await).collect()
    }
}

fn write_guests(text: &mut Text, figures: &Figures) {
    let totals = &figures.totals;
    text.gauge("coracle_guest_containers", "Containers that run.").is(figures.running);
    text.counter("coracle_guest_cpu_seconds_total", "CPU time of all guests.").is(totals.cpu.as_secs_f64());
    text.gauge("coracle_guest_memory_bytes", "Linear memory and tables of all pods.")
        .is(figures.memory_bytes);
    let help = "What the host holds on behalf of all pods beside their memory.";
    text.gauge("coracle_guest_host_bytes", help).is(figures.host_bytes);
    let mut family = text.counter("coracle_guest_ends_total", "Containers that have ended, by how.");
    for (reason, count) in &totals.ends {
        family.with(&[("reason", reason)], count);
    }
    let help = "Requests to which a component gave no answer.";
    text.counter("coracle_guest_failed_requests_total", help).is(totals.failed_requests);
}

fn write_compiles(text: &mut Text, compiles: &Compiles) {
    let Compiles { started, succeeded, failed, abandoned, took, spared } = *compiles;
    text.counter("coracle_compile_started_total", "Compiles of components that have begun.").is(started);
    let mut family =
        text.counter("coracle_compile_ended_total", "Compiles that have ended, by what came of them.");
    for (result, count) in [("succeeded", succeeded), ("failed", failed), ("abandoned", abandoned)] {
        family.with(&[("result", result)], count);
    }
    let help = "How long compiles took, from their turn to their end.";
    text.summary("coracle_compile_duration_seconds", help).sums(compiles.ended(), took);
    let help = "Components whose code was taken from the store of compiled code.";
    text.counter("coracle_compile_spared_total", help).is(spared);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::Totals;

    #[test]
    fn guests_and_compiles_are_told() {
        let compiles = Compiles {
            started: 7,
            succeeded: 3,
            failed: 2,
            abandoned: 1,
            took: Duration::from_millis(2_500),
            spared: 9,
        };
        let ends = vec![("completed", 4), ("trapped", 5)];
        let totals = Totals { cpu: Duration::from_millis(1_250), ends, failed_requests: 6, compiles };
        let figures = Figures { totals, running: 8, memory_bytes: 65_536, host_bytes: 1_024 };
        let mut text = Text::default();
        write_guests(&mut text, &figures);
        write_compiles(&mut text, &figures.totals.compiles);
        let text = text.finish();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "coracle_guest_containers 8",
            "coracle_guest_cpu_seconds_total 1.25",
            "coracle_guest_memory_bytes 65536",
            "coracle_guest_host_bytes 1024",
            "coracle_guest_ends_total{reason=\"completed\"} 4",
            "coracle_guest_ends_total{reason=\"trapped\"} 5",
            "coracle_guest_failed_requests_total 6",
            "coracle_compile_started_total 7",
            "coracle_compile_ended_total{result=\"succeeded\"} 3",
            "coracle_compile_ended_total{result=\"failed\"} 2",
            "coracle_compile_ended_total{result=\"abandoned\"} 1",
            "coracle_compile_duration_seconds_sum 2.5",
            "coracle_compile_duration_seconds_count 6",
            "coracle_compile_spared_total 9",
        ];
        assert_eq!(samples, expected);
    }
}
