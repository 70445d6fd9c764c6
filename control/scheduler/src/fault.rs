//! Objects that cannot be read, and faults of ours: each costs one object alone.

use std::panic::{self, AssertUnwindSafe};

use coracle_objects::{Object, ObjectError, ObjectKey};

/// Something that is left out, and why. The server reports a warning with `reason` and `message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The pod or node.
    pub regarding: ObjectKey,
    pub uid: String,
    /// A word for machines.
    pub reason: &'static str,
    pub message: String,
}

/// Why something could not be done to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is such that it cannot: what about it.
    Object(String),
    /// A fault of ours: the words of the panic.
    Panic(String),
}

impl Fault {
    /// A pod that is left for a while.
    pub fn unplaced(pod: &Object, cause: &Cause) -> Self {
        let message = match cause {
            Cause::Object(why) => format!("the pod cannot be placed: {why}"),
            Cause::Panic(words) => {
                format!(
                    "the pod cannot be placed, by a fault of Coracle: {words}; it is tried again ever more rarely"
                )
            }
        };
        Self::of(pod, "FailedScheduling", message)
    }

    /// A pod or node that cannot be read. It counts as existing, and nothing is placed or placed on it.
    pub fn unreadable(object: &Object, why: &str) -> Self {
        let message = format!(
            "The scheduler cannot read this object and leaves it as it is: {why}. Correct the field with kubectl edit, or \
             delete the object"
        );
        Self::of(object, "Unreadable", message)
    }

    fn of(object: &Object, reason: &'static str, message: String) -> Self {
        Self { regarding: object.key.clone(), uid: object.meta.uid.clone(), reason, message }
    }
}

impl Cause {
    pub fn words(&self) -> &str {
        match self {
            Self::Object(words) | Self::Panic(words) => words,
        }
    }
}

/// Does something that changes nothing but what it answers; a panic in it is an answer too.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, Cause> {
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(Cause::Object),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Cause::Panic(text.unwrap_or_else(|| "a panic".to_owned())))
        }
    }
}

/// Reads an object.
pub fn read<T>(object: &Object, parse: fn(&Object) -> Result<T, ObjectError>) -> Result<T, Cause> {
    guarded(|| {
        parse(object).map_err(|error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })
    })
}
