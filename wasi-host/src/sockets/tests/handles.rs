//! Socket handles in the resource table: children, drops, leaks.

use crate::ledger::{Holding, Ledger, NodeBounds};
use crate::net::{Isolated, Namespace, NamespaceConfig, NetLimits};
use crate::sockets::SocketCtxView;
use std::net::SocketAddr;
use std::sync::Arc;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, HostNetwork, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::bindings::sockets::{
    instance_network, ip_name_lookup, tcp, tcp_create_socket, udp, udp_create_socket,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, SocketError, StreamError, TcpSocket};

/// A store's table and a pod's namespace, without a store.
struct Guest {
    table: ResourceTable,
    namespace: Namespace,
}

impl Guest {
    fn new() -> Self {
        let config = NamespaceConfig {
            hostname: "guest".into(),
            tenant: "default".into(),
            addresses: vec!["10.128.0.5".parse().unwrap()],
            limits: NetLimits::default(),
        };
        Self { table: ResourceTable::new(), namespace: Namespace::new(config, Arc::new(Isolated)) }
    }

    fn view(&mut self) -> SocketCtxView<'_> {
        SocketCtxView { table: &mut self.table, namespace: &self.namespace }
    }

    fn network(&mut self) -> Resource<Network> {
        instance_network::Host::instance_network(&mut self.view()).unwrap()
    }

    fn tcp(&mut self) -> Resource<TcpSocket> {
        tcp_create_socket::Host::create_tcp_socket(&mut self.view(), IpAddressFamily::Ipv4).unwrap()
    }

    async fn listening(&mut self, address: &str) -> Resource<TcpSocket> {
        use tcp::HostTcpSocket as Tcp;
        let (socket, network) = (self.tcp(), self.network());
        let mut view = self.view();
        Tcp::start_bind(&mut view, again(&socket), again(&network), wasi(address)).await.unwrap();
        Tcp::finish_bind(&mut view, again(&socket)).unwrap();
        Tcp::start_listen(&mut view, again(&socket)).await.unwrap();
        Tcp::finish_listen(&mut view, again(&socket)).unwrap();
        HostNetwork::drop(&mut view, network).unwrap();
        socket
    }
}

fn again<T: 'static>(resource: &Resource<T>) -> Resource<T> {
    Resource::new_borrow(resource.rep())
}

fn wasi(address: &str) -> IpSocketAddress {
    address.parse::<SocketAddr>().expect("an address").into()
}

fn code(result: Result<impl Sized, SocketError>) -> ErrorCode {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.downcast().expect("an error code, not a trap"),
    }
}

#[tokio::test]
async fn tcp_from_bind_to_close() {
    use tcp::HostTcpSocket as Tcp;
    let mut guest = Guest::new();
    let server = guest.listening("127.0.0.1:80").await;
    assert_eq!(code(Tcp::accept(&mut guest.view(), again(&server))), ErrorCode::WouldBlock);

    let (client, network) = (guest.tcp(), guest.network());
    let mut view = guest.view();
    Tcp::start_connect(&mut view, again(&client), again(&network), wasi("127.0.0.1:80")).unwrap();
    let (client_in, client_out) = Tcp::finish_connect(&mut view, again(&client)).unwrap();
    let (accepted, server_in, server_out) = Tcp::accept(&mut view, again(&server)).unwrap();
    let client_local = Tcp::local_address(&mut view, again(&client)).unwrap();
    let seen = Tcp::remote_address(&mut view, again(&accepted)).unwrap();
    assert_eq!(SocketAddr::from(client_local), SocketAddr::from(seen));

    let out: &mut DynOutputStream = guest.table.get_mut(&client_out).unwrap();
    assert!(matches!(out.write("early".into()), Err(StreamError::Trap(_))), "a write needs a permit");
    assert_eq!(out.check_write().unwrap(), 64 * 1024);
    out.write("hello".into()).unwrap();
    let input: &mut DynInputStream = guest.table.get_mut(&server_in).unwrap();
    input.ready().await;
    assert_eq!(&input.read(100).unwrap()[..], b"hello");
    assert!(input.read(100).unwrap().is_empty());

    let mut view = guest.view();
    Tcp::shutdown(&mut view, again(&client), tcp::ShutdownType::Send).unwrap();
    let input: &mut DynInputStream = guest.table.get_mut(&server_in).unwrap();
    assert!(matches!(input.read(100), Err(StreamError::Closed)));

    // The streams go first: they are children of their sockets.
    assert!(Tcp::drop(&mut guest.view(), Resource::new_own(client.rep())).is_err());
    guest.table.delete(client_in).unwrap();
    guest.table.delete(client_out).unwrap();
    guest.table.delete(server_in).unwrap();
    guest.table.delete(server_out).unwrap();
    for socket in [client, accepted, server] {
        Tcp::drop(&mut guest.view(), Resource::new_own(socket.rep())).unwrap();
    }
    HostNetwork::drop(&mut guest.view(), network).unwrap();
    assert!(guest.table.is_empty());
    assert_eq!(guest.namespace.sockets(), 0);
}

#[tokio::test]
async fn dropping_the_table_frees_the_network() {
    let mut guest = Guest::new();
    let _server = guest.listening("0.0.0.0:80").await;
    assert_eq!(guest.namespace.sockets(), 1);
    guest.table = ResourceTable::new();
    assert_eq!(guest.namespace.sockets(), 0);
}

