//! The Kubernetes REST API over any storage of objects: paths, discovery, OpenAPI, verbs, watches, tables, admission.
//!
//! Generic over the catalog of kinds and over two boundaries: [`Storage`] (the replicated store) and [`Nodes`]
//! (what only a pod's node can answer). [`router`] is the whole service.

mod admission;
mod answer;
mod auth;
mod body;
mod config;
mod discovery;
mod draft;
mod encoding;
mod error;
mod health;
mod heavy;
mod lane;
mod listing;
mod metadata;
mod meter;
mod openapi;
mod options;
mod pages;
mod path;
mod readable;
mod request;
mod router;
mod sending;
mod served;
mod storage;
mod strict;
mod table;
mod transact;
mod typed;
mod verbs;
mod watch;

pub use admission::{
    Admission, Admitted,
    services::{LostClaims, lost_claims},
};
pub use auth::{
    Attributes, Authorizer, Decision, Masters, UserInfo, asks_to_impersonate, impersonated, is_public,
};
pub use config::{ApiConfig, Checks, ServiceNetwork};
pub use draft::{fresh_uid, new_draft};
pub use error::ApiError;
pub use meter::{Asked, METRIC_VERBS, Meter};
pub use path::names_one_object;
pub use router::router;
pub use storage::{Expired, NodeError, Nodes, ProposeError, Storage, Unavailable, WatchItem, WatchStream};
pub use transact::{Settled, Unsettled, WriteError, settle, write};
pub use typed::{DEPTH_MAX, Findings, conform};
