//! Tasks: what is looked at, one at a time.

use std::fmt;

use coracle_objects::{ObjectKey, ObjectName};

use crate::controller::{ALL, Controller};

/// One controller's work on one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// Its name.
    controller: &'static str,
    subject: ObjectKey,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.controller, self.subject)
    }
}

impl Task {
    pub fn new(controller: &'static str, subject: ObjectKey) -> Self {
        Self { controller, subject }
    }

    /// On an object of this resource.
    pub fn on(controller: &'static str, resource: &str, name: &ObjectName) -> Self {
        Self::new(controller, ObjectKey { resource: resource.into(), name: name.clone() })
    }

    /// The task that brings an object to what its own spec says, where there is one.
    pub fn of_owner(key: &ObjectKey) -> Option<Self> {
        let resource = key.resource.as_str();
        let controller = ALL.iter().find(|controller| controller.cares_for() == Some(resource))?;
        Some(Self::new(controller.name(), key.clone()))
    }

    /// The object that the task is about. None of that name is there where it is about many.
    pub fn subject(&self) -> &ObjectKey {
        &self.subject
    }

    /// The namespace whose work it is; empty where it is that of no one namespace.
    pub fn namespace(&self) -> &str {
        let name = &self.subject.name;
        if self.subject.resource.as_str() == "namespaces" { &name.name } else { &name.namespace }
    }

    /// Whose work it is, by the place among [`ALL`].
    pub fn place(&self) -> usize {
        ALL.iter().position(|controller| controller.name() == self.controller).unwrap_or_default()
    }

    pub fn controller(&self) -> &'static dyn Controller {
        ALL[self.place()]
    }
}
