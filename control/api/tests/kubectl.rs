//! The real kubectl, in several versions, against the router over plain HTTP. Skipped where there is none.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use axum::Extension;
use support::{Memory, admin, cluster};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::Command,
};

/// Minor versions of kubectl that are tried.
const MINORS: &[u32] = &[27, 31, 33];
/// No command takes longer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: guest}
spec:
  replicas: 2
  selector: {matchLabels: {app: guest}}
  template:
    metadata: {labels: {app: guest}}
    spec:
      containers:
      - name: main
        image: guest:1.0
        ports: [{containerPort: 80}]
        resources: {requests: {cpu: 100m, memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: guest}
spec:
  selector: {app: guest}
  ports: [{port: 80}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: guest}
data: {greeting: hello}
"#;

/// The folder with `kubectl.1.NN` beside the kubectl of the PATH.
fn folder() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file())?;
    Some(found.canonicalize().ok()?.parent()?.to_owned())
}

/// One kubectl and its cluster.
struct Kubectl {
    program: PathBuf,
    server: String,
    home: tempfile::TempDir,
    memory: Memory,
    faults: parking_lot::Mutex<Vec<String>>,
}

impl Kubectl {
    async fn start(program: &Path) -> Self {
        let (memory, router) = cluster();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let router = router.layer(Extension(admin()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            program: program.to_owned(),
            server,
            home: tempfile::tempdir().unwrap(),
            memory,
            faults: Default::default(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--server")
            .arg(&self.server)
            .args(args)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("none"))
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Exit code, stdout and stderr together.
    async fn run(&self, line: &str) -> (i32, String) {
        let args: Vec<&str> = line.split_whitespace().collect();
        let output = tokio::time::timeout(COMMAND_TIMEOUT, self.command(&args).output()).await;
        let output = output.unwrap_or_else(|_| panic!("`{line}` takes too long")).unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    /// Runs a command that must succeed and say all these.
    async fn says(&self, line: &str, expected: &[&str]) {
        let (code, text) = self.run(line).await;
        self.check(code == 0, format!("{line}: exit code {code}:\n{text}"));
        for part in expected {
            self.check(text.contains(part), format!("{line} lacks {part:?}:\n{text}"));
        }
    }

    /// Runs a command that must fail and say this.
    async fn refuses(&self, line: &str, expected: &str) {
        let (code, text) = self.run(line).await;
        self.check(code != 0, format!("{line} is not refused:\n{text}"));
        self.check(text.contains(expected), format!("{line} lacks {expected:?}:\n{text}"));
    }

    /// Notes a fault, so that one run tells all of them.
    fn check(&self, holds: bool, fault: String) {
        if !holds {
            self.faults.lock().push(format!("{} {fault}", self.program.display()));
        }
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.home.path().join(name), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_of_several_versions() {
    let Some(folder) = folder() else {
        println!("skipped: no kubectl in the PATH");
        return;
    };
    let mut tried = 0;
    for minor in MINORS {
        let program = folder.join(format!("kubectl.1.{minor}"));
        if !program.is_file() {
            println!("skipped: no {}", program.display());
            continue;
        }
        let kubectl = Kubectl::start(&program).await;
        discovers(&kubectl).await;
        creates(&kubectl).await;
        applies(&kubectl).await;
        reads(&kubectl).await;
        watches(&kubectl).await;
        changes(&kubectl).await;
        pods(&kubectl).await;
        deletes(&kubectl).await;
        let faults = kubectl.faults.into_inner();
        assert!(faults.is_empty(), "{}", faults.join("\n---\n"));
        tried += 1;
    }
    println!("tried {tried} versions of kubectl");
}

async fn discovers(kubectl: &Kubectl) {
    kubectl.says("version", &["Server Version", "v1.33.0"]).await;
    kubectl.says("api-resources", &["deployments", "deploy", "apps/v1", "Deployment", "configmaps"]).await;
    kubectl.says("api-versions", &["apps/v1", "v1"]).await;
    kubectl.says("explain deployment.spec.replicas", &["replicas", "Number of desired pods"]).await;
    kubectl.says("explain pod.spec.containers", &["image"]).await;
    kubectl.says("auth can-i create deployments", &["yes"]).await;
    kubectl.says("auth whoami", &["admin", "system:masters"]).await;
}

async fn creates(kubectl: &Kubectl) {
    kubectl.says("create configmap c --from-literal=a=1", &["configmap/c created"]).await;
    kubectl.says("create secret generic s --from-literal=k=v", &["secret/s created"]).await;
    kubectl.says("create namespace n", &["namespace/n created"]).await;
    kubectl.says("create serviceaccount robot", &["serviceaccount/robot created"]).await;
    kubectl
        .says("create deployment web --image=hello:1.0 --replicas=2", &["deployment.apps/web created"])
        .await;
    kubectl.says("create service nodeport web --tcp=80:8080", &["service/web created"]).await;
    kubectl.says("expose deployment web --port=81 --name=other", &["service/other exposed"]).await;
    kubectl.says("run p --image=hello:1.0", &["pod/p created"]).await;
    kubectl.says("get configmap c -o jsonpath={.data.a}", &["1"]).await;
    kubectl.says("get secret s -o jsonpath={.data.k}", &["dg=="]).await;
    kubectl.says("get deployment web -o jsonpath={.spec.replicas}", &["2"]).await;
    kubectl.refuses("create configmap c --from-literal=a=1", "configmaps \"c\" already exists").await;
    kubectl
        .says("create configmap dry --from-literal=a=1 --dry-run=server", &["created (server dry run)"])
        .await;
    kubectl.refuses("get configmap dry", "configmaps \"dry\" not found").await;
}

async fn applies(kubectl: &Kubectl) {
    kubectl.file("all.yaml", MANIFEST);
    kubectl.says("apply -f all.yaml", &["deployment.apps/guest created", "service/guest created"]).await;
    kubectl
        .says("apply -f all.yaml", &["deployment.apps/guest unchanged", "configmap/guest unchanged"])
        .await;
    kubectl.file("all.yaml", &MANIFEST.replace("guest:1.0", "guest:2.0"));
    let (code, text) = kubectl.run("diff -f all.yaml").await;
    let differs = code == 1 && text.contains("guest:2.0");
    kubectl.check(differs, format!("diff: exit code {code}:\n{text}"));
    kubectl.says("apply -f all.yaml", &["deployment.apps/guest configured", "service/guest unchanged"]).await;
    kubectl.says("get deployment guest -o jsonpath={.metadata.generation}", &["2"]).await;
    kubectl.file("bad.yaml", &MANIFEST.replace("replicas: 2", "replicass: 2"));
    kubectl.refuses("apply -f bad.yaml", "unknown field \"spec.replicass\"").await;
    kubectl.file("worse.yaml", &MANIFEST.replace("replicas: 2", "replicas: two"));
    kubectl.refuses("apply --validate=false -f worse.yaml", "cannot unmarshal string").await;
    kubectl.refuses("apply --server-side -f all.yaml", "server-side apply").await;
}

async fn reads(kubectl: &Kubectl) {
    kubectl
        .says("get deployments", &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "guest", "0/2"])
        .await;
    kubectl.says("get deploy -o wide", &["CONTAINERS", "IMAGES", "SELECTOR", "guest:2.0", "app=guest"]).await;
    kubectl
        .says("get deploy,svc,cm -A", &["deployment.apps/guest", "service/guest", "configmap/guest"])
        .await;
    kubectl.says("get cm --chunk-size=1 -o name", &["configmap/c", "configmap/guest"]).await;
    kubectl.says("get cm --sort-by=.metadata.name", &["c ", "guest"]).await;
    kubectl.says("get cm -l nothing=here", &["No resources found"]).await;
    kubectl.says("get all", &["pod/p", "service/web", "deployment.apps/web"]).await;
    kubectl.says("get ns", &["default", "Active"]).await;
    kubectl.says("describe deployment guest", &["Replicas:", "guest:2.0", "RollingUpdateStrategy"]).await;
    kubectl.says("describe service guest", &["Selector:", "app=guest", "IP:"]).await;
    kubectl.says("describe configmap guest", &["greeting"]).await;
    kubectl.says("describe pod p", &["Status:", "Pending", "hello:1.0"]).await;
    kubectl.says("get events", &["No resources found"]).await;
}

async fn watches(kubectl: &Kubectl) {
    let mut child = kubectl
        .command(&["get", "configmaps", "-w", "--output-watch-events"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut expect = async |parts: &[&str]| {
        let line =
            tokio::time::timeout(COMMAND_TIMEOUT, lines.next_line()).await.expect("an event comes in time");
        let line = line.unwrap().unwrap();
        assert!(parts.iter().all(|part| line.contains(part)), "{line} lacks one of {parts:?}");
    };
    expect(&["EVENT", "NAME", "DATA"]).await;
    expect(&["ADDED", "c "]).await;
    expect(&["ADDED", "guest"]).await;
    kubectl.says("label configmap guest a=b", &["configmap/guest labeled"]).await;
    expect(&["MODIFIED", "guest"]).await;
    kubectl.says("create configmap late", &["created"]).await;
    expect(&["ADDED", "late"]).await;
    kubectl.says("delete configmap late", &["deleted"]).await;
    expect(&["DELETED", "late"]).await;
    child.kill().await.unwrap();
}

async fn changes(kubectl: &Kubectl) {
    kubectl.says("annotate deployment guest note=x", &["deployment.apps/guest annotate"]).await;
    kubectl.refuses("label deployment guest x=y --resource-version=1", "the object has been modified").await;
    kubectl.says("label deployment guest x=y", &["labeled"]).await;
    kubectl.says("label deployment guest x-", &["unlabeled"]).await;
    kubectl.says("set image deployment/guest main=guest:3.0", &["image updated"]).await;
    kubectl.says("set env deployment/guest A=b", &["env updated"]).await;
    kubectl.says("rollout restart deployment/guest", &["restarted"]).await;
    kubectl.says("rollout pause deployment/guest", &["paused"]).await;
    kubectl.says("rollout resume deployment/guest", &["resumed"]).await;
    kubectl.says("scale deployment guest --replicas=5", &["scaled"]).await;
    kubectl.says("scale deployment guest --current-replicas=5 --replicas=3", &["scaled"]).await;
    kubectl.says("get deployment guest -o jsonpath={.spec.replicas}", &["3"]).await;
    kubectl.says("patch deployment guest --type=merge -p {\"spec\":{\"replicas\":1}}", &["patched"]).await;
    kubectl
        .says("patch deployment guest --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/annotations/note\"}]", &["patched"])
        .await;
    kubectl
        .says(
            "patch deployment guest -p {\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"side\",\"image\":\"s:1\"}]}}}}",
            &["patched"],
        )
        .await;
    kubectl
        .says(
            "get deployment guest -o jsonpath={.spec.template.spec.containers[*].image}",
            &["s:1", "guest:3.0"],
        )
        .await;
    kubectl
        .says(
            "patch deployment guest --subresource=status --type=merge -p {\"status\":{\"replicas\":1}}",
            &["patched"],
        )
        .await;
    kubectl.says("get deployment guest --subresource=scale", &["guest"]).await;
    kubectl.file(
        "replace.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: guest}\ndata: {greeting: bye}\n",
    );
    kubectl.says("replace -f replace.yaml", &["configmap/guest replaced"]).await;
    kubectl
        .says("wait deployment/guest --for=jsonpath={.spec.replicas}=1 --timeout=5s", &["condition met"])
        .await;
}

async fn pods(kubectl: &Kubectl) {
    kubectl.refuses("logs p", "pod p does not have a host assigned").await;
    let view = coracle_api::Storage::view(&kubectl.memory);
    let key = coracle_objects::ObjectKey::new("pods", "default", "p");
    let mut pod: serde_json::Value = view.get(&key).unwrap().parse().unwrap();
    pod["spec"]["nodeName"] = "n1".into();
    pod["status"]["containerStatuses"] = serde_json::json!([{ "name": "p", "state": { "running": {} } }]);
    kubectl.memory.put("pods", "default", "p", pod);
    kubectl.says("logs p", &["p: one\ntwo"]).await;
    kubectl.says("logs -f p --tail=5 --timestamps=false", &["p: one"]).await;
    kubectl.refuses("logs p -c other", "container other is not valid for pod p").await;
    kubectl.refuses("logs p --previous", "previous terminated container \"p\" in pod \"p\" not found").await;
    kubectl.says("get pods -o wide", &["n1", "NODE"]).await;
    kubectl.says("delete pod p --now --wait=false", &["deleted"]).await;
    kubectl.says("get pod p", &["Terminating"]).await;
    kubectl.says("delete pod p --grace-period=0 --force", &["deleted"]).await;
}

async fn deletes(kubectl: &Kubectl) {
    kubectl.says("delete -f replace.yaml", &["configmap \"guest\" deleted"]).await;
    kubectl.says("delete deployment web", &["\"web\" deleted"]).await;
    kubectl.says("delete deployment guest --cascade=foreground --wait=false", &["deleted"]).await;
    kubectl.says("get deployment guest -o jsonpath={.metadata.finalizers}", &["foregroundDeletion"]).await;
    kubectl.says("delete service --all", &["deleted"]).await;
    kubectl.says("delete namespace n --wait=false", &["deleted"]).await;
    kubectl.says("get ns n", &["Terminating"]).await;
    kubectl.refuses("delete namespace default", "this namespace may not be deleted").await;
    kubectl.refuses("delete configmap nothing", "configmaps \"nothing\" not found").await;
}
