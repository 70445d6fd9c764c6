//! One file a command; here they are dispatched.

pub mod build;
pub mod cluster;
pub mod control;
pub mod delete;
pub mod demo;
pub mod deploy;
pub mod dev;
pub mod doctor;
pub mod functions;
pub mod get;
pub mod invoke;
pub mod kubeconfig;
pub mod logs;
pub mod manual;
pub mod new;
pub mod node;
pub mod push;
pub mod recover;
pub mod run;
pub mod security;
pub mod snapshot;
pub mod token;
pub mod up;
pub mod version;
