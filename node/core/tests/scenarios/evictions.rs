//! Pods that make room on a full disk, and volumes that are not needed any more.

use coracle_core::{
    Observed, Pod,
    eviction::{Shortage, victim},
    observe::Exit,
};
use expect_test::expect;

use crate::world::{POD, World, pod};

const SHORTAGE: Shortage =
    Shortage { resource: "ephemeral-storage", threshold: 320 << 20, available: 300 << 20 };

#[test]
fn an_evicted_pod_ends_at_once_and_says_why() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"hello:1.0"}]"#));
        world.pull_and_start("web", 0);
    });
    let (uid, failure) = victim(&world.observed, SHORTAGE, |_| 5 << 20).unwrap();
    assert_eq!(uid, POD.into());
    world.evicted(failure);
    world.exited("web", 0, Exit::Killed);
    world.sandbox_stopped();
    let status = world.reported().clone();
    assert!(status["message"].as_str().unwrap().starts_with("The node was low on resource"));
    assert_eq!((&status["phase"], &status["reason"]), (&"Failed".into(), &"Evicted".into()));
    let conditions = status["conditions"].as_array().unwrap();
    let disrupted = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!(disrupted["reason"], "TerminationByKubelet");
    assert!(victim(&world.observed, SHORTAGE, |_| 5 << 20).is_none(), "it has gone");
    world.delete_in(30);
    world.check(expect![[r#"
        0s evicted
          end pod within 0ns Some(Failure { reason: "Evicted", message: "The node was low on resource: ephemeral-storage. Threshold quantity: 327680Ki, available: 307200Ki. The pod was using 5120Ki, its request of ephemeral-storage is 0Ki." })
          end web within 0ns: Stopping container web
          event  Evicted: The node was low on resource: ephemeral-storage. Threshold quantity: 327680Ki, available: 307200Ki. The pod was using 5120Ki, its request of ephemeral-storage is 0Ki.
          kill web/0
          event spec.containers{web} Killing: Stopping container web
          report Failed ["PodReadyToStartContainers", "Initialized", "DisruptionTarget"]; web running: x0 ready
        0s web/0 exited Killed
          stop sandbox
          report Failed ["Initialized", "DisruptionTarget"]; web terminated:Error=137 x0
        0s sandbox stopped
          free volumes
        0s delete
          remove
    "#]]);
}

#[test]
fn what_has_ended_before_holds_no_volumes() {
    let mut world = World::new();
    let object = pod(r#""containers":[{"name":"web","image":"hello:1.0"}]"#);
    world.put(&object.replace(r#""status":{}"#, r#""status":{"phase":"Failed","reason":"Evicted"}"#));
    world.check(expect![[r#"
        0s put
          admit
          free volumes
    "#]]);
}

/// Pods of these names, with what each requests, its priority and what it has, in MiB.
fn chosen(pods: &[(&str, u64, i32, u64)]) -> Option<String> {
    let mut observed = Observed::default();
    for (name, request, priority, _) in pods {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"d","uid":"{name}"}},"spec":{{"priority":{priority},
                "containers":[{{"name":"c","image":"i","resources":{{"requests":{{"ephemeral-storage":"{request}Mi"}}}}}}]}}}}"#
        );
        let pod = std::sync::Arc::new(Pod::parse(json.as_bytes()).unwrap());
        let desired = [(pod.uid().clone(), pod.clone())].into();
        let now = jiff::Timestamp::UNIX_EPOCH;
        observed.begin(&coracle_core::Action::Admit { uid: pod.uid().clone() }, &desired, now);
    }
    let held = |uid: &coracle_core::PodUid| {
        pods.iter().find(|(name, ..)| *name == uid.as_str()).map_or(0, |(.., held)| held << 20)
    };
    victim(&observed, SHORTAGE, held).map(|(uid, _)| uid.to_string())
}

#[test]
fn who_has_more_than_it_requested_goes_first() {
    for (pods, expected) in [
        (&[("within", 100, 0, 90), ("beyond", 0, 0, 5)][..], Some("beyond")),
        (&[("some", 0, 0, 5), ("more", 0, 0, 6)], Some("more")),
        (&[("much", 90, 0, 100), ("further", 0, 0, 20)], Some("further")),
        (&[("low", 0, 1, 5), ("high", 0, 10, 500)], Some("low")),
        (&[("low", 100, 1, 50), ("high", 0, 10, 5)], Some("high")),
        (&[("within", 100, 0, 90), ("less", 100, 0, 50)], Some("within")),
        (&[("critical", 0, 2_000_000_000, 500)], None),
        (&[("little", 0, 0, 0)], None),
        (&[], None),
    ] {
        assert_eq!(chosen(pods).as_deref(), expected, "{pods:?}");
    }
}

#[test]
fn the_message_gives_the_figures() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(
            r#""containers":[{"name":"web","image":"hello:1.0","resources":{"limits":{"ephemeral-storage":"4Mi"}}}]"#,
        ));
    });
    let told = |shortage| victim(&world.observed, shortage, |_| 5 << 20).unwrap().1.message;
    expect!["The node was low on resource: ephemeral-storage. Threshold quantity: 327680Ki, available: 307200Ki. The pod was using 5120Ki, its request of ephemeral-storage is 4096Ki."].assert_eq(&told(SHORTAGE));
    let inodes = Shortage { resource: "inodes", threshold: 500, available: 499 };
    assert!(told(inodes).contains("inodes. Threshold quantity: 500, available: 499."));
}
