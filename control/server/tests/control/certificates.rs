//! Certificates that live for seconds: connections that are open go on, new ones see new certificates.

use std::{path::Path, time::Duration};

use coracle_proto::{
    join::{Role, join, signing_request},
    security::{RenewCertificateRequest, security_client::SecurityClient},
    tls,
};
use coracle_server::{Control, Mode};
use futures::{StreamExt, TryStreamExt};
use kube::api::{PostParams, WatchEvent, WatchParams};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bench::{admin, config, config_map, config_maps, until};

/// For how long certificates live here: renewed after two thirds of it.
const LIFE: Duration = Duration::from_secs(6);

async fn start(dir: &Path, name: &str, mode: Mode) -> Control {
    let mut config = config(dir, name, mode);
    config.certificate_life = LIFE;
    coracle_server::start(config).await.unwrap()
}

/// The serial number that a new connection is shown.
async fn shown(control: &Control) -> Vec<u8> {
    let stream = tls::connect(&control.address(), admin(control).into()).await.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    X509Certificate::from_der(&chain[0]).unwrap().1.raw_serial().to_vec()
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
    let (before, old_kubeconfig) = (shown(&controls[0]).await, kubeconfig(&controls[0]));
    let begun = std::time::Instant::now();
    let mut watch = old_client.watch(&WatchParams::default(), "0").await.unwrap().boxed();

    until("a new certificate is shown", || async { shown(&controls[0]).await != before }).await;
    until("a new kubeconfig", || async { kubeconfig(&controls[0]) != old_kubeconfig }).await;
    until("the first certificates are over", || async { begun.elapsed() > LIFE + LIFE / 2 }).await;
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
    let renewed = SecurityClient::new(tls::channel(&control.address(), node));
    let renewed = renewed.clone().renew_certificate(request.clone()).await.unwrap().into_inner();
    let der = tls::certificates(&renewed.certificate_pem, "test").unwrap().remove(0);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(parsed.subject().to_string(), "O=system:nodes, CN=system:node:n1");
    let (issued, ends) = tls::life(&renewed.certificate_pem).unwrap();
    assert!(ends.duration_since(issued).unwrap().abs_diff(LIFE) <= Duration::from_secs(1));
    let again = tls::client_config(&renewed.serving_ca_pem, &renewed.certificate_pem, &key_pem).unwrap();
    let mut again = SecurityClient::new(tls::channel(&control.address(), again));
    again.renew_certificate(request.clone()).await.expect("the renewed one serves for the next");

    let mut administrator = SecurityClient::new(tls::channel(&control.address(), admin(&control)));
    let refused = administrator.renew_certificate(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    control.shutdown().await;
}
