//! Why a request has no response: all of it for a log, and an id for whoever asked.

use super::{ENDED, Server};
use crate::exit::Exit;
use crate::net::{HttpError, RequestId, Unanswered};

impl Server {
    /// A guest failed while it served requests: says so where its operator looks, and ends the container where its
    /// limit of memory did it.
    pub(super) fn failed(&self, error: &wasmtime::Error, requests: &[RequestId]) -> Failed {
        let exit = self.sandbox.classify(error);
        // A container that runs is interrupted by nothing but a request's deadline, or by its caller's going away.
        if matches!(exit, Exit::Trapped { .. }) && error.downcast_ref() == Some(&wasmtime::Trap::Interrupt) {
            return Failed::InTime;
        }
        self.log_failure(requests, &exit.to_string());
        match exit {
            Exit::LimitExceeded { .. } => {
                self.sandbox.fail(exit);
                Failed::ByItself
            }
            Exit::Killed => Failed::ForTheHost(ENDED.to_owned()),
            Exit::HostFault { message } | Exit::Unseated { message } => Failed::ForTheHost(message),
            Exit::Completed { .. } | Exit::Trapped { .. } => Failed::ByItself,
        }
    }

    /// Says why a request has no response where nobody has yet: in the container's log where its guest took too long, in the
    /// node's where no guest is at fault. Clients can be refused as often as they like: that would drown what a container says.
    #[cold]
    pub(super) fn log_unanswered(&self, Unanswered { error, id, .. }: &Unanswered) {
        match error {
            HttpError::Failed => {}
            HttpError::TimedOut => {
                self.log_failure(&[*id], &format!("no response within {:?}", self.timeout));
            }
            HttpError::Unavailable { .. } | HttpError::Malformed { .. } => {
                tracing::debug!(container = self.sandbox.name, request = %id, reason = %error, "request refused");
            }
        }
    }

    /// Says in the container's log why requests have no answer. Whoever asked is told their ids alone. A full sink loses it.
    pub(super) fn log_failure(&self, requests: &[RequestId], reason: &str) {
        self.sandbox.host.tally.failed(requests.len());
        let which = match requests {
            [] => "an instance that owed no answer".to_owned(),
            [request] => format!("request {request}"),
            all => {
                format!("requests {}", all.iter().map(RequestId::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        tracing::debug!(container = self.sandbox.name, which, reason, "request failed");
        self.sandbox.grants.stderr.write(format!("{which} failed: {}\n", one_line(reason)).as_bytes());
    }
}

/// How a guest failed, as far as its callers are told.
#[derive(Clone)]
pub(super) enum Failed {
    /// The time was over.
    InTime,
    ByItself,
    /// The host could not go on with it.
    ForTheHost(String),
}

impl Failed {
    /// What the caller of a request is told.
    pub(super) fn told(self) -> HttpError {
        match self {
            Failed::InTime => HttpError::TimedOut,
            Failed::ByItself => HttpError::Failed,
            Failed::ForTheHost(reason) => HttpError::Unavailable { reason },
        }
    }
}

/// What a guest chose of it, a function's name perhaps, begins no line of its own.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" | ").replace('\r', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_whatever_names_are_in_it() {
        assert_eq!(one_line("trapped at a\r\nb\rc\n"), "trapped at a | b c");
    }
}
