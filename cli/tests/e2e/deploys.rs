//! `coracle deploy`: what it knows at once, what it leaves behind, and what it leaves as it is.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::harness::{
    FOREIGN_MODULE, Kubectl, alone, control, coracle, eventually, fails, get, run, sample, up,
};

struct Subject<'a> {
    config: &'a str,
    kubectl: Kubectl,
    gateway: String,
}

impl Subject<'_> {
    fn on(&self, words: &[&str]) -> String {
        run(&self.here(words))
    }

    fn refused(&self, words: &[&str]) -> String {
        fails(&self.here(words))
    }

    /// A command of this cluster: what stands behind `--` is the program's.
    fn here<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let (command, rest) = words.split_first().expect("a command");
        [&[*command, "--kubeconfig", self.config], rest].concat()
    }

    /// All that a deployment could leave.
    fn made(&self) -> String {
        self.on(&["get", "all,ing,secrets,artifacts", "-o", "name"])
    }

    fn answers(&self, path: &str, wanted: &str) {
        eventually(&format!("{path} to be {wanted:?}"), || match get(&self.gateway, path) {
            (200, body) if body.contains(wanted) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    fn deployment(&self, path: &str) -> String {
        self.kubectl.run(&["get", "deployment", "hello", "-o", &format!("jsonpath={{{path}}}")])
    }
}

#[test]
fn a_deployment_knows_at_once_leaves_nothing_and_merges() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    let config = kubeconfig.to_str().unwrap();
    let subject = Subject { config, kubectl, gateway: daemon.said("gateway     ") };
    let before = subject.made();
    known_at_once(&subject, folder.path());
    assert_eq!(subject.made(), before, "what is refused leaves nothing");
    merged(&subject, folder.path());
    failing(&subject);
    removed(&subject, &before);
}

fn known_at_once(subject: &Subject<'_>, folder: &Path) {
    let file = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let script = file("script.wasm", b"#!/bin/sh");
    let foreign = file("foreign.wasm", FOREIGN_MODULE);
    let variables = file("variables", b"A=1\n1B=2\n");
    let (job, hello) = (sample("pi-job"), sample("hello-http"));
    for (words, said) in [
        (&["deploy", "/nowhere/a.wasm"][..], "reading /nowhere/a.wasm: No such file"),
        (&["deploy", &script], "not WebAssembly"),
        (&["deploy", &foreign], "imports env.mystery"),
        (&["deploy", &job], "serves nothing"),
        (
            &["deploy", "missing:1"],
            "the cluster's registry has no image missing:1; push it with `coracle push",
        ),
        (&["deploy", "ghcr.io/x/y:1"], "names another registry"),
        (
            &["deploy", &hello, "--env-from", "secret/none"],
            "there is no secret \"none\" in namespace default",
        ),
        (
            &["deploy", &hello, "--env-file", &variables],
            "line 2: \"1B\" is no name of an environment variable",
        ),
        (&["deploy", &hello, "--secret", "CORACLE_NO_SUCH"], "there is no variable CORACLE_NO_SUCH"),
        (&["deploy", &hello, "--env", "A=1", "--secret", "A=2"], "give it once"),
        (&["deploy", &hello, "-n", "nowhere"], "namespaces \"nowhere\" not found"),
        (&["deploy", &hello, "--host", "UPPER case"], "spec.rules[0].host"),
    ] {
        let began = Instant::now();
        let error = subject.refused(words);
        assert!(error.contains(said), "{words:?}: {error}");
        assert!(began.elapsed().as_secs() < 10, "{words:?} took {:?}", began.elapsed());
    }
}

fn merged(subject: &Subject<'_>, folder: &Path) {
    let variables = folder.join("env");
    fs::write(&variables, "GREETING=from the file\nOTHER=kept\n").unwrap();
    let file = variables.to_str().unwrap();
    subject.kubectl.run(&["create", "configmap", "texts", "--from-literal=WHERE=there"]);
    let hello = sample("hello-http");
    let first = [
        "deploy",
        &hello,
        "--name",
        "hello",
        "--env-file",
        file,
        "--secret",
        "WORD=sesame",
        "--env-from",
        "cm/texts",
    ];
    let url = subject.on(&first);
    assert!(url.starts_with("http://hello.localhost:"), "{url}");
    subject.answers("hello.localhost", "from the file");
    let said = subject.refused(&["deploy", &hello, "--name", "second", "--host", "hello.localhost"]);
    assert!(said.contains("is served by the Ingress default/hello already"), "{said}");

    subject.kubectl.run(&["scale", "deployment/hello", "--replicas=3"]);
    subject.kubectl.run(&["set", "env", "deployment/hello", "BY_HAND=stays"]);
    subject.on(&["push", &sample("hello-http-p3"), "hello:2"]);
    subject.on(&["deploy", "hello:2", "--name", "hello", "--env", "GREETING=changed"]);
    subject.answers("hello.localhost", "changed");
    assert_eq!(subject.deployment(".spec.replicas"), "3");
    let container = ".spec.template.spec.containers[0]";
    assert_eq!(subject.deployment(&format!("{container}.image")), "hello:2");
    let names = subject.deployment(&format!("{container}.env[*].name"));
    for name in ["GREETING", "OTHER", "WORD", "BY_HAND"] {
        assert!(names.split(' ').any(|known| known == name), "no {name} in {names}");
    }
    assert_eq!(subject.deployment(&format!("{container}.envFrom[*].configMapRef.name")), "texts");
    let secret = subject.kubectl.run(&["get", "secret", "hello", "-o", "jsonpath={.data.WORD}"]);
    assert_eq!(secret, "c2VzYW1l");
    subject.on(&["deploy", "hello:2", "--name", "hello", "--replicas", "1", "--host", "other.localhost"]);
    assert_eq!(subject.deployment(".spec.replicas"), "1");
    subject.answers("other.localhost", "changed");
}

fn failing(subject: &Subject<'_>) {
    let echo = sample("tcp-echo");
    let said = subject.refused(&["deploy", &echo, "--name", "crashing", "--", "no-port"]);
    assert!(said.contains("crashes again and again (exit code 1"), "{said}");
    assert!(said.contains("its last lines:") && said.contains("InvalidDigit"), "{said}");
    assert!(said.contains("nothing of it is left"), "{said}");
    // A whole request, so that it is answered, and the program ends, at once.
    let request = "GET / HTTP/1.0\n";
    let said = subject.refused(&["deploy", &echo, "--name", "once", "--", "--connect", "hello:80", request]);
    assert!(said.contains("it computes and ends, and is no service"), "{said}");
    eventually("nothing to be left", || {
        let made = subject.made();
        let left = made.lines().any(|line| line.contains("crashing") || line.contains("once"));
        if left { Err(made) } else { Ok(()) }
    });
    // One that served before goes on.
    let said = subject.refused(&["deploy", &echo, "--name", "hello", "--timeout", "1m", "--", "no-port"]);
    assert!(said.contains("the pods that were there before go on"), "{said}");
    subject.answers("other.localhost", "changed");
}

fn removed(subject: &Subject<'_>, before: &str) {
    let gone = subject.on(&["delete", "hello"]);
    for part in ["ingress.networking.k8s.io", "service", "deployment.apps", "secret"] {
        assert!(gone.contains(&format!("{part} \"hello\" deleted")), "{gone}");
    }
    subject.on(&["delete", "artifact", "hello.2"]);
    eventually("all that was deployed to go", || {
        let made = subject.made();
        if made == before { Ok(()) } else { Err(format!("{made}\nnot\n{before}")) }
    });
    let said = subject.refused(&["delete", "hello"]);
    assert!(said.contains("neither a kind nor the name of what `coracle deploy` made"), "{said}");
    subject.on(&["delete", "hello", "--ignore-not-found"]);
    subject.kubectl.run(&["create", "service", "clusterip", "hello", "--tcp=80"]);
    let said = subject.refused(&["delete", "hello"]);
    assert!(said.contains("not made by `coracle deploy`: service/hello"), "{said}");
    let with_service = subject.made();
    let said = subject.refused(&["deploy", &sample("hello-http"), "--name", "hello"]);
    assert!(said.contains("the Service hello is not of `coracle deploy`"), "{said}");
    assert_eq!(subject.made(), with_service, "what is refused leaves nothing");
    subject.on(&["delete", "service/hello"]);
    subject.kubectl.run(&["create", "ingress", "hello", "--rule=other.localhost/=other:80"]);
    let with_ingress = subject.made();
    let said = subject.refused(&["deploy", &sample("hello-http"), "--name", "hello"]);
    assert!(said.contains("the Ingress hello is not of `coracle deploy`"), "{said}");
    assert_eq!(subject.made(), with_ingress, "what is refused leaves nothing");
}

#[test]
fn a_node_that_has_joined_and_not_yet_linked_is_waited_for() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let (_control, _) = control(folder.path().to_str().unwrap());
    let kubeconfig = folder.path().join("kubeconfig");
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    let config = kubeconfig.to_str().unwrap();
    let invoke = ["invoke", "hello", "--kubeconfig", config];
    kubectl.run(&["create", "ingress", "hello", "--rule=hello.localhost/=hello:80"]);
    assert!(fails(&invoke).contains("there is no node to run it"));

    let node =
        "{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {coracle.dev/joined: waiting}}}";
    kubectl.feed(&["create"], node).unwrap();
    let waiting = coracle(&invoke).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let address = format!("coracle.dev/gateway-address={}", gateway.local_addr().unwrap());
    kubectl.run(&["annotate", "node", "n1", "coracle.dev/joined=linked", &address, "--overwrite"]);
    std::thread::spawn(move || {
        let (mut connection, _) = gateway.accept().unwrap();
        let _ = connection.read(&mut [0; 1024]);
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere").unwrap();
    });
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "there", "{output:?}");

    kubectl.run(&["annotate", "node", "n1", "coracle.dev/gateway-address-"]);
    let begun = Instant::now();
    assert!(fails(&invoke).contains("no node has a gateway"));
    assert!(begun.elapsed() < Duration::from_secs(5), "what nobody waits for is told at once");
}
