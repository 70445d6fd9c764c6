//! A node's link, from the node's side.

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::{
    join::{Joined, Role, join},
    node::{
        ClaimBlock, Heartbeat, Hello, LogChunk, NodeDown, NodeUp, PodGone, PodStatus,
        node_down::Body as Down, node_link_client::NodeLinkClient, node_up::Body as Up, object_event::Type,
    },
    tls,
};
use coracle_server::Control;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, LogParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::bench::{PATIENCE, client, init, leading, three, until};

/// The node's end of a link.
struct Link {
    up: mpsc::Sender<NodeUp>,
    down: Streaming<NodeDown>,
}

impl Link {
    async fn open(control: &Control, joined: &Joined) -> Self {
        Self::open_with(control, joined, |_| {}).await
    }

    async fn open_with(control: &Control, joined: &Joined, change: impl FnOnce(&mut Hello)) -> Self {
        let response = &joined.response;
        let config =
            tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem).unwrap();
        let mut client = NodeLinkClient::new(tls::channel(&control.address(), config));
        let (up, messages) = mpsc::channel(64);
        let mut hello = Hello {
            name: "n1".into(),
            cluster_id: response.cluster_id.clone(),
            protocol_min: 1,
            protocol_max: 1,
            fabric_address: "127.0.0.1:7443".into(),
            capacity: quantities(),
            allocatable: quantities(),
            ..Hello::default()
        };
        change(&mut hello);
        up.send(NodeUp { body: Some(Up::Hello(hello)), sequence: 0 }).await.unwrap();
        let down = client.link(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Self { up, down }
    }

    async fn say(&self, body: Up) {
        self.up.send(NodeUp { body: Some(body), sequence: 0 }).await.unwrap();
    }

    async fn say_numbered(&self, sequence: u64, body: Up) {
        self.up.send(NodeUp { body: Some(body), sequence }).await.unwrap();
    }

    /// Waits until a message is acknowledged: whether it is done.
    async fn acknowledged(&mut self, sequence: u64) -> bool {
        self.wait("acknowledgement", |down| match down {
            Down::Acknowledged(told) if told.done.contains(&sequence) => Some(true),
            Down::Acknowledged(told) if told.again.contains(&sequence) => Some(false),
            _ => None,
        })
        .await
    }

    /// The next message that is wanted; others are passed over.
    async fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(Down) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let message = self.down.message().await.unwrap().expect("the link is open");
                if let Some(found) = wanted(message.body.unwrap()) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no {what} came"))
    }
}

