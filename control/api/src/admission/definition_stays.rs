//! Objects of a declared kind are made while their definition is there and stays: it waits for its objects when it goes, and
//! must know of all.

use coracle_objects::{Expect, ObjectKey, Precondition, Transaction, kinds::DEFINITIONS};
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::Value;

use super::{Operation, Plugin, Write};
use crate::error::ApiError;

/// See the module.
pub struct DefinitionStays;

impl Plugin for DefinitionStays {
    fn name(&self) -> &'static str {
        "DefinitionStays"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        write.operation == Operation::Create && write.kind.declared().is_some()
    }

    fn mutate<'a>(
        &'a self,
        write: &'a Write<'a>,
        _: &'a mut Value,
    ) -> BoxFuture<'a, Result<Transaction, ApiError>> {
        let key = ObjectKey::new(DEFINITIONS, "", write.kind.resource().as_str());
        let stays =
            write.view.get(&key).is_some_and(|definition| definition.meta.deletion_timestamp.is_none());
        let precondition = Precondition { key, expect: Expect::NotDeleting };
        let along = Transaction { preconditions: vec![precondition], writes: Vec::new() };
        future::ready(if stays { Ok(along) } else { Err(ApiError::MethodNotAllowed) }).boxed()
    }
}
