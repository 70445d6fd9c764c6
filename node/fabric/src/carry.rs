//! Carrying a pod's connection on, over a real socket or a tunnel's stream, and when to stop.
//!
//! Two directions are carried, each of which may be held up by a far end that takes nothing. The pod's end is watched
//! beside them: once it has gone, nobody in the pod pays for what is held any more.

use coracle_wasi_host::net::{Conn, Gone, NetError};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long what a pod wrote before it closed may wait for a far end that takes nothing of it.
const CLOSED_STALL_MAX: Duration = Duration::from_secs(20);

/// How long it may take altogether; as long as Linux keeps a socket without an owner for its peer to end.
const CLOSED_MAX: Duration = Duration::from_secs(60);

/// How long it may take where the connection was reset or the pod is gone: what can be sent at once still is.
const RESET_MAX: Duration = Duration::from_secs(1);

/// Which side broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The pod's, with the error that its end gave.
    Pod(NetError),
    Far,
}

/// Counts the bytes that the far end has taken.
#[derive(Default)]
pub(crate) struct Taken(AtomicU64);

impl Taken {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Drives both directions until both have ended, one breaks, or the pod's end has gone and what it left is not taken in
/// time. `pod` is cancelled when the pod is taken off the network.
pub(crate) async fn carry(
    conn: &Conn,
    pod: &CancellationToken,
    taken: &Taken,
    out: impl Future<Output = Result<(), Broken>>,
    into: impl Future<Output = Result<(), Broken>>,
) -> Result<(), Broken> {
    let (mut out, mut into) = (pin!(out), pin!(into));
    // A break of either direction ends both; an end in order leaves the other one open.
    let both = async {
        tokio::select! {
            result = &mut out => {
                result?;
                into.await
            }
            result = &mut into => {
                result?;
                out.await
            }
        }
    };
    tokio::select! {
        result = both => result,
        () = left_behind(conn, pod, taken) => Err(Broken::Pod(NetError::ConnectionReset)),
    }
}

/// Resolves once the pod's end has gone and had its time.
async fn left_behind(conn: &Conn, pod: &CancellationToken, taken: &Taken) {
    let gone = tokio::select! {
        gone = poll_fn(|cx| conn.poll_peer_gone(cx)) => gone,
        () = pod.cancelled() => Gone::Reset,
    };
    if gone == Gone::Closed {
        let drained = async {
            loop {
                let before = taken.so_far();
                tokio::time::sleep(CLOSED_STALL_MAX).await;
                if taken.so_far() == before {
                    return;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(CLOSED_MAX, drained) => return,
            () = pod.cancelled() => {}
        }
    }
    tokio::time::sleep(RESET_MAX).await;
}

/// Waits until the pod has written or ended. `interrupted` is asked meanwhile.
pub(crate) async fn something_to_read(
    conn: &Conn,
    mut interrupted: impl FnMut(&mut std::task::Context<'_>) -> Poll<Broken>,
) -> Result<(), Broken> {
    poll_fn(|cx| match interrupted(cx) {
        Poll::Ready(broken) => Poll::Ready(Err(broken)),
        Poll::Pending => conn.poll_readable(cx).map(Ok),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::net::SocketAddr;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn what_a_far_end_takes_drop_by_drop_has_its_time_and_no_more() {
        let end = |last: u8| SocketAddr::new([10, 128, 0, last].into(), 80);
        let (inner, outer) = Conn::pair(end(1), end(2), 64 << 10);
        drop(outer);
        let (taken, begun) = (Taken::default(), Instant::now());
        let drips = async {
            loop {
                tokio::time::sleep(CLOSED_STALL_MAX / 2).await;
                taken.add(1);
            }
        };
        let pod = CancellationToken::new();
        let carried = carry(&inner, &pod, &taken, pending(), pending());
        let ended = tokio::select! {
            ended = tokio::time::timeout(10 * CLOSED_MAX, carried) => ended.expect("it does not go on for ever"),
            _ = drips => unreachable!("it goes on"),
        };
        assert_eq!(ended, Err(Broken::Pod(NetError::ConnectionReset)));
        assert_eq!(begun.elapsed().as_secs(), CLOSED_MAX.as_secs());
    }
}
