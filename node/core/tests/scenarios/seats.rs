//! Containers that the sandbox has no seat for.

use coracle_core::observe::Exit;
use expect_test::expect;

use crate::world::{World, pod};

#[test]
fn a_job_without_a_seat_waits_and_runs_when_one_gets_free() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(r#""restartPolicy":"Never","containers":[{"name":"pi","image":"pi:1"}]"#));
        world.pulled("pi", 0);
    });
    world.no_seat("pi", 0);
    world.wait(10);
    world.no_seat("pi", 0);
    world.wait(5);
    world.seats_freed();
    world.started("pi", 0);
    world.seats_freed();
    world.exited("pi", 0, Exit::Completed(0));
    world.check(expect![[r#"
        0s pi/0 no seat
          report Pending ["PodReadyToStartContainers", "Initialized"]; pi waiting:InstancesExhausted x0 (this node runs all that it may at 2026-01-01T00:00:00Z)
          event spec.containers{pi} InstancesExhausted: this node runs all that it may at 2026-01-01T00:00:00Z
        10s wake
          start pi/0 ["pi"]
        10s pi/0 no seat
        15s pi/0 seat freed
          start pi/0 ["pi"]
        15s pi/0 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; pi running: x0 ready
          event spec.containers{pi} Created: Created container: pi
          event spec.containers{pi} Started: Started container pi
        15s pi/0 exited Completed(0)
          stop sandbox
          report Succeeded ["Initialized"]; pi terminated:Completed=0 x0
    "#]]);
}

#[test]
fn the_waits_for_a_seat_grow_to_a_minute() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"web:1"}]"#));
        world.pulled("web", 0);
        for wait in [10, 20, 40, 60, 60] {
            world.no_seat("web", 0);
            world.wait(wait - 1);
            assert!(!world.is_starting("web"), "{wait}");
            world.wait(1);
            assert!(world.is_starting("web"), "{wait}");
        }
    });
}

#[test]
fn one_that_ran_before_waits_unready_and_its_restart_is_counted_once() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"web:1"}]"#));
        world.pull_and_start("web", 0);
    });
    world.exited("web", 0, Exit::Trapped("unreachable".into()));
    world.pulled("web", 1);
    world.no_seat("web", 1);
    world.wait(10);
    // The pools were full after all: nothing of it has run.
    world.started("web", 1);
    world.exited("web", 1, Exit::Unseated("no room".into()));
    world.wait(10);
    world.started("web", 1);
    world.check(expect![[r#"
        0s web/0 exited Trapped("unreachable")
          pull web/1 web:1 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
        0s web/1 pulled
          event spec.containers{web} Pulled: Successfully pulled image "web:1" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/1 ["web"]
        0s web/1 no seat
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:InstancesExhausted x1 (this node runs all that it may at 2026-01-01T00:00:00Z)
          event spec.containers{web} InstancesExhausted: this node runs all that it may at 2026-01-01T00:00:00Z
        10s wake
          start web/1 ["web"]
        10s web/1 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x1 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
        10s web/1 exited Unseated("no room")
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:InstancesExhausted x1 (no room)
          event spec.containers{web} InstancesExhausted: no room
        20s wake
          start web/1 ["web"]
        20s web/1 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x1 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
    "#]]);
}

#[test]
fn one_that_waits_for_a_seat_is_gone_when_it_is_deleted() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"web:1"}]"#));
        world.pulled("web", 0);
        world.no_seat("web", 0);
    });
    world.delete_in(30);
    world.seats_freed();
    world.sandbox_stopped();
    world.check(expect![[r#"
        0s delete
          end pod within 30s None
          stop sandbox
          report Pending ["Initialized"]; web waiting:InstancesExhausted x0 (this node runs all that it may at 2026-01-01T00:00:00Z)
        0s web/0 seat freed
        0s sandbox stopped
          remove
    "#]]);
}
