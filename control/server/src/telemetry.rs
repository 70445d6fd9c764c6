//! `/metrics`: what this control node is and has done, in Prometheus' text format. docs/metrics.md names it all.
//!
//! Hot paths only add to atomics; everything else is read when somebody scrapes.

mod planners;
mod requests;
mod state;

use std::{path::PathBuf, sync::Arc};

use coracle_node_link::Links;
use coracle_proto::metrics::{CONTENT_TYPE, Text, process};
use coracle_storage::{ReplicatedStorage, version::VERSION};
use http::header;

pub use self::requests::Requests;
use crate::planning::Planning;

/// What is measured.
#[derive(Clone)]
pub struct Telemetry {
    pub requests: Arc<Requests>,
    pub storage: ReplicatedStorage,
    pub links: Arc<Links>,
    pub data_dir: PathBuf,
    pub planning: Arc<Planning>,
}

impl Telemetry {
    /// The page. It walks over all objects, so not on a thread that others wait for.
    pub async fn scrape(&self) -> ([(header::HeaderName, &'static str); 1], String) {
        let telemetry = self.clone();
        let written = tokio::task::spawn_blocking(move || telemetry.write()).await;
        ([(header::CONTENT_TYPE, CONTENT_TYPE)], written.unwrap_or_default())
    }

    fn write(&self) -> String {
        let mut text = Text::default();
        text.gauge("coracle_build_info", "The version of this build.").with(&[("version", VERSION)], 1);
        state::write(&mut text, &self.storage, &self.links);
        planners::write(&mut text, &self.planning);
        self.requests.write(&mut text);
        process::write(&mut text, &self.data_dir);
        text.finish()
    }
}
