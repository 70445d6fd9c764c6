//! Who may hold how much, and what is given back.

use std::sync::Arc;

use super::*;

const MIB: u64 = 1 << 20;

fn ledger(heap: u64, files: u64) -> Ledger {
    Ledger::new(NodeBounds { memory: Some(100 * MIB), heap, files, files_guaranteed: 2 })
}

fn pod(ledger: &Ledger, tenant: &str) -> Arc<Account> {
    ledger.pod(&tenant.into(), None)
}

/// One for which so much memory is kept.
fn asking(ledger: &Ledger, tenant: &Arc<str>, memory_requested: u64) -> Arc<Account> {
    ledger.bounded_pod(tenant, PodBounds { memory_requested, ..PodBounds::default() })
}

/// Takes as much as there is, in pieces.
fn fill(account: &Arc<Account>, holding: Holding, piece: u64) -> (Charge, Refused) {
    let mut charge = Charge::nothing(account, holding);
    loop {
        if let Err(refused) = charge.grow(piece) {
            return (charge, refused);
        }
    }
}

#[test]
fn who_does_without_is_not_told_of() {
    let ledger = ledger(400 * MIB, 100);
    let pod = ledger.pod(&"a".into(), Some(MIB));
    let waiting = || ledger.refusals().held().0;
    let mut charge = pod.try_charge(Holding::Heap, MIB).expect("it may");
    assert!(charge.try_set(HEAP_MIN + 1).is_err() && pod.try_charge(Holding::Heap, HEAP_MIN).is_err());
    assert_eq!((waiting(), charge.amount()), (0, MIB));
    assert!(charge.set(HEAP_MIN + 1).is_err());
    assert_eq!((waiting(), charge.amount()), (1, MIB), "who needs it is");
}

#[test]
fn each_bound_is_named_that_refuses() {
    let ledger = ledger(400 * MIB, 100);
    let beyond = pod(&ledger, "a").charge(Holding::Memory, 100 * MIB + 1).expect_err("more than there is");
    assert_eq!((beyond.bound, beyond.limit), (Bound::Node, 100 * MIB));
    let limited = ledger.pod(&"a".into(), Some(MIB));
    let (held, refused) = fill(&limited.container(None), Holding::Heap, MIB);
    assert_eq!((refused.what, refused.bound, refused.limit), (What::Heap, Bound::Pod, HEAP_MIN));
    assert_eq!(
        refused.to_string(),
        "the host's memory: the pod holds 33554432 of the 33554432 bytes that it may, and 1048576 more were asked for; close \
         connections, bodies and handles that are not needed, or raise resources.limits.memory, which this bound follows"
    );
    drop(held);
    let container = pod(&ledger, "a").container(Some(20 * MIB));
    assert_eq!(fill(&container, Holding::Heap, MIB).1.bound, Bound::Container);
    assert_eq!(fill(&container, Holding::Memory, MIB).1.limit, 20 * MIB);
    assert_eq!(fill(&pod(&ledger, "a"), Holding::Memory, MIB).1.bound, Bound::PodShare);
    let pods = [pod(&ledger, "b"), pod(&ledger, "b"), pod(&ledger, "b")];
    let filled = pods.each_ref().map(|pod| fill(pod, Holding::Heap, MIB));
    let bounds = filled.each_ref().map(|(_, refused)| refused.bound);
    assert_eq!(bounds, [Bound::PodShare, Bound::Namespace, Bound::Namespace]);
    let all: u64 = filled.iter().map(|(charge, _)| charge.amount()).sum();
    assert!((199 * MIB..=203 * MIB).contains(&all), "a namespace has half: {all}");
    let other = fill(&pod(&ledger, "c"), Holding::Heap, MIB).0;
    assert!(other.amount() > 60 * MIB, "another finds a third of the rest");
}

