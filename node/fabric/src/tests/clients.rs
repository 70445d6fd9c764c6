//! Clients in the outside that are silent, many, gone or hold on: what each costs others.

use super::cluster::{Authority, Cluster, Pod, config, endpoint, ingress, pod, pod_in, pod_within, service};
use super::log::Log;
use crate::{Fabric, Name, NetworkState, RouteSource};
use coracle_wasi_host::descriptors::Descriptors;
use coracle_wasi_host::net::{NetLimits, UNSEEN};
use coracle_wasi_host::refusals::What;
use coracle_wasi_host::shares::Shares;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// So few files that a test can use them up: 32 for clients, 8 for tunnels.
const FILES: u64 = 64;

/// A cluster whose node a has few files.
async fn narrow() -> Cluster {
    let mut cluster = Cluster::new().await;
    let mut config = config("a", cluster.authority.node("a"));
    config.descriptors = Descriptors::within(Some(FILES));
    cluster.a = Fabric::start(config).await.unwrap();
    cluster.state.nodes.insert("a".into(), cluster.a.address().to_string());
    cluster.tell();
    cluster
}

/// Lets the host `web.local` lead to the service `web` of a pod, and gives the gateway.
fn route(cluster: &mut Cluster, to: &Pod) -> SocketAddr {
    cluster.state.services = vec![service("web", vec![endpoint(to.ip)])];
    cluster.state.routes = vec![ingress(&[("web.local", "/", "web")])];
    cluster.tell();
    cluster.a.gateway_address().unwrap()
}

/// Gives the first service a node port of node a.
async fn open_node_port(cluster: &mut Cluster) -> SocketAddr {
    open_node_port_of(&cluster.a, &mut cluster.state).await
}

async fn open_node_port_of(node: &Fabric, state: &mut NetworkState) -> SocketAddr {
    for _ in 0..5 {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        state.services[0].ports[0].node_port = Some(free.port());
        node.update(state.clone());
        // Another program may take the port before the node does.
        if TcpStream::connect(free).await.is_ok() {
            return free;
        }
    }
    panic!("no port is free");
}

/// Answers every request and every WebSocket on the pod's port 8080: the latter by what it is sent.
fn answer(pod: &Pod) {
    let listener = pod.listen();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(conn.read_u8().await?);
                }
                let upgrades = String::from_utf8_lossy(&head).to_lowercase().contains("upgrade: websocket");
                if !upgrades {
                    return conn.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
                let agreed =
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                conn.write_all(agreed).await?;
                let (mut read, mut write) = tokio::io::split(conn);
                tokio::io::copy(&mut read, &mut write).await.map(|_| ())
            });
        }
    });
}

