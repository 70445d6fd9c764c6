//! The declarations of all served kinds, one file a kind (or a few that belong together).

mod age;
mod config;
mod coracle;
mod definition;
mod deployment;
mod discovery;
mod event;
mod function;
mod ingress;
mod lease;
mod namespace;
mod node;
pub mod pod;
mod pod_template;
mod replica_set;
mod service;

use crate::kind::Native;

pub use age::{age, human_duration};
pub use coracle::openapi as coracle_openapi;
pub use definition::{CLEANUP, DEFINITIONS};
pub use discovery::endpoint_faults;
pub use function::{
    FUNCTION_CONTAINER, FUNCTION_LABEL, FUNCTION_PORT, FUNCTION_REVISIONS, FUNCTIONS, REVISION_LABEL,
    TRAFFIC_MAX, function_hosts, function_names_others, function_paths, function_template, own_hosts,
    tagged_host, what_runs,
};
pub use ingress::{
    GATEWAY_CONTROLLER, INGRESS_CLASSES, INGRESSES, hosts_since, ingress_class, is_for_gateways,
    is_gateway_class, note_hosts,
};
pub use service::{OF_A_TYPE as SERVICE_FIELDS_OF_A_TYPE, service_address_errors, takes as service_takes};

/// All served kinds. Where a resource has several versions or groups, the preferred one is first.
pub(crate) static ALL: &[Native] = &[
    namespace::NAMESPACE,
    node::NODE,
    pod::POD,
    service::SERVICE,
    discovery::ENDPOINTS,
    config::CONFIG_MAP,
    config::SECRET,
    config::SERVICE_ACCOUNT,
    event::EVENT,
    event::EVENTS_EVENT,
    deployment::DEPLOYMENT,
    replica_set::REPLICA_SET,
    discovery::ENDPOINT_SLICE,
    lease::LEASE,
    ingress::INGRESS,
    ingress::INGRESS_CLASS,
    ingress::IP_ADDRESS,
    definition::DEFINITION,
    coracle::MEMBER,
    coracle::POD_BLOCK,
    coracle::ARTIFACT,
    coracle::PORT_ALLOCATION,
    function::FUNCTION,
    function::FUNCTION_REVISION,
];
