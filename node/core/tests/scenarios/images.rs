//! A pod that names another image than the one that runs.

use coracle_core::observe::Exit;
use expect_test::expect;

use crate::world::{World, pod};

/// A pod of one container with this image and restart policy.
fn of(image: &str, policy: &str) -> String {
    pod(&format!(r#""restartPolicy":"{policy}","containers":[{{"name":"web","image":"{image}"}}]"#))
}

/// Image, restarts, and image of the status reported last.
fn shown(world: &World) -> String {
    let status = &world.reported()["containerStatuses"][0];
    format!("{} x{} {}", status["image"], status["restartCount"], status["imageID"])
}

fn running(image: &str, policy: &str) -> World {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&of(image, policy));
        world.pull_and_start("web", 0);
    });
    world
}

#[test]
fn a_running_container_is_restarted_with_it() {
    let mut world = running("hello:1", "Always");
    world.put(&of("hello:2", "Always"));
    world.exited("web", 0, Exit::Completed(0));
    assert_eq!(shown(&world), r#""hello:1" x1 "web@sha256:00""#, "what ran last, while nothing does");
    world.pull_and_start("web", 1);
    assert_eq!(shown(&world), r#""hello:2" x1 "web@sha256:00""#);
    world.check(expect![[r#"
        0s put
          end web within 30s: Container web definition changed, will be restarted
          stop web/0
          event spec.containers{web} Killing: Container web definition changed, will be restarted
        0s web/0 exited Completed(0)
          pull web/1 hello:2 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
        0s web/1 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:2" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/1 ["hello"]
        0s web/1 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x1 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
    "#]]);
}

#[test]
fn status_names_what_runs_until_it_has_ended() {
    let mut world = running("hello:1", "Always");
    world.quietly(|world| world.put(&of("hello:2", "Always")));
    assert_eq!(shown(&world), r#""hello:1" x0 "web@sha256:00""#);
    // And where the other cannot be had.
    world.quietly(|world| {
        world.exited("web", 0, Exit::Killed);
        world.pull_failed("web", 1, "ErrImagePull", "not found");
        world.wait(3);
    });
    assert_eq!(shown(&world), r#""hello:1" x1 "web@sha256:00""#);
}

#[test]
fn the_restart_policy_does_not_matter_to_what_is_replaced() {
    for policy in ["Never", "OnFailure"] {
        let mut world = running("hello:1", policy);
        world.quietly(|world| {
            world.put(&of("hello:2", policy));
            world.exited("web", 0, Exit::Completed(0));
            world.pull_and_start("web", 1);
        });
        assert_eq!(world.reported()["phase"], "Running", "{policy}");
        assert_eq!(shown(&world), r#""hello:2" x1 "web@sha256:00""#);
        // What ends of itself has ended, whatever image is named later.
        world.quietly(|world| {
            world.exited("web", 1, Exit::Completed(0));
            world.put(&of("hello:3", policy));
        });
        assert_eq!(world.reported()["phase"], "Succeeded", "{policy}");
        assert_eq!(shown(&world), r#""hello:2" x1 "web@sha256:00""#);
    }
}

#[test]
fn waits_for_the_former_image_end() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&of("helo:1", "Always"));
        for _ in 0..5 {
            world.pull_failed("web", 0, "ErrImagePull", "not found");
            world.wait(300);
        }
        world.pull_failed("web", 0, "ErrImagePull", "not found");
    });
    world.put(&of("hello:1", "Always"));
    world.quietly(|world| {
        world.pull_and_start("web", 0);
        world.exited("web", 0, Exit::Trapped("no".into()));
        world.pull_and_start("web", 1);
        world.exited("web", 1, Exit::Trapped("no".into()));
    });
    world.put(&of("hello:2", "Always"));
    world.check(expect![[r#"
        1500s put
          pull web/0 hello:1 IfNotPresent
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
        1500s put
          pull web/2 hello:2 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x2
    "#]]);
}

#[test]
fn what_was_pulled_of_the_former_image_is_not_started() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&of("hello:1", "Always"));
        world.put(&of("hello:2", "Always"));
    });
    world.pulled("web", 0);
    world.check(expect![[r#"
        0s web/0 pulled
          pull web/0 hello:2 IfNotPresent
          event spec.containers{web} Pulled: Successfully pulled image "hello:1" in 250ms (250ms including waiting). Image size: 1000 bytes.
    "#]]);
}
