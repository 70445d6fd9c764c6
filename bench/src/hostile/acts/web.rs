//! The hostile user's web server, and what clients do to it, to its node port and to the gateway.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::FutureExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{APPS, Answers, CONNECTIONS, CORE, FLOOD, INGRESSES, Stage, guests::container, workload};
use crate::hostile::{NODE, bystander::ask};

/// The image of `sample-workloads/hostile-http`.
pub const SERVER: &str = "hostile/server:1";
const NAME: &str = "web";
/// Where hostile clients come from.
const HOSTILE_CLIENTS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 0);
/// Between two bytes of a slow client.
const SLOW: Duration = Duration::from_millis(500);
/// Between two requests of the other client.
const ASK_PAUSE: Duration = Duration::from_millis(20);
/// Until the server answers.
const PATIENCE: Duration = Duration::from_secs(40);

/// Where it is reached.
pub struct Web {
    pub gateway: String,
    pub port: String,
    /// What the gateway knows it by.
    host: String,
}

impl Web {
    /// Of one pod on the other user's node; returns once the gateway knows it.
    pub async fn start(stage: &Stage) -> Result<Self> {
        Self::of(stage, json!({"name": "c", "image": SERVER, "ports": [{"containerPort": 80}]})).await
    }

    /// The same of a container that serves port 80, and has an emptyDir `data`.
    pub async fn of(stage: &Stage, container: Value) -> Result<Self> {
        let rest = stage.client.rest().await?;
        let mut object = workload("Deployment", NAME, 1);
        let spec = &mut object["spec"]["template"]["spec"];
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": NODE});
        spec["containers"] = json!([container]);
        spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        stage.post(&rest, APPS, "deployments", &object).await?;
        let spec = json!({"type": "NodePort", "selector": {"app": NAME}, "ports": [{"port": 80}]});
        let service = json!({"metadata": {"name": NAME}, "spec": spec});
        let made = stage.post(&rest, CORE, "services", &service).await?;
        let port = made["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
        let host = format!("{NAME}.localhost");
        let backend = json!({"service": {"name": NAME, "port": {"number": 80}}});
        let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
        let rules = json!([{"host": host, "http": {"paths": [path]}}]);
        let ingress = json!({"metadata": {"name": NAME}, "spec": {"rules": rules}});
        stage.post(&rest, INGRESSES, "ingresses", &ingress).await?;
        let web = Self {
            gateway: stage.gateway.clone(),
            port: format!("{}:{port}", stage.address_of_node()?),
            host,
        };
        let begun = Instant::now();
        while !matches!(ask(&web.gateway, NAME).await, Ok(200))
            || !matches!(ask(&web.port, NAME).await, Ok(200))
        {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "the hostile server does not answer");
            sleep(SLOW).await;
        }
        Ok(web)
    }

    pub fn head(&self, method: &str, path: &str, fields: &str) -> Vec<u8> {
        format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{fields}\r\n", self.host).into()
    }

    /// So many connections to each door, on which this is sent, and then a byte now and then; nothing is read. What
    /// stands of them in the end, and what another client gets meanwhile.
    pub async fn hold(&self, count: usize, first: Vec<u8>, drip: &'static [u8]) -> Result<String> {
        let mut holding = JoinSet::new();
        for address in [&self.gateway, &self.port] {
            for _ in 0..count {
                if let Ok(stream) = connect(address).await {
                    holding.spawn(hold_one(stream, first.clone(), drip));
                }
            }
        }
        let answers = self.asked().await;
        let mut stand = holding.len();
        while holding.try_join_next().is_some() {
            stand -= 1;
        }
        Ok(format!("{stand} of {} stand; another client: {answers}", 2 * count))
    }

    /// What another client of the hostile user's server gets, for as long as a flood takes. By the gateway: to what is
    /// behind a node port all clients of this machine are one.
    pub async fn asked(&self) -> String {
        let mut answers = Answers::default();
        let begun = Instant::now();
        while begun.elapsed() < FLOOD {
            let asked = timeout(Duration::from_secs(1), ask(&self.gateway, NAME));
            answers.add(asked.await.context("no answer").and_then(|it| it));
            sleep(ASK_PAUSE).await;
        }
        answers.say()
    }
}

/// From an address of the hostile clients' own: to who listens, they are not the other user.
pub async fn connect(address: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(HOSTILE_CLIENTS)?;
    Ok(socket.connect(address.parse()?).await?)
}

/// Ends when the other side does, as far as that shows without reading.
pub async fn hold_one(mut stream: TcpStream, first: Vec<u8>, drip: &[u8]) {
    let mut sent = stream.write_all(&first).await;
    while sent.is_ok() {
        sleep(SLOW).await;
        if matches!(stream.peek(&mut [0]).now_or_never(), Some(Ok(0) | Err(_))) {
            return;
        }
        sent = stream.write_all(drip).await;
    }
}

pub async fn silent(stage: Stage) -> Result<String> {
    Web::start(&stage).await?.hold(1500, Vec::new(), b"").await
}

pub async fn slow_heads(stage: Stage) -> Result<String> {
    let web = Web::start(&stage).await?;
    let mut head = web.head("GET", "/", "x: ");
    // Without the end of the last field and of the head.
    head.truncate(head.len() - 2);
    web.hold(1500, head, b"x").await
}

pub async fn slow_bodies(stage: Stage) -> Result<String> {
    let web = Web::start(&stage).await?;
    let head = web.head("POST", "/read", "content-length: 1000000\r\n");
    web.hold(700, head, b"x").await
}

/// So many requests to each door, of whose answers nothing is read.
async fn get(stage: &Stage, count: usize, path: &str) -> Result<String> {
    let web = Web::start(stage).await?;
    let head = web.head("GET", path, "");
    web.hold(count, head, b"").await
}

pub async fn unread(stage: Stage) -> Result<String> {
    get(&stage, 300, "/large").await
}

pub async fn never(stage: Stage) -> Result<String> {
    get(&stage, 500, "/never").await
}

pub async fn looping(stage: Stage) -> Result<String> {
    get(&stage, 100, "/spin").await
}

pub async fn endless(stage: Stage) -> Result<String> {
    get(&stage, 250, "/endless").await
}

pub async fn held_bodies(stage: Stage) -> Result<String> {
    get(&stage, 16, "/hold").await
}

/// Answers with large heads, in a closed loop.
pub async fn fields(stage: Stage) -> Result<String> {
    let web = Web::start(&stage).await?;
    let head = web.head("GET", "/fields", "connection: close\r\n");
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (head, address) = (head.clone(), web.gateway.clone());
        clients.spawn(async move {
            let mut bytes = 0;
            while begun.elapsed() < FLOOD {
                let mut stream = connect(&address).await?;
                stream.write_all(&head).await?;
                let mut answer = Vec::new();
                // A connection that is cut off counts by what came.
                let _ = stream.read_to_end(&mut answer).await;
                bytes += answer.len();
            }
            anyhow::Ok(bytes)
        });
    }
    let mut bytes = 0;
    while let Some(each) = clients.join_next().await {
        bytes += each??;
    }
    Ok(format!("{} MB of heads", bytes / 1_000_000))
}

/// From a guest, by the name of the Service.
pub async fn from_a_pod(stage: Stage) -> Result<String> {
    let web = Web::start(&stage).await?;
    let rest = stage.client.rest().await?;
    stage.start(&rest, "silent", container(&["silent", "web:80", "1500"])).await?;
    let own = web.asked().await;
    Ok(format!("another client: {own}{}", stage.said(&rest, "silent").await?))
}
