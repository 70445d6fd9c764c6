//! What happens to containers, and what it makes of them.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    action::StartPlan,
    pod::{
        ContainerState, Instance, Phase, Planning, PodState, Pulled, Refused, Running, Terminated, Unseated,
    },
    probe::{ProbeKind, ProbeRun},
    restart::{Backoff, after, go_duration},
};

/// What happened to a container.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    PullStarted,
    Pulled {
        image_id: String,
        fetched: Option<Fetched>,
    },
    PullFailed {
        reason: String,
        message: String,
    },
    /// The start is planned, or cannot be as the sources are.
    Planned(Result<Arc<StartPlan>, String>),
    Started {
        container_id: String,
    },
    /// The sandbox has no seat for it now.
    NoSeat {
        message: String,
    },
    /// Seats got free: it may be tried before its time.
    SeatFreed,
    StartFailed {
        reason: String,
        message: String,
    },
    Exited {
        exit: Exit,
        /// What it left as the message of its end, or empty.
        message: String,
    },
    Probed {
        kind: ProbeKind,
        success: bool,
        output: String,
    },
}

/// What a pull fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub took: Duration,
    pub bytes: u64,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    Completed(i32),
    Trapped(String),
    OutOfMemory,
    /// Another limit than memory, by name.
    LimitExceeded(String),
    /// Interrupted by this node.
    Killed,
    /// There was no room for it after all, and nothing of it has run.
    Unseated(String),
    /// The node's fault, not the guest's.
    HostFault(String),
}

/// Exit codes as a shell would show them: 128 + the signal that a process would have died of.
const EXIT_HOST_FAULT: i32 = 128;
const EXIT_TRAP: i32 = 134;
pub(super) const EXIT_KILLED: i32 = 137;
const EXIT_STOPPED: i32 = 143;

impl PodState {
    pub(super) fn apply_news(&mut self, container: &str, news: News, now: Timestamp) {
        let pod = self.pod.clone();
        let Some(spec) = pod.container(container) else { return };
        let ending = self.ending.is_some();
        let Some(state) = self.containers.get_mut(container) else { return };
        match (news, &mut state.phase) {
            (News::PullStarted, Phase::Pulling) => {
                let message = format!("Pulling image {:?}", state.image);
                self.container_event(container, false, "Pulling", message);
            }
            (News::Pulled { image_id, fetched }, Phase::Pulling) => {
                state.image_id = image_id;
                state.phase = Phase::Pulled(Pulled::default());
                let message = pulled_message(&state.image, fetched);
                self.container_event(container, false, "Pulled", message);
            }
            // A pod that ends does not wait for what makes it ready, and says nothing of it.
            (News::PullFailed { .. }, Phase::Pulling) | (News::StartFailed { .. }, Phase::Starting)
                if ending =>
            {
                state.phase = Phase::Idle;
            }
            (News::PullFailed { reason, message }, Phase::Pulling) => {
                state.refuse(&reason, &message, true, now);
                let image = state.image.clone();
                self.pull_failed_events(container, &image, &reason, &message);
            }
            (News::Planned(planned), Phase::Pulled(pulled)) => {
                let Planning::UnderWay { fingerprint } = pulled.planning else { return };
                match planned {
                    Ok(plan) => pulled.planning = Planning::Done(plan),
                    Err(message) => {
                        pulled.planning = Planning::Due;
                        let before = pulled.held.replace((message.clone(), fingerprint));
                        if before.is_none_or(|(told, _)| told != message) {
                            self.container_event(container, true, "Failed", format!("Error: {message}"));
                        }
                    }
                }
            }
            (News::Started { container_id }, Phase::Starting) => {
                let run = |kind: ProbeKind| kind.of(spec).map(|probe| ProbeRun::new(probe, now));
                let (image, image_id) = (state.image.clone(), state.image_id.clone());
                state.instance = Some(Instance { container_id, image, image_id });
                state.refusals = Backoff::default();
                state.no_seat = None;
                state.phase = Phase::Running(Running {
                    since: now,
                    startup: run(ProbeKind::Startup),
                    liveness: run(ProbeKind::Liveness),
                    readiness: run(ProbeKind::Readiness),
                    ending: None,
                });
                self.container_event(container, false, "Created", format!("Created container: {container}"));
                self.container_event(container, false, "Started", format!("Started container {container}"));
            }
            (News::StartFailed { reason, message }, Phase::Starting) => {
                state.refuse(&reason, &message, false, now);
                self.container_event(container, true, "Failed", format!("Error: {message}"));
            }
            (News::NoSeat { message }, Phase::Starting)
            | (News::Exited { exit: Exit::Unseated(message), .. }, Phase::Running(_)) => {
                self.unseat(container, message, now);
            }
            // Whoever is told goes to the end of those that wait.
            (News::SeatFreed, Phase::Unseated(unseated)) => {
                *unseated = Unseated { since: now, retry_at: now };
            }
            (News::Exited { exit, message }, Phase::Running(running)) => {
                let graceful = running.ending.as_ref().is_some_and(|ending| ending.stopped);
                let (is_ending, since) = (running.ending.is_some(), running.since);
                let outdated = is_ending && state.is_outdated(spec);
                let id = state.instance.as_ref().map(|instance| instance.container_id.clone());
                let mut end = terminated(exit, graceful, since, now, id.unwrap_or_default());
                if !message.is_empty() {
                    end.message = message;
                }
                state.phase = Phase::Terminated(Terminated { outdated, ..end });
            }
            (News::Probed { kind, success, output }, Phase::Running(running)) => {
                let Some(probe) = kind.of(spec) else { return };
                if let Some(run) = running.probe_mut(kind) {
                    run.record(probe, success);
                }
                if !success && running.ending.is_none() {
                    let message = format!("{} probe failed: {output}", kind.title());
                    self.container_event(container, true, "Unhealthy", message);
                }
            }
            _ => {}
        }
    }

