//! Validation in the words of Kubernetes: syntax of names and labels, metadata, and checks that kinds share.

pub mod keys;
pub mod meta;
pub mod rules;
pub mod status;
pub mod syntax;
