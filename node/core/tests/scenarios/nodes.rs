//! A node that restarts, stops, loses addresses or has its clock set.

use coracle_core::observe::Exit;
use expect_test::expect;

use crate::world::{World, pod};

#[test]
fn after_a_restart_of_the_node_pods_run_again_with_the_next_number() {
    let mut world = World::new();
    let life = r#""status":{"phase":"Running","startTime":"2026-01-01T00:00:00Z","podIPs":[{"ip":"10.128.0.9"}],
        "containerStatuses":[{"name":"web","restartCount":2,"state":{"running":{"startedAt":"2026-01-01T00:00:01Z"}},
        "containerID":"wasm://old"}]}"#;
    let spec = r#""containers":[{"name":"web","image":"hello:1.0"}]"#;
    world.put_and_mount(&pod(spec).replace(r#""status":{}"#, life));
    world.pull_and_start("web", 3);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred Some(10.128.0.9)
          mount []
          report Running ["Initialized"]; web waiting:ContainerCreating x3
        0s sandbox ready
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x3
        0s mounted
          pull web/3 hello:1.0 IfNotPresent
        0s web/3 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/3 ["hello"]
        0s web/3 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x3 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
    "#]]);
}

#[test]
fn after_a_restart_of_the_node_what_may_run_only_once_does_not_run_again() {
    let mut world = World::new();
    let life = r#""status":{"phase":"Running","containerStatuses":[{"name":"web","restartCount":0,
        "state":{"running":{"startedAt":"2026-01-01T00:00:01Z"}},"containerID":"wasm://old"}]}"#;
    let spec = r#""restartPolicy":"Never","containers":[{"name":"web","image":"hello:1.0"}]"#;
    world.put(&pod(spec).replace(r#""status":{}"#, life));
    world.check(expect![[r#"
        0s put
          admit
          free volumes
          report Failed ["Initialized"]; web terminated:ContainerStatusUnknown=137 x0 (The container was lost when its node was restarted)
    "#]]);
}

#[test]
fn a_pod_whose_object_is_gone_is_killed_at_once() {
    let mut world = World::new();
    world.put(&pod(r#""containers":[{"name":"web","image":"hello:1.0"}]"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("web", 0);
    });
    world.object_gone();
    world.exited("web", 0, Exit::Killed);
    world.sandbox_stopped();
    assert!(world.observed.pods.is_empty(), "the pod is forgotten");
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s object gone
          end pod within 0ns None
          end web within 0ns: Stopping container web
          kill web/0
        0s web/0 exited Killed
          stop sandbox
        0s sandbox stopped
          remove
          forget
    "#]]);
}

#[test]
fn a_pod_whose_address_was_taken_back_gets_another() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"hello:1.0"}]"#));
        world.pull_and_start("web", 0);
    });
    world.sandbox_lost();
    world.exited("web", 0, Exit::Killed);
    world.sandbox_stopped();
    world.sandbox_ready();
    world.pull_and_start("web", 1);
    world.check(expect![[r#"
        0s sandbox lost
          end web within 0ns: Pod sandbox changed, it will be killed and re-created.
          kill web/0
          event spec.containers{web} Killing: Pod sandbox changed, it will be killed and re-created.
          report Running ["Initialized", "Ready", "ContainersReady"]; web running: x0 ready
        0s web/0 exited Killed
          stop sandbox
          report Running ["Initialized"]; web terminated:Error=137 x0
        0s sandbox stopped
          create sandbox, preferred None
        0s sandbox ready
          pull web/1 hello:1.0 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
        0s web/1 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/1 ["hello"]
        0s web/1 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x1 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
    "#]]);
}

#[test]
fn a_node_that_stops_gives_pods_their_grace_and_tells_nobody() {
    let mut world = World::new();
    let spec = r#""terminationGracePeriodSeconds":20,"containers":[
        {"name":"a","image":"hello:1.0","lifecycle":{"preStop":{"sleep":{"seconds":3}}}},
        {"name":"b","image":"hello:1.0"}]"#;
    world.quietly(|world| {
        world.put_and_mount(&pod(spec));
        world.pull_and_start("a", 0);
        world.pull_and_start("b", 0);
    });
    world.node_stops(12);
    world.exited("b", 0, Exit::Completed(0));
    world.wait(30);
    world.exited("a", 0, Exit::Killed);
    world.sandbox_stopped();
    world.check(expect![[r#"
        0s node stops
          end pod within 12s None
          end a within 12s: Stopping container a
          end b within 12s: Stopping container b
          stop b/0
        0s b/0 exited Completed(0)
        3s wake
          stop a/0
        12s wake
          kill a/0
        30s a/0 exited Killed
          stop sandbox
        30s sandbox stopped
    "#]]);
}

#[test]
fn a_step_of_the_wall_clock_changes_what_is_shown_and_nothing_that_is_done() {
    let mut world = World::new();
    let spec = r#""terminationGracePeriodSeconds":20,"activeDeadlineSeconds":600,"containers":[
        {"name":"web","image":"hello:1.0","livenessProbe":{"tcpSocket":{"port":80},"periodSeconds":10}}]"#;
    world.quietly(|world| {
        world.put_and_mount(&pod(spec));
        world.pull_and_start("web", 0);
        world.probed("web", 0, "Liveness", true);
    });
    assert_eq!(world.started_at(), "2026-01-01T00:00:00Z");
    world.wall_clock_is_set(3600);
    assert_eq!(world.started_at(), "2026-01-01T01:00:00Z");
    world.wait(10);
    world.probed("web", 0, "Liveness", true);
    world.delete_in(20);
    world.wall_clock_is_set(-3600);
    world.wait(20);
    world.check(expect![[r#"
        0s wall clock 3600s ahead
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x0 ready
        10s wake
          probe web/0 Liveness Tcp { port: 80 }
        10s web/0 Liveness true
        10s delete
          end pod within 20s None
          end web within 20s: Stopping container web
          stop web/0
          event spec.containers{web} Killing: Stopping container web
        10s wall clock -3600s ahead
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x0 ready
        30s wake
          kill web/0
    "#]]);
}
