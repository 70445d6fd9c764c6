//! The lives of containers: starts, restarts, probes, ends.

use coracle_core::observe::Exit;
use expect_test::expect;

use crate::world::{POD, World, pod};

#[test]
fn a_pod_comes_up_and_is_deleted_gracefully() {
    let mut world = World::new();
    world.put_and_mount(&pod(r#""containers":[{"name":"web","image":"hello:1.0"}]"#));
    world.pull_and_start("web", 0);
    world.delete_in(30);
    world.wait(30);
    world.exited("web", 0, Exit::Killed);
    world.sandbox_stopped();
    world.object_gone();
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s sandbox ready
          report Pending ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x0
        0s mounted
          pull web/0 hello:1.0 IfNotPresent
        0s web/0 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/0 ["hello"]
        0s web/0 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x0 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
        0s delete
          end pod within 30s None
          end web within 30s: Stopping container web
          stop web/0
          event spec.containers{web} Killing: Stopping container web
        30s wake
          kill web/0
        30s web/0 exited Killed
          stop sandbox
          report Failed ["Initialized"]; web terminated:Error=143 x0
        30s sandbox stopped
          remove
        30s object gone
          forget
    "#]]);
}

#[test]
fn a_crashing_container_backs_off_as_on_kubelet() {
    let mut world = World::new();
    world.put(&pod(r#""containers":[{"name":"web","image":"hello:1.0"}]"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("web", 0);
    });
    world.exited("web", 0, Exit::Completed(1));
    world.pull_and_start("web", 1);
    world.exited("web", 1, Exit::Trapped("unreachable".into()));
    world.wait(10);
    world.pull_and_start("web", 2);
    world.exited("web", 2, Exit::OutOfMemory);
    world.wait(19);
    world.wait(1);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s web/0 exited Completed(1)
          pull web/1 hello:1.0 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
        0s web/1 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/1 ["hello"]
        0s web/1 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x1 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
        0s web/1 exited Trapped("unreachable")
          announce web
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:CrashLoopBackOff x1 (back-off 10s restarting failed container=web pod=p_d(u1))
          event spec.containers{web} BackOff: Back-off restarting failed container web in pod p_d(u1)
        10s wake
          pull web/2 hello:1.0 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x2
        10s web/2 pulled
          event spec.containers{web} Pulled: Successfully pulled image "hello:1.0" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start web/2 ["hello"]
        10s web/2 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x2 ready
          event spec.containers{web} Created: Created container: web
          event spec.containers{web} Started: Started container web
        10s web/2 exited OutOfMemory
          announce web
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:CrashLoopBackOff x2 (back-off 20s restarting failed container=web pod=p_d(u1))
          event spec.containers{web} BackOff: Back-off restarting failed container web in pod p_d(u1)
        30s wake
          pull web/3 hello:1.0 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x3
    "#]]);
}

#[test]
fn init_containers_run_in_order_and_a_sidecar_stays() {
    let mut world = World::new();
    world.put_and_mount(&pod(r#""initContainers":[{"name":"first","image":"a:1"},
            {"name":"side","image":"s:1","restartPolicy":"Always"},{"name":"second","image":"b:1"}],
            "containers":[{"name":"main","image":"m:1"}],"restartPolicy":"Never""#));
    world.pull_and_start("first", 0);
    world.exited("first", 0, Exit::Completed(0));
    world.pull_and_start("side", 0);
    world.pull_and_start("second", 0);
    world.exited("second", 0, Exit::Completed(0));
    world.pull_and_start("main", 0);
    world.exited("main", 0, Exit::Completed(0));
    world.exited("side", 0, Exit::Completed(3));
    world.sandbox_stopped();
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending []; first waiting:PodInitializing x0; side waiting:PodInitializing x0; second waiting:PodInitializing x0; main waiting:PodInitializing x0
        0s sandbox ready
          report Pending ["PodReadyToStartContainers"]; first waiting:PodInitializing x0; side waiting:PodInitializing x0; second waiting:PodInitializing x0; main waiting:PodInitializing x0
        0s mounted
          pull first/0 a:1 IfNotPresent
        0s first/0 pulled
          event spec.initContainers{first} Pulled: Successfully pulled image "a:1" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start first/0 ["a"]
        0s first/0 started
          report Pending ["PodReadyToStartContainers"]; first running: x0; side waiting:PodInitializing x0; second waiting:PodInitializing x0; main waiting:PodInitializing x0
          event spec.initContainers{first} Created: Created container: first
          event spec.initContainers{first} Started: Started container first
        0s first/0 exited Completed(0)
          pull side/0 s:1 IfNotPresent
          report Pending ["PodReadyToStartContainers"]; first terminated:Completed=0 x0 ready; side waiting:PodInitializing x0; second waiting:PodInitializing x0; main waiting:PodInitializing x0
        0s side/0 pulled
          event spec.initContainers{side} Pulled: Successfully pulled image "s:1" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start side/0 ["s"]
        0s side/0 started
          pull second/0 b:1 IfNotPresent
          event spec.initContainers{side} Created: Created container: side
          event spec.initContainers{side} Started: Started container side
          report Pending ["PodReadyToStartContainers"]; first terminated:Completed=0 x0 ready; side running: x0 ready; second waiting:PodInitializing x0; main waiting:PodInitializing x0
        0s second/0 pulled
          event spec.initContainers{second} Pulled: Successfully pulled image "b:1" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start second/0 ["b"]
        0s second/0 started
          report Pending ["PodReadyToStartContainers"]; first terminated:Completed=0 x0 ready; side running: x0 ready; second running: x0; main waiting:PodInitializing x0
          event spec.initContainers{second} Created: Created container: second
          event spec.initContainers{second} Started: Started container second
        0s second/0 exited Completed(0)
          pull main/0 m:1 IfNotPresent
          report Pending ["PodReadyToStartContainers", "Initialized"]; first terminated:Completed=0 x0 ready; side running: x0 ready; second terminated:Completed=0 x0 ready; main waiting:PodInitializing x0
        0s main/0 pulled
          event spec.containers{main} Pulled: Successfully pulled image "m:1" in 250ms (250ms including waiting). Image size: 1000 bytes.
          start main/0 ["m"]
        0s main/0 started
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; first terminated:Completed=0 x0 ready; side running: x0 ready; second terminated:Completed=0 x0 ready; main running: x0 ready
          event spec.containers{main} Created: Created container: main
          event spec.containers{main} Started: Started container main
        0s main/0 exited Completed(0)
          end side within 30s: Stopping container side
          stop side/0
          event spec.initContainers{side} Killing: Stopping container side
          report Running ["PodReadyToStartContainers", "Initialized"]; first terminated:Completed=0 x0 ready; side running: x0 ready; second terminated:Completed=0 x0 ready; main terminated:Completed=0 x0
        0s side/0 exited Completed(3)
          stop sandbox
          report Succeeded ["Initialized"]; first terminated:Completed=0 x0 ready; side terminated:Error=3 x0; second terminated:Completed=0 x0 ready; main terminated:Completed=0 x0
        0s sandbox stopped
          free volumes
    "#]]);
}

#[test]
fn an_init_container_that_fails_fails_a_pod_that_never_restarts() {
    let mut world = World::new();
    world.put(&pod(
        r#""initContainers":[{"name":"first","image":"a:1"}],"containers":[{"name":"main","image":"m:1"}],
            "restartPolicy":"Never""#,
    ));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("first", 0);
    });
    world.exited("first", 0, Exit::Completed(7));
    world.sandbox_stopped();
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending []; first waiting:PodInitializing x0; main waiting:PodInitializing x0
        0s first/0 exited Completed(7)
          stop sandbox
          report Failed []; first terminated:Error=7 x0; main waiting:PodInitializing x0
        0s sandbox stopped
          free volumes
    "#]]);
}

#[test]
fn probes_gate_readiness_and_restart_what_does_not_live() {
    let mut world = World::new();
    world.put(&pod(
        r#""terminationGracePeriodSeconds":5,"containers":[{"name":"web","image":"hello:1.0","ports":[{"name":"http","containerPort":8080}],
            "startupProbe":{"httpGet":{"port":"http"},"periodSeconds":1,"failureThreshold":3},
            "readinessProbe":{"httpGet":{"path":"/ready","port":"http"},"periodSeconds":4},
            "livenessProbe":{"tcpSocket":{"port":8080},"periodSeconds":6,"failureThreshold":1}}]"#,
    ));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("web", 0);
    });
    world.probed("web", 0, "Startup", false);
    world.wait(1);
    world.probed("web", 0, "Startup", true);
    world.probed("web", 0, "Readiness", true);
    world.probed("web", 0, "Liveness", true);
    world.wait(6);
    world.probed("web", 0, "Liveness", false);
    world.wait(5);
    world.exited("web", 0, Exit::Killed);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; web waiting:ContainerCreating x0
        0s web/0 Startup false
          event spec.containers{web} Unhealthy: Startup probe failed: connection refused
        1s wake
          probe web/0 Startup http :8080/
        1s web/0 Startup true
          probe web/0 Liveness Tcp { port: 8080 }
          probe web/0 Readiness http :8080/ready
          report Running ["PodReadyToStartContainers", "Initialized"]; web running: x0
        1s web/0 Readiness true
          report Running ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]; web running: x0 ready
        1s web/0 Liveness true
        5s wake
          probe web/0 Readiness http :8080/ready
        7s wake
          probe web/0 Liveness Tcp { port: 8080 }
        7s web/0 Liveness false
          end web within 5s: Container web failed liveness probe, will be restarted
          event spec.containers{web} Unhealthy: Liveness probe failed: connection refused
          stop web/0
          event spec.containers{web} Killing: Container web failed liveness probe, will be restarted
        12s wake
          kill web/0
        12s web/0 exited Killed
          pull web/1 hello:1.0 IfNotPresent
          report Running ["PodReadyToStartContainers", "Initialized"]; web waiting:ContainerCreating x1
    "#]]);
}