#[test]
fn what_pods_ask_for_is_theirs_and_the_rest_of_the_memory_is_shared() {
    let ledger = ledger(0, 0);
    let asks = asking(&ledger, &"a".into(), 40 * MIB);
    // Of the 60 MiB that nobody has asked for.
    let greedy: Vec<_> = (0..8).map(|_| pod(&ledger, "greedy")).collect();
    let filled: Vec<_> = greedy.iter().map(|pod| fill(pod, Holding::Memory, MIB)).collect();
    let taken: u64 = filled.iter().map(|(charge, _)| charge.amount()).sum();
    assert_eq!(taken, 30 * MIB, "half of it");
    assert!(filled.iter().all(|(_, refused)| refused.is_of_all()));
    let (own, _) = fill(&asks, Holding::Memory, MIB);
    assert!(own.amount() > 45 * MIB, "all that it asks for and a part of what is left: {}", own.amount());
    let other = fill(&pod(&ledger, "other"), Holding::Memory, MIB).0;
    assert!(other.amount() > 5 * MIB);
    // One that no scheduler can have placed here has nothing kept for it.
    let before = ledger.held(Holding::Memory);
    let beyond = asking(&ledger, &"b".into(), 61 * MIB);
    assert_eq!(ledger.held(Holding::Memory), before);
    drop(beyond);
    // What it asks for is kept for it, whether it uses it or not, and free when it is gone.
    drop((own, other, filled));
    assert_eq!(ledger.held(Holding::Memory), 40 * MIB);
    drop(asks);
    assert_eq!(ledger.held(Holding::Memory), 0);
}

#[test]
fn a_neighbours_greed_leaves_every_pod_something() {
    let ledger = ledger(4 * MIB, 8);
    let greedy: Vec<_> = (0..20).map(|at| pod(&ledger, &at.to_string())).collect();
    let held: Vec<_> = greedy.iter().map(|pod| fill(pod, Holding::Heap, 1 << 10)).collect();
    let files: Vec<_> = greedy.iter().map(|pod| fill(pod, Holding::Files, 1)).collect();
    assert!(held.iter().all(|(charge, _)| charge.amount() >= HEAP_GUARANTEED));
    assert!(files.iter().all(|(charge, _)| charge.amount() >= 2));
    assert!(ledger.held(Holding::Heap) <= 4 * MIB && ledger.held(Holding::Files) <= 8);
    let last = pod(&ledger, "last");
    assert!(!last.is_pressed(Holding::Heap));
    assert!(last.charge(Holding::Heap, HEAP_GUARANTEED).is_ok());
    assert!(last.charge(Holding::Files, 2).is_ok());
    assert!(greedy[0].is_pressed(Holding::Heap));
    drop((held, files));
    assert_eq!((ledger.held(Holding::Heap), ledger.held(Holding::Files)), (0, 0));
    assert!(!greedy[0].is_pressed(Holding::Heap));
}

#[test]
fn charges_grow_and_shrink_and_leave_nothing_behind() {
    let ledger = ledger(100 * MIB, 100);
    let pod = pod(&ledger, "a");
    let container = pod.container(None);
    let mut charge = container.charge(Holding::Heap, MIB).expect("free");
    charge.set(3 * MIB).expect("free");
    charge.shrink(MIB);
    assert_eq!((container.held(Holding::Heap), pod.held(Holding::Heap)), (2 * MIB, 2 * MIB));
    assert_eq!(ledger.held(Holding::Heap), 2 * MIB - HEAP_GUARANTEED);
    assert!(charge.grow(1 << 40).is_err());
    assert_eq!(charge.amount(), 2 * MIB);
    // What is there already is counted beyond every bound, and keeps others from more.
    charge.set_held(HEAP_MAX + MIB);
    assert!(container.is_pressed(Holding::Heap) && container.charge(Holding::Heap, 1).is_err());
    drop(charge);
    assert_eq!(
        (container.held(Holding::Heap), pod.held(Holding::Heap), ledger.held(Holding::Heap)),
        (0, 0, 0)
    );
    let mut other = container.charge(Holding::Files, 1).expect("free");
    other.shrink(5);
    assert_eq!(pod.held(Holding::Files), 0);
}

