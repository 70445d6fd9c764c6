//! The node's loop with the real sandbox, disk and logs. What the leader would send is put in, what would go up to it
//! is taken out; the stream itself is tested with the control plane.

mod clock;
mod folders;
mod given_up;
mod held;
mod refusals;
mod returning;
mod runtime;
mod seats;
mod waking;
mod withheld;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use coracle_core::{NodeFacts, Observed};
use coracle_proto::node::{
    LogRequest, NodeUp, ObjectEvent, PodStatus, Synced, node_down::Body as Down, node_up::Body as Up,
    object_event,
};
use coracle_wasi_host::{Host, HostConfig};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    app::{App, EVENTS_MAX, Event},
    artifacts::{Artifacts, Registry},
    clock::Clock,
    config::NodeConfig,
    execute::{Context, Executor},
    identity::Identity,
    link::{FromLink, LinkHandle, Outgoing},
    logs::Logs,
    network::PodNetwork,
    removal::Removals,
    runtime::{Disks, InProcess, Runtime, in_process::Shared},
};

/// Compiling in a debug build on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Guests of these tests that are still there when the node stops.
const STOP_GRACE_MAX: Duration = Duration::from_secs(2);

/// What a node of these tests is made of, beside its disk.
pub(crate) struct Parts {
    /// Instances that its sandbox makes room for.
    max_instances: u32,
    compiler: Option<PathBuf>,
    clock: Clock,
    registry: Registry,
    /// Another than the one of this process.
    runtime: Option<Arc<dyn Runtime>>,
}

impl Default for Parts {
    fn default() -> Self {
        let registry = Registry::without_addresses();
        Self { max_instances: 64, compiler: None, clock: Clock::new(), registry, runtime: None }
    }
}

pub(crate) fn context(dir: &Path, parts: Parts, link: LinkHandle, events: mpsc::Sender<Event>) -> Context {
    let Parts { max_instances, compiler, clock, registry, runtime } = parts;
    let cache_dir = dir.join("cache");
    let host = Host::new(HostConfig { cache_dir, max_instances, compiler, ..Default::default() });
    let (host, network) = (host.unwrap(), PodNetwork::default());
    let disks = Disks::new(host.clone());
    let shared = Shared { network: network.clone(), disks: disks.clone() };
    let runtime = runtime.unwrap_or_else(|| Arc::new(InProcess::new(host, shared)));
    Context {
        node_name: "n1".into(),
        runtime,
        disks,
        artifacts: Artifacts::new(dir.join("artifacts"), vec!["/".into()], registry).unwrap(),
        logs: Arc::new(Logs::start(dir.join("logs")).unwrap()),
        removals: Removals::start().unwrap(),
        pods_dir: dir.join("pods"),
        network,
        link,
        clock: Arc::new(clock),
        events,
        boot_id: "boot".into(),
    }
}

struct Rig {
    events: mpsc::Sender<Event>,
    outgoing: Outgoing,
    loop_: JoinHandle<()>,
    /// Everything that went up, in order.
    seen: Vec<Up>,
}

impl Rig {
    /// A node that has joined, linked, and knows that it is to run nothing.
    async fn new(dir: &Path) -> Self {
        let mut rig = Self::start(dir, Vec::new());
        rig.tell(Down::Synced(Synced { revision: 1 })).await;
        rig
    }

    /// A node without a link that ran this last.
    fn start(dir: &Path, last: Vec<ObjectEvent>) -> Self {
        Self::with(dir, last, Parts::default())
    }

    fn with(dir: &Path, last: Vec<ObjectEvent>, parts: Parts) -> Self {
        let identity =
            Arc::new(Identity::for_tests(&NodeConfig { name: "n1".into(), ..NodeConfig::new(dir) }));
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let (link, outgoing) = LinkHandle::new();
        let executor = Executor::new(context(dir, parts, link, events.clone()));
        let node = NodeFacts {
            name: "n1".into(),
            host_ip: "127.0.0.1".into(),
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
            ..NodeFacts::default()
        };
        let observed = Observed { node, ..Default::default() };
        let app =
            App::new(identity, observed, executor, (STOP_GRACE_MAX, 110)).with_last(last, Duration::ZERO);
        let loop_ = tokio::spawn(app.run(received, tokio::spawn(async {})));
        Self { events, outgoing, loop_, seen: Vec::new() }
    }

    async fn tell(&mut self, body: Down) {
        self.events.send(Event::Link(FromLink::Message(body))).await.unwrap();
    }

    async fn put(&mut self, resource: &str, object: Value) {
        self.tell(Down::Object(object_event(resource, &object))).await;
    }

