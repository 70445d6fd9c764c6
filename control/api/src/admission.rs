//! Admission: what a write depends on in the rest of the cluster, what is filled in from there, and who has a say in it.
//!
//! A chain of plugins, as kube-apiserver has it: each that handles a write first mutates the object, then all validate what
//! has come of it. They may wait; the whole is tried again with a newer state where the write is refused.

mod cluster_info;
mod components;
mod definition_stays;
mod ingress_hosts;
mod namespace_lifecycle;
mod node_restriction;
pub mod services;

use coracle_objects::{Kind, ObjectKey, Transaction, View};
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::Value;

pub use self::components::{Admission, Admitted};
use self::{
    cluster_info::ClusterInfo, definition_stays::DefinitionStays, ingress_hosts::IngressHosts,
    namespace_lifecycle::NamespaceLifecycle, node_restriction::NodeRestriction, services::ServiceClaims,
};
use crate::{auth::UserInfo, config::ApiConfig, error::ApiError};

/// What is to be done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// Who writes, and to which cluster.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    pub config: &'a ApiConfig,
    pub user: &'a UserInfo,
}

/// A write, and the state in which it is decided.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub operation: Operation,
    pub kind: &'a Kind,
    pub key: &'a ObjectKey,
    pub view: &'a View,
    pub config: &'a ApiConfig,
    /// In whose name.
    pub user: &'a UserInfo,
    /// The object as it is; none where it is created.
    pub old: Option<&'a Value>,
}

impl Write<'_> {
    fn is_of(&self, group: &str, kind: &str) -> bool {
        self.kind.is(group, kind)
    }
}

/// One say in writes.
pub trait Plugin: Sync {
    /// As kube-apiserver calls it, where it has one.
    fn name(&self) -> &'static str;

    /// Whether it has a say in this one: by what is done, to what and by whom, and not by the object.
    fn handles(&self, write: &Write<'_>) -> bool;

    /// Whether it may change the object.
    fn changes_objects(&self) -> bool {
        false
    }

    /// Whether it fills in what the kind validates: what is at fault in one state may then be right in another.
    fn completes(&self) -> bool {
        false
    }

    /// Completes a new or changed object, after the kind's defaults where it is validated. Answers what must hold and what is written along with
    /// it.
    fn mutate<'a>(
        &'a self,
        _write: &'a Write<'a>,
        _object: &'a mut Value,
    ) -> BoxFuture<'a, Result<Transaction, ApiError>> {
        future::ready(Ok(Transaction::default())).boxed()
    }

    /// Refuses what may not be. The object is what the kind has found nothing wrong with; none where it is deleted.
    fn validate<'a>(
        &'a self,
        _write: &'a Write<'a>,
        _object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        future::ready(Ok(())).boxed()
    }
}

/// All of them, in the order in which they mutate and validate.
const PLUGINS: [&dyn Plugin; 6] =
    [&NamespaceLifecycle, &DefinitionStays, &ServiceClaims, &IngressHosts, &ClusterInfo, &NodeRestriction];

fn handling<'a>(write: &'a Write<'a>) -> impl Iterator<Item = &'static dyn Plugin> + use<'a> {
    PLUGINS.into_iter().filter(|plugin| plugin.handles(write))
}

/// Completes a new or changed object, after the kind's defaults and before it is validated. Answers what must hold and what is
/// written along with it.
pub async fn mutate(write: &Write<'_>, object: &mut Value) -> Result<Transaction, ApiError> {
    let mut along = Transaction::default();
    for plugin in handling(write) {
        let mutated = plugin.mutate(write, object).await;
        along.join(mutated.inspect_err(|error| refused(plugin, write, error))?);
    }
    Ok(along)
}

/// Whether [`mutate`] fills in what is validated then.
pub fn completes(write: &Write<'_>) -> bool {
    handling(write).any(|plugin| plugin.completes())
}

/// Refuses what may not be, once the kind has found nothing wrong with it.
pub async fn validate(write: &Write<'_>, object: Option<&Value>) -> Result<(), ApiError> {
    for plugin in handling(write) {
        plugin.validate(write, object).await.inspect_err(|error| refused(plugin, write, error))?;
    }
    Ok(())
}

fn refused(plugin: &dyn Plugin, write: &Write<'_>, error: &ApiError) {
    tracing::debug!(plugin = plugin.name(), key = %write.key, user = write.user.name, %error, "not admitted");
}
