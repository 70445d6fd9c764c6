//! The binary as a user runs it: real processes, real kubectl, real kills.

#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/cluster.rs"]
mod cluster;
#[path = "e2e/definitions.rs"]
mod definitions;
#[path = "e2e/demo.rs"]
mod demo;
#[path = "e2e/deploys.rs"]
mod deploys;
#[path = "e2e/disk.rs"]
mod disk;
#[path = "e2e/faults.rs"]
mod faults;
#[path = "e2e/fields.rs"]
mod fields;
#[path = "e2e/files.rs"]
mod files;
#[path = "e2e/frozen.rs"]
mod frozen;
#[path = "e2e/functions.rs"]
mod functions;
#[path = "e2e/guide.rs"]
mod guide;
#[path = "e2e/habits.rs"]
mod habits;
#[path = "e2e/harness.rs"]
mod harness;
#[path = "e2e/kubectl.rs"]
mod kubectl;
#[path = "e2e/metrics.rs"]
mod metrics;
#[path = "e2e/ports.rs"]
mod ports;
#[path = "e2e/projects.rs"]
mod projects;
#[path = "e2e/quorum.rs"]
mod quorum;
#[path = "e2e/registries.rs"]
mod registries;
#[path = "e2e/restored.rs"]
mod restored;
#[path = "e2e/run.rs"]
mod run;
#[path = "e2e/service_manager.rs"]
mod service_manager;
#[path = "e2e/units.rs"]
mod units;
