//! Each bound that a pod meets is told of it by name, with its figures and the mend.

use std::net::SocketAddr;

use super::*;
use crate::ledger::Holding;
use crate::net::NetError;
use crate::refusals::{Bound, Told, What};

/// What was told since this was asked last; nothing is as good as something.
async fn told(bench: &Bench) -> Vec<Told> {
    tokio::time::timeout(std::time::Duration::from_millis(10), bench.host.refusals().next())
        .await
        .unwrap_or_default()
}

/// The words for one bound, which were told of the pod.
async fn words(bench: &Bench, pod: &Pod, what: What, bound: Bound) -> String {
    let all = told(bench).await;
    let one = all.iter().find(|told| (told.refused.what, told.refused.bound) == (what, bound));
    let one = one.unwrap_or_else(|| panic!("{what:?} of {bound:?}: {all:?}"));
    assert_eq!(&one.holder, pod.namespace().holder());
    one.to_string()
}

#[tokio::test]
async fn what_the_ledger_refuses_is_told_of_its_pod() {
    let bench = Bench::new(1);
    let limits = PodLimits { memory_bytes: Some(64 << 20), ..PodLimits::default() };
    let pod = bench.pod(limits);
    let (account, container) = (pod.account(), pod.account().container(Some(40 << 20)));
    assert!(account.charge(Holding::Heap, 1 << 30).is_err());
    assert_eq!(
        words(&bench, &pod, What::Heap, Bound::Pod).await,
        "the host's memory: the pod holds 0 of the 67108864 bytes that it may, and 1073741824 more were asked for; close \
         connections, bodies and handles that are not needed, or raise resources.limits.memory, which this bound follows"
    );
    assert!(container.charge(Holding::Heap, 50 << 20).is_err());
    let of_container = words(&bench, &pod, What::Heap, Bound::Container).await;
    assert!(
        of_container.starts_with("the host's memory: the container holds 0 of the 41943040 bytes"),
        "{of_container}"
    );
    assert!(container.charge_for_other(Holding::Heap, 39 << 20).is_err());
    let of_caller = words(&bench, &pod, What::Heap, Bound::Caller).await;
    assert!(of_caller.contains("hold 0 of 41943040 bytes and may hold 36700160 now"), "{of_caller}");

    let mut files = crate::ledger::Charge::nothing(account, Holding::Files);
    while files.grow(1).is_ok() {}
    let of_files = words(&bench, &pod, What::Files, Bound::PodShare).await;
    assert!(of_files.starts_with("open files: the pod holds "), "{of_files}");
    assert!(of_files.ends_with("spread what it does over several pods"), "{of_files}");

    // Over its own limit a container is ended, which its status says; what others have is said here.
    assert!(container.charge(Holding::Memory, 41 << 20).is_err());
    assert!(told(&bench).await.is_empty());
    let unlimited = bench.pod(PodLimits::default());
    assert!(unlimited.account().charge(Holding::Memory, 1 << 60).is_err());
    let of_node = words(&bench, &unlimited, What::Memory, Bound::Node).await;
    assert!(of_node.ends_with("what resources.requests.memory asks for is kept for a pod"), "{of_node}");
}

#[tokio::test]
async fn what_the_disk_refuses_is_told_of_the_pod_that_has_it() {
    let bench = Bench::new(1);
    let disk = bench.host.disk(&"default".into(), Some(1 << 20));
    let pod = bench.host.pod_on(PodLimits::default(), namespace(), disk.clone());
    disk.written("log").grow(2 << 20);
    assert_eq!(
        words(&bench, &pod, What::Disk, Bound::Pod).await,
        "disk: the pod holds 0 of the 1048576 bytes that it may, and 2097152 more were asked for; remove files, or raise \
         resources.limits.ephemeral-storage"
    );
}

#[tokio::test]
async fn a_pod_with_all_its_sockets_is_told() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
    let mut sockets = Vec::new();
    let refused = loop {
        match pod.namespace().bind_udp(any) {
            Ok(socket) => sockets.push(socket),
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, sockets.len()), (NetError::TooManySockets, 4096));
    assert_eq!(
        words(&bench, &pod, What::Sockets, Bound::Pod).await,
        "sockets: the pod holds 4096 of the 4096 that it may; close some of them, or add replicas"
    );
    // Whoever calls it is not its owner, and learns no more than before.
    let client: SocketAddr = "192.0.2.1:4000".parse().expect("an address");
    let port = SocketAddr::new(pod.namespace().addresses()[0], 80);
    drop(sockets.pop());
    let _listener = pod.namespace().listen(port).expect("one is free");
    assert_eq!(pod.namespace().deliver(client, port).err(), Some(NetError::ConnectionRefused));
    let of_caller = words(&bench, &pod, What::Sockets, Bound::Caller).await;
    assert!(
        of_caller.starts_with("sockets: the caller, or the pods of its namespace, hold 0 of 4096"),
        "{of_caller}"
    );
}