    /// Waits for a message that `pick` likes.
    async fn until<T>(&mut self, mut pick: impl FnMut(&Up) -> Option<T>) -> T {
        let found = async {
            loop {
                let NodeUp { body: Some(body), .. } = self.outgoing.next().await else { continue };
                let picked = pick(&body);
                self.seen.push(body);
                if let Some(picked) = picked {
                    return picked;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!("nothing like it went up: {:#?}", self.seen),
        }
    }

    /// Waits for a status of the pod that `pick` likes.
    async fn status<T>(&mut self, uid: &str, mut pick: impl FnMut(&Value) -> Option<T>) -> T {
        self.until(|body| match body {
            Up::PodStatus(PodStatus { uid: of, status_json, .. }) if of == uid => {
                pick(&serde_json::from_slice(status_json).unwrap())
            }
            _ => None,
        })
        .await
    }

    /// The addresses that the node claims.
    async fn give_block(&mut self, cidr: &str) {
        let request = self
            .until(|body| match body {
                Up::ClaimBlock(claim) => Some(claim.request),
                _ => None,
            })
            .await;
        let claimed = coracle_proto::node::BlockClaimed { request, cidr: cidr.into(), error: String::new() };
        self.tell(Down::BlockClaimed(claimed)).await;
    }

    async fn log(&mut self, request: u64, uid: &str) -> String {
        let log = LogRequest { request, pod_uid: uid.into(), ..Default::default() };
        self.tell(Down::LogRequest(log)).await;
        let mut text = String::new();
        self.until(|body| match body {
            Up::LogChunk(chunk) if chunk.request == request => {
                text.push_str(&String::from_utf8_lossy(&chunk.data));
                assert_eq!(chunk.error, "");
                chunk.end.then_some(())
            }
            _ => None,
        })
        .await;
        text
    }

    async fn stop(self) {
        self.events.send(Event::Stop).await.unwrap();
        self.loop_.await.unwrap();
    }
}

/// What the cluster says of an object.
fn object_event(resource: &str, object: &Value) -> ObjectEvent {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ObjectEvent {
        r#type: object_event::Type::Put.into(),
        resource: resource.into(),
        namespace: text(&object["metadata"]["namespace"]),
        name: text(&object["metadata"]["name"]),
        revision: 1,
        object_json: object.to_string().into(),
        ..ObjectEvent::default()
    }
}

fn image(name: &str) -> String {
    format!("file://{}", coracle_sample_artifacts::wasm(name).display())
}

fn pod(uid: &str, spec: Value) -> Value {
    json!({ "metadata": { "name": uid, "namespace": "d", "uid": uid }, "spec": spec })
}

fn first(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_component_becomes_ready_and_ends_when_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    rig.put(
        "configmaps",
        json!({ "metadata": { "name": "cfg", "namespace": "d" }, "data": { "GREETING": "hi" } }),
    )
    .await;
    let mut web = pod(
        "web",
        json!({ "containers": [{
        "name": "web", "image": image("hello-http"), "imagePullPolicy": "IfNotPresent",
        "ports": [{ "containerPort": 8080 }],
        "envFrom": [{ "configMapRef": { "name": "cfg" } }],
        "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 60 },
        "volumeMounts": [{ "name": "cfg", "mountPath": "/etc/cfg" }],
    }], "volumes": [{ "name": "cfg", "configMap": { "name": "cfg" } }] }),
    );
    rig.put("pods", web.clone()).await;
    rig.give_block("10.128.7.0/24").await;
    let status = rig.status("web", |status| (first(status)["ready"] == true).then(|| status.clone())).await;
    assert_eq!((status["phase"].as_str(), status["podIP"].as_str()), (Some("Running"), Some("10.128.7.2")));
    assert!(first(&status)["containerID"].as_str().unwrap().starts_with("wasm://"));
    assert!(first(&status)["imageID"].as_str().unwrap().contains("@sha256:"));
    assert!(dir.path().join("pods/web/cfg/GREETING").exists());

    web["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    web["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    rig.put("pods", web).await;
    let code = rig.status("web", |status| first(status)["state"]["terminated"]["exitCode"].as_i64()).await;
    assert_eq!(code, 0, "a server that is asked to stop finishes what it has");
    rig.until(|body| matches!(body, Up::PodGone(gone) if gone.uid == "web").then_some(())).await;
    // Events go up when nothing more important waits.
    if !rig.seen.iter().filter_map(event_reason).any(|reason| reason == "Killing") {
        rig.until(|body| (event_reason(body)? == "Killing").then_some(())).await;
    }
    let reasons: Vec<String> = rig.seen.iter().filter_map(event_reason).collect();
    assert_eq!(reasons, ["Pulled", "Created", "Started", "Killing"]);
    rig.stop().await;
}

fn event_reason(body: &Up) -> Option<String> {
    let Up::Event(event) = body else { return None };
    let event: Value = serde_json::from_slice(&event.event_json).unwrap();
    Some(event["reason"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_complete_crashes_back_off_and_hogs_are_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    let job = json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": image("pi-job"), "args": ["20"] }] });
    rig.put("pods", pod("pi", job)).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("pi", |status| (status["phase"] == "Succeeded").then_some(())).await;
    assert_eq!(rig.log(1, "pi").await, "3.14159265358979323846\n");

    rig.put(
        "pods",
        pod("crash", json!({ "containers": [{ "name": "c", "image": image("crash"), "args": ["3"] }] })),
    )
    .await;
    let status = rig
        .status("crash", |status| {
            (first(status)["state"]["waiting"]["reason"] == "CrashLoopBackOff").then(|| first(status).clone())
        })
        .await;
    let held = rig.held().await;
    assert!(held.contains(&("containers", 0)), "those that are over are let go: {held:?}");
    // WASI 0.2 tells failure from success, and not one failure from another.
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(status["restartCount"], 1);
    assert_eq!(
        status["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=c pod=crash_d(crash)"
    );
    assert_eq!(rig.log(2, "crash").await, "about to crash\n");

    let hog = json!({ "restartPolicy": "Never", "containers": [{
        "name": "c", "image": image("memory-hog"), "resources": { "limits": { "memory": "64Mi" } } }] });
    rig.put("pods", pod("hog", hog)).await;
    let end = rig.status("hog", |status| first(status)["state"].get("terminated").cloned()).await;
    assert_eq!((end["reason"].as_str(), end["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    let garbage = dir.path().join("garbage.wasm");
    std::fs::write(&garbage, "this is no WebAssembly").unwrap();
    let container = |image: String| json!({ "containers": [{ "name": "c", "image": image }] });
    rig.put("pods", pod("bad", container(format!("file://{}", garbage.display())))).await;
    rig.give_block("10.128.7.0/24").await;
    let waiting = |reason: &'static str| {
        move |status: &Value| {
            let waiting = &first(status)["state"]["waiting"];
            (waiting["reason"] == reason).then(|| waiting["message"].as_str().unwrap().to_owned())
        }
    };
    let message = rig.status("bad", waiting("CreateContainerError")).await;
    assert!(message.contains("not WebAssembly"), "{message}");
    rig.put("pods", pod("none", container("nope:1.0".into()))).await;
    let message = rig.status("none", waiting("ErrImagePull")).await;
    assert!(message.contains("no control node could serve it"), "{message}");
    rig.status("none", waiting("ImagePullBackOff")).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_component_is_being_compiled_goes_at_once() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let (compiler, begun) = (dir.path().join("compiler"), dir.path().join("begun"));
    // Stands for one that takes long.
    let script = format!("#!/bin/sh\necho $$ >> {}\nexec /bin/sleep 600\n", begun.display());
    std::fs::write(&compiler, script).unwrap();
    std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o700)).unwrap();
    let parts = Parts { compiler: Some(compiler), ..Parts::default() };
    let mut rig = Rig::with(dir.path(), Vec::new(), parts);
    rig.tell(Down::Synced(Synced { revision: 1 })).await;
    for (uid, gone_from_the_cluster) in [("graceful", false), ("forced", true)] {
        let _ = std::fs::remove_file(&begun);
        let mut slow = pod(uid, json!({ "containers": [{ "name": "c", "image": image("spin") }] }));
        rig.put("pods", slow.clone()).await;
        if !gone_from_the_cluster {
            rig.give_block("10.128.7.0/24").await;
        }
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if gone_from_the_cluster {
            let mut event = object_event("pods", &slow);
            event.r#type = object_event::Type::Delete.into();
            // Nobody is there to be told of its end.
            rig.tell(Down::Object(event)).await;
        } else {
            slow["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            slow["metadata"]["deletionGracePeriodSeconds"] = 30.into();
            rig.put("pods", slow).await;
            rig.until(|body| matches!(body, Up::PodGone(gone) if gone.uid == uid).then_some(())).await;
        }
        let compilers = std::fs::read_to_string(&begun).unwrap();
        for pid in compilers.lines() {
            while Path::new("/proc").join(pid).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    assert!(!rig.seen.iter().filter_map(event_reason).any(|reason| reason == "Failed"));
    rig.stop().await;
}
