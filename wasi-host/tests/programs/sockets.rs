//! Prints what sockets do, in words that must be the same natively on Linux and as a guest in a pod.
//! Compiled by the test that runs it both ways.

use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

fn show<T: Debug>(what: &str, result: io::Result<T>) {
    match result {
        Ok(value) => println!("{what}: {value:?}"),
        Err(error) => println!("{what}: {:?}", error.kind()),
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listen();
    let client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// An address where nobody listens.
fn closed() -> SocketAddr {
    listen().1
}

fn read(stream: &mut TcpStream) -> io::Result<String> {
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn connecting() {
    show("connect to a closed port", TcpStream::connect(closed()).map(drop));
    show(
        "connect with a timeout to a closed port",
        TcpStream::connect_timeout(&closed(), Duration::from_secs(5)).map(drop),
    );
    let (listener, address) = listen();
    let client = TcpStream::connect(address);
    show("connect before the accept", client.as_ref().map(drop).map_err(|error| error.kind().into()));
    let client = client.unwrap();
    let (server, peer) = listener.accept().unwrap();
    println!("peer seen by the listener is the client: {}", peer == client.local_addr().unwrap());
    println!("both ends agree: {}", server.local_addr().unwrap() == client.peer_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    show("accept with nobody there", listener.accept().map(drop));
}

fn binding() {
    let (listener, address) = listen();
    show("bind to a taken port", TcpListener::bind(address).map(drop));
    show(
        "bind all addresses to a port taken on one",
        TcpListener::bind(("0.0.0.0", address.port())).map(drop),
    );
    show("bind to a foreign address", TcpListener::bind("192.0.2.1:0").map(drop));
    let client = TcpStream::connect(address).unwrap();
    let server = listener.accept().unwrap();
    drop((client, server, listener));
    show("bind again at once", TcpListener::bind(address).map(drop));
    let all = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = all.local_addr().unwrap().port();
    show("loopback reaches a listener on all addresses", TcpStream::connect(("127.0.0.1", port)).map(drop));
    show("another loopback address as well", TcpStream::connect(("127.9.8.7", port)).map(drop));
}

fn closing() {
    let (mut client, mut server) = pair();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    show("read what came before a half-close", read(&mut server));
    show("read the half-close", read(&mut server));
    show("answer after it", server.write_all(b"answer"));
    show("read the answer", read(&mut client));
    show("write after the own half-close", client.write(b"x"));

    let (mut client, server) = pair();
    drop(server);
    show("read after the peer closed", read(&mut client));
    show("first write after the peer closed", client.write(b"a"));
    show("second write after the peer closed", client.write(b"b"));

    let (mut client, mut server) = pair();
    server.write_all(b"greeting").unwrap();
    client.write_all(b"never read").unwrap();
    drop(server);
    show("read what came before a reset", read(&mut client));

    let (mut client, server) = pair();
    server.shutdown(Shutdown::Read).unwrap();
    show("first write to one that shut reading down", client.write(b"a"));
    show("second write to one that shut reading down", client.write(b"b"));

    let (listener, address) = listen();
    let mut client = TcpStream::connect(address).unwrap();
    drop(listener);
    println!(
        "a dropped backlog ends its connections: {}",
        !matches!(read(&mut client), Ok(text) if !text.is_empty())
    );
}

fn waiting() {
    let (mut client, mut server) = pair();
    client.set_nonblocking(true).unwrap();
    show("read with nothing there", read(&mut client));
    let block = [7; 64 * 1024];
    let mut written = 0;
    let full = loop {
        match client.write(&block) {
            Ok(length) => written += length,
            Err(error) => break error.kind(),
        }
    };
    println!("write with no room: {full:?}, after some: {}", written >= 64 * 1024);
    client.set_nonblocking(false).unwrap();
    let mut left = written;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        left -= server.read(&mut buffer).unwrap();
    }
    show("write with room again", client.write(b"x"));
}

fn datagrams() {
    let (one, two) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut buffer = [0; 64];
    show("send to a socket", one.send_to(b"hello", two.local_addr().unwrap()));
    let (length, from) = two.recv_from(&mut buffer).unwrap();
    println!("received {length} bytes from the sender: {}", from == one.local_addr().unwrap());
    show("send an empty one", two.send_to(b"", from));
    show("receive an empty one", one.recv_from(&mut buffer).map(|(length, _)| length));
    let nowhere = {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    show("send to a closed port", one.send_to(b"hello", nowhere));
    one.connect(nowhere).unwrap();
    show("send connected to a closed port", one.send(b"hello"));
    show("receive after that", one.recv(&mut buffer));
    one.set_nonblocking(true).unwrap();
    show("receive with nothing there", one.recv(&mut buffer));
    show("bind to a taken UDP port", UdpSocket::bind(two.local_addr().unwrap()).map(drop));
}

fn names() {
    let localhost =
        ("localhost", 80).to_socket_addrs().map(|mut all| all.any(|address| address.ip().is_loopback()));
    show("localhost is loopback", localhost);
    let literal = "10.1.2.3:4".to_socket_addrs().map(|all| all.collect::<Vec<_>>());
    show("an address is itself", literal);
}

fn main() {
    connecting();
    binding();
    closing();
    waiting();
    datagrams();
    names();
}
