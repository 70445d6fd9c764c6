//! What a node holds, counted: what was not given back shows in figures that grow.

use crate::app::App;

/// How many there are of each.
pub type Held = Vec<(&'static str, usize)>;

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
            ("revisions of functions", self.templates.len()),
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
