//! The schemas of all types of the served Kubernetes version, as OpenAPI v3 has them.

use std::{collections::BTreeMap, sync::OnceLock};

use coracle_objects::schema::{ListType, MapType, PatchStrategy};
use k8s_openapi::{
    api::{
        admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
        coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, scheduling,
        storage,
    },
    apimachinery::pkg::apis::meta::v1 as meta,
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

const REFERENCE: &str = "#/components/schemas/";

/// The schema of a type: `io.k8s.api.core.v1.Pod`.
pub fn get(name: &str) -> Option<&'static Value> {
    all().get(name)
}

/// The name of the schema that a `$ref` (by itself or wrapped in `allOf`) points to.
pub fn reference(schema: &Value) -> Option<&str> {
    let direct = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref"));
    direct?.as_str()?.strip_prefix(REFERENCE)
}

/// A schema that points to another.
pub fn refer(name: &str) -> Value {
    json!({ "$ref": format!("{REFERENCE}{name}") })
}

/// All schemas, made once.
pub fn all() -> &'static BTreeMap<String, Value> {
    static ALL: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    ALL.get_or_init(generate)
}

macro_rules! add {
    ($generator:ident: $($type:ty),* $(,)?) => { $( add::<$type>(&mut $generator); )* };
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

fn generate() -> BTreeMap<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    add!(generator:
        core::v1::Binding, core::v1::ComponentStatus, core::v1::ConfigMap, core::v1::Endpoints, core::v1::Event,
        core::v1::LimitRange, core::v1::Namespace, core::v1::Node, core::v1::PersistentVolume,
        core::v1::PersistentVolumeClaim, core::v1::Pod, core::v1::PodTemplate, core::v1::ReplicationController,
        core::v1::ResourceQuota, core::v1::Secret, core::v1::Service, core::v1::ServiceAccount,
        apps::v1::ControllerRevision, apps::v1::DaemonSet, apps::v1::Deployment, apps::v1::ReplicaSet,
        apps::v1::StatefulSet, autoscaling::v1::HorizontalPodAutoscaler, autoscaling::v1::Scale,
        autoscaling::v2::HorizontalPodAutoscaler, batch::v1::CronJob, batch::v1::Job,
        certificates::v1::CertificateSigningRequest, coordination::v1::Lease, discovery::v1::EndpointSlice,
        events::v1::Event, networking::v1::IPAddress, networking::v1::Ingress, networking::v1::IngressClass,
        networking::v1::NetworkPolicy, networking::v1::ServiceCIDR, node::v1::RuntimeClass, policy::v1::Eviction,
        policy::v1::PodDisruptionBudget, rbac::v1::ClusterRole, rbac::v1::ClusterRoleBinding, rbac::v1::Role,
        rbac::v1::RoleBinding, scheduling::v1::PriorityClass, storage::v1::CSIDriver, storage::v1::CSINode,
        storage::v1::CSIStorageCapacity, storage::v1::StorageClass, storage::v1::VolumeAttachment,
        authentication::v1::SelfSubjectReview, authentication::v1::TokenRequest, authentication::v1::TokenReview,
        authorization::v1::LocalSubjectAccessReview, authorization::v1::SelfSubjectAccessReview,
        authorization::v1::SelfSubjectRulesReview, authorization::v1::SubjectAccessReview,
        admissionregistration::v1::MutatingWebhookConfiguration,
        admissionregistration::v1::ValidatingAdmissionPolicy,
        admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        admissionregistration::v1::ValidatingWebhookConfiguration, flowcontrol::v1::FlowSchema,
        flowcontrol::v1::PriorityLevelConfiguration, meta::APIGroup, meta::APIGroupList, meta::APIResourceList,
        meta::APIVersions, meta::DeleteOptions, meta::LabelSelector, meta::ListMeta, meta::ObjectMeta, meta::Patch,
        meta::Status,
    );
    let mut schemas: BTreeMap<String, Value> = generator.take_definitions(false).into_iter().collect();
    for (name, schema) in &mut schemas {
        complete(name, schema);
    }
    for kind in coracle_objects::kinds() {
        if let Some(schema) = coracle_objects::kinds::coracle_openapi(kind.schema) {
            schemas.insert(kind.schema.to_owned(), schema);
        }
    }
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
    extend(schema, name, ".");
    for (field, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten()
    {
        wrap_reference(property);
        extend(property, name, field);
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

/// Adds how lists and maps merge.
fn extend(schema: &mut Value, name: &str, field: &str) {
    let Some(facts) = coracle_objects::schema::facts(name, field) else { return };
    let Some(map) = schema.as_object_mut() else { return };
    let mut put = |key: &str, value: Value| {
        map.insert(format!("x-kubernetes-{key}"), value);
    };
    match (facts.patch, facts.retain_keys) {
        (PatchStrategy::Merge, true) => put("patch-strategy", "merge,retainKeys".into()),
        (PatchStrategy::Merge, false) => put("patch-strategy", "merge".into()),
        (PatchStrategy::Replace, _) => put("patch-strategy", "replace".into()),
        (PatchStrategy::Unstated, true) => put("patch-strategy", "retainKeys".into()),
        (PatchStrategy::Unstated, false) => {}
    }
    if !facts.patch_key.is_empty() {
        put("patch-merge-key", facts.patch_key.into());
    }
    match facts.list {
        ListType::Unstated => {}
        ListType::Atomic => put("list-type", "atomic".into()),
        ListType::Set => put("list-type", "set".into()),
        ListType::Map => put("list-type", "map".into()),
    }
    if !facts.list_keys.is_empty() {
        put("list-map-keys", facts.list_keys.to_vec().into());
    }
    match facts.map {
        MapType::Unstated => {}
        MapType::Granular => put("map-type", "granular".into()),
        MapType::Atomic => put("map-type", "atomic".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_kind_has_a_schema() {
        for kind in coracle_objects::kinds() {
            assert!(get(kind.schema).is_some(), "{}", kind.schema);
        }
    }

    #[test]
    fn schemas_have_the_form_of_real_servers() {
        let spec = get("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = &spec["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        let pod = get("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(reference(&pod["properties"]["spec"]), Some("io.k8s.api.core.v1.PodSpec"));
        assert!(pod["properties"]["spec"].get("allOf").is_some());
        let quantity = get("io.k8s.apimachinery.pkg.api.resource.Quantity").unwrap();
        assert!(quantity.get("oneOf").is_some());
    }
}
