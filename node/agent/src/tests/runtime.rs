//! The loop with a runtime that runs nothing: what it is told, and what the loop makes of its answers.

use std::{collections::BTreeMap, net::SocketAddr};

use coracle_core::{Action, observe::Exit, resources::Limits};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;
use crate::runtime::{
    ContainerId, ContainerSpec, Dialed, Figures, Prepared, Reply, SandboxId, SandboxSpec, StartRefused, Usage,
};

type OnStart = Box<dyn Fn(&ContainerId) -> Result<(), StartRefused> + Send + Sync>;

/// Writes down what it is told. A container runs until it is killed, or until the test says how it ended.
struct Scripted {
    told: Arc<watch::Sender<Vec<String>>>,
    exits: Mutex<BTreeMap<ContainerId, watch::Sender<Option<Exit>>>>,
    dialed: Mutex<Vec<(SocketAddr, SocketAddr)>>,
    /// Why no component is ever ready.
    unfit: Option<&'static str>,
    on_start: OnStart,
    freed: watch::Sender<u64>,
    /// How often it was asked what containers use. It answers once this is 0 again.
    metering: watch::Sender<u32>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            told: Arc::default(),
            exits: Mutex::default(),
            dialed: Mutex::default(),
            unfit: None,
            on_start: Box::new(|_| Ok(())),
            freed: watch::Sender::new(0),
            metering: watch::Sender::new(0),
        }
    }
}

/// The container of the pod `web`.
fn container(attempt: u32) -> ContainerId {
    let sandbox = SandboxId { pod: "web".into(), number: 0 };
    ContainerId { sandbox, name: "c".into(), attempt }
}

fn of(id: &ContainerId) -> String {
    format!("{}#{}", id.name, id.attempt)
}

impl Scripted {
    fn tell(&self, what: String) {
        self.told.send_modify(|told| told.push(what));
    }

    async fn until_told(&self, what: &str) {
        let mut told = self.told.subscribe();
        let told = told.wait_for(|told| told.iter().any(|one| one == what));
        tokio::time::timeout(PATIENCE, told).await.expect("it is told").expect("the runtime is there");
    }

    fn end(&self, id: &ContainerId, exit: Exit) {
        if let Some(sender) = self.exits.lock().get(id) {
            // The first one counts.
            sender.send_if_modified(|old| {
                let is_first = old.is_none();
                old.get_or_insert(exit);
                is_first
            });
        }
    }
}

impl Runtime for Scripted {
    fn create_sandbox(&self, id: &SandboxId, spec: SandboxSpec) {
        let SandboxSpec { namespace, hostname, addresses, .. } = spec;
        self.tell(format!("create {}: {namespace}, {hostname}, {addresses:?}", id.pod));
    }

    fn detach_sandbox(&self, id: &SandboxId) {
        self.tell(format!("detach {}", id.pod));
    }

    fn remove_sandbox(&self, id: &SandboxId) {
        self.tell(format!("remove {}", id.pod));
    }

    fn prepare(&self, image: PathBuf, namespace: String) -> Reply<Result<Prepared, String>> {
        let name = image.file_name().unwrap().to_string_lossy();
        self.tell(format!("prepare {name} for {namespace}"));
        let (unfit, told) = (self.unfit, self.told.clone());
        let release = move |_| told.send_modify(|told| told.push("release".into()));
        Box::pin(async move { unfit.map_or_else(|| Ok(Prepared::new(0, release)), |why| Err(why.into())) })
    }

    fn start(&self, id: &ContainerId, spec: ContainerSpec) -> Result<(), StartRefused> {
        self.tell(format!("start {}: {} {:?} at {}", of(id), spec.name, spec.arguments, spec.http_port));
        (self.on_start)(id)?;
        assert_eq!(spec.stdio.stdout.write(b"hello\n"), 6);
        self.exits.lock().insert(id.clone(), watch::Sender::new(None));
        Ok(())
    }

    fn stop(&self, id: &ContainerId) {
        self.tell(format!("stop {}", of(id)));
    }

