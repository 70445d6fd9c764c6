//! What sockets of WASI 0.3 do in a pod, as lines on stdout.

use futures::join;
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket, UdpSocket,
};
use wasip3::wit_stream;

struct Sockets;

wasip3::cli::command::export!(Sockets);

const LOOPBACK: (u8, u8, u8, u8) = (127, 0, 0, 1);

fn address(port: u16) -> IpSocketAddress {
    IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: LOOPBACK })
}

fn port(address: IpSocketAddress) -> u16 {
    match address {
        IpSocketAddress::Ipv4(address) => address.port,
        IpSocketAddress::Ipv6(address) => address.port,
    }
}

fn tcp() -> TcpSocket {
    TcpSocket::create(IpAddressFamily::Ipv4).unwrap()
}

/// Reads until the peer ends.
async fn read_all(socket: &TcpSocket) -> (Vec<u8>, Result<(), ErrorCode>) {
    let (stream, end) = socket.receive();
    let bytes = stream.collect().await;
    (bytes, end.await)
}

/// Writes and half-closes.
async fn write_all(socket: &TcpSocket, bytes: Vec<u8>) -> (usize, Result<(), ErrorCode>) {
    let (mut sender, receiver) = wit_stream::new();
    let sent = socket.send(receiver);
    let (left, end) = join!(
        async move {
            let left = sender.write_all(bytes).await;
            drop(sender);
            left.len()
        },
        async move { sent.await }
    );
    (left, end)
}

async fn streams() {
    const TOTAL: usize = 3 * 1024 * 1024;
    let listener = tcp();
    listener.bind(address(0)).unwrap();
    let mut accepted = listener.listen().unwrap();
    let here = listener.get_local_address().unwrap();
    println!("listening: {}", listener.get_is_listening());
    let client = tcp();
    let (connected, server) = join!(client.connect(here), accepted.next());
    println!("connected: {connected:?}");
    let server = server.unwrap();
    println!(
        "peers agree: {}",
        port(server.get_remote_address().unwrap()) == port(client.get_local_address().unwrap())
    );
    let (sent, (received, received_end), echoed, sent_back) = join!(
        write_all(&client, vec![7; TOTAL]),
        read_all(&server),
        read_all(&client),
        write_all(&server, b"answer".to_vec()),
    );
    println!("sent all but {} and it ended {:?}", sent.0, sent.1);
    println!("received {} and it ended {received_end:?}", received.len());
    println!("answered {:?}: {}, {:?}", sent_back, String::from_utf8_lossy(&echoed.0), echoed.1);
    let again = client.receive();
    println!("a second receive: {:?}", again.1.await);
}

async fn refusals() {
    println!("connect to a closed port: {:?}", tcp().connect(address(9)).await);
    let (one, two) = (tcp(), tcp());
    one.bind(address(80)).unwrap();
    println!("bind to a taken port: {:?}", two.bind(address(80)));
    println!("hop limit of zero: {:?}", one.set_hop_limit(0));
    let client = tcp();
    let listener = tcp();
    let mut accepted = listener.listen().unwrap();
    let here = address(port(listener.get_local_address().unwrap()));
    let (connected, server) = join!(client.connect(here), accepted.next());
    connected.unwrap();
    drop(server);
    let (first, end) = write_all(&client, vec![1; 1024 * 1024]).await;
    println!("to a peer that is gone, something is left: {}, and it ended {end:?}", first > 0);
}

async fn datagrams() {
    let (one, two) = (
        UdpSocket::create(IpAddressFamily::Ipv4).unwrap(),
        UdpSocket::create(IpAddressFamily::Ipv4).unwrap(),
    );
    one.bind(address(53)).unwrap();
    let (sent, received) = join!(two.send(b"hello".to_vec(), Some(address(53))), one.receive());
    let (payload, from) = received.unwrap();
    println!("datagram {sent:?}: {}", String::from_utf8_lossy(&payload));
    one.send(b"back".to_vec(), Some(from)).await.unwrap();
    two.connect(address(53)).unwrap();
    println!("answer: {:?}", two.receive().await.map(|(payload, _)| payload));
    two.connect(address(54)).unwrap();
    println!(
        "to a closed port: {:?}, then {:?}",
        two.send(b"x".to_vec(), None).await,
        two.receive().await.map(|_| ())
    );
}

impl wasip3::exports::cli::run::Guest for Sockets {
    async fn run() -> Result<(), ()> {
        streams().await;
        refusals().await;
        datagrams().await;
        println!("localhost: {:?}", resolve_addresses("localhost".into()).await);
        println!("nobody: {:?}", resolve_addresses("nobody".into()).await);
        Ok(())
    }
}
