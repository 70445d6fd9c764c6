//! Kinds that the user declares, under the unmodified kubectl: they are served like others, outlive a restart and go with
//! their definition.

use crate::harness::{Kubectl, alone, eventually, run, up};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: backups.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: backups, singular: backup, kind: Backup, shortNames: [bk]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [schedule]
            properties:
              schedule: {type: string, pattern: '^\S+( \S+){4}$', description: When it is made.}
              keep: {type: integer, minimum: 1, default: 7}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.keep, statusReplicasPath: .status.kept}
    additionalPrinterColumns:
    - {name: Schedule, type: string, jsonPath: .spec.schedule}
    - {name: Keep, type: integer, jsonPath: .spec.keep}
"#;

const BACKUP: &str = r#"
apiVersion: example.com/v1
kind: Backup
metadata: {name: nightly}
spec: {schedule: "0 3 * * *"}
"#;

#[test]
fn a_declared_kind_under_kubectl() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = up(folder.path());
    let Some(kubectl) = Kubectl::find(&folder.path().join("kubeconfig")) else { return };
    let created = kubectl.feed(&["apply"], DEFINITION).unwrap();
    assert!(
        created.contains("customresourcedefinition.apiextensions.k8s.io/backups.example.com created"),
        "{created}"
    );
    kubectl.run(&["wait", "--for=condition=established", "crd/backups.example.com", "--timeout=60s"]);
    let created = kubectl.feed(&["apply"], BACKUP).unwrap();
    assert!(created.contains("backup.example.com/nightly created"), "{created}");
    let row = kubectl.run(&["get", "bk"]);
    assert!(row.contains("NAME      SCHEDULE    KEEP") && row.contains("nightly   0 3 * * *   7"), "{row}");
    let explained = kubectl.run(&["explain", "backup.spec.schedule"]);
    assert!(explained.contains("When it is made."), "{explained}");
    let wrong = kubectl.feed(&["apply"], &BACKUP.replace("0 3 * * *", "nightly")).unwrap_err();
    assert!(wrong.contains(r"spec.schedule in body should match '^\S+( \S+){4}$'"), "{wrong}");
    let wrong = kubectl.feed(&["apply"], &BACKUP.replace("schedule:", "shedule:")).unwrap_err();
    assert!(wrong.contains("unknown field \"spec.shedule\""), "{wrong}");
    kubectl.run(&["scale", "backup/nightly", "--replicas=3"]);
    kubectl.run(&["annotate", "backup/nightly", "example.com/seen=yes"]);

    daemon.stop();
    let _daemon = up(folder.path());
    let kept = || {
        kubectl.run(&[
            "get",
            "backup",
            "nightly",
            "-o",
            "jsonpath={.spec.keep} {.metadata.annotations.example\\.com/seen}",
        ])
    };
    assert_eq!(kept(), "3 yes");
    let config = folder.path().join("kubeconfig");
    let row = run(&["get", "bk", "--kubeconfig", config.to_str().unwrap()]);
    assert!(row.contains("nightly  0 3 * * *") || row.contains("nightly   0 3 * * *"), "{row}");
    kubectl.run(&["create", "namespace", "other"]);
    kubectl.feed(&["apply", "--namespace=other"], BACKUP).unwrap();
    kubectl.run(&["delete", "namespace", "other", "--timeout=60s"]);
    assert_eq!(
        kubectl.run(&["get", "backups", "--all-namespaces", "-o", "name"]).trim(),
        "backup.example.com/nightly"
    );
    kubectl.run(&["delete", "crd", "backups.example.com", "--timeout=60s"]);
    eventually("the kind to be gone", || {
        let resources = kubectl.run(&["api-resources", "--cached=false"]);
        if resources.contains("backups") { Err(resources) } else { Ok(()) }
    });
    // What one of its objects was is not there for the next of the name.
    kubectl.feed(&["apply"], DEFINITION).unwrap();
    kubectl.run(&["wait", "--for=condition=established", "crd/backups.example.com", "--timeout=60s"]);
    assert_eq!(kubectl.run(&["get", "backups", "--all-namespaces", "-o", "name"]).trim(), "");
}
