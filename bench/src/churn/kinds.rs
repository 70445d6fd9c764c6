//! What each kind of pod does from its beginning to its end, and who calls it meanwhile.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Counted,
    pods::{Pods, Watched},
};
use crate::{client::Rest, node};

/// A pod that has not come so far by then has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Calls of a service that may not be known everywhere yet.
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_millis(50);
/// A log that is followed is cut after so long at the latest.
const FOLLOWED: Duration = Duration::from_secs(5);
/// The times of a pod that is deleted wherever it stands: up to so many milliseconds after it was made.
const FORCED_MS: u64 = 300;
/// Failures that are told in words.
const WORDS_MAX: usize = 10;
/// Bytes of a log that is rotated once, and of an ordinary one.
const ROTATED: usize = 11 << 20;
const LOGGED: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A short command that ends.
    Command,
    /// TCP connections to pods of both nodes, through a service and by DNS.
    Tcp,
    /// UDP flows, as many sockets.
    Udp,
    /// An HTTP component with a service of its own, a node port and an ingress, called from everywhere.
    Called,
    /// Files of a ConfigMap, a Secret and an emptyDir.
    Volumes,
    /// Deleted while it waits for its restart.
    Crash,
    /// Deleted at once wherever it stands.
    Forced,
    Log,
    /// Its log is read while it writes and rotates, and the reader goes.
    Rotated,
    /// Runs until it is killed; its log is followed, and the reader goes.
    Held,
    /// Of a component that nobody has compiled.
    Fresh,
}

/// In turn.
const KINDS: &[Kind] = &[
    Kind::Command,
    Kind::Tcp,
    Kind::Forced,
    Kind::Udp,
    Kind::Command,
    Kind::Volumes,
    Kind::Forced,
    Kind::Log,
    Kind::Tcp,
    Kind::Command,
    Kind::Udp,
    Kind::Held,
    Kind::Command,
    Kind::Crash,
    Kind::Forced,
    Kind::Command,
    Kind::Volumes,
    Kind::Tcp,
    Kind::Called,
    Kind::Forced,
];
/// Every so manieth pod is one whose log is rotated.
const ROTATED_EACH: usize = 200;

/// A namespace with what its pods call.
#[derive(Clone)]
pub struct Stage {
    namespace: Arc<str>,
    rests: Arc<[Rest]>,
    pods: Pods,
    gateways: Arc<[String]>,
    counted: Arc<Counted>,
}

