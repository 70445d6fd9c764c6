//! Clients of a node's doors that are not of HTTP alone: node ports, upgraded connections, the fabric.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    CONNECTIONS, CORE, FLOOD, POLL, Stage,
    guests::container,
    web::{Web, connect, hold_one},
};
use crate::process::Usage;

/// Longer than a node takes to notice that a client is gone: what is answered for a component that does not comes after
/// 60 s, and waits for its acknowledgement as long again. A connection that is idle is given up sooner.
const NOTICED: Duration = Duration::from_secs(140);
/// Until the port of a Service is there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Open files that come and go with the other user's requests and pods.
const OTHERS_FILES: usize = 10;
const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\n";
/// What a TLS 1.3 client begins with: a handshake record that claims 512 bytes, of which some come.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// Several node ports of one guest that listens and accepts nobody.
pub async fn deaf(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.start(&rest, "deaf", container(&["deaf", "7"])).await?;
    stage.address(&rest, "deaf").await?;
    let mut holding = JoinSet::new();
    for number in 0..8 {
        let spec = json!({"type": "NodePort", "selector": {"app": "deaf"}, "ports": [{"port": 7}]});
        let service = json!({"metadata": {"name": format!("deaf-{number}")}, "spec": spec});
        let made = stage.post(&rest, CORE, "services", &service).await?;
        let port = made["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
        let address = format!("127.0.0.1:{port}");
        let begun = Instant::now();
        while connect(&address).await.is_err() {
            ensure!(begun.elapsed() < PATIENCE, "node port {port} is not there");
            sleep(POLL).await;
        }
        for _ in 0..400 {
            if let Ok(stream) = connect(&address).await {
                holding.spawn(hold_one(stream, b"x".to_vec(), b""));
            }
        }
    }
    let made = holding.len();
    sleep(FLOOD).await;
    let mut stand = made;
    while holding.try_join_next().is_some() {
        stand -= 1;
    }
    Ok(format!("{stand} of {made} stand"))
}

/// A guest of sockets behind both doors, whose connections are upgraded and silent from then on.
pub async fn upgrades(stage: Stage) -> Result<String> {
    let web = Web::of(&stage, container(&["upgrade", "80"])).await?;
    let head = web.head("GET", "/", UPGRADE);
    web.hold(700, head, b"").await
}

/// Idle, in a request that is never answered, and in one that asks for an upgrade.
pub async fn vanished(stage: Stage) -> Result<String> {
    let web = Web::start(&stage).await?;
    let heads = [Vec::new(), web.head("GET", "/never", ""), web.head("GET", "/never", UPGRADE)];
    vanish(&stage, &web, &heads, false).await
}

/// Of a guest of sockets that agrees to them.
pub async fn vanished_upgrades(stage: Stage) -> Result<String> {
    let web = Web::of(&stage, container(&["upgrade", "80"])).await?;
    let head = web.head("GET", "/", UPGRADE);
    vanish(&stage, &web, &[head], true).await
}

/// 300 clients of both doors, of a network that is cut off while they are connected: nothing tells the node. The answer is
/// when its open files were as before.
async fn vanish(stage: &Stage, web: &Web, heads: &[Vec<u8>], answered: bool) -> Result<String> {
    let network = stage.outside.as_ref().context("a machine outside")?;
    let open_files = || anyhow::Ok(Usage::of(stage.node)?.descriptors);
    let before = open_files()?;
    let mut open = Vec::new();
    for door in [&web.gateway, &web.port] {
        let door: SocketAddr = door.parse()?;
        for head in heads {
            for stream in network.connect(door, 150 / heads.len())? {
                let mut stream = TcpStream::from_std(stream)?;
                stream.write_all(head).await?;
                open.push(stream);
            }
        }
    }
    // Only once all have asked: a guest that answers one after the other may begin with any of them.
    for stream in open.iter_mut().filter(|_| answered) {
        let answer = timeout(PATIENCE, stream.read(&mut [0; 1024])).await;
        ensure!(matches!(answer, Ok(Ok(1..))), "an upgrade is not answered: {answer:?}");
    }
    sleep(FLOOD).await;
    let (count, during) = (open.len(), open_files()?);
    network.vanish()?;
    drop(open);
    let begun = Instant::now();
    let mut after = open_files()?;
    while after > before + OTHERS_FILES && begun.elapsed() < NOTICED {
        sleep(POLL).await;
        after = open_files()?;
    }
    let seconds = begun.elapsed().as_secs();
    Ok(format!(
        "{count} clients; open files {before}, with them {during}, {seconds} s after they vanished {after}"
    ))
}

/// Without a certificate, as fast as they are taken: each third says nothing, says what is no TLS, begins a handshake and
/// does not go on.
pub async fn handshakes(stage: Stage) -> Result<String> {
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..8 * CONNECTIONS {
        let fabric = stage.fabric.clone();
        clients.spawn(async move {
            let (mut made, mut ended) = (0, 0);
            while begun.elapsed() < FLOOD {
                let Ok(mut stream) = connect(&fabric).await else {
                    sleep(POLL).await;
                    continue;
                };
                made += 1;
                let said: &[u8] = [b"".as_slice(), &[0x55; 4096], CLIENT_HELLO][number % 3];
                let left = FLOOD.saturating_sub(begun.elapsed());
                // A connection that is refused is made anew.
                let _ = stream.write_all(said).await;
                let mut answer = [0; 1024];
                let read = async { while matches!(stream.read(&mut answer).await, Ok(1..)) {} };
                ended += usize::from(timeout(left, read).await.is_ok());
            }
            (made, ended)
        });
    }
    let (mut made, mut ended) = (0, 0);
    while let Some(each) = clients.join_next().await {
        let each = each?;
        (made, ended) = (made + each.0, ended + each.1);
    }
    Ok(format!("{made} connections, {ended} ended"))
}
