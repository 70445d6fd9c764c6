//! `coracle up` under the unmodified kubectl: what a user does on the first day, and again after a restart.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
};

use crate::harness::{Kubectl, PATIENCE, alone, eventually, get, run, sample, up};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: texts}
data: {greeting: "good morning"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      containers:
      - name: hello
        image: hello:1.0
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, timeoutSeconds: 30}
        env:
        - name: GREETING
          valueFrom: {configMapKeyRef: {name: texts, key: greeting}}
      - name: echo
        image: tcp-echo:1.0
        args: ["7000"]
        livenessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1, timeoutSeconds: 30}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: hello}
spec:
  rules:
  - host: hello.localhost
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: hello, port: {number: 80}}}}]}
"#;

fn answers(gateway: &str, host: &str, wanted: &str) {
    eventually(&format!("{host} to answer {wanted:?}"), || match get(gateway, host) {
        (200, body) if body.contains(wanted) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_first_day_with_the_oldest_kubectl_and_a_restart() {
    first_day(Kubectl::find_oldest);
}

#[test]
fn a_first_day_with_the_newest_kubectl_and_a_restart() {
    first_day(Kubectl::find);
}

fn first_day(find: fn(&Path) -> Option<Kubectl>) {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let Some(kubectl) = find(&kubeconfig) else { return };
    let config = kubeconfig.to_str().unwrap();
    for (name, tag) in
        [("hello-http", "hello:1.0"), ("hello-http-p3", "hello:2.0"), ("tcp-echo", "tcp-echo:1.0")]
    {
        run(&["push", &sample(name), tag, "--kubeconfig", config]);
    }
    let gateway = daemon.said("gateway     ");
    let watched = Watched::start(&kubectl);

    assert!(kubectl.feed(&["apply"], MANIFEST).unwrap().contains("deployment.apps/hello created"));
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=180s"]);
    assert!(kubectl.feed(&["apply"], MANIFEST).unwrap().contains("deployment.apps/hello unchanged"));
    answers(&gateway, "hello.localhost", "good morning, served by hello-");

    let wide = kubectl.run(&["get", "pods", "-o", "wide"]);
    assert_eq!(wide.matches("2/2     Running").count(), 2, "{wide}");
    assert!(wide.contains("10.128.") && wide.contains("node-1"), "{wide}");
    eventually("all parts of a description", || {
        let described = kubectl.run(&["describe", "pod", "-l", "app=hello"]);
        let parts = ["Started", "Pulled", "Ready", "GREETING:", "wasm://"];
        match parts.iter().find(|part| !described.contains(**part)) {
            Some(part) => Err(format!("no {part} in:\n{described}")),
            None => Ok(()),
        }
    });
    node_port(&kubectl, &gateway);
    follow_logs(&kubectl);
    watched.saw_two_pods_become_ready();

    kubectl.run(&["scale", "deployment/hello", "--replicas=3"]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=180s"]);
    kubectl.run(&["set", "image", "deployment/hello", "hello=hello:2.0"]);
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=180s"]);
    let image = kubectl.run(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].image}"]);
    eventually("only new pods", || {
        let images = kubectl.run(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].image}"]);
        if images == "hello:2.0 hello:2.0 hello:2.0" { Ok(()) } else { Err(images) }
    });
    assert!(image.contains("hello:2.0"), "{image}");

    let secrets = || kubectl.run(&["get", "secrets", "--namespace=kube-system", "-o", "name"]);
    let before = secrets();
    assert!(before.contains("bootstrap-token-"), "{before}");
    daemon.stop();
    let daemon = up(folder.path());
    // On a full disk a start that wrote a token for a node that has joined would fail.
    assert_eq!(secrets(), before);
    let gateway = daemon.said("gateway     ");
    kubectl.run(&["rollout", "status", "deployment/hello", "--timeout=180s"]);
    assert_eq!(
        kubectl.run(&["get", "configmap", "texts", "-o", "jsonpath={.data.greeting}"]),
        "good morning"
    );
    answers(&gateway, "hello.localhost", "good morning, served by hello-");

    kubectl.feed(&["delete", "--timeout=180s"], MANIFEST).unwrap();
    eventually("all pods to go", || {
        let pods = kubectl.run(&["get", "pods", "-o", "name"]);
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}

/// `get pods -o wide -w`, line by line.
struct Watched {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watched {
    fn start(kubectl: &Kubectl) -> Self {
        let mut child = kubectl
            .command(&["get", "pods", "-o", "wide", "-w"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the watch to be open", || {
            let metrics = kubectl.run(&["get", "--raw", "/metrics"]);
            let open = metrics
                .lines()
                .filter(|line| line.starts_with("apiserver_longrunning_requests{verb=\"WATCH\""))
                .any(|line| line.contains("resource=\"pods\"") && line.ends_with(" 1"));
            if open { Ok(()) } else { Err(metrics) }
        });
        let (sender, lines) = mpsc::channel();
        let reader = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Reads until two pods were seen on their way from unplaced to Running and ready, with address and node.
    fn saw_two_pods_become_ready(mut self) {
        let mut seen = Vec::new();
        let ready = |line: &&String| line.contains("2/2     Running") && line.contains("10.128.");
        let name = |line: &String| line.split_whitespace().next().unwrap_or_default().to_string();
        loop {
            let pods: std::collections::BTreeSet<String> = seen.iter().filter(ready).map(name).collect();
            if pods.len() == 2 {
                break;
            }
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => seen.push(line),
                Err(error) => panic!("the watch gave no more ({error}):\n{}", seen.join("\n")),
            }
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        assert!(seen[0].starts_with("NAME") && seen[0].contains("NODE"), "{seen:?}");
        assert!(seen.iter().any(|line| line.contains("0/2     Pending")), "{seen:?}");
    }
}

fn node_port(kubectl: &Kubectl, gateway: &str) {
    let port = kubectl.run(&["get", "service", "hello", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let host = gateway.trim_start_matches("http://").rsplit_once(':').unwrap().0;
    answers(&format!("http://{host}:{port}"), "anything", "good morning");
}

/// `logs -f` prints what is there and what comes.
fn follow_logs(kubectl: &Kubectl) {
    let mut child = kubectl
        .command(&["logs", "-f", "deployment/hello", "-c", "echo"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let second = lines.next().unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(first, "listening on port 7000");
    assert!(
        second.ends_with("0 bytes"),
        "the liveness probe's connection is logged as it comes, not {second:?}"
    );
}
