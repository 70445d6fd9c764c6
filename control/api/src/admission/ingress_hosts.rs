//! Since when an Ingress or a Function names its hosts: of two that name one the first has it.

use coracle_objects::{Transaction, kinds::note_hosts};
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::Value;

use super::{Operation, Plugin, Write};
use crate::{error::ApiError, metadata};

/// See the module.
pub struct IngressHosts;

impl Plugin for IngressHosts {
    fn name(&self) -> &'static str {
        "IngressHosts"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        let has_hosts = write.is_of("networking.k8s.io", "Ingress") || write.is_of("coracle.dev", "Function");
        has_hosts && write.operation != Operation::Delete
    }

    fn changes_objects(&self) -> bool {
        true
    }

    fn mutate<'a>(
        &'a self,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<Transaction, ApiError>> {
        note_hosts(write.view, write.old, object, &metadata::time((write.config.now)()));
        future::ready(Ok(Transaction::default())).boxed()
    }
}