fn quantities() -> std::collections::HashMap<String, String> {
    [("cpu", "2"), ("memory", "4Gi"), ("pods", "1000")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

async fn joined(control: &Control) -> Joined {
    let token = control.create_token(Role::Node, 60).await.unwrap();
    join(&[control.address()], &token, "n1", "127.0.0.1:7443").await.unwrap()
}

fn pod(name: &str) -> Pod {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "hello:1.0" }], "terminationGracePeriodSeconds": 5 },
    });
    serde_json::from_value(pod).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_to_the_node_and_its_status_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let joined = joined(&control).await;
    let mut link = Link::open(&control, &joined).await;
    link.wait("Welcome", |down| matches!(down, Down::Welcome(_)).then_some(())).await;
    link.wait("Synced", |down| matches!(down, Down::Synced(_)).then_some(())).await;
    link.say(Up::Heartbeat(Heartbeat { sequence: 1, ..Heartbeat::default() })).await;
    link.say(Up::ClaimBlock(ClaimBlock { request: 7 })).await;
    let block = link
        .wait("block", |down| if let Down::BlockClaimed(block) = down { Some(block) } else { None })
        .await;
    assert_eq!((block.request, block.cidr.as_str(), block.error.as_str()), (7, "10.128.0.0/24", ""));

    let pods: Api<Pod> = Api::namespaced(client(&control).await, "default");
    let service_account = ObjectKey::new("serviceaccounts", "default", "default");
    until("the default account", || async { control.storage().view().get(&service_account).is_some() }).await;
    // The node may have been silent for long enough to be taken for dead.
    link.say(Up::Heartbeat(Heartbeat { sequence: 2, ..Heartbeat::default() })).await;
    let created = pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let uid = created.metadata.uid.unwrap();
    let put = |down| match down {
        Down::Object(object) if object.resource == "pods" && object.r#type() == Type::Put => Some(object),
        _ => None,
    };
    let sent: Pod = serde_json::from_slice(&link.wait("the pod", put).await.object_json).unwrap();
    assert_eq!(sent.spec.unwrap().node_name.as_deref(), Some("n1"));

    let about = (String::from("default"), String::from("p"), uid.clone());
    let state = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
    let containers = json!([{ "name": "c", "image": "hello:1.0", "imageID": "", "ready": true, "restartCount": 0, "state": state }]);
    let status_json = json!({ "phase": "Running", "containerStatuses": containers }).to_string().into();
    let (namespace, name, uid) = about.clone();
    link.say(Up::PodStatus(PodStatus { namespace, name, uid, status_json })).await;
    let running = async || {
        pods.get("p").await.unwrap().status.and_then(|status| status.phase).as_deref() == Some("Running")
    };
    until("the phase", running).await;

    let reading = pods.clone();
    let log = tokio::spawn(async move { reading.logs("p", &LogParams::default()).await });
    let request = link
        .wait("log request", |down| if let Down::LogRequest(r) = down { Some(r.request) } else { None })
        .await;
    let chunk = |data: &'static [u8], end| {
        Up::LogChunk(LogChunk { request, data: data.into(), end, ..LogChunk::default() })
    };
    link.say(chunk(b"hello\n", false)).await;
    link.say(chunk(b"world\n", true)).await;
    assert_eq!(log.await.unwrap().unwrap(), "hello\nworld\n");

    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let deleting = |down| match down {
        Down::Object(object) if object.resource == "pods" => {
            String::from_utf8_lossy(&object.object_json).contains("deletionTimestamp").then_some(())
        }
        _ => None,
    };
    link.wait("the deletion", deleting).await;
    let (namespace, name, uid) = about;
    link.say(Up::PodGone(PodGone { namespace, name, uid })).await;
    until("the end of the pod", async || pods.get_opt("p").await.unwrap().is_none()).await;

    drop(link);
    let node = ObjectKey::new("nodes", "", "n1");
    let unknown = || async {
        let object = control.storage().view().get(&node).cloned().unwrap();
        let node: k8s_openapi::api::core::v1::Node = object.parse().unwrap();
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "Unknown")
    };
    until("a silent node to be Unknown", unknown).await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_sent_as_many_of_its_pods_config_maps_as_it_may_keep() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let create = async |resource: &str, name: &str, mut object: serde_json::Value| {
        object["metadata"] = json!({ "name": name, "namespace": "default", "uid": name });
        let made = Transaction::create(ObjectKey::new(resource, "default", name), object.to_string().into());
        control.storage().propose(made).await.unwrap().unwrap();
    };
    let names: Vec<String> = (10..76).map(|at| format!("large{at}")).collect();
    let data = json!({ "data": { "k": "x".repeat(1 << 20) } });
    for name in &names {
        create("configmaps", name, data.clone()).await;
    }
    let from: Vec<_> = names.iter().map(|name| json!({ "configMapRef": { "name": name } })).collect();
    let containers = json!([{ "name": "c", "image": "hello:1.0", "envFrom": from }]);
    let joined = joined(&control).await;
    create("pods", "p", json!({ "spec": { "nodeName": "n1", "containers": containers } })).await;
    let mut link = Link::open(&control, &joined).await;
    let (mut sent, mut withheld) = (vec![], vec![]);
    let first = |down| match down {
        Down::Object(object) if object.resource == "configmaps" => {
            if object.r#type() == Type::Put {
                sent.push(object.object_json.len());
            } else {
                assert!(object.object_json.is_empty() && object.reason.contains("64 MiB"), "{object:?}");
                withheld.push(object.name);
            }
            None
        }
        Down::Synced(_) => Some(()),
        _ => None,
    };
    link.wait("Synced", first).await;
    assert_eq!((sent.len(), &withheld[..]), (63, &names[63..]));
    assert!(sent.iter().sum::<usize>() <= 64 << 20);
    let gone = Write::Delete { key: ObjectKey::new("configmaps", "default", &names[0]) };
    let transaction = Transaction { preconditions: vec![], writes: vec![gone] };
    control.storage().propose(transaction).await.unwrap().unwrap();
    let put = |down| match down {
        Down::Object(object) if object.resource == "configmaps" && object.r#type() == Type::Put => {
            Some(object.name)
        }
        _ => None,
    };
    assert!(withheld.contains(&link.wait("what had no room", put).await));
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_writes_over_a_nodes_description_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let joined = joined(&control).await;
    let mut link = Link::open(&control, &joined).await;
    link.wait("Welcome", |down| matches!(down, Down::Welcome(_)).then_some(())).await;
    let nodes: Api<Node> = Api::all(client(&control).await);
    let bent = json!({ "status": { "capacity": { "cpu": "1n" } } });
    let bent = nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(bent)).await.unwrap();
    let cpu = |node: Node| node.status.and_then(|status| Some(status.capacity?.get("cpu")?.0.clone()));
    assert_eq!(cpu(bent).as_deref(), Some("1n"));
    until("the node's own word", || async {
        nodes.get("n1").await.is_ok_and(|node| cpu(node).as_deref() == Some("2"))
    })
    .await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_lead_sends_nodes_on() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    let leader = &controls[leading(&controls).await];
    let follower = controls.iter().find(|control| !control.storage().leads()).unwrap();
    // Joining works at any member.
    let joined = joined(follower).await;
    let mut link = Link::open(follower, &joined).await;
    let address = link
        .wait("Redirect", |down| if let Down::Redirect(r) = down { Some(r.leader_address) } else { None })
        .await;
    assert_eq!(address, leader.address());
    futures::future::join_all(controls.into_iter().map(Control::shutdown)).await;
}

