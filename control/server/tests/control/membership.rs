//! Changes of members: by administrators, and by the leader itself.

use std::{path::Path, time::Duration};

use coracle_api::Storage;
use coracle_proto::{
    cluster::{
        HealthRequest, Member, MemberRequest, ReplaceRequest, StatusRequest, StatusResponse,
        cluster_client::ClusterClient, leader_client::LeaderClient,
    },
    security::{RotateKeysRequest, security_client::SecurityClient},
    tls,
};
use coracle_raft::Status;
use coracle_server::{Control, ControlConfig, Mode};
use http::{Method, StatusCode};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tonic::Code;

use crate::bench::{
    admin, administration, config, init, join, leading, send, start, three, until, write_on, written,
};

/// Learners are promoted by nobody but the administrator.
fn by_hand(dir: &Path, name: &str, mode: Mode) -> ControlConfig {
    let mut config = config(dir, name, mode);
    config.learner_healthy = Duration::from_secs(3600);
    config
}

fn named(members: &[&str]) -> MemberRequest {
    MemberRequest { members: members.iter().map(|member| (*member).to_owned()).collect() }
}

fn voters(control: &Control) -> Vec<u64> {
    control.storage().status().voters
}

async fn caught_up(leader: &Control, id: u64) {
    let ready = |status: Status| {
        let learner = status.progress.into_iter().find(|(member, _, _)| *member == id);
        learner.is_some_and(|(_, matched, active)| active && status.last - matched <= 250)
    };
    until("the learner to catch up", || async { ready(leader.storage().status()) }).await;
}

async fn status(control: &Control) -> StatusResponse {
    let question = StatusRequest { reports: true, ..StatusRequest::default() };
    administration(control).status(question).await.unwrap().into_inner()
}

