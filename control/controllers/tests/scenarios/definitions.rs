//! CustomResourceDefinitions: their names, and their end.

use coracle_objects::ObjectKey;
use serde_json::{Value, json};

use crate::harness::Cluster;

const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

pub fn definition(plural: &str, kind: &str, group: &str, short: &str) -> (ObjectKey, Value) {
    let name = format!("{plural}.{group}");
    let value = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": name, "uid": name, "finalizers": ["customresourcecleanup.apiextensions.k8s.io"] },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                "shortNames": [short] },
            "versions": [{ "name": "v1", "served": true, "storage": true }],
        },
    });
    (ObjectKey::new(DEFINITIONS, "", &name), value)
}

fn conditions(cluster: &Cluster, key: &ObjectKey) -> Vec<(String, String, String)> {
    let value = cluster.get(key);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or("").to_owned();
    let all = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().map(|one| (text(one, "type"), text(one, "status"), text(one, "reason"))).collect()
}

#[test]
fn a_definition_is_told_whether_its_names_are_its_own() {
    let mut cluster = Cluster::new();
    let (foos, first) = definition("foos", "Foo", "example.com", "fo");
    let (bars, second) = definition("bars", "Bar", "example.com", "ba");
    cluster.put(foos.clone(), first);
    cluster.put(bars.clone(), second);
    cluster.settle();
    let told =
        |type_: &str, status: &str, reason: &str| (type_.to_owned(), status.to_owned(), reason.to_owned());
    let established = told("Established", "True", "InitialNamesAccepted");
    assert_eq!(
        conditions(&cluster, &foos),
        [told("NamesAccepted", "True", "NoConflicts"), established.clone()]
    );
    assert_eq!(cluster.get(&foos)["status"]["acceptedNames"]["shortNames"], json!(["fo"]));
    // An older one that wants a name of a younger one's does not get it, and goes on under its own.
    cluster.edit(&foos, |value| value["spec"]["names"]["shortNames"] = json!(["ba"]));
    cluster.settle();
    assert_eq!(
        conditions(&cluster, &foos),
        [told("NamesAccepted", "False", "ShortNamesConflict"), established.clone()]
    );
    assert_eq!(cluster.get(&foos)["status"]["acceptedNames"]["shortNames"], json!(["fo"]));
    assert_eq!(conditions(&cluster, &bars)[1], established);
    cluster.delete(&bars, None);
    cluster.settle();
    assert_eq!(conditions(&cluster, &foos)[0], told("NamesAccepted", "True", "NoConflicts"));
}

#[test]
fn the_objects_of_a_definition_go_before_it_and_nobody_elses() {
    let mut cluster = Cluster::new();
    let (foos, first) = definition("foos", "Foo", "example.com", "fo");
    let (theft, of_ours) = definition("configmaps", "ConfigMap", "", "x");
    let theft = ObjectKey::new(DEFINITIONS, "", theft.name.name.trim_end_matches('.'));
    cluster.put(foos.clone(), first);
    cluster.put(theft.clone(), of_ours);
    let foo = ObjectKey::new("foos.example.com", "default", "a");
    let object = |finalizers: Value| {
        json!({ "apiVersion": "example.com/v1", "kind": "Foo",
        "metadata": { "name": "a", "namespace": "default", "uid": "a", "finalizers": finalizers } })
    };
    cluster.put(foo.clone(), object(json!(["a.b/c"])));
    cluster.settle();
    let before = cluster.names("configmaps");
    assert!(!before.is_empty());
    cluster.delete(&theft, None);
    cluster.delete(&foos, None);
    cluster.settle();
    assert_eq!(cluster.names("configmaps"), before, "they are none of its objects");
    assert_eq!(cluster.names(DEFINITIONS), ["foos.example.com"], "it waits for its object");
    assert!(cluster.get(&foo)["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(conditions(&cluster, &foos)[2].0, "Terminating");
    cluster.edit(&foo, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.delete(&foo, None);
    cluster.settle();
    assert_eq!(cluster.names("foos.example.com"), [] as [String; 0]);
    assert_eq!(cluster.names(DEFINITIONS), [] as [String; 0]);
}
