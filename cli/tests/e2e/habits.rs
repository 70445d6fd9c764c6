//! `coracle` beside the unmodified kubectl: the same words give the same output.

use std::{fs, process::Output};

use crate::harness::{Kubectl, alone, coracle, eventually, fails, run, sample, up};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: texts, annotations: {note: "\e[2J"}}
data: {greeting: hi}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}}
spec:
  restartPolicy: OnFailure
  containers:
  - {name: first, image: "pi-job:1", args: ["20"]}
  - {name: second, image: "crash:1"}
"#;

/// Both programs with the same words.
fn both(kubectl: &Kubectl, config: &str, words: &[&str]) -> [(String, String, bool); 2] {
    let parts = |output: Output| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.success())
    };
    let own = [words, &["--kubeconfig", config]].concat();
    [parts(kubectl.command(words).output().unwrap()), parts(coracle(&own).output().unwrap())]
}

#[test]
fn the_words_of_kubectl_give_its_output() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let _daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let config = kubeconfig.to_str().unwrap();
    let on = |words: &[&str]| run(&[words, &["--kubeconfig", config]].concat());
    let refused = |words: &[&str]| fails(&[words, &["--kubeconfig", config]].concat());
    for name in ["pi-job", "crash"] {
        on(&["push", &sample(name), &format!("{name}:1")]);
    }
    on(&["deploy", &sample("hello-http"), "--name", "hello", "--replicas", "2"]);
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    kubectl.feed(&["create"], MANIFEST).unwrap();
    eventually("the second container to crash and be started again", || {
        let path = "jsonpath={.status.containerStatuses[?(@.name==\"second\")].restartCount}";
        let count = kubectl.run(&["get", "pod", "two", "-o", path]);
        if count.parse::<u32>().is_ok_and(|count| count > 0) { Ok(()) } else { Err(count) }
    });

    for words in [
        &["get", "deploy,svc"][..],
        &["get", "deploy,svc,cm", "-o", "name"],
        &["get", "deploy/hello", "svc/hello"],
        &["get", "deploy", "hello", "nope"],
        &["get", "rs", "-l", "app=none"],
        &["get", "rs", "-A", "-l", "app=none"],
        &["get", "crd"],
        &["get", "svc", "--show-labels"],
        &["get", "nodes", "-o", "name"],
        &["get", "deploy", "nope"],
        &["get", "deploy", "nope", "--ignore-not-found"],
        &["logs", "two", "-c", "first"],
        &["logs", "two", "-c", "first", "--tail", "0"],
        &["delete", "deploy", "nope"],
        &["delete", "deploy", "--all", "--dry-run=server"],
        &["delete", "cm/texts", "svc/hello", "--dry-run=client"],
    ] {
        // Ages are those of a moment.
        eventually(&format!("both to say the same of {words:?}"), || {
            let [theirs, own] = both(&kubectl, config, words);
            if theirs == own { Ok(()) } else { Err(format!("{theirs:?}\nbut {own:?}")) }
        });
    }
    let all = on(&["get", "all", "-o", "name"]);
    for part in ["pod/two", "service/hello", "deployment.apps/hello", "replicaset.apps/hello-"] {
        assert!(all.contains(part), "{all}");
    }
    assert!(!all.contains("configmap/"), "{all}");
    let listed: serde_json::Value = serde_json::from_str(&on(&["get", "deploy,svc", "-o", "json"])).unwrap();
    assert_eq!((&listed["kind"], &listed["items"][0]["kind"]), (&"List".into(), &"Deployment".into()));
    let yaml = on(&["get", "cm", "texts", "-o", "yaml"]);
    assert!(!yaml.contains('\x1b') && yaml.contains("\\e[2J"), "{yaml}");

    logs(&on, &refused);
    let said = refused(&["get", "jobs"]);
    assert!(said.contains("Coracle does not serve jobs yet"), "{said}");
    let versions = on(&["version", "-o", "json"]);
    assert!(versions.contains("clientVersion") && versions.contains("serverVersion"), "{versions}");
    for listing in [
        &["token", "list"][..],
        &["cluster", "members"],
        &["cluster", "keys"],
        &["cluster", "ca"],
        &["doctor"],
    ] {
        let json = coracle(&[listing, &["-o", "json", "--kubeconfig", config]].concat()).output().unwrap();
        let parsed = serde_json::from_slice::<serde_json::Value>(&json.stdout);
        assert!(parsed.is_ok_and(|value| value.is_array() || value.is_object()), "{listing:?}");
    }
    removal(&kubectl, folder.path(), &on, &refused);
}

fn logs(on: &dyn Fn(&[&str]) -> String, refused: &dyn Fn(&[&str]) -> String) {
    assert_eq!(on(&["logs", "two"]), on(&["logs", "pod/two", "-c", "first"]), "the first is the default");
    let crashed = on(&["logs", "two", "-c", "second", "--previous"]);
    assert!(crashed.contains("about to crash"), "{crashed}");
    let both = on(&["logs", "-l", "app=two", "--all-containers", "--prefix"]);
    assert!(
        both.contains("[pod/two/first] 3.14159") && both.contains("[pod/two/second] about to crash"),
        "{both}"
    );
    // A component behind HTTP writes nothing by itself: that its pods are found is the matter.
    for target in ["hello", "deploy/hello", "svc/hello"] {
        on(&["logs", target]);
        on(&["logs", target, "--all-pods", "--tail=-1"]);
    }
    for (words, said) in [
        (&["logs", "two", "-c", "third"][..], "pod two has no container \"third\": it has first, second"),
        (&["logs", "nope"], "pods \"nope\" not found"),
        (&["logs", "node/node-1"], "node/node-1 selects no pods"),
        (&["logs", "-l", "app=none"], "there are no pods of the labels app=none"),
        (&["logs", "two", "--since", "9999999d"], "is too long"),
    ] {
        let error = refused(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
}

fn removal(
    kubectl: &Kubectl,
    folder: &std::path::Path,
    on: &dyn Fn(&[&str]) -> String,
    refused: &dyn Fn(&[&str]) -> String,
) {
    let file = folder.join("objects.yaml");
    fs::write(&file, MANIFEST).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(on(&["get", "-f", file, "-o", "name"]), "configmap/texts\npod/two\n");
    for (words, said) in [
        (&["delete", "deploy"][..], "no name"),
        (&["delete", "pod/two", "deploy"], "no kind apart"),
        (&["delete", "deploy,", "hello"], "is empty"),
        (&["delete", "pods", "two", "--all"], "together with --all"),
    ] {
        let error = refused(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    assert_eq!(on(&["delete", "-f", file, "--now"]), "configmap \"texts\" deleted\npod \"two\" deleted\n");
    let said = refused(&["delete", "-f", file]);
    assert_eq!(said.matches("(NotFound)").count(), 2, "{said}");
    on(&["delete", "-f", file, "--ignore-not-found"]);
    let gone = on(&["delete", "deploy,svc,ingress", "-l", "app=hello"]);
    assert!(
        gone.contains("deployment.apps \"hello\" deleted") && gone.contains("service \"hello\" deleted"),
        "{gone}"
    );
    eventually("the pods of the Deployment to go", || {
        let pods = kubectl.run(&["get", "pods", "-o", "name"]);
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}

#[test]
fn what_is_printed_into_a_pipe_that_ends_is_no_fault() {
    let mut child = coracle(&["completions", "bash"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
