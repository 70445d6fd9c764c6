//! How a container ended. Guest outcomes are data: nothing that a guest does is an error of the host.

use std::fmt;

use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::frames;
use crate::ledger::{Account, Refused};
use crate::limits::{LimitExceeded, MEMORY};
use crate::refusals::What;

/// Bytes of a message about a guest: it ends up in the pod's status.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The end of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest returned or called exit. A `run` that returns an error has code 1.
    Completed {
        /// The exit code as the guest gave it. Components built against WASI before 0.2.12 can say success or failure only:
        /// their code is 0 or 1.
        code: i32,
    },
    /// The guest trapped: unreachable code, a panic, an access out of bounds, stack exhausted, a host call refused.
    Trapped {
        /// The cause, and where in the guest it was.
        message: String,
    },
    /// The guest asked for more of a resource than it may have: `memory` is Kubernetes' OOMKilled.
    LimitExceeded {
        /// Which one.
        resource: &'static str,
    },
    /// [`crate::Container::kill`] ended it.
    Killed,
    /// The pools had no room for its instance, so that nothing of it has run: it may be started again once others end.
    Unseated {
        /// What there is too little of, and what can be done.
        message: String,
    },
    /// The host could not run it on: a fault of the host's own. The guest is not to blame.
    HostFault {
        /// What was wrong, for the operator.
        message: String,
    },
}

/// The ways in which containers end, as they are counted: the first two are [`Exit::Completed`] with code 0 and with another.
pub(crate) const KINDS: [&str; 8] =
    ["completed", "failed", "trapped", "out_of_memory", "limit_exceeded", "killed", "unseated", "host_fault"];

impl Exit {
    /// Which of [`KINDS`] it is.
    pub(crate) fn kind(&self) -> usize {
        match self {
            Exit::Completed { code: 0 } => 0,
            Exit::Completed { .. } => 1,
            Exit::Trapped { .. } => 2,
            Exit::LimitExceeded { .. } if self.is_out_of_memory() => 3,
            Exit::LimitExceeded { .. } => 4,
            Exit::Killed => 5,
            Exit::Unseated { .. } => 6,
            Exit::HostFault { .. } => 7,
        }
    }

    /// The exit code that Kubernetes shows: 137 for a kill or OOM, 134 (SIGABRT) for a trap, 128 for the host's faults.
    pub fn code(&self) -> i32 {
        match self {
            Exit::Completed { code } => *code,
            Exit::Trapped { .. } => 134,
            Exit::LimitExceeded { .. } | Exit::Killed => 137,
            Exit::HostFault { .. } | Exit::Unseated { .. } => 128,
        }
    }

    /// True for a return with code 0.
    pub fn is_success(&self) -> bool {
        matches!(self, Exit::Completed { code: 0 })
    }

    /// True where the memory limit ended it.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Exit::LimitExceeded { resource } if *resource == MEMORY)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Completed { code } => write!(f, "exited with code {code}"),
            Exit::Trapped { message } => write!(f, "trapped: {message}"),
            Exit::LimitExceeded { resource } => write!(f, "exceeded its limit of {resource}"),
            Exit::Killed => f.write_str("killed"),
            Exit::Unseated { message } => f.write_str(message),
            Exit::HostFault { message } => write!(f, "the host failed: {message}"),
        }
    }
}

/// What an error that ended a guest's call means for its container. `of_disk` is why it was last given no more of that.
pub(crate) fn classify(
    error: &wasmtime::Error,
    account: &Account,
    killed: bool,
    of_disk: Option<Refused>,
) -> Exit {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return Exit::Completed { code: *code };
    }
    if let Some(LimitExceeded { resource }) = error.downcast_ref() {
        return Exit::LimitExceeded { resource };
    }
    if killed {
        return Exit::Killed;
    }
    if account.exceeded() {
        return Exit::LimitExceeded { resource: MEMORY };
    }
    if let Some(message) = unseated(error) {
        return Exit::HostFault { message };
    }
    let mut message = describe(error);
    if let Some(refused) = account.refusal().or(of_disk) {
        let why = match refused.what {
            What::Memory => Some(format!("before that its memory did not grow: {refused}")),
            What::Disk => Some(format!("before that a file did not grow: {refused}")),
            _ => match error.downcast_ref() {
                Some(ResourceTableError::Full) => {
                    Some(format!("as it has all the handles that it may have: {refused}"))
                }
                _ => None,
            },
        };
        if let Some(why) = why {
            message.push_str("\n    ");
            message.push_str(&why);
        }
    }
    Exit::Trapped { message }
}

/// What to say where the pools had no room, which seats and what is reckoned of a component's stacks should not let happen.
pub(crate) fn unseated(error: &wasmtime::Error) -> Option<String> {
    error.downcast_ref::<PoolConcurrencyLimitError>()?;
    Some(format!(
        "this node has no room for an instance now: {}; stop pods or add a node",
        error.root_cause()
    ))
}

/// The cause of a trap with a short backtrace of the guest, in one bounded text.
pub(crate) fn describe(error: &wasmtime::Error) -> String {
    let mut message = error.root_cause().to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let frames = backtrace.frames().iter().map(|frame| (frame.func_name(), frame.func_index()));
        message.push_str(&frames::told(frames));
    }
    truncate(message)
}

/// What a guest said, or what is said of it, in a length that others may be told.
pub(crate) fn truncate(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        message.truncate(end);
        message.push_str(" ...");
    }
    message
}
