//! What a pod is made of: images, config maps, volumes, and what cannot be read or planned.

use coracle_core::{observe::Exit, sources::Kind};
use expect_test::expect;

use crate::world::{POD, World, pod};

#[test]
fn a_missing_image_is_tried_again_and_again() {
    let mut world = World::new();
    world.put(&pod(r#""containers":[{"name":"web","image":"nope:1.0"}]"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
    });
    world.pull_failed("web", 0, "ErrImagePull", "not found");
    world.wait(10);
    world.pull_failed("web", 0, "ErrImagePull", "not found");
    world.wait(20);
    world.pull_and_start("web", 0);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s web/0 pull failed
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ErrImagePull x0 (not found)
          event spec.containers{web} Failed: Failed to pull image "nope:1.0": not found
          event spec.containers{web} Failed: Error: ErrImagePull
        2s wake
          announce web
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ImagePullBackOff x0 (Back-off pulling image "nope:1.0": ErrImagePull: not found)
          event spec.containers{web} BackOff: Back-off pulling image "nope:1.0"
          event spec.containers{web} Failed: Error: ImagePullBackOff
        10s wake
          pull web/0 nope:1.0 IfNotPresent
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
        10s web/0 pull failed
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ErrImagePull x0 (not found)
          event spec.containers{web} Failed: Failed to pull image "nope:1.0": not found
          event spec.containers{web} Failed: Error: ErrImagePull
        12s wake
          announce web
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ImagePullBackOff x0 (Back-off pulling image "nope:1.0": ErrImagePull: not found)
          event spec.containers{web} BackOff: Back-off pulling image "nope:1.0"
          event spec.containers{web} Failed: Error: ImagePullBackOff
        30s wake
          pull web/0 nope:1.0 IfNotPresent
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
        30s web/0 pulled
          event spec.containers{web} Pulled: Successfully pulled image "nope:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/0 ["nope"]
        30s web/0 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x0 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
    "#]]);
}

#[test]
fn a_missing_config_map_holds_the_container_until_it_is_there() {
    let mut world = World::new();
    world.put(&pod(
        r#""containers":[{"name":"web","image":"hello:1.0","envFrom":[{"configMapRef":{"name":"cfg"}}]}]"#,
    ));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
    });
    world.pulled("web", 0);
    world.config_map("cfg", r#"{"data":{"A":"1"}}"#, 7);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s web/0 pulled
          hold web: configmap "cfg" not found
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:CreateContainerConfigError x0 (configmap "cfg" not found)
          event spec.containers{web} Failed: Error: configmap "cfg" not found
        0s config map cfg at 7
          start web/0 ["hello"]
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
    "#]]);
}