async fn get(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web.local\r\nconnection: close\r\n\r\n").await?;
    let mut text = vec![0; 12];
    stream.read_exact(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Opens a WebSocket, and says something over it.
async fn web_socket(gateway: SocketAddr) -> std::io::Result<TcpStream> {
    upgraded(TcpStream::connect(gateway).await?).await
}

/// The same over a connection that is there.
async fn upgraded(mut stream: TcpStream) -> std::io::Result<TcpStream> {
    let asked = b"GET / HTTP/1.1\r\nhost: web.local\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(asked).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(std::io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    stream.write_all(b"echo").await?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await?;
    assert_eq!(&echo, b"echo");
    Ok(stream)
}

/// Asks until it is answered: what was closed for others takes a moment to go.
async fn comes_through<T>(mut ask: impl AsyncFnMut() -> std::io::Result<T>) -> T {
    let asking = async {
        loop {
            if let Ok(answer) = ask().await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("there is room again")
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let mut cluster = narrow().await;
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    let node_port = open_node_port(&mut cluster).await;
    for door in [gateway, node_port, cluster.a.address()] {
        let mut silent = Vec::new();
        for _ in 0..2 * FILES {
            // Where room is made too slowly one is refused.
            silent.extend(TcpStream::connect(door).await);
        }
        for to in [gateway, node_port] {
            assert_eq!(comes_through(async || get(to).await).await, "HTTP/1.1 200");
        }
        // Tunnels too: b has none to a yet, or the one it has.
        let here = pod(&cluster.a, "10.128.1.2");
        here.say("here");
        let to = SocketAddr::new(here.ip, 8080);
        let mut conn = comes_through(async || Ok(web.net.connect(to).await?)).await;
        assert_eq!(super::cluster::read_all(&mut conn).await.unwrap(), "here");
        drop(silent);
    }
}

#[tokio::test]
async fn silent_connections_of_one_port_keep_nobody_from_another() {
    let mut cluster = narrow().await;
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    let mut silent = Vec::new();
    // A port has at most half of the files for one client, so two have all of them.
    for name in ["one", "two", "three"] {
        let mut other = service(name, vec![endpoint(web.ip)]);
        other.addresses.clear();
        cluster.state.services.insert(0, other);
        let port = open_node_port(&mut cluster).await;
        for _ in 0..FILES {
            silent.extend(TcpStream::connect(port).await);
        }
    }
    assert_eq!(comes_through(async || get(gateway).await).await, "HTTP/1.1 200");
}

/// A connection from 127.0.0.`last`, which is a client of its own.
pub(super) async fn connect_from(last: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new([127, 0, 0, last].into(), 0))?;
    socket.connect(to).await
}

/// Waits until the node has as many clients.
async fn clients_become(node: &Fabric, wanted: usize) {
    let held = || node.held().into_iter().find(|(what, _)| *what == "descriptors of clients").unwrap().1;
    let waiting = async {
        while held() != wanted {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    assert!(waited.is_ok(), "{} and not {wanted}", held());
}

#[tokio::test]
async fn clients_of_a_service_that_never_accepts_keep_nobody_out() {
    let mut cluster = narrow().await;
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    // One on this node and one beyond a tunnel.
    for (name, node, ip) in [("near", &cluster.a, "10.128.1.3"), ("far", &cluster.b, "10.128.2.3")] {
        let stuck = pod_in("other", node, ip);
        let never_accepts = stuck.net.bind_tcp("0.0.0.0:8080".parse().unwrap()).unwrap().listen(1).unwrap();
        let mut other = service(name, vec![endpoint(stuck.ip)]);
        (other.namespace, other.addresses) = ("other".to_owned(), Vec::new());
        cluster.state.services.insert(0, other);
        cluster.tell();
        let node_port = open_node_port_of(&cluster.a, &mut cluster.state).await;
        let mut silent = Vec::new();
        for _ in 0..2 * FILES {
            silent.extend(TcpStream::connect(node_port).await);
        }
        assert_eq!(comes_through(async || get(gateway).await).await, "HTTP/1.1 200");
        // Nor does it matter for how long the service lets them wait, once they are gone.
        drop(silent);
        clients_become(&cluster.a, 0).await;
        drop(never_accepts);
    }
}

#[tokio::test]
async fn one_client_and_one_namespace_leave_descriptors_to_others() {
    let mut cluster = narrow().await;
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    let ours = open_node_port(&mut cluster).await;
    let taker = pod_in("other", &cluster.a, "10.128.1.3");
    let listener = taker.listen();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((conn, _)) = listener.accept().await {
            kept.push(conn);
        }
    });
    for clients in [vec![2], (2..50).collect()] {
        let mut ports = Vec::new();
        for name in ["one", "two", "three"] {
            let mut other = service(name, vec![endpoint(taker.ip)]);
            (other.namespace, other.addresses) = ("other".to_owned(), Vec::new());
            cluster.state.services.insert(0, other);
            ports.push(open_node_port_of(&cluster.a, &mut cluster.state).await);
        }
        let mut open = Vec::new();
        for (port, client) in ports.iter().flat_map(|port| clients.iter().map(move |client| (port, client))) {
            for _ in 0..FILES as usize / clients.len().min(8) {
                if let Ok(mut stream) = connect_from(*client, *port).await {
                    // Each is at work, and makes room for nobody.
                    let _ = stream.write_all(b"!").await;
                    open.push(stream);
                }
            }
        }
        for to in [gateway, ours] {
            assert_eq!(comes_through(async || get(to).await).await, "HTTP/1.1 200");
        }
        drop(open);
        cluster.state.services.retain(|service| service.namespace == "default");
        cluster.tell();
    }
}

#[tokio::test]
async fn clients_that_come_by_another_node_have_each_a_part_of_the_pod() {
    const SOCKETS: usize = 40;
    let mut cluster = Cluster::new().await;
    let limits = NetLimits { sockets_max: SOCKETS, ..NetLimits::default() };
    let web = pod_within(limits, "default", &cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    let node_port = open_node_port(&mut cluster).await;
    for door in [gateway, node_port] {
        let open = async |client| upgraded(connect_from(client, door).await?).await;
        let mut greedy = Vec::new();
        while let Ok(socket) = open(2).await {
            greedy.push(socket);
            assert!(greedy.len() < SOCKETS, "there is no bound");
        }
        assert!(greedy.len() >= SOCKETS / 4, "{}", greedy.len());
        let another = open(3).await;
        assert!(another.is_ok(), "{another:?} beside {}", greedy.len());
        drop((greedy, another));
        // What they had is given back when the pod has noticed.
        comes_through(async || open(2).await).await;
    }
}

#[tokio::test]
async fn requests_that_one_namespace_does_not_answer_leave_a_part_to_others() {
    const REQUESTS: usize = 8;
    let log = Log::keep();
    let mut cluster = Cluster::new().await;
    let mut config = config("a", cluster.authority.node("a"));
    config.gateway_requests = Shares::new(What::GatewayRequests, REQUESTS);
    cluster.a = Fabric::start(config).await.unwrap();
    cluster.state.nodes.insert("a".into(), cluster.a.address().to_string());
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    let stuck = pod_in("other", &cluster.b, "10.128.2.3");
    let _never_answers = stuck.listen();
    let mut other = service("stuck", vec![endpoint(stuck.ip)]);
    (other.namespace, other.addresses) = ("other".to_owned(), Vec::new());
    cluster.state.services.push(other);
    let (_, routes) = ingress(&[("stuck.local", "/", "stuck")]);
    cluster.state.routes.push((RouteSource::Ingress(Name::new("other", "stuck")), routes));
    cluster.tell();
    // As many clients as it takes: none of them is answered.
    let mut open = Vec::new();
    for (client, upgrade) in
        (2..20).flat_map(|client| [(client, ""), (client, "connection: upgrade\r\nupgrade: websocket\r\n")])
    {
        let mut stream = connect_from(client, gateway).await.unwrap();
        stream
            .write_all(format!("GET / HTTP/1.1\r\nhost: stuck.local\r\n{upgrade}\r\n").as_bytes())
            .await
            .unwrap();
        open.push(stream);
    }
    let refused = async {
        let mut text = Vec::new();
        while !text.windows(9).any(|words| words == b"its id is") || !text.ends_with(b"\n") {
            assert!(open.last_mut().unwrap().read_buf(&mut text).await.unwrap() > 0);
        }
        String::from_utf8(text).unwrap()
    };
    let refused = tokio::time::timeout(Duration::from_secs(60), refused).await;
    let refused = refused.expect("the last of them is refused");
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let (_, told) = refused.split_once("\r\n\r\n").expect("a head");
    let id =
        told.strip_prefix("503 the request cannot be answered now; its id is ").expect("no more").trim_end();
    assert!(refused.contains(&format!("x-request-id: {id}\r\n")), "{refused}");
    let words = "requests under way at the gateway: the namespace holds 4 of this node's 8 and may hold 4 by what is free";
    let lines = log.lines(id);
    assert!(matches!(&*lines, [line] if line.contains(&format!("namespace other: {words}"))), "{lines:?}");
    let told = cluster.a.inner().refusals().next().await;
    assert_eq!((&*told[0].holder.namespace, told[0].holder.pod), ("other", None));
    assert!(told.iter().any(|told| told.to_string().starts_with(words)), "{told:?}");
    assert_eq!(get(gateway).await.unwrap(), "HTTP/1.1 200");
}

#[tokio::test]
async fn a_client_of_a_websocket_that_vanishes_is_noticed_though_the_pod_reads_nothing() {
    let mut cluster = Cluster::new().await;
    let web = pod(&cluster.b, "10.128.2.2");
    let listener = web.listen();
    let gateway = route(&mut cluster, &web);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut conn, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(conn.read_u8().await.unwrap());
            }
            let agreed =
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            conn.write_all(agreed).await.unwrap();
            kept.push(conn);
        }
    });
    let mut client = TcpStream::connect(gateway).await.unwrap();
    let asked = b"GET / HTTP/1.1\r\nhost: web.local\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    client.write_all(asked).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    clients_become(&cluster.a, 1).await;
    let more = async { while client.write(&[0; 64 << 10]).await.is_ok() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), more).await;
    client.set_zero_linger().unwrap();
    drop(client);
    clients_become(&cluster.a, 0).await;
}