#[tokio::test]
async fn wrong_states_and_addresses_are_errors_not_traps() {
    use tcp::HostTcpSocket as Tcp;
    let mut guest = Guest::new();
    let _taken = guest.listening("0.0.0.0:80").await;
    let (socket, network) = (guest.tcp(), guest.network());
    let mut view = guest.view();
    let bind = async |view: &mut SocketCtxView<'_>, address: &str| {
        code(Tcp::start_bind(view, again(&socket), again(&network), wasi(address)).await)
    };
    assert_eq!(code(Tcp::start_listen(&mut view, again(&socket)).await), ErrorCode::InvalidState);
    assert_eq!(code(Tcp::finish_bind(&mut view, again(&socket))), ErrorCode::NotInProgress);
    assert_eq!(bind(&mut view, "127.0.0.1:80").await, ErrorCode::AddressInUse);
    assert_eq!(bind(&mut view, "192.0.2.1:80").await, ErrorCode::AddressNotBindable);
    assert_eq!(bind(&mut view, "[::1]:80").await, ErrorCode::InvalidArgument);
    assert_eq!(bind(&mut view, "224.0.0.1:80").await, ErrorCode::InvalidArgument);
    for remote in ["0.0.0.0:80", "127.0.0.1:0", "255.255.255.255:1", "[::1]:80"] {
        let connect = Tcp::start_connect(&mut view, again(&socket), again(&network), wasi(remote));
        assert_eq!(code(connect), ErrorCode::InvalidArgument, "{remote}");
    }
    Tcp::start_connect(&mut view, again(&socket), again(&network), wasi("127.0.0.1:81")).unwrap();
    assert_eq!(code(Tcp::finish_connect(&mut view, again(&socket))), ErrorCode::ConnectionRefused);
    assert_eq!(code(Tcp::set_hop_limit(&mut view, again(&socket), 0)), ErrorCode::InvalidArgument);
    Tcp::set_hop_limit(&mut view, again(&socket), 12).unwrap();
    assert_eq!(Tcp::hop_limit(&mut view, again(&socket)).unwrap(), 12);
}

#[tokio::test]
async fn udp_sends_and_receives() {
    use udp::{HostIncomingDatagramStream as In, HostOutgoingDatagramStream as Out, HostUdpSocket as Udp};
    let mut guest = Guest::new();
    let network = guest.network();
    let mut view = guest.view();
    let mut sockets = Vec::new();
    for address in ["127.0.0.1:1000", "0.0.0.0:0"] {
        let socket =
            udp_create_socket::Host::create_udp_socket(&mut view, IpAddressFamily::Ipv4).await.unwrap();
        assert_eq!(code(Udp::stream(&mut view, again(&socket), None).await), ErrorCode::InvalidState);
        Udp::start_bind(&mut view, again(&socket), again(&network), wasi(address)).await.unwrap();
        Udp::finish_bind(&mut view, again(&socket)).unwrap();
        sockets.push(socket);
    }
    let (server_in, server_out) = Udp::stream(&mut view, again(&sockets[0]), None).await.unwrap();
    let (_, client_out) =
        Udp::stream(&mut view, again(&sockets[1]), Some(wasi("127.0.0.1:1000"))).await.unwrap();
    assert_eq!(Out::check_send(&mut view, again(&client_out)).unwrap(), 16);
    let datagram = |remote_address| udp::OutgoingDatagram { data: b"hi".to_vec(), remote_address };
    assert_eq!(Out::send(&mut view, again(&client_out), vec![datagram(None), datagram(None)]).unwrap(), 2);
    let received = In::receive(&mut view, again(&server_in), 100).unwrap();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].data, b"hi");
    Out::check_send(&mut view, again(&server_out)).unwrap();
    let elsewhere = Out::send(&mut view, again(&server_out), vec![datagram(None)]);
    assert_eq!(code(elsewhere), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn names_come_one_by_one() {
    use ip_name_lookup::{Host, HostResolveAddressStream};
    let mut guest = Guest::new();
    let network = guest.network();
    let mut view = guest.view();
    let lookup = Host::resolve_addresses(&mut view, again(&network), "localhost".into()).unwrap();
    let first = view.resolve_next_address(again(&lookup)).unwrap();
    assert!(first.is_some());
    assert!(view.resolve_next_address(again(&lookup)).unwrap().is_none());
    let unknown = Host::resolve_addresses(&mut view, again(&network), "nowhere".into());
    assert_eq!(code(unknown), ErrorCode::NameUnresolvable);
}

#[tokio::test]
async fn addresses_that_a_guest_has_not_read_are_the_pods() {
    let bounds = NodeBounds { memory: None, heap: 1 << 20, files: 0, files_guaranteed: 0 };
    let account = Ledger::new(bounds).pod(&"default".into(), None);
    let guest = Guest::new();
    guest.namespace.charge_to(&account);
    let before = account.held(Holding::Heap);
    let (addresses, charge) = crate::sockets::resolve(&guest.namespace, "guest").await.unwrap();
    assert_eq!(account.held(Holding::Heap) - before, std::mem::size_of_val(addresses.as_slice()) as u64);
    drop(charge);
    assert_eq!(account.held(Holding::Heap), before);
}
