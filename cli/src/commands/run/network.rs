//! What a component without a cluster has of the network: what it may reach, and where it is reached.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use coracle_wasi_host::net::{Conn, Isolated, Namespace, NetError, Uplink};
use futures::future::BoxFuture;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, lookup_host},
    sync::watch,
};

use super::ports::Ports;
use crate::output;

/// The component's address, of those that pods have.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 128, 0, 1));
/// How long a connect of the component may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are under way each way of a connection.
const PIPE_BYTES: usize = 256 * 1024;
/// How long a client waits for a component that listens, and how often that is looked for.
const LISTEN_PATIENCE: Duration = Duration::from_secs(10);
const LISTEN_POLL: Duration = Duration::from_millis(20);
/// After an accept has failed, for want of files above all.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All that this machine reaches, or nothing.
pub fn uplink(all: bool) -> Arc<dyn Uplink> {
    if all { Arc::new(Machine) } else { Arc::new(Isolated) }
}

/// This machine's own network. Datagrams do not leave the component.
struct Machine;

impl Uplink for Machine {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        Box::pin(async move {
            let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to));
            let stream =
                connect.await.map_err(|_| NetError::TimedOut)?.map_err(|error| NetError::from(&error))?;
            let (near, far) = Conn::pair(from, to, PIPE_BYTES);
            tokio::spawn(join(stream, far));
            Ok(near)
        })
    }

    fn resolve(&self, _from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        let name = name.to_owned();
        Box::pin(async move {
            let found = lookup_host((name, 0)).await.map_err(|_| NetError::NameUnknown)?;
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|found| found.ip()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() { Err(NetError::NameUnknown) } else { Ok(addresses) }
        })
    }

    fn send(&self, _from: SocketAddr, _to: SocketAddr, _payload: Bytes) -> Result<(), NetError> {
        Err(NetError::HostUnreachable)
    }
}

/// Carries bytes both ways until both have ended. Whichever end breaks, the other sees it.
async fn join(mut stream: TcpStream, mut conn: Conn) {
    if copy_bidirectional(&mut stream, &mut conn).await.is_err() {
        conn.reset();
        let _ = stream.set_zero_linger();
    }
}

/// Listeners of this machine, and the ports that they lead to.
pub struct Publications {
    listeners: Vec<(TcpListener, u16)>,
    serves_http: bool,
}

impl Publications {
    pub async fn listen(ports: &Ports) -> Result<Self> {
        let mut listeners = Vec::new();
        for (address, port) in &ports.published {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("listening at {address}; another port is had by `--port PORT:{port}`, and 0 is any that is free")
            })?;
            listeners.push((listener, *port));
        }
        Ok(Self { listeners, serves_http: ports.serves_http })
    }

    /// Says where they are, and serves them.
    pub fn serve(self, namespace: &Namespace) {
        self.serve_whichever(&watch::channel(Some(namespace.clone())).1);
    }

    /// The same of whichever namespace there is when a client comes. While there is none, clients wait.
    pub fn serve_whichever(self, namespace: &watch::Receiver<Option<Namespace>>) {
        for (listener, port) in self.listeners {
            if let Ok(address) = listener.local_addr() {
                output::note(match self.serves_http {
                    true => format!("http://{address}/ (Ctrl-C ends it)"),
                    false => format!("{address} leads to port {port}"),
                });
            }
            tokio::spawn(accept(listener, namespace.clone(), SocketAddr::new(ADDRESS, port)));
        }
    }
}

async fn accept(listener: TcpListener, namespace: watch::Receiver<Option<Namespace>>, to: SocketAddr) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let namespace = namespace.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match deliver(namespace, client, to).await {
                Some(conn) => join(stream, conn).await,
                // The client is told as far as that still can be said.
                None => drop(stream.set_zero_linger()),
            }
        });
    }
}

/// A connection to the port, once there is a namespace in which somebody listens there: a program may have just begun.
async fn deliver(
    mut namespace: watch::Receiver<Option<Namespace>>,
    client: SocketAddr,
    to: SocketAddr,
) -> Option<Conn> {
    let delivered = async {
        loop {
            let current = namespace.wait_for(Option::is_some).await.ok()?.clone()?;
            match current.deliver_for(client.ip(), client, to).await {
                Ok(conn) => return Some(conn),
                Err(_) => tokio::time::sleep(LISTEN_POLL).await,
            }
        }
    };
    tokio::time::timeout(LISTEN_PATIENCE, delivered).await.ok().flatten()
}
