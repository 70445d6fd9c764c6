//! Connections and datagrams without number.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    time::{Duration, Instant},
};

use wasip2::{
    random::random::get_random_u64,
    sockets::{
        instance_network::instance_network,
        ip_name_lookup::resolve_addresses,
        network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress},
        tcp_create_socket::create_tcp_socket,
    },
};

use crate::hold;

/// More than a datagram may have beside it in a frame, and enough to be felt.
const DATAGRAM_BYTES: usize = 32 * 1024;

/// Between two datagrams that ask for an answer, between two looks for one, and how long the last is waited for.
const PING_PAUSE: Duration = Duration::from_millis(10);
const PING_POLL: Duration = Duration::from_millis(1);
const PING_PATIENCE: Duration = Duration::from_secs(1);

/// Opens connections, and sends on each as much as is taken at once.
pub fn connect(address: &str, count: usize) {
    open(count, || TcpStream::connect(address).and_then(stuffed));
}

/// Opens connections, and says nothing.
pub fn silent(address: &str, count: usize) {
    open(count, || TcpStream::connect(address));
}

fn open(count: usize, one: impl Fn() -> io::Result<TcpStream>) {
    let mut held = Vec::new();
    let mut error = None;
    while held.len() < count && error.is_none() {
        match one() {
            Ok(stream) => held.push(stream),
            Err(failed) => error = Some(failed.kind()),
        }
    }
    let why = error.map(|kind| format!(", then {kind:?}")).unwrap_or_default();
    hold(&format!("holds {} connections{why}", held.len()), held);
}

fn stuffed(mut stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    loop {
        match stream.write(&[b'x'; 64 * 1024]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(stream),
            Err(error) => return Err(error),
        }
    }
}

/// A datagram from each of so many ports, again and again.
pub fn flows(address: &str, count: usize) {
    let to = address.to_socket_addrs().expect("an address").next().expect("one at least");
    loop {
        let sent = |_| UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", to)).is_ok();
        let number = (0..count).filter(|it| sent(*it)).count();
        println!("sent from {number} ports");
    }
}

/// To sockets that nobody receives from.
pub fn datagrams(receivers: usize) {
    let bind = || UdpSocket::bind("127.0.0.1:0");
    let receivers: Vec<_> = (0..receivers).map_while(|_| bind().ok()).collect();
    let to: Vec<_> = receivers.iter().map(|socket| socket.local_addr().expect("bound")).collect();
    println!("sends to {} sockets", receivers.len());
    let sender = bind().expect("a socket");
    for address in to.iter().cycle() {
        // What is dropped was not kept.
        let _ = sender.send_to(&[0; DATAGRAM_BYTES], address);
    }
}

/// Accepts, and reads nothing.
pub fn sink(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("a free port");
    println!("accepts");
    let mut held = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        held.push(stream);
    }
    hold(&format!("accepted {}", held.len()), held);
}

/// Listens, and accepts nobody.
pub fn deaf(port: u16) {
    hold("listens", TcpListener::bind(("0.0.0.0", port)).expect("a free port"));
}

/// Agrees to every upgrade, and is silent from then on; other requests are answered.
pub fn upgrade(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("a free port");
    println!("upgrades");
    let mut held = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        // Whoever sends no whole head is let go.
        held.extend(upgrade_one(stream).ok().flatten());
    }
}

fn upgrade_one(mut stream: TcpStream) -> io::Result<Option<TcpStream>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 4096];
        match stream.read(&mut piece)? {
            0 => return Ok(None),
            length => head.extend(&piece[..length]),
        }
    }
    if !String::from_utf8_lossy(&head).to_lowercase().contains("\r\nupgrade:") {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
        return Ok(None);
    }
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )?;
    Ok(Some(stream))
}

/// Small datagrams as fast as they are taken.
pub fn flood(address: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    println!("floods {address}");
    loop {
        // What is dropped did not arrive.
        let _ = socket.send_to(b"x", address);
    }
}

/// Sends back what comes.
pub fn echo(port: u16) {
    let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a free port");
    println!("echoes");
    let mut datagram = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut datagram) {
        // Who went away needs no answer.
        let _ = socket.send_to(&datagram[..length], from);
    }
}

/// One datagram each 10 ms: how many were answered within a second, and the slowest.
pub fn ping(address: &str, count: usize) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_nonblocking(true).expect("not blocking");
    let (begun, mut sent, mut answered, mut worst) = (Instant::now(), Vec::new(), 0, Duration::ZERO);
    while sent.len() < count || sent.last().is_some_and(|last: &Instant| last.elapsed() < PING_PATIENCE) {
        if sent.len() < count && begun.elapsed() >= PING_PAUSE * sent.len() as u32 {
            // What is dropped is not answered.
            let _ = socket.send_to(&(sent.len() as u32).to_be_bytes(), address);
            sent.push(Instant::now());
        }
        let mut number = [0; 4];
        match socket.recv_from(&mut number) {
            Ok(_) => {
                let waited = sent[u32::from_be_bytes(number) as usize].elapsed();
                (answered, worst) = (answered + 1, worst.max(waited));
                if answered == count {
                    break;
                }
            }
            Err(_) => std::thread::sleep(PING_POLL),
        }
    }
    println!("{answered} of {count} answered, the slowest in {} ms", worst.as_millis());
}

/// Asks for so many names at once, each new, again and again.
pub fn lookup(zone: &str, count: usize) {
    let (network, own) = (instance_network(), get_random_u64());
    for round in 0_u64.. {
        let name = |number| format!("n{number}-{round}-{own:x}.{zone}");
        let asked: Vec<_> =
            (0..count).filter_map(|number| resolve_addresses(&network, &name(number)).ok()).collect();
        for stream in asked {
            stream.subscribe().block();
            // There is none.
            let _ = stream.resolve_next_address();
        }
        println!("asked {round} times for {count} names");
    }
}

/// One name after the other: how many were found, and the slowest.
pub fn names(zone: &str, count: usize) {
    let (mut found, mut worst) = (0, Duration::ZERO);
    for number in 0..count {
        let begun = Instant::now();
        found += usize::from((format!("n{number}.{zone}"), 80).to_socket_addrs().is_ok());
        worst = worst.max(begun.elapsed());
    }
    println!("found {found} of {count} names, the slowest in {} ms", worst.as_millis());
}

/// Speaks to `to` as if it were `from`.
pub fn claim(from: &str, to: &str) {
    let udp = UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"x", to));
    let udp = udp.map_or_else(|error| format!("{:?}", error.kind()), |_| "sent".into());
    let tcp = claim_tcp(from, to).map_or_else(|code| code.name(), |()| "made");
    println!("as {from}: a datagram {udp}, a connection {tcp}");
}

fn claim_tcp(from: &str, to: &str) -> Result<(), ErrorCode> {
    let (network, socket) = (instance_network(), create_tcp_socket(IpAddressFamily::Ipv4)?);
    socket.start_bind(&network, ipv4(&format!("{from}:0")))?;
    socket.subscribe().block();
    socket.finish_bind()?;
    socket.start_connect(&network, ipv4(to))?;
    socket.subscribe().block();
    socket.finish_connect().map(drop)
}

fn ipv4(text: &str) -> IpSocketAddress {
    let address: SocketAddrV4 = match text.parse() {
        Ok(SocketAddr::V4(address)) => address,
        _ => panic!("{text} is no IPv4 address and port"),
    };
    let [a, b, c, d] = address.ip().octets();
    IpSocketAddress::Ipv4(Ipv4SocketAddress { port: address.port(), address: (a, b, c, d) })
}