/// All that was acknowledged is on each of them, and they agree.
async fn agree(controls: &[Control], name: &str, count: usize) {
    let hash = |control: &Control| (control.storage().view().revision, control.storage().state_hash());
    until("equal states", || async { controls.iter().all(|control| hash(control) == hash(&controls[0])) })
        .await;
    assert_eq!(written(&controls[0], name), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_is_replaced_and_shrinks_under_writes() {
    let dir = tempfile::tempdir().unwrap();
    let first = coracle_server::start(by_hand(dir.path(), "a", Mode::Init)).await.unwrap();
    let writer = write_on(&first, "growing");
    let mut controls = vec![first];
    for name in ["b", "c"] {
        let joined = join(&controls[0], |mode| by_hand(dir.path(), name, mode)).await;
        caught_up(&controls[0], joined.member_id()).await;
        controls.push(joined);
    }
    // Asked for at a learner, and by name.
    administration(&controls[2]).promote(named(&["b", "3"])).await.unwrap();
    until("the first three voters", || async { voters(&controls[0]) == [1, 2, 3] }).await;
    let count = writer.stop().await;
    agree(&controls, "growing", count).await;

    // Member 3 stays while each of the others is replaced.
    let writer = write_on(&controls[2], "replacing");
    let joined = join(&controls[0], |mode| by_hand(dir.path(), "d", mode)).await;
    caught_up(&controls[0], 4).await;
    let request = ReplaceRequest { old: "b".into(), new: "d".into() };
    let done = administration(&controls[1]).replace(request.clone()).await.unwrap().into_inner().done;
    assert!(done.contains("in the place of b"), "{done}");
    until("d in the place of b", || async { voters(&controls[0]) == [1, 3, 4] }).await;
    let gone = controls.remove(1);
    let reason = gone.closed().await.to_string();
    assert!(reason.contains("member 2 was removed"), "{reason}");
    gone.abort().await;
    controls.push(joined);

    // The leader itself is replaced: another leads first, and carries it out.
    let joined = join(&controls[0], |mode| by_hand(dir.path(), "e", mode)).await;
    caught_up(&controls[0], 5).await;
    administration(&controls[0]).replace(ReplaceRequest { old: "a".into(), new: "5".into() }).await.unwrap();
    controls.push(joined);
    until("the old leader to be out", || async { voters(&controls[1]) == [3, 4, 5] }).await;
    let count = writer.stop().await;
    let gone = controls.remove(0);
    assert!(gone.closed().await.to_string().contains("member 1 was removed"));
    gone.abort().await;
    agree(&controls, "replacing", count).await;

    let leader = leading(&controls).await;
    let (leads, other) = (controls[leader].member_id(), &controls[(leader + 1) % 3]);
    let writer = write_on(other, "shrinking");
    let going: Vec<String> =
        [3, 4, 5].iter().filter(|id| **id != other.member_id()).map(u64::to_string).collect();
    assert!(going.contains(&leads.to_string()));
    administration(other).remove(MemberRequest { members: going }).await.unwrap();
    until("one voter", || async { voters(other) == [other.member_id()] }).await;
    let more = writer.stop().await;
    assert!(more > 0 && written(other, "shrinking") == more && written(other, "replacing") == count);
    let objects = |control: &Control| control.storage().view().count("members.coracle.dev");
    assert_eq!(objects(other), 1, "the objects of the removed are gone");
    futures::future::join_all(controls.into_iter().map(Control::abort)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_would_do_harm_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let mut admin = administration(&controls[1]);
    let unknown = admin.remove(named(&["zebra"])).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("cluster members"), "{}", unknown.message());
    let all = admin.remove(named(&["1", "2", "3"])).await.unwrap_err();
    assert!(all.message().contains("last voter"), "{}", all.message());
    admin.transfer_leader(named(&["b"])).await.unwrap();
    until("b to lead", || async { controls[1].storage().leads() }).await;

    let lost = controls.pop().unwrap();
    lost.abort().await;
    // Whoever leads by now.
    let silent = |control: &Control| {
        control.storage().status().progress.iter().any(|(id, _, active)| *id == 3 && !active)
    };
    until("c to be missed", || async { controls.iter().any(silent) }).await;
    // Its last messages may still have been on their way.
    tokio::time::sleep(Duration::from_secs(1)).await;
    until("c to be missed for good", || async { controls.iter().any(silent) }).await;
    let quorum = admin.remove(named(&["a"])).await.unwrap_err();
    assert_eq!(quorum.code(), Code::FailedPrecondition);
    assert!(quorum.message().contains("only 1 of the 2 voters"), "{}", quorum.message());
    let dead = admin.transfer_leader(named(&["c"])).await.unwrap_err();
    assert!(dead.message().contains("not heard of"), "{}", dead.message());
    admin.remove(named(&["c"])).await.unwrap();
    until("two voters", || async { voters(&controls[1]) == [1, 2] }).await;
    until("their alarm", || async {
        status(&controls[0]).await.alarms.iter().any(|alarm| alarm.reason == "EvenVoters")
    })
    .await;

    // The removed one is told when it comes back.
    let back = start(dir.path(), "c", Mode::Resume).await.unwrap();
    assert!(back.closed().await.to_string().contains("member 3 was removed"));
    back.abort().await;
    futures::future::join_all(controls.into_iter().map(Control::shutdown)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_told_and_a_learner_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let quick = |name: &'static str| {
        let dir = dir.path();
        move |mode| {
            let mut config = config(dir, name, mode);
            config.member_dead = Duration::from_secs(3);
            config
        }
    };
    let mut controls = vec![coracle_server::start(quick("a")(Mode::Init)).await.unwrap()];
    for name in ["b", "c"] {
        let joined = join(&controls[0], quick(name)).await;
        controls.push(joined);
    }
    until("three voters", || async { voters(&controls[0]).len() == 3 }).await;
    until("a healthy status", || async {
        let status = status(&controls[1]).await;
        let healthy = |member: &Member| {
            let report = member.report.as_ref();
            member.version == env!("CARGO_PKG_VERSION")
                && report.is_some_and(|report| report.disk_used_bytes > 0 && report.certificates.len() == 6)
        };
        status.alarms.is_empty() && status.members.len() == 3 && status.members.iter().all(healthy)
    })
    .await;

    controls.pop().unwrap().abort().await;
    let dead = |alarms: StatusResponse| {
        alarms.alarms.iter().any(|alarm| alarm.reason == "MemberDead" && alarm.member_id == 3)
    };
    until("the alarm", || async { dead(status(&controls[1]).await) }).await;
    assert_eq!(voters(&controls[0]), [1, 2, 3], "nobody is removed without somebody in its place");
    let events = || controls[0].storage().view();
    until("the event", || async {
        events()
            .list("events", Some("default"))
            .any(|event| String::from_utf8_lossy(&event.json).contains("\"Dead\""))
    })
    .await;

    // It comes back: the alarm ends.
    let back = coracle_server::start(quick("c")(Mode::Resume)).await.unwrap();
    until("the alarm's end", || async { !dead(status(&controls[1]).await) }).await;
    back.abort().await;
    let joined = join(&controls[0], quick("d")).await;
    until("the replacement", || async { voters(&controls[0]) == [1, 2, 4] }).await;
    until("no alarm", || async { status(&controls[0]).await.alarms.is_empty() }).await;
    controls.push(joined);
    futures::future::join_all(controls.into_iter().map(Control::shutdown)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_learner_stays_a_learner() {
    let dir = tempfile::tempdir().unwrap();
    let first = init(dir.path()).await;
    let second = join(&first, |mode| config(dir.path(), "b", mode)).await;
    caught_up(&first, 2).await;
    let third = join(&first, |mode| config(dir.path(), "c", mode)).await;
    until("three voters", || async { voters(&first) == [1, 2, 3] }).await;
    let term = first.storage().status().term;
    let seen_two = first.storage().raft().status().borrow().voters.len() == 2;
    assert!(!seen_two && term > 0);
    for control in [third, second, first] {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_handed_on_once() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    let follower = controls.iter().find(|control| !control.storage().leads()).expect("one leads");
    let marked = |message| {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("coracle-forwarded", "1".parse().unwrap());
        request
    };
    let mut security = SecurityClient::new(tls::channel(&follower.address(), admin(follower)));
    let refused = security.rotate_keys(marked(RotateKeysRequest {})).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    until("a call of a client to be handed on", || async {
        security.clone().rotate_keys(RotateKeysRequest {}).await.is_ok()
    })
    .await;
    futures::future::join_all(controls.into_iter().map(Control::abort)).await;
}

/// A certificate of the peer authority, such as anybody can make who has a control node's disk.
fn peer(dir: &Path, name: &str) -> rustls::ClientConfig {
    let text = std::fs::read_to_string(dir.join("a/pki/authorities.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pem = |place: &str| kept.pointer(place).and_then(serde_json::Value::as_str).unwrap();
    let authority = KeyPair::from_pem(pem("/peer/key_pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(pem("/peer/certificate_pem"), authority).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "coracle:control");
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    tls::client_config(pem("/serving/certificate_pem"), &certificate.pem(), &key.serialize_pem()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_removed_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = coracle_server::start(by_hand(dir.path(), "a", Mode::Init)).await.unwrap();
    let second = join(&first, |mode| by_hand(dir.path(), "b", mode)).await;
    let channel = |name: &str| tls::channel(&first.address(), peer(dir.path(), name));
    let open = channel("coracle:member:2");
    let mut leader = LeaderClient::new(open.clone());
    leader.health(HealthRequest {}).await.expect("a member may");
    let nameless = LeaderClient::new(channel("b")).health(HealthRequest {}).await.unwrap_err();
    assert_eq!(nameless.code(), Code::Unauthenticated, "{nameless}");

    // The registry as well: members read it, and nobody else's REST API is theirs.
    let registry = async || {
        let peer = peer(dir.path(), "coracle:member:2");
        send(&first.address(), &peer, Method::GET, "/v2/", b"").await.status()
    };
    assert_eq!(registry().await, StatusCode::OK);

    administration(&first).remove(named(&["b"])).await.unwrap();
    assert_eq!(registry().await, StatusCode::FORBIDDEN);
    let refused = leader.health(HealthRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "on the same connection: {refused}");
    let question = StatusRequest { asking_member: 2, ..StatusRequest::default() };
    let answer = ClusterClient::new(open).status(question).await.unwrap().into_inner();
    assert!(answer.asking_member_removed && answer.members.is_empty(), "{answer:?}");
    assert!(second.closed().await.to_string().contains("was removed"));
    futures::future::join_all([first, second].map(Control::abort)).await;
}