#[tokio::test]
async fn a_wish_for_a_websocket_that_no_guest_has_seen_is_tried_elsewhere() {
    let mut cluster = Cluster::new().await;
    let (web, stopping) = (pod(&cluster.b, "10.128.2.2"), pod(&cluster.b, "10.128.2.3"));
    answer(&web);
    let (listener, asked) = (stopping.listen(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(conn.read_u8().await.unwrap());
            }
            count.fetch_add(1, Ordering::SeqCst);
            let refusal = format!("HTTP/1.1 503 No\r\ncontent-length: 0\r\n{UNSEEN}: true\r\n\r\n");
            conn.write_all(refusal.as_bytes()).await.unwrap();
        }
    });
    let gateway = route(&mut cluster, &web);
    cluster.state.services[0].endpoints.push(endpoint(stopping.ip));
    cluster.tell();
    let mut open = Vec::new();
    while asked.load(Ordering::SeqCst) < 3 {
        open.push(web_socket(gateway).await.expect("the other endpoint agrees"));
        if open.len() > 5 {
            open.clear();
        }
    }
}

#[tokio::test]
async fn connections_that_were_upgraded_stay_within_the_bound() {
    let mut cluster = narrow().await;
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    // A half of the half that is for clients is one client's.
    let share = FILES as usize / 4;
    let mut open = Vec::new();
    while let Ok(socket) = web_socket(gateway).await {
        open.push(socket);
        assert!(open.len() <= share, "there is no bound");
    }
    assert_eq!(open.len(), share);
    assert!(get(gateway).await.is_err(), "none of them makes room");
    open.pop();
    assert_eq!(comes_through(async || get(gateway).await).await, "HTTP/1.1 200");
    cluster.a.shutdown();
    for mut socket in open {
        let ended = tokio::time::timeout(Duration::from_secs(60), socket.read_u8()).await;
        assert!(ended.expect("it ends with the gateway").is_err());
    }
}

