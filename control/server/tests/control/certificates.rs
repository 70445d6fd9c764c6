//! Certificates that live for seconds: connections that are open go on, new ones see new certificates.

use std::{path::Path, time::Duration};

use coracle_proto::{
    cluster::StatusRequest,
    join::{Role, join, signing_request},
    security::{
        AuthoritiesRequest, AuthoritiesResponse, RenewCertificateRequest, RotateAuthoritiesRequest,
        security_client::SecurityClient,
    },
    tls,
};
use coracle_server::{Control, Mode};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bench::{admin, administration, client, config, config_map, config_maps, three, until};

/// For how long certificates live here: renewed after two thirds of it.
const LIFE: Duration = Duration::from_secs(15);

async fn start(dir: &Path, name: &str, mode: Mode) -> Control {
    let mut config = config(dir, name, mode);
    config.certificate_life = LIFE;
    coracle_server::start(config).await.unwrap()
}

/// The serial number that a new connection is shown; None where there is no connection.
async fn shown(control: &Control) -> Option<Vec<u8>> {
    let stream = tls::connect(&control.address(), admin(control).into()).await.ok()?;
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    Some(X509Certificate::from_der(&chain[0]).unwrap().1.raw_serial().to_vec())
}

fn kubeconfig(control: &Control) -> String {
    std::fs::read_to_string(control.kubeconfig_path()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_renew_theirs_while_streams_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), "a", Mode::Init).await;
    let mut controls = vec![first];
    for name in ["b", "c"] {
        let token = controls[0].create_token(Role::Control, 60).await.unwrap();
        let mode = Mode::Join { addresses: vec![controls[0].address()], token: token.to_string() };
        controls.push(start(dir.path(), name, mode).await);
    }
    for control in &controls {
        until("three voters", || async { control.storage().status().voters.len() == 3 }).await;
    }
    let old_client = config_maps(&controls[0]).await;
    let (before, old_kubeconfig) = (shown(&controls[0]).await.unwrap(), kubeconfig(&controls[0]));
    let begun = std::time::Instant::now();
    let mut watch = old_client.watch(&WatchParams::default(), "0").await.unwrap().boxed();

    until("a new certificate is shown", || async {
        shown(&controls[0]).await.is_some_and(|shown| shown != before)
    })
    .await;
    until("a new kubeconfig", || async { kubeconfig(&controls[0]) != old_kubeconfig }).await;
    until("the first certificates are over", || async { begun.elapsed() > LIFE + LIFE / 2 }).await;
    old_client.get("kube-root-ca.crt").await.expect_err("over a connection that is kept too");
    let moved = config_maps(&controls[2]).await;
    moved.create(&PostParams::default(), &config_map("later", "1")).await.expect("members go on");
    loop {
        let event = watch.try_next().await.unwrap().expect("the old connection goes on");
        if matches!(&event, WatchEvent::Added(object) if object.metadata.name.as_deref() == Some("later")) {
            break;
        }
    }
    // A member that comes back opens all its connections anew.
    controls.pop().unwrap().shutdown().await;
    controls.push(start(dir.path(), "c", Mode::Resume).await);
    let back = config_maps(&controls[2]).await;
    back.create(&PostParams::default(), &config_map("last", "1")).await.expect("with new connections too");
    for control in controls {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_renews_under_its_own_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let control = start(dir.path(), "a", Mode::Init).await;
    let token = control.create_token(Role::Node, 60).await.unwrap();
    let joined = join(&[control.address()], &token, "n1", "127.0.0.1:7443").await.unwrap();
    let response = &joined.response;
    let node =
        tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem).unwrap();
    let (key_pem, csr_pem) = signing_request().unwrap();
    let request = RenewCertificateRequest { csr_pem, advertise: "127.0.0.1:7443".into() };
    let mut renewed = SecurityClient::new(tls::channel(&control.address(), node));
    let nodes: Api<Node> = Api::all(client(&control).await);
    let renewed = renewed.renew_certificate(request.clone()).await.unwrap().into_inner();
    let der = tls::certificates(&renewed.certificate_pem, "test").unwrap().remove(0);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(parsed.subject().to_string(), "O=system:nodes, CN=system:node:n1");
    let (issued, ends) = tls::life(&renewed.certificate_pem).unwrap();
    assert!(ends.duration_since(issued).unwrap().abs_diff(LIFE) <= Duration::from_secs(1));
    let again = tls::client_config(&renewed.serving_ca_pem, &renewed.certificate_pem, &key_pem).unwrap();
    let mut again = SecurityClient::new(tls::channel(&control.address(), again));
    again.renew_certificate(request.clone()).await.expect("the renewed one serves for the next");
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    again.renew_certificate(request.clone()).await.expect_err("it was deleted");
    let n1 = serde_json::from_value(json!({ "metadata": { "name": "n1" } })).unwrap();
    nodes.create(&PostParams::default(), &n1).await.unwrap();
    let refused = again.renew_certificate(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "another Node has the name: {refused}");

    let mut administrator = SecurityClient::new(tls::channel(&control.address(), admin(&control)));
    let refused = administrator.renew_certificate(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    control.shutdown().await;
}

async fn authorities(control: &Control) -> AuthoritiesResponse {
    let mut client = SecurityClient::new(tls::channel(&control.address(), admin(control)));
    client.authorities(AuthoritiesRequest {}).await.unwrap().into_inner()
}

