//! Indices: what controllers find objects by.
//!
//! Each is of the controller whose module it is in, or of all where several go by it. It follows what is there, and can be made
//! anew of that. What is read of an object is read once for all of them ([`Models`]).

use std::sync::Arc;

use coracle_objects::Object;

use crate::model::Models;

/// See the module.
pub trait Index {
    /// An object is there; what was read of it is in `models`.
    fn insert(&mut self, object: &Arc<Object>, models: &Models);

    /// An object as it was last told of is there no more; what was read of it is in `models` still.
    fn remove(&mut self, object: &Arc<Object>, models: &Models);
}
