//! The end of the node: its pods end within their grace, and the cluster is told nothing, since they are to run again.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};

use super::{App, BATCH_MAX, Event, sleep};

/// After the longest grace, for what comes of it.
const MARGIN: Duration = Duration::from_secs(2);
/// How long the logs may take to be written down.
const LOGS_WAIT: Duration = Duration::from_secs(2);

impl App {
    pub(super) async fn stop(&mut self, mut events: mpsc::Receiver<Event>) {
        let deadline = Instant::now() + self.stop_grace_max + MARGIN;
        self.desired.stopping = Some(self.stop_grace_max);
        self.dirty.extend(self.observed.pods.keys().cloned());
        // Pods that a node without a link has not begun to look after have nothing that could run.
        self.step();
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.executor.containers().next().is_some() {
            let wake = self.wakes.first().map(|at| self.executor.context().clock.until(at));
            tokio::select! {
                received = events.recv_many(&mut batch, BATCH_MAX) => {
                    if received == 0 {
                        break;
                    }
                }
                () = sleep(wake), if wake.is_some() => self.wake(),
                () = tokio::time::sleep_until(deadline) => break,
            }
            for event in batch.drain(..) {
                // What the cluster says now is for the next start.
                if !matches!(event, Event::Link(_) | Event::Object(_)) {
                    self.handle(event);
                }
            }
            self.step();
        }
        self.logs.cancel_all();
        self.executor.drop_all();
        let logs = self.executor.context().logs.clone();
        let written = tokio::task::spawn_blocking(move || logs.close());
        if tokio::time::timeout(LOGS_WAIT, written).await.is_err() {
            tracing::warn!("the last lines of containers' logs could not be written down in time");
        }
    }
}
