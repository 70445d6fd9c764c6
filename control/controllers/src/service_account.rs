//! What each namespace is given at birth: the service account `default` and the cluster's certificate.

use coracle_objects::{Event, ObjectKey, Transaction};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    draft::{self, Unreadable, namespace_key, timestamp},
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct ServiceAccounts;

const NAME: &str = "serviceaccount-controller";

const ACCOUNT: &str = "default";
const CERTIFICATE: &str = "kube-root-ca.crt";

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, _: &State, event: &Event, tasks: &mut Queue) {
        let key = &event.object.key;
        match key.resource.as_str() {
            "namespaces" => tasks.insert(Task::new(NAME, key.clone())),
            "serviceaccounts" | "configmaps" if is_gift(&key.name.name) => {
                tasks.insert(Task::new(NAME, namespace_key(&key.name.namespace)));
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name.name)
    }
}

/// Whether a service account or config map of this name is one of the gifts.
fn is_gift(name: &str) -> bool {
    name == ACCOUNT || name == CERTIFICATE
}

/// Makes what is missing, and restores a certificate that was changed.
fn plan(planner: &mut Planner<'_>, namespace: &str) -> Result<(), Unreadable> {
    if !planner.state.takes_objects(namespace) {
        return Ok(());
    }
    let account = ObjectKey::new("serviceaccounts", namespace, ACCOUNT);
    if planner.state.get(&account).is_none() {
        create(planner, account, json!({"apiVersion": "v1", "kind": "ServiceAccount"}));
    }
    let certificate = ObjectKey::new("configmaps", namespace, CERTIFICATE);
    let data = json!({"ca.crt": planner.config.ca_bundle});
    match planner.state.get(&certificate).cloned() {
        None => create(planner, certificate, json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data})),
        Some(object) => {
            let mut value = draft::of(&object)?;
            if value["data"] != data && object.meta.deletion_timestamp.is_none() {
                value["data"] = data;
                planner.propose(draft::put(&object, &value));
            }
        }
    }
    Ok(())
}

fn create(planner: &mut Planner<'_>, key: ObjectKey, mut value: Value) {
    let mut metadata = json!({
        "name": &*key.name.name, "namespace": &*key.name.namespace, "uid": planner.new_uid(),
        "creationTimestamp": timestamp(planner.now),
    });
    if &*key.name.name == CERTIFICATE {
        metadata["annotations"] = json!({
            "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when \
                using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                guaranteed across distributions of Kubernetes clusters.",
        });
    }
    value["metadata"] = metadata;
    planner.propose(Transaction::create(key, draft::bytes(&value)));
}