impl Stage {
    pub fn new(
        namespace: &str,
        rests: &[Rest],
        pods: &Pods,
        gateways: Vec<String>,
        counted: &Arc<Counted>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            rests: rests.into(),
            pods: pods.clone(),
            gateways: gateways.into(),
            counted: counted.clone(),
        }
    }

    fn path(&self, resource: &str) -> String {
        let group = if resource == "ingresses" { "/apis/networking.k8s.io/v1" } else { "/api/v1" };
        format!("{group}/namespaces/{}/{resource}", self.namespace)
    }

    async fn make(&self, rest: &Rest, resource: &str, object: Value) -> Result<Value> {
        let (status, body) = rest.call("POST", &self.path(resource), object.to_string().into()).await?;
        ensure!(status == 201, "making {resource}: HTTP {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// What is gone already is fine.
    async fn delete(&self, rest: &Rest, resource: &str, name: &str) -> Result<()> {
        let path = format!("{}/{name}", self.path(resource));
        let (status, body) = rest.call("DELETE", &path, Vec::new()).await?;
        let text = String::from_utf8_lossy(&body);
        ensure!([200, 202, 404].contains(&status), "deleting {name}: HTTP {status}: {text}");
        Ok(())
    }

    /// Two pods that echo TCP, two that echo UDP, and a component that calls the others', with their services.
    pub async fn anchor(&self) -> Result<()> {
        let rest = &self.rests[0];
        for (name, app, argument) in [
            ("tcp-a", "tcp", "tcp-echo"),
            ("tcp-b", "tcp", "tcp-echo"),
            ("udp-a", "udp", "udp-echo"),
            ("udp-b", "udp", "udp-echo"),
        ] {
            let mut pod = pod(name, &["churn:1", argument, "7"]);
            pod["metadata"]["labels"] = json!({"app": app});
            self.make(rest, "pods", pod).await?;
        }
        let mut caller = pod("caller", &["guestbook-caller:1"]);
        caller["metadata"]["labels"] = json!({"app": "caller"});
        let target = json!([{"name": "TARGET", "value": format!("http://called.{}/", self.namespace)}]);
        caller["spec"]["containers"][0]["env"] = target;
        self.make(rest, "pods", caller).await?;
        for (name, port, protocol) in
            [("tcp", 7, "TCP"), ("udp", 7, "UDP"), ("caller", 80, "TCP"), ("called", 80, "TCP")]
        {
            let ports = json!([{"port": port, "protocol": protocol}]);
            let spec = json!({"selector": {"app": name}, "ports": ports});
            self.make(rest, "services", json!({"metadata": {"name": name}, "spec": spec})).await?;
        }
        self.make(rest, "ingresses", self.ingress("caller")).await?;
        for name in ["tcp-a", "tcp-b", "udp-a", "udp-b", "caller"] {
            let mut seen = self.pods.expect(&self.namespace, name);
            let now = rest.get(&format!("{}/{name}", self.path("pods"))).await?;
            let conditions = now["status"]["conditions"].as_array().into_iter().flatten();
            if !conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True") {
                seen.until(PATIENCE, |seen| seen.ready).await?;
            }
        }
        Ok(())
    }

    /// Whole life of one pod. `fresh` is the number of a component that nobody has compiled.
    pub async fn live(&self, number: usize, fresh: Option<usize>) {
        let kind = match fresh {
            Some(_) => Kind::Fresh,
            None if number % ROTATED_EACH == 1 => Kind::Rotated,
            None => KINDS[number % KINDS.len()],
        };
        let rest = &self.rests[number % self.rests.len()];
        let name = format!("p{number}");
        let lived = self.live_as(kind, rest, &name, number, fresh.unwrap_or(0)).await;
        self.counted.pods.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = lived {
            self.counted.failed.fetch_add(1, Ordering::Relaxed);
            let mut words = self.counted.words.lock();
            if words.len() < WORDS_MAX {
                words.push(format!("{kind:?} {name}: {error:#}"));
            }
        }
    }

    async fn live_as(&self, kind: Kind, rest: &Rest, name: &str, number: usize, fresh: usize) -> Result<()> {
        let (tcp, udp) = (format!("tcp.{}:7", self.namespace), format!("udp.{}:7", self.namespace));
        let fresh = format!("fresh:{fresh}");
        let (rotated, logged) = (ROTATED.to_string(), LOGGED.to_string());
        let arguments: &[&str] = match kind {
            Kind::Command => &["churn:1", "exit", "0"],
            Kind::Tcp => &["churn:1", "tcp", &tcp, "5"],
            Kind::Udp => &["churn:1", "udp", &udp, "5"],
            Kind::Called => &["hello-http:1"],
            Kind::Volumes => &["churn:1", "files", "/config", "/secret", "/scratch"],
            Kind::Crash => &["crash:1"],
            Kind::Forced => [&["churn:1", "hold"][..], &["churn:1", "exit", "1"]][number / 2 % 2],
            Kind::Log => &["churn:1", "log", &logged],
            Kind::Rotated => &["churn:1", "log", &rotated],
            Kind::Held => &["churn:1", "hold"],
            Kind::Fresh => &[&fresh, "hold"],
        };
        let mut object = pod(name, arguments);
        if kind == Kind::Called {
            object["metadata"]["labels"] = json!({"app": "called", "own": name});
        }
        if kind == Kind::Crash {
            object["spec"]["restartPolicy"] = "Always".into();
        }
        if kind == Kind::Volumes {
            self.add_volumes(rest, name, &mut object).await?;
        }
        let mut seen = self.pods.expect(&self.namespace, name);
        self.make(rest, "pods", object).await?;
        let lived = self.middle(kind, rest, name, number, &mut seen).await;
        let now = matches!(kind, Kind::Forced | Kind::Fresh | Kind::Held | Kind::Crash);
        let deleted = if now { format!("{name}?gracePeriodSeconds=0") } else { name.to_owned() };
        self.delete(rest, "pods", &deleted).await?;
        if kind == Kind::Volumes {
            self.delete(rest, "configmaps", name).await?;
            self.delete(rest, "secrets", name).await?;
        }
        seen.until(PATIENCE, |seen| seen.gone).await.context("deleted")?;
        lived
    }

    /// Between its making and its deletion.
    async fn middle(
        &self,
        kind: Kind,
        rest: &Rest,
        name: &str,
        number: usize,
        seen: &mut Watched,
    ) -> Result<()> {
        match kind {
            Kind::Command | Kind::Tcp | Kind::Udp | Kind::Volumes | Kind::Log => {
                seen.until(PATIENCE, |seen| seen.is_over()).await?;
                seen.until(PATIENCE, |seen| seen.phase == "Succeeded").await
            }
            Kind::Rotated => {
                seen.until(PATIENCE, |seen| seen.phase != "Pending" && !seen.phase.is_empty()).await?;
                self.follow(rest, name).await?;
                seen.until(PATIENCE, |seen| seen.phase == "Succeeded").await
            }
            Kind::Held => {
                seen.until(PATIENCE, |seen| seen.phase == "Running").await?;
                self.follow(rest, name).await
            }
            Kind::Crash => seen.until(PATIENCE, |seen| seen.ended_once).await,
            Kind::Forced | Kind::Fresh => {
                // Spread evenly, without chance.
                sleep(Duration::from_millis(number as u64 * 7919 % FORCED_MS)).await;
                Ok(())
            }
            Kind::Called => {
                let silent = self.call(rest, name, seen).await;
                self.delete(rest, "services", name).await?;
                self.delete(rest, "ingresses", name).await?;
                silent.map(drop)
            }
        }
    }

    /// Calls a component by its node port and its ingress on both nodes, and through another pod. What says nothing stays
    /// until the pod is gone.
    async fn call(&self, rest: &Rest, name: &str, seen: &mut Watched) -> Result<Vec<TcpStream>> {
        let spec = json!({"type": "NodePort", "selector": {"own": name}, "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let made = self.make(rest, "services", json!({"metadata": {"name": name}, "spec": spec})).await?;
        let node_port = made["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
        self.make(rest, "ingresses", self.ingress(name)).await?;
        seen.until(PATIENCE, |seen| seen.ready).await?;
        let mut silent = Vec::new();
        for gateway in &*self.gateways {
            self.ask(gateway, &self.host(name)).await?;
            let ip = gateway.split(':').next().unwrap_or_default();
            let port = format!("{ip}:{node_port}");
            self.ask(&port, name).await?;
            silent.push(TcpStream::connect(&port).await?);
            self.ask(gateway, &self.host("caller")).await?;
        }
        Ok(silent)
    }

    async fn ask(&self, address: &str, host: &str) -> Result<()> {
        let mut last = String::new();
        for _ in 0..TRIES {
            match timeout(PATIENCE, node::get(address, host, "/")).await? {
                Ok((200, _)) => {
                    self.counted.calls.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Ok((status, body)) => last = format!("HTTP {status} {}", String::from_utf8_lossy(&body)),
                Err(error) => last = format!("{error:#}"),
            }
            sleep(PAUSE).await;
        }
        bail!("{host} at {address}: {last}")
    }

    /// Follows a log, and goes away in the middle of it.
    async fn follow(&self, rest: &Rest, name: &str) -> Result<()> {
        let path = format!("{}/{name}/log?follow=true", self.path("pods"));
        let (status, mut body) = rest.send("GET", &path, Vec::new()).await?;
        if status != 200 {
            let words = body.collect().await?.to_bytes();
            bail!("the log of {name}: HTTP {status}: {}", String::from_utf8_lossy(&words));
        }
        // One that says nothing is cut as well.
        let _ = timeout(FOLLOWED / 10, body.frame()).await;
        self.counted.cut.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn add_volumes(&self, rest: &Rest, name: &str, object: &mut Value) -> Result<()> {
        let data = json!({"a": "1", "b": "2"});
        self.make(rest, "configmaps", json!({"metadata": {"name": name}, "data": data})).await?;
        self.make(rest, "secrets", json!({"metadata": {"name": name}, "stringData": data})).await?;
        object["spec"]["volumes"] = json!([
            {"name": "config", "configMap": {"name": name}},
            {"name": "secret", "secret": {"secretName": name}},
            {"name": "scratch", "emptyDir": {}},
        ]);
        let mounts =
            ["config", "secret", "scratch"].map(|at| json!({"name": at, "mountPath": format!("/{at}")}));
        object["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
        Ok(())
    }

    fn host(&self, name: &str) -> String {
        format!("{name}.{}.localhost", self.namespace)
    }

    fn ingress(&self, name: &str) -> Value {
        let backend = json!({"service": {"name": name, "port": {"number": 80}}});
        let http = json!({"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]});
        json!({"metadata": {"name": name}, "spec": {"rules": [{"host": self.host(name), "http": http}]}})
    }
}

/// A pod of one container: its image, and its arguments.
fn pod(name: &str, words: &[&str]) -> Value {
    let (image, arguments) = words.split_first().map_or(("", &[][..]), |(image, rest)| (*image, rest));
    let container = json!({"name": "c", "image": image, "args": arguments});
    let spec = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
        "containers": [container],
    });
    json!({"metadata": {"name": name}, "spec": spec})
}
