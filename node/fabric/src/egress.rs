//! Connections that leave the cluster by real sockets, and real sockets joined to virtual connections.

use crate::door;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::{Conn, NetError, PIPE_CAPACITY};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Real connections that a node's pods have open at once; a pod's own share is bounded by its sockets.
const OUTSIDE_CONNECTIONS_MAX: usize = 8192;

/// How long a real connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes copied at once.
const COPY_BYTES: usize = 64 * 1024;

/// Opens real connections, within their bound.
pub(crate) struct Egress {
    permits: Arc<Semaphore>,
    descriptors: Descriptors,
}

impl Egress {
    pub(crate) fn new(descriptors: Descriptors) -> Self {
        Self { permits: Arc::new(Semaphore::new(OUTSIDE_CONNECTIONS_MAX)), descriptors }
    }

    /// Connects to `to`, which has been judged, and gives the pod's end. Needs a tokio runtime.
    pub(crate) async fn dial(&self, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| NetError::TooManySockets)?;
        let descriptor = self.descriptors.take(Purpose::Outside).ok_or(NetError::TooManySockets)?;
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
            Ok(result) => result.map_err(|error| NetError::from(&error))?,
            Err(_) => return Err(NetError::TimedOut),
        };
        door::attend(&stream);
        let (near, far) = Conn::pair(from, to, PIPE_CAPACITY);
        tokio::spawn(async move {
            join(stream, far).await;
            drop((permit, descriptor));
        });
        Ok(near)
    }
}

/// Carries bytes between a real and a virtual connection until both directions have ended, half-closes and
/// resets included.
pub(crate) async fn join(mut stream: TcpStream, mut conn: Conn) {
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut conn, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = copied {
        // Whichever end broke, the other learns of it as a reset. A reset of the real one needs its linger off.
        conn.reset();
        if !is_orderly(&error) {
            let _ = stream.set_zero_linger();
        }
    }
}

/// A broken pipe is the usual end of one who has heard enough.
fn is_orderly(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
