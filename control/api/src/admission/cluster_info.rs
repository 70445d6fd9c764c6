//! What the control plane keeps about itself is nobody else's to write.

use coracle_objects::{CLUSTER_INFO_KEPT, is_cluster_info};
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::Value;

use super::{Plugin, Write};
use crate::error::ApiError;

/// See the module.
pub struct ClusterInfo;

impl Plugin for ClusterInfo {
    fn name(&self) -> &'static str {
        "ClusterInfo"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        is_cluster_info(write.key)
    }

    fn validate<'a>(
        &'a self,
        write: &'a Write<'a>,
        _: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let (resource, name) = (Some(write.key.resource.clone()), write.key.name.name.to_string());
        future::ready(Err(ApiError::Forbidden { resource, name, reason: CLUSTER_INFO_KEPT.to_owned() }))
            .boxed()
    }
}