#[test]
fn a_job_that_completes_leaves_the_network() {
    let mut world = World::new();
    world.put(&pod(r#""restartPolicy":"OnFailure","containers":[{"name":"pi","image":"pi:1"}]"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("pi", 0);
    });
    world.exited("pi", 0, Exit::Completed(0));
    world.sandbox_stopped();
    world.delete_in(30);
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; pi waiting:ContainerCreating x0
        0s pi/0 exited Completed(0)
          stop sandbox
          report Succeeded ["Initialized"]; pi terminated:Completed=0 x0
        0s sandbox stopped
          free volumes
        0s delete
          end pod within 30s None
          remove
    "#]]);
}

#[test]
fn the_deadline_ends_a_pod() {
    let mut world = World::new();
    world.put(&pod(r#""activeDeadlineSeconds":60,"containers":[{"name":"pi","image":"pi:1"}],"terminationGracePeriodSeconds":2"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("pi", 0);
    });
    world.wait(60);
    world.wait(2);
    world.exited("pi", 0, Exit::Killed);
    world.sandbox_stopped();
    world.check(expect![[r#"
        0s put
          admit
          create sandbox, preferred None
          mount []
          report Pending ["Initialized"]; pi waiting:ContainerCreating x0
        60s wake
          end pod within 2s Some(Failure { reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline" })
          end pi within 2s: Stopping container pi
          event  DeadlineExceeded: Pod was active on the node longer than the specified deadline
          stop pi/0
          event spec.containers{pi} Killing: Stopping container pi
          report Failed ["PodReadyToStartContainers", "Initialized"]; pi running: x0 ready
        62s wake
          kill pi/0
        62s pi/0 exited Killed
          stop sandbox
          report Failed ["Initialized"]; pi terminated:Error=143 x0
        62s sandbox stopped
          free volumes
    "#]]);
}

#[test]
fn the_whole_status_is_as_kubelet_writes_it() {
    let mut world = World::new();
    world.put(&pod(r#""containers":[{"name":"web","image":"hello:1.0"},{"name":"log","image":"log:1.0"}]"#));
    world.quietly(|world| {
        world.sandbox_ready();
        world.mounted();
        world.pull_and_start("web", 0);
        world.pull_and_start("log", 0);
        world.exited("log", 0, Exit::Completed(2));
        world.pull_and_start("log", 1);
        world.exited("log", 1, Exit::Completed(2));
    });
    let reported = world.observed.pods[POD].reported.clone().unwrap();
    expect![[r#"
        {
          "phase": "Running",
          "conditions": [
            {
              "type": "PodReadyToStartContainers",
              "status": "True",
              "lastProbeTime": null,
              "lastTransitionTime": "2026-01-01T00:00:00Z"
            },
            {
              "type": "Initialized",
              "status": "True",
              "lastProbeTime": null,
              "lastTransitionTime": "2026-01-01T00:00:00Z"
            },
            {
              "type": "Ready",
              "status": "False",
              "lastProbeTime": null,
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "reason": "ContainersNotReady",
              "message": "containers with unready status: [log]"
            },
            {
              "type": "ContainersReady",
              "status": "False",
              "lastProbeTime": null,
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "reason": "ContainersNotReady",
              "message": "containers with unready status: [log]"
            }
          ],
          "hostIP": "192.0.2.1",
          "hostIPs": [
            {
              "ip": "192.0.2.1"
            }
          ],
          "podIP": "10.128.0.9",
          "podIPs": [
            {
              "ip": "10.128.0.9"
            }
          ],
          "startTime": "2026-01-01T00:00:00Z",
          "containerStatuses": [
            {
              "name": "log",
              "state": {
                "waiting": {
                  "reason": "CrashLoopBackOff",
                  "message": "back-off 10s restarting failed container=log pod=p_d(u1)"
                }
              },
              "lastState": {
                "terminated": {
                  "exitCode": 2,
                  "reason": "Error",
                  "startedAt": "2026-01-01T00:00:00Z",
                  "finishedAt": "2026-01-01T00:00:00Z",
                  "containerID": "wasm://log-1"
                }
              },
              "ready": false,
              "restartCount": 1,
              "image": "log:1.0",
              "imageID": "log@sha256:00",
              "started": false,
              "containerID": "wasm://log-1"
            },
            {
              "name": "web",
              "state": {
                "running": {
                  "startedAt": "2026-01-01T00:00:00Z"
                }
              },
              "lastState": {},
              "ready": true,
              "restartCount": 0,
              "image": "hello:1.0",
              "imageID": "web@sha256:00",
              "started": true,
              "containerID": "wasm://web-0"
            }
          ],
          "qosClass": "BestEffort"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&reported).unwrap());
}