#[test]
fn what_is_withheld_holds_what_starts_and_leaves_what_runs() {
    let mut world = World::new();
    world.quietly(|world| {
        world.config_map("cfg", r#"{"data":{"A":"1"}}"#, 7);
        world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"hello:1.0",
                "envFrom":[{"configMapRef":{"name":"cfg","optional":true}}]}],
                "volumes":[{"name":"v","configMap":{"name":"cfg","optional":true}}]"#));
        world.pull_and_start("web", 0);
    });
    world.withheld("cfg", "too much; less");
    world.quietly(|world| {
        world.exited("web", 0, coracle_core::observe::Exit::Completed(0));
        world.wait(20);
    });
    world.pulled("web", 1);
    world.config_map("cfg", r#"{"data":{"A":"1"}}"#, 7);
    world.check(expect![[r#"
        0s config map cfg withheld
          hold volumes: MountVolume.SetUp failed for volume "v" : configmap "cfg" is not sent to this node: too much; less
        20s web/1 pulled
          hold web: configmap "cfg" is not sent to this node: too much; less
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:CreateContainerConfigError x1 (configmap "cfg" is not sent to this node: too much; less)
          event spec.containers{web} Failed: Error: configmap "cfg" is not sent to this node: too much; less
        20s config map cfg at 7
          mount ["v"]
          start web/1 ["hello"]
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
    "#]]);
}

#[test]
fn what_holds_a_container_is_told_once_however_often_it_is_planned_anew() {
    let mut world = World::new();
    world.put(&pod(r#""containers":[{"name":"web","image":"hello:1.0",
            "envFrom":[{"configMapRef":{"name":"first"}},{"configMapRef":{"name":"other"}}]}]"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
    });
    world.pulled("web", 0);
    // It is planned again at each of these changes, and the first is missing as before.
    world.config_map("other", r#"{"data":{"A":"1"}}"#, 7);
    world.config_map("other", r#"{"data":{"A":"2"}}"#, 8);
    world.config_map("first", r#"{"data":{"B":"1"}}"#, 9);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s web/0 pulled
          hold web: configmap "first" not found
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:CreateContainerConfigError x0 (configmap "first" not found)
          event spec.containers{web} Failed: Error: configmap "first" not found
        0s config map other at 7
          hold web: configmap "first" not found
        0s config map other at 8
          hold web: configmap "first" not found
        0s config map first at 9
          start web/0 ["hello"]
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
    "#]]);
}

/// A pod whose container has a volume of the config map `cfg`, and has started.
fn runs_with_a_volume(world: &mut World) {
    world.put(&pod(
        r#""containers":[{"name":"web","image":"hello:1.0","volumeMounts":[{"name":"v","mountPath":"/etc/v"}]}],
            "volumes":[{"name":"v","configMap":{"name":"cfg"}}]"#,
    ));
    world.sandbox_ready();
    world.config_map("cfg", r#"{"data":{"a":"1"}}"#, 7);
    world.mounted();
    world.pull_and_start("web", 0);
}

#[test]
fn a_volume_waits_for_its_source_and_follows_its_changes() {
    let mut world = World::new();
    runs_with_a_volume(&mut world);
    world.config_map("cfg", r#"{"data":{"a":"2"}}"#, 8);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          hold volumes: MountVolume.SetUp failed for volume "v" : configmap "cfg" not found
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
          event  FailedMount: MountVolume.SetUp failed for volume "v" : configmap "cfg" not found
        0s sandbox ready
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
        0s config map cfg at 7
          mount ["v"]
        0s mounted
          pull web/0 hello:1.0 IfNotPresent
        0s web/0 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/0 ["hello"]
        0s web/0 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x0 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
        0s config map cfg at 8
          mount ["v"]
    "#]]);
}

#[test]
fn what_runs_goes_on_with_its_old_files_where_new_ones_have_no_room() {
    let mut world = World::new();
    world.quietly(runs_with_a_volume);
    world.config_map("cfg", r#"{"data":{"a":"2"}}"#, 8);
    world.mount_fails();
    // It ends, and starts again though the new files are not there; they are tried again.
    world.exited("web", 0, Exit::Completed(1));
    world.wait(20);
    world.check(expect![[r#"
        0s config map cfg at 8
          mount ["v"]
        0s mount fails
          event  FailedMount: no room
        0s web/0 exited Completed(1)
          pull web/1 hello:1.0 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
        10s wake
          mount ["v"]
    "#]]);
}

#[test]
fn a_pod_goes_only_after_its_volumes_were_written() {
    let mut world = World::new();
    let spec = r#""containers":[{"name":"web","image":"hello:1.0"}],
            "volumes":[{"name":"v","configMap":{"name":"cfg"}}]"#;
    world.quietly(|world| {
        world.config_map("cfg", r#"{"data":{"a":"1"}}"#, 7);
        world.put(&pod(spec));
        world.sandbox_ready();
    });
    // The files are being written.
    world.delete_in(0);
    world.sandbox_stopped();
    world.object_gone();
    world.mounted_late();
    world.check(expect![[r#"
        0s delete
          end pod within 0ns None
          stop sandbox
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s sandbox stopped
        0s object gone
        0s mounted
          remove
          forget
    "#]]);
}

#[test]
fn of_a_pod_that_cannot_be_read_nothing_runs_and_its_deletion_is_carried_out() {
    let mut world = World::new();
    world.put(&pod(r#""containers":[{"name":"web","image":"hello:1.0","env":3}]"#));
    world.delete_in(30);
    world.check(expect![[r#"
        0s put
          admit
          free volumes
        0s delete
          end pod within 0ns None
          remove
    "#]]);
    assert!(coracle_core::Pod::unreadable(br#"{"metadata":{"name":"a","uid":"../u"}}"#).is_none());
}

#[test]
fn what_cannot_be_planned_is_tried_again_only_when_it_may_come_out_otherwise() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(
            r#""containers":[{"name":"web","image":"hello:1.0","envFrom":[{"configMapRef":{"name":"cfg"}}]}]"#,
        ));
        world.pulled("web", 0);
    });
    world.config_map("other", r#"{"data":{"A":"1"}}"#, 7);
    world.wait(60);
    world.config_map("cfg", r#"{"data":{"A":"1"}}"#, 8);
    world.check(expect![[r#"
        0s config map other at 7
        60s config map cfg at 8
          start web/0 ["hello"]
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
    "#]]);
}

#[test]
fn what_is_due_and_held_up_by_something_else_wakes_nobody() {
    let mut world = World::new();
    world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"nope:1.0"}]"#));
    world.pull_failed("web", 0, "ErrImagePull", "not found");
    world.sandbox_lost();
    // The pull would be due after 10 s, and has no sandbox to be for.
    for _ in 0..10 {
        world.wait(2);
    }
    assert_eq!(world.next_wake(), None);
    world.sandbox_ready();
    world.pull_and_start("web", 0);
}

#[test]
fn only_services_that_its_environment_shows_have_a_container_planned_anew() {
    for (links, planned_again) in [(true, "  hold web: configmap \"cfg\" not found\n"), (false, "")] {
        let mut world = World::new();
        world.quietly(|world| {
            world.put_and_mount(&pod(&format!(
                r#""enableServiceLinks":{links},"containers":[{{"name":"web","image":"hello:1.0",
                    "envFrom":[{{"configMapRef":{{"name":"cfg"}}}}]}}]"#
            )));
            world.pulled("web", 0);
        });
        let ports = |ports: &str| format!(r#""ports":[{ports}]"#);
        let [one, other] = [r#"{"port":1}"#, r#"{"port":2}"#].map(ports);
        world.service("headless", &format!(r#"{{"spec":{{"clusterIP":"None",{one}}}}}"#));
        world.service("headless", &format!(r#"{{"spec":{{"clusterIP":"None",{other}}}}}"#));
        world.service("web", &format!(r#"{{"spec":{{"clusterIP":"10.96.0.9",{one}}}}}"#));
        world.service(
            "web",
            &format!(r#"{{"metadata":{{"labels":{{"a":"b"}}}},"spec":{{"clusterIP":"10.96.0.9",{one}}}}}"#),
        );
        world.service("web", &format!(r#"{{"spec":{{"clusterIP":"10.96.0.9",{other}}}}}"#));
        world.check_text(&format!(
            "0s service headless\n0s service headless\n0s service web\n{planned_again}0s service web\n\
             0s service web\n{planned_again}"
        ));
    }
}

#[test]
fn a_change_concerns_the_pods_that_name_what_changed() {
    let mut world = World::new();
    world.quietly(|world| {
        world.config_map("cfg", r#"{"data":{"a":"1"}}"#, 7);
        world.put(&pod(
            r#""containers":[{"name":"web","image":"hello:1.0","envFrom":[{"secretRef":{"name":"pw"}}]}],
                "volumes":[{"name":"v","configMap":{"name":"cfg"}}]"#,
        ));
    });
    let mut changed = |kind, namespace: &str, name: &str| {
        let before = world.observed.pods[POD].changes;
        let told = world.observed.source_changed(kind, &(namespace.to_owned(), name.to_owned()));
        let after = world.observed.pods[POD].changes;
        (told.len(), after.volumes - before.volumes, after.environment - before.environment)
    };
    assert_eq!(changed(Kind::ConfigMap, "d", "cfg"), (1, 1, 0));
    assert_eq!(changed(Kind::Secret, "d", "pw"), (1, 0, 1));
    assert_eq!(changed(Kind::ConfigMap, "d", "pw"), (0, 0, 0));
    assert_eq!(changed(Kind::ConfigMap, "d", "other"), (0, 0, 0));
    assert_eq!(changed(Kind::ConfigMap, "e", "cfg"), (0, 0, 0));
    assert_eq!(changed(Kind::Service, "e", "web"), (0, 0, 0));
    assert_eq!(changed(Kind::Service, "d", "web"), (0, 0, 1));
    assert_eq!(changed(Kind::Service, "default", "kubernetes"), (0, 0, 1));
}

#[test]
fn a_container_that_is_held_is_looked_at_when_services_go() {
    let mut world = World::new();
    world.quietly(|world| {
        world.put_and_mount(&pod(
            r#""containers":[{"name":"web","image":"hello:1.0","envFrom":[{"configMapRef":{"name":"cfg"}}]}]"#,
        ));
        world.pulled("web", 0);
    });
    let own = |namespace: &str| (namespace.to_owned(), "web".to_owned());
    assert_eq!(world.observed.source_changed(Kind::Service, &own("d")).len(), 1);
    assert!(world.observed.source_changed(Kind::Service, &own("e")).is_empty());
}
