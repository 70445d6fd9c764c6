//! What a refusal says, and how often.

use super::*;

fn holder(namespace: &str, pod: u8) -> Holder {
    Holder { namespace: namespace.into(), pod: Some([10, 128, 0, pod].into()) }
}

fn sockets() -> Refused {
    Refused::full(What::Sockets, Bound::Pod, 4096)
}

fn waiting(refusals: &Refusals) -> Vec<Told> {
    std::mem::take(&mut refusals.shared.said.lock().waiting).into()
}

#[test]
fn a_refusal_says_what_whose_how_much_and_the_mend() {
    let outside = Refused::of_share(What::Outside, Bound::Namespace, 4096, 4096, 8192);
    assert_eq!(
        outside.to_string(),
        "open connections to beyond the cluster: the namespace holds 4096 of this node's 8192 and may hold 4096 by what \
         is free of them now; have the namespace's other pods hold less, or add a node"
    );
    let disk = Refused { what: What::Disk, bound: Bound::Volume, held: 5, asked: 9, limit: 10, all: 10 };
    assert_eq!(
        disk.to_string(),
        "disk: the volume holds 5 of the 10 bytes that it may, and 9 more were asked for; remove files, or raise the \
         volume's sizeLimit"
    );
    let told = Told { holder: holder("a", 1), refused: sockets(), untold: 3 };
    assert_eq!(
        told.to_string(),
        "sockets: the pod holds 4096 of the 4096 that it may; close some of them, or add replicas (3 times more since this \
         was said last)"
    );
    let share = Refused::of_share(What::Flows, Bound::PodShare, 3, 3, 9);
    assert!(share.to_string().contains("the pod holds 3 of this node's 9 and may hold 3 by what is free"));
    assert!(share.of_client().to_string().contains("the caller, or the pods of its namespace, hold 3 of 9"));
    let large = Refused { asked: 3, ..Refused::of_share(What::Instances, Bound::Namespace, 9, 10, 16) };
    assert!(
        large
            .to_string()
            .contains("and one of this component counts as 3, for its memories and tables; stop some")
    );
    assert!(share.is_of_all() && !share.of_client().is_of_all());
}

#[tokio::test(start_paused = true)]
async fn the_same_is_told_of_a_pod_once_in_a_while() {
    let refusals = Refusals::default();
    for _ in 0..1000 {
        refusals.note(&holder("a", 1), sockets());
    }
    refusals.note(&holder("a", 2), sockets());
    refusals.note(&holder("a", 1), Refused::full(What::Files, Bound::Pod, 1));
    let told = refusals.next().await;
    assert_eq!(
        told.iter().map(|told| told.refused.what).collect::<Vec<_>>(),
        [What::Sockets, What::Sockets, What::Files]
    );
    tokio::time::advance(SAID_EVERY / 2).await;
    refusals.note(&holder("a", 1), sockets());
    assert!(waiting(&refusals).is_empty());
    tokio::time::advance(SAID_EVERY / 2).await;
    refusals.note(&holder("a", 1), sockets());
    let told = refusals.next().await;
    assert_eq!((told.len(), told[0].untold), (1, 1000), "and how often it was not");
}

#[tokio::test]
async fn who_waits_is_woken() {
    let refusals = Refusals::default();
    let waits = tokio::spawn({
        let refusals = refusals.clone();
        async move { refusals.next().await.len() }
    });
    tokio::task::yield_now().await;
    refusals.note(&holder("a", 1), sockets());
    assert_eq!(waits.await.ok(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_refused_much_leaves_words_for_others() {
    let refusals = Refusals::default();
    for pod in 0..=255 {
        for limit in 0..10 {
            refusals.note(&holder("loud", pod), Refused::full(What::Sockets, Bound::Pod, limit));
        }
    }
    refusals.note(&holder("quiet", 1), sockets());
    let told = waiting(&refusals);
    let of = |namespace: &str| told.iter().filter(|told| &*told.holder.namespace == namespace).count();
    assert_eq!((of("loud"), of("quiet")), (SAID_MAX, 1));
    tokio::time::advance(SAID_EVERY).await;
    refusals.note(&holder("loud", 200), sockets());
    assert_eq!(waiting(&refusals).len(), 1, "what was told long ago makes room");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_bounded_whoever_is_refused_and_whether_anybody_listens() {
    let refusals = Refusals::default();
    for namespace in 0..2 * NAMESPACES_MAX {
        for pod in 0..=255 {
            refusals.note(&holder(&namespace.to_string(), pod), sockets());
        }
        if namespace % 2 == 0 {
            waiting(&refusals);
        }
    }
    let (waits, remembered) = refusals.held();
    assert!(waits <= WAITING_MAX && remembered <= NAMESPACES_MAX * SAID_MAX, "{waits} {remembered}");
    assert_eq!(refusals.shared.said.lock().namespaces.len(), NAMESPACES_MAX);
    waiting(&refusals);
    tokio::time::advance(SAID_EVERY).await;
    refusals.note(&holder("new", 1), sockets());
    assert_eq!((waiting(&refusals).len(), refusals.held().1), (1, 1), "all else was told long ago");
    // What nobody takes is not told later than it was new.
    for namespace in 0..2 * WAITING_MAX {
        refusals.note(&holder(&namespace.to_string(), 1), sockets());
    }
    assert_eq!(refusals.held().0, WAITING_MAX);
}
