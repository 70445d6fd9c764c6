//! `src/schema/kubernetes-1.33.json.gz` is made from k8s-openapi's schemas and the table of merge facts:
//! `UPDATE=1 cargo test -p coracle-objects --test schema_data` writes it anew. Without `UPDATE` the test compares.

mod facts;
mod merge;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read, Write as _},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use k8s_openapi::{
    api::{
        admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authentication,
        authorization::v1 as authorization, autoscaling::v1 as autoscaling,
        autoscaling::v2 as autoscaling_v2, batch::v1 as batch, certificates::v1 as certificates,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        flowcontrol::v1 as flowcontrol, networking::v1 as networking, node::v1 as node, policy::v1 as policy,
        rbac::v1 as rbac, scheduling::v1 as scheduling, storage::v1 as storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    apimachinery::pkg::apis::meta::v1 as meta,
};
use merge::FACTS;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/schema/kubernetes-1.33.json.gz");

macro_rules! roots {
    ($generator:ident: $($type_:ty),* $(,)?) => { $( $generator.subschema_for::<$type_>(); )* };
}

/// All schemas that can be reached from what Kubernetes serves, in the form that API servers publish.
fn schemas() -> BTreeMap<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    roots!(generator:
        admission::MutatingWebhookConfiguration, admission::ValidatingAdmissionPolicy,
        admission::ValidatingAdmissionPolicyBinding, admission::ValidatingWebhookConfiguration,
        apiextensions::CustomResourceDefinition, apps::ControllerRevision, apps::DaemonSet, apps::Deployment,
        apps::ReplicaSet, apps::StatefulSet, authentication::SelfSubjectReview, authentication::TokenRequest,
        authentication::TokenReview, authorization::LocalSubjectAccessReview, authorization::SelfSubjectAccessReview,
        authorization::SelfSubjectRulesReview, authorization::SubjectAccessReview, autoscaling::HorizontalPodAutoscaler,
        autoscaling::Scale, autoscaling_v2::HorizontalPodAutoscaler, batch::CronJob, batch::Job,
        certificates::CertificateSigningRequest, coordination::Lease, core::Binding, core::ComponentStatus,
        core::ConfigMap, core::Endpoints, core::Event, core::LimitRange, core::Namespace, core::Node,
        core::PersistentVolume, core::PersistentVolumeClaim, core::Pod, core::PodTemplate, core::ReplicationController,
        core::ResourceQuota, core::Secret, core::Service, core::ServiceAccount, discovery::EndpointSlice, events::Event,
        flowcontrol::FlowSchema, flowcontrol::PriorityLevelConfiguration, networking::IPAddress, networking::Ingress,
        networking::IngressClass, networking::NetworkPolicy, networking::ServiceCIDR, node::RuntimeClass,
        policy::Eviction, policy::PodDisruptionBudget, rbac::ClusterRole, rbac::ClusterRoleBinding, rbac::Role,
        rbac::RoleBinding, scheduling::PriorityClass, storage::CSIDriver, storage::CSINode, storage::CSIStorageCapacity,
        storage::StorageClass, storage::VolumeAttachment,
        meta::APIGroup, meta::APIGroupList, meta::APIResourceList, meta::APIVersions, meta::DeleteOptions,
        meta::LabelSelector, meta::ListMeta, meta::ObjectMeta, meta::Patch, meta::Status,
    );
    let mut schemas: BTreeMap<String, Value> = generator.take_definitions(false).into_iter().collect();
    for (name, schema) in &mut schemas {
        complete(name, schema);
    }
    let unknown = state_merges(&mut schemas);
    assert_eq!(unknown, Vec::<String>::new(), "merge facts of fields that are not there");
    schemas
}

/// Puts a schema into the form that real API servers publish.
fn complete(name: &str, schema: &mut Value) {
    match name {
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            retype(schema, "oneOf", json!([{ "type": "integer" }, { "type": "string" }]));
            schema["format"] = "int-or-string".into();
        }
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => {
            retype(schema, "oneOf", json!([{ "type": "string" }, { "type": "number" }]));
        }
        _ => {}
    }
    for property in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        wrap_reference(property.1);
    }
}

fn retype(schema: &mut Value, key: &str, value: Value) {
    if let Some(map) = schema.as_object_mut() {
        map.shift_remove("x-kubernetes-int-or-string");
        map.insert(key.to_owned(), value);
    }
}

/// OpenAPI 3.0 ignores what stands beside a `$ref`: it goes into an `allOf`, also within lists and maps.
fn wrap_reference(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    if map.len() > 1
        && let Some(reference) = map.shift_remove("$ref")
    {
        map.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(inner) {
            wrap_reference(inner);
        }
    }
}

/// Adds how lists and maps merge. What is stated of fields that there are not.
fn state_merges(schemas: &mut BTreeMap<String, Value>) -> Vec<String> {
    let mut unknown = Vec::new();
    for (schema, facts) in FACTS.iter().flat_map(|of| of.fields.iter().map(|facts| (of.schema, facts))) {
        let own = schemas.get_mut(schema);
        let stated = if facts.field == "." {
            own
        } else {
            own.and_then(|own| own.get_mut("properties")?.get_mut(facts.field))
        };
        match stated.and_then(Value::as_object_mut) {
            Some(stated) => facts.put_into(stated),
            None => unknown.push(format!("{schema} {}", facts.field)),
        }
    }
    unknown
}

/// One line a schema.
fn text(schemas: &BTreeMap<String, Value>) -> String {
    let mut text = String::from("{");
    for (name, schema) in schemas {
        let comma = if text.len() == 1 { "" } else { "," };
        write!(text, "{comma}\n{}:{schema}", json!(name)).unwrap();
    }
    text.push_str("\n}\n");
    text
}

#[test]
fn the_data_are_those_of_the_schemas() {
    let made = text(&schemas());
    if std::env::var_os("UPDATE").is_some() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(made.as_bytes()).unwrap();
        std::fs::write(DATA, encoder.finish().unwrap()).unwrap();
    }
    let mut kept = String::new();
    GzDecoder::new(std::fs::File::open(DATA).unwrap()).read_to_string(&mut kept).unwrap();
    assert!(made == kept, "run this test with UPDATE=1");
}

#[test]
fn the_table_of_merge_facts_is_sorted() {
    assert!(FACTS.is_sorted_by(|one, other| one.schema < other.schema));
    for facts in FACTS {
        assert!(facts.fields.is_sorted_by(|one, other| one.field < other.field), "{}", facts.schema);
    }
}