    fn kill(&self, id: &ContainerId) {
        self.tell(format!("kill {}", of(id)));
        self.end(id, Exit::Killed);
    }

    fn wait(&self, id: &ContainerId) -> Reply<Exit> {
        let mut exit = self.exits.lock()[id].subscribe();
        Box::pin(async move { exit.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }

    fn remove_container(&self, id: &ContainerId) {
        self.tell(format!("remove {}", of(id)));
        self.exits.lock().remove(id);
    }

    fn dial(&self, _: &SandboxId, from: SocketAddr, to: SocketAddr) -> Reply<Result<Dialed, String>> {
        self.dialed.lock().push((from, to));
        Box::pin(async { Ok(Box::new(tokio::io::duplex(1).0) as Dialed) })
    }

    fn usage(&self) -> Reply<Vec<(ContainerId, Usage)>> {
        self.metering.send_modify(|asked| *asked += 1);
        let mut asked = self.metering.subscribe();
        Box::pin(async move {
            // The test may be over before.
            let _ = asked.wait_for(|asked| *asked == 0).await;
            vec![(container(0), Usage { cpu_ns: 7, memory_bytes: 65536, host_bytes: 1 })]
        })
    }

    fn figures(&self) -> Reply<Figures> {
        Box::pin(async { Figures::default() })
    }

    fn room_freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    fn held(&self) -> Reply<Vec<(String, usize)>> {
        Box::pin(async { Vec::new() })
    }
}

/// A node with this runtime and an image that no other would run.
async fn node(dir: &Path, runtime: Scripted) -> (Rig, Arc<Scripted>) {
    std::fs::write(dir.join("guest.wasm"), "this is no WebAssembly").unwrap();
    let runtime = Arc::new(runtime);
    let parts = Parts { runtime: Some(runtime.clone()), ..Parts::default() };
    let mut rig = Rig::with(dir, Vec::new(), parts);
    rig.tell(Down::Synced(Synced { revision: 1 })).await;
    (rig, runtime)
}

fn guest(dir: &Path, namespace: &str, uid: &str) -> Value {
    let image = format!("file://{}", dir.join("guest.wasm").display());
    json!({ "metadata": { "name": uid, "namespace": namespace, "uid": uid }, "spec": { "containers": [{
        "name": "c", "image": image, "args": ["x"], "ports": [{ "containerPort": 8080 }],
        "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 } }] } })
}

async fn delete(rig: &mut Rig, pod: &mut Value, grace_seconds: u32) {
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds.into();
    rig.put("pods", pod.clone()).await;
}

async fn gone(rig: &mut Rig, wanted: &str) {
    rig.until(|body| matches!(body, Up::PodGone(gone) if gone.uid == wanted).then_some(())).await;
}

/// Ready in its attempt of this number.
fn ready(attempt: u32) -> impl FnMut(&Value) -> Option<()> {
    move |status| (first(status)["ready"] == true && first(status)["restartCount"] == attempt).then_some(())
}

fn waiting(reason: &'static str) -> impl FnMut(&Value) -> Option<String> {
    move |status| {
        let waiting = &first(status)["state"]["waiting"];
        (waiting["reason"] == reason).then(|| waiting["message"].as_str().unwrap().to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_this_to_its_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, runtime) = node(dir.path(), Scripted::default()).await;
    let mut pod = guest(dir.path(), "d", "web");
    rig.put("pods", pod.clone()).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("web", ready(0)).await;
    assert_eq!(rig.log(1, "web").await, "hello\n");
    runtime.end(&container(0), Exit::Trapped("it fell over".into()));
    rig.status("web", ready(1)).await;
    // It does not end because it is asked to.
    delete(&mut rig, &mut pod, 1).await;
    let end = rig.status("web", |status| first(status)["state"].get("terminated").cloned()).await;
    assert_eq!(end["exitCode"], 143);
    gone(&mut rig, "web").await;
    let started = |attempt| format!("start c#{attempt}: d/web/c [\"guest.wasm\", \"x\"] at 8080");
    assert_eq!(
        *runtime.told.borrow(),
        [
            "create web: d, web, [10.128.7.2]",
            "prepare guest.wasm for d",
            &started(0),
            "remove c#0",
            &started(1),
            "stop c#1",
            "kill c#1",
            "remove c#1",
            "release",
            "remove web",
        ]
    );
    let probe = ("10.128.7.1:10250".parse().unwrap(), "10.128.7.2:8080".parse().unwrap());
    assert!(runtime.dialed.lock().iter().all(|dialed| *dialed == probe));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_address_is_taken_back_has_another_sandbox_with_what_was_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, runtime) = node(dir.path(), Scripted::default()).await;
    let pod = guest(dir.path(), "d", "web");
    rig.put("pods", pod.clone()).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("web", ready(0)).await;
    let told = runtime.told.borrow().len();
    let block = json!({ "metadata": { "name": "10.128.7.0-24" },
        "spec": { "cidr": "10.128.7.0/24", "nodeName": "n2" } });
    rig.put("podblocks.coracle.dev", block).await;
    rig.give_block("10.128.8.0/24").await;
    rig.status("web", ready(1)).await;
    let started = format!("start {}: d/web/c [\"guest.wasm\", \"x\"] at 8080", of(&container(1)));
    assert_eq!(
        runtime.told.borrow()[told..],
        ["detach web", "kill c#0", "remove c#0", "remove web", "create web: d, web, [10.128.8.2]", &started]
    );
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_holds_up_its_pod_alone_and_what_it_started_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (go_on, hangs) = std::sync::mpsc::channel::<()>();
    let hangs = Mutex::new(hangs);
    let on_start: OnStart = Box::new(move |id| {
        if id.sandbox.pod.as_str() == "slow" {
            // Ends with the test at the latest.
            let _ = hangs.lock().recv();
        }
        Ok(())
    });
    let (mut rig, runtime) = node(dir.path(), Scripted { on_start, ..Scripted::default() }).await;
    let (mut slow, mut other) = (guest(dir.path(), "d", "slow"), guest(dir.path(), "o", "other"));
    rig.put("pods", slow.clone()).await;
    rig.give_block("10.128.7.0/24").await;
    runtime.until_told("start c#0: d/slow/c [\"guest.wasm\", \"x\"] at 8080").await;
    delete(&mut rig, &mut slow, 0).await;
    rig.put("pods", other.clone()).await;
    rig.status("other", ready(0)).await;
    delete(&mut rig, &mut other, 0).await;
    gone(&mut rig, "other").await;
    let is_told = |what: &str| runtime.told.borrow().iter().any(|one| one == what);
    assert!(is_told("remove other") && !is_told("remove slow"), "nobody knows what has become of its start");
    let told = runtime.told.borrow().len();
    drop(go_on);
    gone(&mut rig, "slow").await;
    assert_eq!(runtime.told.borrow()[told..], ["kill c#0", "remove c#0", "release", "remove slow"]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_runtime_refuses_is_told_in_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let why = "it imports what nobody has";
    let unfit = Some(why);
    let (mut rig, runtime) = node(dir.path(), Scripted { unfit, ..Scripted::default() }).await;
    rig.put("pods", guest(dir.path(), "d", "web")).await;
    rig.give_block("10.128.7.0/24").await;
    assert_eq!(rig.status("web", waiting("CreateContainerError")).await, why);
    assert_eq!(*runtime.told.borrow(), ["create web: d, web, [10.128.7.2]", "prepare guest.wasm for d"]);
    rig.stop().await;

    let failed = |_: &ContainerId| Err(StartRefused::Failed("its port is taken".into()));
    let runtime = Scripted { on_start: Box::new(failed), ..Scripted::default() };
    let other = tempfile::tempdir().unwrap();
    let (mut rig, _) = node(other.path(), runtime).await;
    rig.put("pods", guest(other.path(), "d", "web")).await;
    rig.give_block("10.128.7.0/24").await;
    assert_eq!(rig.status("web", waiting("RunContainerError")).await, "its port is taken");
    rig.stop().await;
}

/// Less than the first time that a container without room waits by itself.
const SOON: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_room_is_tried_again_when_the_runtime_has_some() {
    let dir = tempfile::tempdir().unwrap();
    let is_full = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let full = is_full.clone();
    let on_start: OnStart = Box::new(move |_| {
        let full = full.load(std::sync::atomic::Ordering::SeqCst);
        if full { Err(StartRefused::NoRoom("no room for one more".into())) } else { Ok(()) }
    });
    let (mut rig, runtime) = node(dir.path(), Scripted { on_start, ..Scripted::default() }).await;
    rig.put("pods", guest(dir.path(), "d", "web")).await;
    rig.give_block("10.128.7.0/24").await;
    assert_eq!(rig.status("web", waiting("InstancesExhausted")).await, "no room for one more");
    is_full.store(false, std::sync::atomic::Ordering::SeqCst);
    runtime.freed.send_modify(|freed| *freed += 1);
    let runs = tokio::time::timeout(SOON, rig.status("web", ready(0))).await;
    assert!(runs.is_ok(), "it waits as if nobody had told that there is room");
    let prepared = runtime.told.borrow().iter().filter(|told| told.starts_with("prepare")).count();
    assert_eq!(prepared, 1, "what is ready stays so while it waits");
    rig.stop().await;
}

#[tokio::test]
async fn a_runtime_that_does_not_say_what_containers_use_is_asked_once() {
    let dir = tempfile::tempdir().unwrap();
    let (events, mut told) = mpsc::channel(8);
    let runtime = Arc::new(Scripted::default());
    let parts = Parts { runtime: Some(runtime.clone()), ..Parts::default() };
    let mut executor = Executor::new(context(dir.path(), parts, LinkHandle::new().0, events));
    executor.meter();
    executor.meter();
    assert_eq!(runtime.metering.send_replace(0), 1);
    let Some(Event::Metered(used)) = told.recv().await else { panic!("nothing was metered") };
    assert_eq!(used.len(), 1);
    while *runtime.metering.borrow() == 0 {
        // The task that asked has told all, and ends.
        tokio::task::yield_now().await;
        executor.meter();
    }
    assert_eq!(*runtime.metering.borrow(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_use_goes_up_while_the_link_knows_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rig, runtime) = node(dir.path(), Scripted::default()).await;
    let used = runtime.usage();
    runtime.metering.send_replace(0);
    rig.events.send(Event::Metered(used.await)).await.unwrap();
    let usage = rig
        .until(|body| match body {
            Up::Usage(usage) => usage.containers.first().cloned(),
            _ => None,
        })
        .await;
    assert_eq!((usage.pod_uid.as_str(), usage.container.as_str()), ("web", "c"));
    assert_eq!((usage.cpu_nanoseconds, usage.memory_bytes), (7, 65536));
    rig.stop().await;
}

#[tokio::test]
async fn a_node_that_stops_removes_what_its_pods_run_in() {
    let dir = tempfile::tempdir().unwrap();
    let (events, _told) = mpsc::channel(8);
    let runtime = Arc::new(Scripted::default());
    let parts = Parts { runtime: Some(runtime.clone()), ..Parts::default() };
    let mut executor = Executor::new(context(dir.path(), parts, LinkHandle::new().0, events));
    executor.add_block("10.128.7.0/24");
    for uid in ["a", "b"] {
        let pod = guest(dir.path(), "d", uid).to_string();
        let pod = Arc::new(coracle_core::Pod::parse(pod.as_bytes()).unwrap());
        let create = Action::CreateSandbox { uid: uid.into(), preferred: None, limits: Limits::default() };
        assert!(executor.execute(create, &pod).is_some(), "it is there at once");
    }
    executor.drop_all();
    assert_eq!(
        *runtime.told.borrow(),
        ["create a: d, a, [10.128.7.2]", "create b: d, b, [10.128.7.3]", "remove a", "remove b"]
    );
}
