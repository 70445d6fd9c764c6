//! Join tokens: made, listed, revoked, and used by one control node only.

use coracle_api::Storage;
use coracle_proto::{
    cluster::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest},
    join::{JoinToken, Role, join},
};
use coracle_server::Mode;
use tonic::Code;

use crate::bench::{administration, init, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let mut admin = administration(&control);
    let create = |role: &str| CreateTokenRequest { role: role.into(), ttl_seconds: 90, node: String::new() };
    let token = admin.create_token(create("node")).await.unwrap().into_inner().token;
    let token: JoinToken = token.parse().unwrap();
    assert_eq!(token.role, Role::Node);
    assert_eq!(admin.create_token(create("king")).await.unwrap_err().code(), Code::InvalidArgument);
    let listed = admin.list_tokens(ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let listed = listed.iter().find(|listed| listed.id == token.id).expect("it is listed");
    let left = listed.expires_unix - jiff::Timestamp::now().as_second();
    assert!((0..=90).contains(&left) && listed.role == "node" && !listed.used, "{listed:?}");
    // The secret is nowhere.
    let view = control.storage().view();
    let kept = |text: &str| {
        view.list("secrets", Some("kube-system"))
            .any(|secret| String::from_utf8_lossy(&secret.json).contains(text))
    };
    assert!(kept(&format!("bootstrap-token-{}", token.id)) && !kept(&token.secret));

    let addresses = [control.address()];
    for name in ["n1", "n2"] {
        join(&addresses, &token, name, "127.0.0.1:1").await.expect("a node's token serves until it ends");
    }
    admin.revoke_token(RevokeTokenRequest { id: token.to_string() }).await.unwrap();
    let error = join(&addresses, &token, "n3", "127.0.0.1:1").await.err().unwrap();
    assert!(error.to_string().contains("not known here"), "{error}");
    let again = admin.revoke_token(RevokeTokenRequest { id: token.id }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_token_serves_one_of_many_that_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let token = control.create_token(Role::Control, 60).await.unwrap();
    let names = ["b", "c", "d", "e"];
    let starts = names.map(|name| {
        let mode = Mode::Join { addresses: vec![control.address()], token: token.to_string() };
        start(dir.path(), name, mode)
    });
    let mut joined = Vec::new();
    for outcome in futures::future::join_all(starts).await {
        match outcome {
            Ok(control) => joined.push(control),
            Err(error) => assert!(error.to_string().contains("serves once"), "{error}"),
        }
    }
    assert_eq!(joined.len(), 1);
    let status = control.storage().status();
    assert_eq!(status.voters.len() + status.learners.len(), 2);
    assert_eq!(control.storage().view().count("members.coracle.dev"), 2);
    for control in joined.into_iter().chain([control]) {
        control.shutdown().await;
    }
}
