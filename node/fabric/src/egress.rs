//! Connections that leave the cluster by real sockets, and real sockets joined to virtual connections.

use crate::caller::Caller;
use crate::carry::{Broken, Taken, carry, something_to_read};
use crate::door;
use bytes::{Buf, Bytes, BytesMut};
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::{Conn, NetError};
use coracle_wasi_host::refusals::{Refusals, What};
use coracle_wasi_host::shares::{Certain, Shares};
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::task::consume_budget;
use tokio_util::sync::CancellationToken;

/// Real connections that a node's pods have open at once.
const OUTSIDE_CONNECTIONS_MAX: usize = 8192;

/// Those that a pod has for certain, for so many of them, and the part of the descriptors for such that this is at most.
const CERTAIN_EACH: usize = 2;
const CERTAIN_MAX: usize = 4096;
const CERTAIN_PART: usize = 4;

/// How long a real connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes copied at once.
const COPY_BYTES: usize = 64 * 1024;

/// Opens real connections, within their bound.
pub(crate) struct Egress {
    connections: Arc<Shares>,
    descriptors: Descriptors,
    refusals: Refusals,
}

impl Egress {
    pub(crate) fn new(descriptors: Descriptors, refusals: Refusals) -> Self {
        let all = descriptors.size(Purpose::Outside);
        let certain = Certain { each: CERTAIN_EACH, all: CERTAIN_MAX.min(all / CERTAIN_PART) };
        let size = OUTSIDE_CONNECTIONS_MAX.min(all - certain.all);
        Self { connections: Shares::with_certain(What::Outside, size, certain), descriptors, refusals }
    }

    /// Connects to `to`, which has been judged, and gives the caller's end. Needs a tokio runtime.
    pub(crate) async fn dial(
        &self,
        caller: &Caller,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Conn, NetError> {
        let refused = |refused| {
            self.refusals.note(&caller.holder, refused);
            NetError::TooManySockets
        };
        let permit = self.connections.take(&caller.holder).map_err(refused)?;
        let descriptor = self.descriptors.take(Purpose::Outside).map_err(refused)?;
        let stream = tokio::select! {
            connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)) => match connected {
                Ok(result) => result.map_err(|error| NetError::from(&error))?,
                Err(_) => return Err(NetError::TimedOut),
            },
            () = caller.gone().cancelled() => return Err(NetError::NetworkDown),
        };
        door::attend(&stream);
        let (near, far) = caller.buffers.connection(from, to);
        let gone = caller.gone().clone();
        tokio::spawn(async move {
            join_while(stream, far, gone).await;
            drop((permit, descriptor));
        });
        Ok(near)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.connections.held()
    }
}

/// Carries bytes between a real and a virtual connection until both directions have ended, half-closes and
/// resets included.
pub(crate) async fn join(stream: TcpStream, conn: Conn) {
    join_while(stream, conn, CancellationToken::new()).await;
}

/// [`join`] that ends soon after the pod has gone.
async fn join_while(mut stream: TcpStream, conn: Conn, pod: CancellationToken) {
    let taken = Taken::default();
    let broken = {
        let (mut read, mut write) = stream.split();
        let out = carry_out(&conn, &mut write, &taken);
        let into = carry_in(&mut read, &conn);
        carry(&conn, &pod, &taken, out, into).await.err()
    };
    match broken {
        // A broken pipe is the usual end of one who has heard enough.
        None | Some(Broken::Pod(NetError::BrokenPipe)) => {}
        // Whichever end broke, the other learns of it as a reset. A reset of the real one needs its linger off.
        Some(Broken::Pod(_)) => drop(stream.set_zero_linger()),
        Some(Broken::Far) => conn.reset(),
    }
}

