//! Joining: what is refused, and how.

use coracle_proto::join::{JoinError, JoinToken, Role, join};
use coracle_server::{Mode, ServerError};

use crate::bench::{init, start};

fn mode(address: &str, token: &JoinToken) -> Mode {
    Mode::Join { addresses: vec![address.into()], token: token.to_string() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_pins_and_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let address = control.address();
    let good = control.create_token(Role::Control, 60).await.unwrap();

    let secret = JoinToken { secret: "00".repeat(24), ..good.clone() };
    let error = start(dir.path(), "b", mode(&address, &secret)).await.err().unwrap();
    assert!(matches!(error, ServerError::Join(JoinError::Token { .. })), "{error}");

    let pin = JoinToken { ca_pin: [7; 32], ..good.clone() };
    let error = start(dir.path(), "b", mode(&address, &pin)).await.err().unwrap();
    assert!(matches!(error, ServerError::Join(JoinError::WrongCa { .. })), "{error}");

    let node = control.create_token(Role::Node, 60).await.unwrap();
    let error = start(dir.path(), "b", mode(&address, &node)).await.err().unwrap();
    assert!(matches!(error, ServerError::TokenRole { found: "node" }), "{error}");

    // The directory of the refused joiner serves for a good token.
    let second = start(dir.path(), "b", mode(&address, &good)).await.unwrap();
    assert_eq!((second.member_id(), second.cluster_id()), (2, control.cluster_id()));
    let error = start(dir.path(), "c", mode(&address, &good)).await.err().unwrap();
    assert!(error.to_string().contains("serves once"), "{error}");
    second.shutdown().await;

    let elsewhere = tempfile::tempdir().unwrap();
    let other = init(elsewhere.path()).await;
    let foreign = other.create_token(Role::Control, 60).await.unwrap();
    let error = start(dir.path(), "b", mode(&other.address(), &foreign)).await.err().unwrap();
    assert!(matches!(error, ServerError::OtherCluster { .. }), "{error}");
    other.shutdown().await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_with_its_own_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let token = control.create_token(Role::Node, 60).await.unwrap();
    let addresses = [control.address()];
    let joined = join(&addresses, &token, "n1", "127.0.0.1:7443").await.unwrap();
    assert_eq!(joined.response.cluster_id, control.cluster_id());
    assert!(joined.response.ca_keys_pem.is_empty(), "a node gets no CA key");
    let error = join(&addresses, &token, "Not a name", "127.0.0.1:7443").await.err().unwrap();
    assert!(matches!(error, JoinError::Refused { .. }), "{error}");
    let control_token = JoinToken { role: Role::Control, ..token };
    let error = join(&addresses, &control_token, "n1", "127.0.0.1:7443").await.err().unwrap();
    assert!(matches!(error, JoinError::Token { .. }), "{error}");
    control.shutdown().await;
}