fn status_of(pod: &str, uid: &str, status: &serde_json::Value) -> Up {
    let (namespace, name, uid) = ("default".into(), pod.into(), uid.into());
    Up::PodStatus(PodStatus { namespace, name, uid, status_json: status.to_string().into() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_heard_about_its_own_and_in_the_form_of_its_type() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let joined = joined(&control).await;
    for label in ["node-restriction.kubernetes.io/pci", "kubernetes.io/role"] {
        let mut link = Link::open_with(&control, &joined, |hello| {
            hello.labels.insert(label.into(), "x".into());
        })
        .await;
        let refused = link.down.message().await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains(label), "{refused}");
    }
    let mut link = Link::open_with(&control, &joined, |hello| hello.flow_control = true).await;
    let acknowledges = |down| if let Down::Welcome(w) = down { Some(w.acknowledges) } else { None };
    assert!(link.wait("Welcome", acknowledges).await);
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        let containers = json!([{ "name": "c", "image": "hello:1.0" }]);
        let pod = json!({
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "spec": { "nodeName": node, "containers": containers },
        });
        let made = Transaction::create(ObjectKey::new("pods", "default", name), pod.to_string().into());
        control.storage().propose(made).await.unwrap().unwrap();
    }
    let status = |name: &str| {
        let view = control.storage().view();
        let object = view.get(&ObjectKey::new("pods", "default", name)).cloned().unwrap();
        let object: serde_json::Value = serde_json::from_slice(&object.json).unwrap();
        object["status"].clone()
    };
    let state = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
    let container = json!({ "name": "c", "image": "hello:1.0", "imageID": "", "ready": true, "restartCount": 0, "state": state });
    let plain = json!({ "phase": "Running", "containerStatuses": [container] });
    let mut running = plain.clone();
    for null in ["initContainerStatuses", "podIP", "conditions"] {
        running[null] = json!(null);
    }
    link.say_numbered(1, status_of("theirs", "theirs", &running)).await;
    link.say_numbered(2, status_of("mine", "made-up", &running)).await;
    let range = json!([{ "name": "c", "restartCount": 4_294_967_296_u64 }]);
    link.say_numbered(3, status_of("mine", "mine", &json!({ "containerStatuses": range }))).await;
    assert!(link.acknowledged(3).await, "there is nothing more to be done about it");
    assert_eq!((status("theirs"), status("mine")), (json!(null), json!(null)));
    link.say_numbered(4, status_of("mine", "mine", &running)).await;
    assert!(link.acknowledged(4).await, "the link goes on");
    assert_eq!(status("mine"), plain, "what is null is absent");
    let mut taking = plain.clone();
    (taking["podIP"], taking["podIPs"]) = (json!("10.96.0.10"), json!([{ "ip": "10.96.0.10" }]));
    link.say_numbered(5, status_of("mine", "mine", &taking)).await;
    assert!(link.acknowledged(5).await);
    assert_eq!(status("mine"), plain, "an address that is not the node's");
    until("the event about it", || async {
        let view = control.storage().view();
        view.list("events", Some("default")).any(|event| {
            event.parse().is_ok_and(|event: serde_json::Value| event["reason"] == "ForeignAddress")
        })
    })
    .await;

    // A reader that takes nothing holds up nobody: not even where the node sends more than it was granted.
    let pods: Api<Pod> = Api::namespaced(client(&control).await, "default");
    let reading = tokio::spawn(async move {
        let options = LogParams { follow: true, ..LogParams::default() };
        let _unread = pods.log_stream("mine", &options).await.unwrap();
        std::future::pending::<()>().await;
    });
    let asked = |down| if let Down::LogRequest(r) = down { Some((r.request, r.chunks)) } else { None };
    let (request, chunks) = link.wait("log request", asked).await;
    assert!(chunks > 0, "the node is told how much");
    let begun = std::time::Instant::now();
    for _ in 0..400 {
        let data = vec![b'x'; 32 * 1024].into();
        link.say(Up::LogChunk(LogChunk { request, data, ..LogChunk::default() })).await;
    }
    link.say_numbered(6, status_of("mine", "mine", &json!({ "phase": "Failed" }))).await;
    assert!(link.acknowledged(6).await);
    assert!(begun.elapsed() < PATIENCE / 10, "it took {:?}", begun.elapsed());
    assert_eq!(status("mine"), json!({ "phase": "Failed" }));
    reading.abort();
    control.shutdown().await;
}