/// From the pod's connection to the real one. What the kernel does not take is on the pod's account all the while.
async fn carry_out(conn: &Conn, stream: &mut WriteHalf<'_>, taken: &Taken) -> Result<(), Broken> {
    let account = conn.buffers();
    loop {
        // Two who are as fast as each other have all else of this thread's wait otherwise.
        consume_budget().await;
        something_to_read(conn, |_| Poll::Pending).await?;
        // The end needs no room.
        if conn.has_unread() {
            stream.writable().await.map_err(|_| Broken::Far)?;
        }
        let mut bytes = match conn.try_read(COPY_BYTES) {
            Err(NetError::WouldBlock) => continue,
            read => read.map_err(Broken::Pod)?,
        };
        if bytes.is_empty() {
            return stream.shutdown().await.map_err(|_| Broken::Far);
        }
        let mut waits = false;
        while !bytes.is_empty() {
            match stream.try_write(&bytes) {
                Ok(0) => return Err(Broken::Far),
                Ok(written) => {
                    taken.add(written);
                    bytes.advance(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !std::mem::replace(&mut waits, true) {
                        bytes = account.as_ref().map_or(bytes.clone(), |account| account.carried(bytes));
                    }
                    stream.writable().await.map_err(|_| Broken::Far)?;
                }
                Err(_) => return Err(Broken::Far),
            }
        }
    }
}

/// From the real connection to the pod's. Nothing is read that the pod's pipe has no room for. While there is none the far
/// end is watched: one that has vanished, or reset the connection, would hold it for as long as the pod reads nothing.
async fn carry_in(stream: &mut ReadHalf<'_>, conn: &Conn) -> Result<(), Broken> {
    loop {
        consume_budget().await;
        tokio::select! {
            biased;
            () = poll_fn(|cx| conn.poll_writable(cx)) => {}
            _ = stream.ready(Interest::ERROR) => return Err(Broken::Far),
        }
        let room = match conn.write_permit().map_err(Broken::Pod)? {
            0 => continue,
            room => room.min(COPY_BYTES),
        };
        stream.readable().await.map_err(|_| Broken::Far)?;
        let mut buffer = BytesMut::with_capacity(room);
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => {
                conn.shutdown(Shutdown::Write);
                return Ok(());
            }
            Ok(_) => {
                conn.write_permitted(packed(buffer, room)).map_err(Broken::Pod)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Err(Broken::Far),
        }
    }
}

/// What was read into a buffer with so much room: a few bytes must not keep all of it.
fn packed(buffer: BytesMut, room: usize) -> Bytes {
    if buffer.len() < room / 2 { Bytes::copy_from_slice(&buffer) } else { buffer.freeze() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Attached;
    use crate::{Name, PodIdentity};
    use coracle_wasi_host::net::{Isolated, Namespace, NamespaceConfig, NetLimits};
    use std::net::IpAddr;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    const POD: [u8; 4] = [10, 128, 1, 9];

    fn pod(namespace: &str, address: IpAddr) -> (Caller, Namespace) {
        let config = NamespaceConfig {
            hostname: "pod".into(),
            tenant: namespace.into(),
            addresses: vec![address],
            limits: NetLimits::default(),
        };
        let net = Namespace::new(config, Arc::new(Isolated));
        let name = Name::new(namespace, "pod");
        let pod = PodIdentity { name, uid: "u".into(), labels: Arc::default() };
        (Caller::pod(address, Attached::new(net.clone(), pod.into())), net)
    }

    /// A connection of the pod to one who accepts and reads nothing, full to the brim.
    async fn stuck(egress: &Egress, caller: &Caller) -> (Conn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let conn = egress.dial(caller, SocketAddr::new(POD.into(), 4000), to).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let mut quiet = 0;
        // Full is what stays full while everything else has had its turn.
        while quiet < 100 {
            quiet = if conn.try_write(&[7; 64 * 1024]).is_ok() { 0 } else { quiet + 1 };
            tokio::task::yield_now().await;
        }
        (conn, far)
    }

    async fn emptied(egress: &Egress) {
        while egress.open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn read_to_reset(mut far: TcpStream) {
        let mut read = Vec::new();
        let error = far.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_far_end_never_takes_ends_with_its_socket() {
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let (conn, far) = stuck(&egress, &caller).await;
        let held = tokio::time::timeout(2 * CLOSED_AGES, emptied(&egress)).await;
        assert!(held.is_err(), "while the pod has its socket the connection stands");
        drop(conn);
        tokio::time::timeout(CLOSED_AGES, emptied(&egress)).await.expect("nobody holds it any more");
        read_to_reset(far).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_far_end_takes_nothing_of_has_its_time_and_no_more() {
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let (conn, _far) = stuck(&egress, &caller).await;
        drop(conn);
        let held = tokio::time::timeout(Duration::from_secs(19), emptied(&egress)).await;
        assert!(held.is_err(), "it may be taken yet");
        tokio::time::timeout(Duration::from_secs(5), emptied(&egress))
            .await
            .expect("nothing of it was taken");
    }

    #[tokio::test]
    async fn a_reset_of_the_far_end_reaches_the_pod_and_all_is_given_back() {
        let descriptors = Descriptors::within(Some(64));
        let egress = Egress::new(descriptors.clone(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut conn = egress.dial(&caller, SocketAddr::new(POD.into(), 4000), to).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        assert_eq!(descriptors.taken(Purpose::Outside), 1);
        far.set_zero_linger().unwrap();
        drop(far);
        let error = conn.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let given_back = async {
            while descriptors.taken(Purpose::Outside) > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), given_back).await.expect("the descriptor is free");
    }

    #[tokio::test]
    async fn a_reset_of_the_far_end_is_heard_though_the_pod_reads_nothing() {
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let _conn = egress.dial(&caller, SocketAddr::new(POD.into(), 4000), to).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        // Until neither the pod's pipe nor the kernel takes any more.
        let more = async { while far.write(&[0; 64 << 10]).await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), more).await;
        far.set_zero_linger().unwrap();
        drop(far);
        tokio::time::timeout(Duration::from_secs(60), emptied(&egress)).await.expect("it is given back");
    }

    /// An address where nothing is accepted, and as many wait for that as may.
    async fn full() -> (SocketAddr, impl Sized) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await
        {
            waiting.push(connected.unwrap());
        }
        (address, (listener, waiting))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connect_that_nobody_answers_ends_in_time_and_with_its_pod() {
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let (to, _waiting) = full().await;
        let from = SocketAddr::new(POD.into(), 4000);
        let dialed = tokio::time::timeout(2 * CONNECT_TIMEOUT, egress.dial(&caller, from, to)).await;
        assert_eq!(dialed.expect("it ends").err(), Some(NetError::TimedOut));
        caller.gone().cancel();
        let dialed = tokio::time::timeout(CONNECT_TIMEOUT / 2, egress.dial(&caller, from, to)).await;
        assert_eq!(dialed.expect("it ends").err(), Some(NetError::NetworkDown));
        assert_eq!(egress.open(), 0);
    }

    /// Longer than anything that was closed may wait.
    const CLOSED_AGES: Duration = Duration::from_secs(61);

    #[tokio::test(start_paused = true)]
    async fn what_a_far_end_never_takes_ends_with_its_pod() {
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let soon = Duration::from_secs(2);
        for shut_down in [false, true] {
            let (caller, net) = pod("default", POD.into());
            let (conn, far) = stuck(&egress, &caller).await;
            let (closed, other) = stuck(&egress, &caller).await;
            drop(closed);
            if shut_down {
                net.shutdown();
            }
            caller.gone().cancel();
            tokio::time::timeout(soon, emptied(&egress)).await.expect("the pod is gone");
            read_to_reset(far).await;
            read_to_reset(other).await;
            drop(conn);
        }
    }

    #[tokio::test]
    async fn what_a_pod_wrote_before_it_closed_arrives() {
        const TOTAL: usize = 200 * 1024;
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let conn = egress.dial(&caller, SocketAddr::new(POD.into(), 4000), to).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut left = Bytes::from(vec![7; TOTAL]);
        conn.try_write_bytes(&mut left).unwrap();
        assert!(left.is_empty());
        drop(conn);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), TOTAL);
        drop(far);
        emptied(&egress).await;
    }

    #[tokio::test]
    async fn bytes_and_ends_cross_both_ways() {
        let egress = Egress::new(Descriptors::of_process(), Refusals::default());
        let (caller, _net) = pod("default", POD.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut conn = egress.dial(&caller, SocketAddr::new(POD.into(), 4000), to).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        conn.write_all(b"question").await.unwrap();
        conn.shutdown(Shutdown::Write);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        far.write_all(&[7; 300_000]).await.unwrap();
        drop(far);
        let mut answer = Vec::new();
        conn.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), 300_000);
        emptied(&egress).await;
    }

    #[test]
    fn a_few_bytes_keep_no_large_buffer() {
        let kept = |bytes: usize| {
            let mut buffer = BytesMut::with_capacity(COPY_BYTES);
            buffer.resize(bytes, 7);
            packed(buffer, COPY_BYTES).try_into_mut().expect("nobody else has it").capacity()
        };
        assert_eq!(kept(COPY_BYTES / 2), COPY_BYTES, "much is not copied");
        assert!(kept(10) < 1024);
    }

    #[tokio::test]
    async fn whatever_neighbours_hold_a_pod_has_a_few_connections() {
        let egress = Egress::new(Descriptors::within(Some(1024)), Refusals::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut held = Vec::new();
        let mut fill = async |namespace: &str, last: u8| {
            let address = IpAddr::from([10, 128, 1, last]);
            let (caller, _) = pod(namespace, address);
            let before = held.len();
            while let Ok(conn) = egress.dial(&caller, SocketAddr::new(address, 4000), to).await {
                held.push((conn, listener.accept().await.unwrap()));
            }
            held.len() - before
        };
        for namespace in 0..12 {
            for pod in 1..3 {
                fill(&namespace.to_string(), pod).await;
            }
        }
        assert_eq!([fill("modest", 4).await, fill("modest", 5).await], [CERTAIN_EACH; 2]);
        let shared = 256 - 256 / CERTAIN_PART;
        assert_eq!(egress.open(), shared + (24 + 2) * CERTAIN_EACH, "all that is shared, and a few each");
    }

    #[tokio::test]
    async fn one_pod_and_one_namespace_leave_connections_to_others() {
        let descriptors = Descriptors::of_process();
        let refusals = Refusals::default();
        let connections = Shares::new(What::Outside, 12);
        let egress = Egress { connections, descriptors, refusals: refusals.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for last in 1..20 {
            let address = IpAddr::from([10, 128, 1, last]);
            let (caller, _) = pod("greedy", address);
            loop {
                match egress.dial(&caller, SocketAddr::new(address, 4000), to).await {
                    Ok(conn) => held.push((conn, listener.accept().await.unwrap())),
                    Err(error) => {
                        assert_eq!(error, NetError::TooManySockets);
                        break;
                    }
                }
            }
            if last == 1 {
                assert_eq!(held.len(), 4, "a pod's share");
            }
        }
        assert_eq!(held.len(), 6, "a namespace's share");
        let told: Vec<String> = refusals.next().await.iter().map(ToString::to_string).collect();
        assert_eq!(
            told[0],
            "open connections to beyond the cluster: the pod holds 4 of this node's 12 and may hold 4 by what is \
             free of them now; spread what it does over several pods"
        );
        let of_namespace = "open connections to beyond the cluster: the namespace holds 6 of this node's 12 and may hold 6 by";
        assert!(told[2].starts_with(of_namespace), "{told:?}");
        let (other, _) = pod("modest", POD.into());
        assert!(egress.dial(&other, SocketAddr::new(POD.into(), 4000), to).await.is_ok());
    }
}