#[test]
fn bytes_are_held_until_the_last_part_of_them_is_gone() {
    let ledger = ledger(100 * MIB, 100);
    let container = pod(&ledger, "a").container(None);
    let bytes = container.hold_bytes(vec![7; 100 << 10].into());
    assert_eq!(container.held(Holding::Heap), 100 << 10);
    let part = bytes.slice(50..60);
    drop(bytes);
    assert_eq!(container.held(Holding::Heap), 100 << 10, "it is all there for the part");
    drop(part);
    assert_eq!(container.held(Holding::Heap), 0);
    let few = container.hold_bytes(vec![7; 100].into());
    assert_eq!((few.len(), container.held(Holding::Heap)), (100, 0));
}

#[test]
fn threads_that_charge_and_are_refused_at_once_leave_nothing_behind() {
    let ledger = ledger(2 * MIB, 100);
    let pods: Vec<_> = (0..4).map(|at| pod(&ledger, &(at % 2).to_string())).collect();
    std::thread::scope(|scope| {
        // Two for each pod.
        for at in 0..8 {
            let container = pods[at % 4].container(None);
            scope.spawn(move || {
                let mut kept = Charge::nothing(&container, Holding::Heap);
                for step in 0..20_000_u64 {
                    // Most are within what is there, some are refused by each of the bounds.
                    let charge = container.charge(Holding::Heap, (step * 7919) % (600 << 10));
                    if step % 3 == 0 {
                        let _ = kept.set((step * 104_729) % MIB);
                    }
                    drop(charge);
                }
            });
        }
    });
    assert!(pods.iter().all(|pod| pod.held(Holding::Heap) == 0));
    assert_eq!(ledger.held(Holding::Heap), 0);
    drop(pods);
    assert_eq!(ledger.tenants(), 0);
}

#[test]
fn bounds_follow_the_machine() {
    let bounds = NodeBounds::of(Some(1 << 30), Some(900 * MIB), Some(1 << 20), 4000);
    assert_eq!((bounds.heap, bounds.files, bounds.files_guaranteed), (64 * MIB, 32_768, 8));
    let small = NodeBounds::of(None, None, Some(1024), 4000);
    assert_eq!((small.heap, small.files, small.files_guaranteed), (HEAP_UNKNOWN, 32, 1));
    assert_eq!([Some(1), Some(64 * MIB), None].map(heap_max), [HEAP_MIN, 64 * MIB, HEAP_MAX]);
}

#[test]
fn somebody_from_elsewhere_leaves_a_part_to_the_pod() {
    let fill = |account: &Arc<Account>| {
        std::iter::from_fn(|| account.charge_for_other(Holding::Heap, 8 << 10).ok()).collect::<Vec<_>>()
    };
    let ledger = ledger(400 * MIB, 100);
    let small = ledger.pod(&"a".into(), Some(MIB));
    let charges = [fill(&small), fill(&small.container(None))];
    assert_eq!(small.held(Holding::Heap), HEAP_MIN / 8 * 7);
    assert!(small.charge(Holding::Heap, HEAP_MIN / 8).is_ok());
    drop(charges);
    let container = pod(&ledger, "a").container(Some(MIB));
    assert_eq!(fill(&container).len() as u64 * (8 << 10), HEAP_MIN / 8 * 7);
    // Of the little that is certain, half.
    let scarce = pod(&self::ledger(0, 100), "a");
    let charges = fill(&scarce);
    assert_eq!(scarce.held(Holding::Heap), HEAP_GUARANTEED / 2);
    assert!(scarce.charge(Holding::Heap, HEAP_GUARANTEED / 2).is_ok());
    drop(charges);
    assert_eq!(scarce.held(Holding::Heap), 0);
}

#[test]
fn who_is_refused_again_and_again_has_no_other_refused() {
    const TAKES: usize = 50_000;
    let ledger = ledger(400 * MIB, 100);
    ledger.set_disk_free(1 << 30);
    let greedy = pod(&ledger, "greedy");
    let modest = pod(&ledger, "modest");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for amount in [u64::MAX / 4, 1 << 31, 20 << 30] {
            let (greedy, done) = (&greedy, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(greedy.charge(Holding::Disk, amount).is_err());
                }
            });
        }
        let refused = (0..TAKES).filter(|_| modest.charge(Holding::Disk, 2 * MIB).is_err()).count();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(refused, 0, "of {TAKES}");
    });
    assert_eq!(ledger.held(Holding::Disk), 0);
}
