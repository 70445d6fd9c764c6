//! Records of events: what `kubectl describe` shows below an object. The server makes Event objects of them.

use coracle_objects::{Object, ObjectKey};

/// Something worth telling about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The object that it is about.
    pub regarding: ObjectKey,
    /// That object's uid.
    pub uid: String,
    pub type_: EventType,
    /// A word in CamelCase for machines: `ScalingReplicaSet`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Who says so: `deployment-controller`.
    pub reporting_component: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    /// As in `type` of an Event object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl EventRecord {
    pub(crate) fn normal(about: &Object, component: &'static str, reason: &str, message: String) -> Self {
        Self::new(EventType::Normal, about, component, reason, message)
    }

    pub(crate) fn warning(about: &Object, component: &'static str, reason: &str, message: String) -> Self {
        Self::new(EventType::Warning, about, component, reason, message)
    }

    fn new(type_: EventType, about: &Object, component: &'static str, reason: &str, message: String) -> Self {
        Self {
            regarding: about.key.clone(),
            uid: about.meta.uid.clone(),
            type_,
            reason: reason.to_owned(),
            message,
            reporting_component: component,
        }
    }
}
