//! `coracle demo`: a cluster of three control nodes and two nodes in a temporary place, the sample workloads on it,
//! and an account of what they did. Every statement that it prints was just checked; the first that does not hold
//! ends the demo with an error.

mod gateway;
mod manifests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    args::DemoArgs,
    client::{Body, Cluster},
    commands::{
        deploy::wait_available,
        push::push,
        up::{stop_asked, stopping},
    },
    local_cluster::{LocalCluster, Shape},
};

/// How long one step may take before the demo gives up on it.
const STEP_WITHIN: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);
/// Requests of the step that shows a shared core.
const SHARED_CORE_REQUESTS: usize = 200;

pub async fn run(args: &DemoArgs) -> Result<()> {
    let folder =
        tempfile::Builder::new().prefix("coracle-demo-").tempdir().context("making a temporary data dir")?;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let shape = Shape {
        data_dir: folder.path().into(),
        control: 3,
        nodes: 2,
        listen: any_port,
        gateway: any_port,
        access_log: None,
    };
    let begun = Instant::now();
    let running = LocalCluster::start(&shape).await?;
    let result = tell(&running, begun).await;
    if args.keep && result.is_ok() {
        println!("\nThe cluster stays until Ctrl-C: export KUBECONFIG={}", running.kubeconfig.display());
        stop_asked().await;
    }
    stopping(running.shutdown()).await;
    result
}

struct Demo {
    cluster: Cluster,
    gateway: SocketAddr,
}