/// Says on behalf of a node that it goes by a generation of the authorities.
async fn confirm(control: &Control, node: &str, generation: u64) {
    let nodes: Api<Node> = Api::all(client(control).await);
    let annotations = json!({ "coracle.dev/trust-generation": generation.to_string() });
    let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
    nodes.patch(node, &PatchParams::default(), &patch).await.unwrap();
}

/// As the status tells it: authorities, stage, control nodes and nodes that go by it, each of how many.
async fn told(control: &Control) -> Option<(usize, String, [u64; 4])> {
    let question = StatusRequest::default();
    let status = administration(control).status(question).await.unwrap().into_inner();
    status.authorities_change.map(|change| {
        let counts = [change.members_done, change.members, change.nodes_done, change.nodes];
        (change.authorities.len(), change.stage, counts)
    })
}

/// A client in Go looks closely at the chain that it is shown.
async fn kubectl_reads(kubeconfig: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig).unwrap();
    let mut command = tokio::process::Command::new("kubectl");
    command.arg("--kubeconfig").arg(file).args(["get", "namespaces", "--request-timeout=30s"]);
    match command.env("HOME", dir.path()).output().await {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            let required = std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_some();
            assert!(!required, "kubectl is required, and cannot be run: {error}");
        }
    }
}

fn stages(state: &AuthoritiesResponse) -> Vec<(&str, &str)> {
    state.changing.iter().map(|change| (change.authority.as_str(), change.stage.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_change_by_steps_that_wait_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    // A node that is away: the steps wait for it.
    let nodes: Api<Node> = Api::all(client(&controls[0]).await);
    let away = serde_json::from_value(json!({ "metadata": { "name": "away" } })).unwrap();
    nodes.create(&PostParams::default(), &away).await.unwrap();
    let old_token = controls[0].create_token(Role::Control, 600).await.unwrap();
    let (old_config, old_kubeconfig) = (admin(&controls[0]), kubeconfig(&controls[0]));
    let old_maps = config_maps(&controls[0]).await;
    let mut watch = old_maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    let mut kept = SecurityClient::new(tls::channel(&controls[0].address(), old_config.clone()));
    kept.authorities(AuthoritiesRequest {}).await.unwrap();
    let reached = async |config: &rustls::ClientConfig| {
        let mut client = SecurityClient::new(tls::channel(&controls[0].address(), config.clone()));
        client.authorities(AuthoritiesRequest {}).await.is_ok()
    };

    assert_eq!(told(&controls[1]).await, None);
    let all = RotateAuthoritiesRequest { peer: true, serving: true, client: true, grace_seconds: 0 };
    let mut security = SecurityClient::new(tls::channel(&controls[1].address(), old_config.clone()));
    security.rotate_authorities(all).await.unwrap();
    let again = security.rotate_authorities(all).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::FailedPrecondition, "{again}");
    until("members go by it", || async { authorities(&controls[0]).await.waiting_members.is_empty() }).await;
    let state = authorities(&controls[0]).await;
    assert_eq!(stages(&state), [("peer", "trusting"), ("serving", "trusting"), ("client", "trusting")]);
    assert_eq!((state.generation, state.waiting_nodes.as_slice()), (1, &["away".to_owned()][..]));

    assert_eq!(told(&controls[0]).await, Some((3, "trusting".into(), [3, 3, 0, 1])));

    confirm(&controls[0], "away", 1).await;
    until("certificates of the new ones", || async {
        let state = authorities(&controls[0]).await;
        state.generation == 2 && state.waiting_members.is_empty()
    })
    .await;
    assert_eq!(stages(&authorities(&controls[0]).await)[1], ("serving", "issuing"));
    assert_eq!(told(&controls[0]).await, Some((3, "issuing".into(), [3, 3, 0, 1])));
    assert!(reached(&old_config).await, "who trusts the old ones only is still served");
    kubectl_reads(&old_kubeconfig).await;
    let new_pin = controls[0].create_token(Role::Control, 600).await.unwrap().ca_pin;
    assert_ne!(new_pin, old_token.ca_pin);
    let mode = Mode::Join { addresses: vec![controls[1].address()], token: old_token.to_string() };
    let joined = coracle_server::start(config(dir.path(), "d", mode)).await.expect("an old token serves");

    confirm(&controls[0], "away", 2).await;
    until("the old ones are dropped", || async { authorities(&controls[0]).await.changing.is_empty() }).await;
    assert_eq!(told(&controls[0]).await, None);
    until("nobody trusts them", || async { !reached(&old_config).await }).await;
    until("a new kubeconfig", || async { kubeconfig(&controls[0]) != old_kubeconfig }).await;
    let maps = config_maps(&controls[1]).await;
    maps.create(&PostParams::default(), &config_map("later", "1")).await.unwrap();
    kept.authorities(AuthoritiesRequest {}).await.expect_err("a connection that is kept is of nobody");
    let ended = async { while let Ok(Some(_)) = watch.try_next().await {} };
    tokio::time::timeout(crate::bench::PATIENCE, ended).await.expect("what is open ends with its issuer");
    drop(watch);
    controls.pop().unwrap().shutdown().await;
    controls.push(crate::bench::start(dir.path(), "c", Mode::Resume).await.unwrap());
    let back = config_maps(&controls[2]).await;
    back.create(&PostParams::default(), &config_map("last", "1")).await.expect("a member that comes back");
    for control in controls.into_iter().chain([joined]) {
        control.shutdown().await;
    }
}