/// Whether the kernel will ask the peer of a connection whether it is there: the timer of /proc/net/tcp.
fn is_attended(local: SocketAddr, remote: SocketAddr) -> bool {
    const KEEPALIVE: &str = "02:";
    let hex = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(&hex(local)) && fields.next() == Some(&hex(remote))
    });
    line.is_some_and(|line| line.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with(KEEPALIVE)))
}

#[tokio::test]
async fn peers_that_vanish_are_asked_for() {
    let mut cluster = Cluster::new().await;
    let web = pod(&cluster.b, "10.128.2.2");
    answer(&web);
    let gateway = route(&mut cluster, &web);
    let node_port = open_node_port(&mut cluster).await;
    let attended = |local: SocketAddr, remote: SocketAddr| async move {
        let waiting = async {
            // Until it has been accepted, and what was sent is acknowledged.
            while !is_attended(local, remote) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok()
    };
    for door in [gateway, node_port, cluster.a.address()] {
        let client = TcpStream::connect(door).await.unwrap();
        assert!(attended(door, client.local_addr().unwrap()).await, "{door}");
    }
    // To the outside: the API server's addresses are the only ones of this machine that pods may reach.
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = outside.local_addr().unwrap();
    let mut kubernetes = service("kubernetes", vec![endpoint(at.ip())]);
    kubernetes.addresses = vec!["10.96.0.1".parse().unwrap()];
    kubernetes.endpoints[0].ports = Arc::new(BTreeMap::from([("http".to_owned(), at.port())]));
    cluster.state.services.push(kubernetes);
    cluster.tell();
    let client = pod(&cluster.a, "10.128.1.9");
    let _conn = client.net.connect("10.96.0.1:80".parse().unwrap()).await.unwrap();
    let (_stream, from) = outside.accept().await.unwrap();
    assert!(attended(from, at).await);
}

#[tokio::test]
async fn pods_open_no_more_connections_to_the_outside_than_there_are_files_for() {
    let authority = Authority::new();
    let mut config = config("a", authority.node("a"));
    config.descriptors = Descriptors::within(Some(FILES));
    let node = Fabric::start(config).await.unwrap();
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = outside.local_addr().unwrap();
    let mut kubernetes = service("kubernetes", vec![endpoint(at.ip())]);
    kubernetes.endpoints[0].ports = Arc::new(BTreeMap::from([("http".to_owned(), at.port())]));
    node.update(crate::NetworkState { services: vec![kubernetes], ..crate::NetworkState::default() });
    let mut open = Vec::new();
    // One namespace has its share only; many take all that there is.
    for last in 2..=254 {
        let client = pod_in(&format!("n{last}"), &node, &format!("10.128.1.{last}"));
        while let Ok(conn) = client.net.connect(super::cluster::SERVICE.parse().unwrap()).await {
            open.push((conn, outside.accept().await.unwrap()));
            assert!(open.len() as u64 <= FILES, "there is no bound");
        }
    }
    assert_eq!(open.len() as u64, FILES / 4);
}