async fn tell(running: &LocalCluster, begun: Instant) -> Result<()> {
    let gateway = running.gateway().context("the first node has no gateway")?;
    let demo = Demo { cluster: Cluster::open(&running.kubeconfig, None)?, gateway };
    demo.wait_nodes(2).await?;
    heading("A cluster of three control nodes and two nodes");
    println!(
        "  ready after {} ms; API https://{}, gateway http://{gateway}",
        begun.elapsed().as_millis(),
        running.address()
    );
    demo.push_samples().await?;
    demo.hello().await?;
    demo.guestbook().await?;
    demo.echo().await?;
    demo.job().await?;
    demo.shared_core().await?;
    demo.memory_hog().await?;
    demo.crash().await?;
    heading("All of it is Kubernetes");
    println!("  {} pods were declared through the same API that kubectl uses.", demo.pods("").await?.len());
    println!("\nThe demo took {:.1} s.", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn wait(cluster: &Cluster, name: &str) -> Result<()> {
    wait_available(cluster, name, STEP_WITHIN, &mut |_| {}).await
}

fn heading(text: &str) {
    println!("\n{text}");
}

impl Demo {
    async fn push_samples(&self) -> Result<()> {
        heading("The cluster's own registry");
        for (name, bytes) in coracle_sample_artifacts::ALL {
            push(&self.cluster, name, "1.0", bytes.to_vec())
                .await
                .with_context(|| format!("pushing {name}"))?;
        }
        println!(
            "  {} components pushed, each kept by digest on the control nodes",
            coracle_sample_artifacts::ALL.len()
        );
        Ok(())
    }

    async fn hello(&self) -> Result<()> {
        heading("hello-http: an HTTP component behind a Service and an Ingress, three pods");
        let begun = Instant::now();
        for (name, replicas) in [("hello-http", 3), ("hello-http-p3", 1)] {
            self.apply(manifests::web(name, replicas)).await?;
        }
        wait(&self.cluster, "hello-http").await?;
        wait(&self.cluster, "hello-http-p3").await?;
        println!("  available after {} ms", begun.elapsed().as_millis());
        let mut pods = std::collections::BTreeSet::new();
        // The gateway hears of the pods somewhat later than the Deployment.
        let deadline = Instant::now() + STEP_WITHIN;
        while pods.len() < 3 && Instant::now() < deadline {
            pods.insert(self.fetch("hello-http.localhost", "GET", "").await?.trim().to_string());
        }
        ensure!(pods.len() == 3, "requests should meet all three pods, but met only {pods:?}");
        for answer in &pods {
            println!("  GET hello-http.localhost    -> {answer}");
        }
        println!(
            "  GET hello-http-p3.localhost -> {}",
            self.fetch("hello-http-p3.localhost", "GET", "").await?.trim()
        );
        Ok(())
    }

    async fn guestbook(&self) -> Result<()> {
        heading(
            "guestbook: two components in one pod, talking over the pod's loopback; another pod calls it by name",
        );
        self.apply(manifests::guestbook()).await?;
        wait(&self.cluster, "guestbook").await?;
        wait(&self.cluster, "guestbook-caller").await?;
        for entry in ["Ada was here", "so was Grace"] {
            let answer = self.fetch("guestbook.localhost", "POST", entry).await?;
            println!("  POST guestbook.localhost \"{entry}\" -> {}", answer.trim());
        }
        let direct = self.fetch("guestbook.localhost", "GET", "").await?;
        let through = self.fetch("guestbook-caller.localhost", "GET", "").await?;
        ensure!(direct == "Ada was here\nso was Grace\n", "the guestbook holds {direct:?}");
        ensure!(direct == through, "through http://guestbook/ the caller saw {through:?}");
        println!(
            "  the second Deployment read the same {} lines from http://guestbook/",
            through.lines().count()
        );
        Ok(())
    }

    async fn echo(&self) -> Result<()> {
        heading(
            "tcp-echo: an ordinary std::net server, called by an ordinary std::net client through its Service",
        );
        self.apply(manifests::echo()).await?;
        wait(&self.cluster, "tcp-echo").await?;
        self.apply(vec![manifests::echo_client()]).await?;
        self.wait_phase("echo-client", "Succeeded").await?;
        let log = self.log("echo-client").await?;
        ensure!(log == "hello through the service\n", "the echo client printed {log:?}");
        println!("  tcp-echo:7 answered: {}", log.trim());
        Ok(())
    }

    async fn job(&self) -> Result<()> {
        heading("pi-job and pi-legacy: components that compute and exit; the second is a preview 1 module");
        self.apply(vec![
            manifests::once("pi-job", &["200"]),
            manifests::once("pi-legacy", &["old", "but", "fine"]),
        ])
        .await?;
        for (pod, expected) in
            [("pi-job", "3.14159265358979"), ("pi-legacy", "arguments: pi-legacy old but fine")]
        {
            self.wait_phase(pod, "Succeeded").await?;
            let log = self.log(pod).await?;
            ensure!(log.starts_with(expected), "{pod} printed {log:?}");
            println!(
                "  {pod}: {}",
                log.lines().next().unwrap_or_default().chars().take(60).collect::<String>()
            );
        }
        Ok(())
    }

    async fn shared_core(&self) -> Result<()> {
        heading("spin: endless loops, which cannot hold a core against their neighbours");
        let quiet = self.latencies().await?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spinners: Vec<String> = (1..=2 * cores).map(|number| format!("spin-{number}")).collect();
        self.apply(spinners.iter().map(|name| manifests::spin(name)).collect()).await?;
        for spinner in &spinners {
            self.wait_phase(spinner, "Running").await?;
        }
        let busy = self.latencies().await?;
        println!("  hello-http alone:                p50 {:.2} ms, p99 {:.2} ms", quiet.0, quiet.1);
        println!(
            "  beside {} spinning pods:          p50 {:.2} ms, p99 {:.2} ms",
            spinners.len(),
            busy.0,
            busy.1
        );
        ensure!(busy.1 < 1000.0, "requests beside spinning pods took {:.0} ms at p99", busy.1);
        for spinner in &spinners {
            self.delete(&format!("/api/v1/namespaces/default/pods/{spinner}?gracePeriodSeconds=0")).await?;
        }
        Ok(())
    }

    async fn memory_hog(&self) -> Result<()> {
        heading("memory-hog: allocates without end under a limit of 64 MiB");
        self.apply(vec![manifests::memory_hog()]).await?;
        let status =
            self.wait_container("memory-hog", |status| status["state"]["terminated"].is_object()).await?;
        let ended = &status["state"]["terminated"];
        ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "memory-hog ended with {ended}");
        let log = self.log("memory-hog").await?;
        println!(
            "  last words: {}; then {} with exit code {}",
            log.lines().last().unwrap_or_default(),
            ended["reason"],
            ended["exitCode"]
        );
        Ok(())
    }

    async fn crash(&self) -> Result<()> {
        heading("crash: panics, is restarted, and backs off");
        self.apply(vec![manifests::crash()]).await?;
        let status = self
            .wait_container("crash", |status| status["state"]["waiting"]["reason"] == "CrashLoopBackOff")
            .await?;
        println!(
            "  {} after {} restarts: {}",
            status["state"]["waiting"]["reason"],
            status["restartCount"],
            status["state"]["waiting"]["message"]
        );
        Ok(())
    }

    async fn latencies(&self) -> Result<(f64, f64)> {
        let mut times = Vec::with_capacity(SHARED_CORE_REQUESTS);
        for _ in 0..SHARED_CORE_REQUESTS {
            let begun = Instant::now();
            self.fetch("hello-http.localhost", "GET", "").await?;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
    }

    async fn apply(&self, objects: Vec<Value>) -> Result<()> {
        for object in objects {
            let collection = match object["kind"].as_str().unwrap_or_default() {
                "Deployment" => "/apis/apps/v1/namespaces/default/deployments",
                "Service" => "/api/v1/namespaces/default/services",
                "Ingress" => "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
                "Pod" => "/api/v1/namespaces/default/pods",
                other => bail!("the demo has no manifest of kind {other}"),
            };
            self.cluster.apply(collection, &object).await?;
        }
        Ok(())
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.cluster.send(http::Request::delete(path).body(Body::default())?).await?;
        Ok(())
    }

    /// One request through the gateway, tried again while routes spread: its body.
    async fn fetch(&self, host: &str, method: &str, body: &str) -> Result<String> {
        let deadline = Instant::now() + STEP_WITHIN;
        loop {
            let (status, text) = gateway::call(self.gateway, host, method, body).await?;
            match status {
                200 => return Ok(text),
                404 | 502 | 503 if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                _ => bail!("{method} {host} was answered with {status}: {text}"),
            }
        }
    }

    async fn log(&self, pod: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/default/pods/{pod}/log");
        let (_, body) = self.cluster.send(http::Request::get(path).body(Body::default())?).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn pods(&self, query: &str) -> Result<Vec<Value>> {
        let list =
            self.cluster.get(&format!("/api/v1/namespaces/default/pods{query}")).await?.unwrap_or_default();
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    async fn wait_nodes(&self, count: usize) -> Result<()> {
        self.wait("/api/v1/nodes", &format!("{count} nodes to be Ready"), |list| {
            let nodes = list["items"].as_array().map_or(&[][..], Vec::as_slice);
            let ready = |node: &&Value| {
                let conditions = node["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            nodes.iter().filter(ready).count() == count
        })
        .await?;
        Ok(())
    }

    async fn wait_phase(&self, pod: &str, phase: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/default/pods/{pod}");
        self.wait(&path, &format!("pod {pod} to be {phase}"), |pod| pod["status"]["phase"] == phase).await?;
        Ok(())
    }

    /// Waits until the pod's first container is as wanted; answers its status.
    async fn wait_container(&self, pod: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let path = format!("/api/v1/namespaces/default/pods/{pod}");
        let pod = self
            .wait(&path, &format!("the container of pod {pod}"), |pod| {
                wanted(&pod["status"]["containerStatuses"][0])
            })
            .await?;
        Ok(pod["status"]["containerStatuses"][0].clone())
    }

    async fn wait(&self, path: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + STEP_WITHIN;
        loop {
            let object = self.cluster.get(path).await?.unwrap_or_default();
            if wanted(&object) {
                return Ok(object);
            }
            if Instant::now() > deadline {
                bail!("waited {} s for {what}; it is at {}", STEP_WITHIN.as_secs(), object["status"]);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
