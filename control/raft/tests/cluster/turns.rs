//! Who takes a member's turns.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_proto::raft as wire;
use coracle_raft::{Closed, Config, ProposeError, Raft, ReadError, Role, SnapshotSink, Transport};
use futures::FutureExt;

use crate::bench::{Journal, config, soon, status};

/// Fails in whoever sends.
struct Trap;

impl Transport for Trap {
    fn send(&self, _to: u64, _messages: Vec<wire::Message>) {
        panic!("this is a test");
    }

    fn fetch(&self, _from: u64, _index: u64, _sink: Box<dyn SnapshotSink>) {}
}

#[tokio::test]
async fn a_caller_takes_the_turn_where_nothing_waits() {
    let dir = tempfile::tempdir().expect("a directory");
    let raft =
        Raft::bootstrap(config(dir.path(), 1), Journal::default(), Arc::new(Trap), &[1]).expect("it starts");
    status(&raft, "it leads", |status| status.role == Role::Leader).await;
    soon("an answer without a wait", async {
        while !matches!(raft.read_index().now_or_never(), Some(Ok(_))) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(raft.propose(Bytes::from_static(b"a")).await, Ok(1));
    raft.shutdown().await;
    assert_eq!(raft.read_index().await, Err(ReadError::Stopped));
}

#[tokio::test]
async fn a_panic_in_a_callers_turn_ends_the_member_and_not_the_caller() {
    let dir = tempfile::tempdir().expect("a directory");
    // So long that it does not campaign by itself.
    let config = Config { tick: Duration::from_secs(60), ..config(dir.path(), 1) };
    let raft = Raft::bootstrap(config, Journal::default(), Arc::new(Trap), &[1, 2]).expect("it starts");
    status(&raft, "its members", |status| status.voters == [1, 2]).await;
    let ask = wire::Message {
        msg_type: wire::MessageType::MsgRequestPreVote.into(),
        from: 2,
        to: 1,
        term: 2,
        log_term: 1,
        index: 100,
        ..wire::Message::default()
    };
    raft.receive(vec![ask]);
    let closed = soon("its end", raft.closed()).await;
    assert!(matches!(&closed, Closed::Failed(reason) if reason.contains("panicked")), "{closed:?}");
    assert_eq!(raft.propose(Bytes::from_static(b"a")).await, Err(ProposeError::Stopped));
}