    fn pull_failed_events(&mut self, container: &str, image: &str, reason: &str, message: &str) {
        match reason {
            "InvalidImageName" => {
                let text = format!("Failed to apply default image tag {image:?}: {message}");
                self.container_event(container, true, "InspectFailed", text);
            }
            "ErrImageNeverPull" => {
                self.container_event(container, true, "ErrImageNeverPull", message.to_owned());
            }
            _ => {
                let text = format!("Failed to pull image {image:?}: {message}");
                self.container_event(container, true, "Failed", text);
            }
        }
        self.container_event(container, true, "Failed", format!("Error: {reason}"));
    }
}

impl ContainerState {
    fn refuse(&mut self, reason: &str, message: &str, of_pull: bool, now: Timestamp) {
        self.refusals.grant(now, now);
        self.no_seat = None;
        self.phase = Phase::Refused(Refused {
            reason: reason.to_owned(),
            message: message.to_owned(),
            since: now,
            retry_at: after(now, self.refusals.wait()),
            announced: false,
            of_pull,
        });
    }
}

fn pulled_message(image: &str, fetched: Option<Fetched>) -> String {
    let Some(fetched) = fetched else {
        return format!("Container image {image:?} already present on machine");
    };
    let millis = fetched.took.as_millis();
    let took = if millis < 1000 {
        format!("{millis}ms")
    } else if fetched.took.as_secs() < 60 {
        format!("{:.3}s", fetched.took.as_secs_f64())
    } else {
        go_duration(fetched.took)
    };
    format!(
        "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {} bytes.",
        fetched.bytes
    )
}

/// `graceful`: the container had been asked to stop before.
fn terminated(
    exit: Exit,
    graceful: bool,
    started_at: Timestamp,
    finished_at: Timestamp,
    container_id: String,
) -> Terminated {
    let (exit_code, reason, message) = match exit {
        Exit::Completed(0) => (0, "Completed", String::new()),
        Exit::Completed(code) => (code, "Error", String::new()),
        Exit::Trapped(message) => (EXIT_TRAP, "Error", message),
        Exit::OutOfMemory => (EXIT_KILLED, "OOMKilled", String::new()),
        Exit::LimitExceeded(resource) => {
            (EXIT_KILLED, "Error", format!("the limit of {resource} was exceeded"))
        }
        Exit::Killed if graceful => (EXIT_STOPPED, "Error", String::new()),
        Exit::Killed => (EXIT_KILLED, "Error", String::new()),
        Exit::HostFault(message) | Exit::Unseated(message) => (EXIT_HOST_FAULT, "Error", message),
    };
    Terminated {
        exit_code,
        reason: reason.to_owned(),
        message,
        started_at: Some(started_at),
        finished_at,
        container_id,
        announced: false,
        outdated: false,
    }
}
