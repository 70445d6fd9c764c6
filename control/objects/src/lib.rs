//! The generic Kubernetes object and everything that is known about kinds without a cluster: names, metadata,
//! transactions over objects, snapshots of them, the catalog of kinds, selectors, quantities and patches.
//!
//! A pure crate: no clock, randomness, I/O or logging.

pub mod admission;
pub mod binding;
pub mod bytes;
pub mod catalog;
pub mod claims;
pub mod cluster_info;
pub mod declared;
pub mod deletion;
pub mod draft;
pub mod field_error;
pub mod field_path;
pub mod fields;
pub mod image;
pub mod kind;
pub mod kinds;
pub mod log_options;
pub mod name;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod sealed;
pub mod selector;
pub mod support;
pub mod transaction;
pub mod validate;
pub mod value_set;
pub mod view;

pub use catalog::{Catalog, by_kind, by_plural, by_resource, kinds};
pub use cluster_info::{
    CLUSTER_INFO_KEPT, cluster_info_key, is_api_slice, is_cluster_info, is_kept_namespace,
};
pub use field_error::{Cause, FieldError};
pub use field_path::FieldPath;
pub use kind::{Column, Endpoint, Kind, NameRule, Subresource};
pub use log_options::LogOptions;
pub use name::{ObjectKey, ObjectName, ResourceName, Revision};
pub use object::{Meta, Object, ObjectError, OwnerReference};
pub use quantity::Quantity;
pub use sealed::{SEALED_RESOURCES, SealedText, is_sealed_resource};
pub use selector::{FieldSelector, LabelSelector, SelectorError};
pub use transaction::{Applied, Expect, OBJECT_BYTES_MAX, Precondition, Refusal, Transaction, Write};
pub use validate::meta::validate_meta;
pub use view::{Event, EventKind, Table, View};
