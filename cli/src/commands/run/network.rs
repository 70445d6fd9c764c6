//! What a component without a cluster has of the network: what it may reach, and where it is reached.

use std::{
    net::{IpAddr, SocketAddr},
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
};

use super::ADDRESS;
use crate::output;

/// How long a connect of the component may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are under way each way of a connection.
const PIPE_BYTES: usize = 256 * 1024;
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
pub struct Publications(Vec<(TcpListener, u16)>);

impl Publications {
    pub async fn listen(ports: &[(SocketAddr, u16)]) -> Result<Self> {
        let mut all = Vec::new();
        for (address, port) in ports {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("listening at {address}; another port is had by `--port PORT:{port}`, and 0 is any that is free")
            })?;
            all.push((listener, *port));
        }
        Ok(Self(all))
    }

    /// Says where they are, and serves them until the namespace is shut down.
    pub fn serve(self, namespace: &Namespace, serves_http: bool) {
        for (listener, port) in self.0 {
            if let Ok(address) = listener.local_addr() {
                output::note(match serves_http {
                    true => format!("http://{address}/ (Ctrl-C ends it)"),
                    false => format!("{address} leads to port {port}"),
                });
            }
            tokio::spawn(accept(listener, namespace.clone(), SocketAddr::new(ADDRESS, port)));
        }
    }
}

async fn accept(listener: TcpListener, namespace: Namespace, to: SocketAddr) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let namespace = namespace.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match namespace.deliver_for(client.ip(), client, to).await {
                Ok(conn) => join(stream, conn).await,
                // Nobody listens there: the client is told so as far as that still can be said.
                Err(_) => drop(stream.set_zero_linger()),
            }
        });
    }
}
