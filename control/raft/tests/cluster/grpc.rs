//! Members that talk over gRPC, as in production.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_proto::raft as wire;
use coracle_raft::{ChangeError, Config, GrpcTransport, MemberChange, Raft, RaftService};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::bench::{Journal, has, leading, propose_to_leader, soon, status};

fn connector() -> coracle_raft::transport::Connector {
    Arc::new(|address| {
        tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .expect("a valid address")
            .connect_lazy()
    })
}

/// One member, its journal, and the way to the others.
struct Member {
    raft: Raft<usize>,
    journal: Journal,
    transport: GrpcTransport,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Members that have not been told of each other yet.
struct Grpc {
    dir: tempfile::TempDir,
    addresses: BTreeMap<u64, String>,
    members: Vec<Member>,
}

impl Grpc {
    /// Three voters, as `config` changes their settings.
    async fn start(config: impl Fn(&mut Config)) -> Grpc {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut cluster = Grpc { dir, addresses: BTreeMap::new(), members: Vec::new() };
        for id in 1..=3 {
            cluster.add(id, Some(&[1, 2, 3]), &config).await;
        }
        cluster
    }

    /// A voter of a new cluster, or a joiner.
    async fn add(&mut self, id: u64, voters: Option<&[u64]>, config: impl Fn(&mut Config)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        self.addresses.insert(id, listener.local_addr().expect("it is bound").to_string());
        let transport = GrpcTransport::new(id, "cluster-a", connector());
        let (journal, port) = (Journal::default(), Arc::new(transport.clone()));
        let mut settings = super::config(self.dir.path(), id);
        config(&mut settings);
        let raft = match voters {
            Some(voters) => Raft::bootstrap(settings, journal.clone(), port, voters),
            None => Raft::start(settings, journal.clone(), port),
        };
        let raft = raft.expect("starts");
        let service = RaftService::new(&raft, "cluster-a").into_server();
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        self.members.push(Member { raft, journal, transport, server });
    }

    /// Tells these members of each other, and of nobody else.
    fn connect(&self, ids: &[u64]) {
        let mut addresses = self.addresses.clone();
        addresses.retain(|id, _| ids.contains(id));
        let members = self.members.iter().filter(|member| ids.contains(&member.raft.id()));
        members.for_each(|member| member.transport.set_peers(addresses.clone()));
    }

    fn rafts(&self) -> Vec<&Raft<usize>> {
        self.members.iter().map(|member| &member.raft).collect()
    }

    async fn shutdown(self) {
        for member in &self.members {
            member.raft.shutdown().await;
            member.server.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_and_a_joiner() {
    let mut cluster = Grpc::start(|_| {}).await;
    cluster.connect(&[1, 2, 3]);
    let all = cluster.rafts();
    assert_eq!(propose_to_leader(&all, vec![b'x'; 3 << 19]).await, 1);
    let calls = (0..64_u8).map(|n| propose_to_leader(&all, vec![n; 50_000]));
    let mut counts = futures::future::join_all(calls).await;
    counts.sort_unstable();
    assert_eq!(counts, (2..=65).collect::<Vec<_>>());
    let first = &cluster.members[0].journal;
    has(first, 65).await;
    let entries = first.entries();
    for member in &cluster.members {
        has(&member.journal, 65).await;
        assert!(member.journal.entries() == entries, "the journals differ");
    }

    // A joiner comes when most of the log is gone: it is brought a snapshot.
    for member in &cluster.members {
        status(&member.raft, "a snapshot", |status| status.snapshot > 0).await;
    }
    cluster.add(4, None, |_| {}).await;
    cluster.connect(&[1, 2, 3, 4]);
    let all = cluster.rafts();
    loop {
        let leader = leading(&all[..3]).await;
        match soon("the change", leader.change_membership(MemberChange::AddLearner(4))).await {
            Ok(()) => break,
            Err(ChangeError::NotLeader { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let joiner = &cluster.members[3];
    has(&joiner.journal, 65).await;
    assert!(joiner.journal.entries() == entries, "the journals differ");
    assert!(joiner.raft.status().borrow().snapshot > 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_messages_do_not_come_through() {
    let cluster = Grpc::start(|_| {}).await;
    let address = cluster.addresses[&1].clone();
    let mut client = wire::raft_transport_client::RaftTransportClient::new(connector()(address));
    let batch = |cluster: &str, from: u64, to: u64| wire::MessageBatch {
        cluster_id: cluster.to_owned(),
        from,
        to,
        messages: vec![wire::Message { from: 2, to, ..wire::Message::default() }],
    };
    for bad in [batch("cluster-b", 2, 1), batch("cluster-a", 2, 3), batch("cluster-a", 3, 1)] {
        assert!(client.send(tokio_stream::iter([bad])).await.is_err());
    }
    cluster.shutdown().await;
}

/// What it lacks is more than one batch of messages may hold, and is handed over in one round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_catches_up_from_the_log() {
    const ENTRIES: usize = 28;
    let cluster = Grpc::start(|config| config.snapshot_entries = 1_000).await;
    cluster.connect(&[1, 2]);
    let all = cluster.rafts();
    for n in 0..ENTRIES {
        propose_to_leader(&all[..2], vec![n as u8; 1 << 20]).await;
    }
    const { assert!(ENTRIES << 20 > 2 * coracle_proto::MESSAGE_BYTES_MAX) };
    cluster.connect(&[1, 2, 3]);
    let begun = std::time::Instant::now();
    has(&cluster.members[2].journal, ENTRIES).await;
    // A stream that breaks on a batch brings less than one entry a second.
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
    assert_eq!(cluster.members[2].raft.status().borrow().snapshot, 0, "a snapshot brought it");
    cluster.shutdown().await;
}
