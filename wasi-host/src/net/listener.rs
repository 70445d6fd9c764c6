//! Bound and listening TCP sockets.

use super::callers::{Caller, Party};
use super::namespace::Shared;
use super::seat::Seat;
use super::turns::Turns;
use super::waker_set::WakerSet;
use super::{Conn, NetError};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use tokio::sync::Notify;

/// Parties that wait for a place which are kept before it is looked which of them are gone.
const SPACES_MIN: usize = 16;

/// A TCP address that is taken and not yet listened on. Dropping it frees the port.
#[derive(Debug)]
pub struct Bound {
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    pub(crate) _seat: Seat,
}

impl Bound {
    /// The address with the port that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Begins to listen. At most `backlog` connections of each party wait for an accept, within the namespace's bound.
    pub fn listen(self, backlog: usize) -> Result<Listener, NetError> {
        let backlog = backlog.clamp(1, self.shared.limits.backlog_max);
        let queue = Arc::new(AcceptQueue::new(backlog));
        self.shared.start_listening(self.address, queue.clone())?;
        Ok(Listener { queue, bound: self })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.shared.release_tcp(self.address);
    }
}

/// A listening TCP socket. Dropping it frees the port and resets the connections that nobody accepted.
#[derive(Debug)]
pub struct Listener {
    queue: Arc<AcceptQueue>,
    bound: Bound,
}

impl Listener {
    /// The address that is listened on; `0.0.0.0` where all of the pod's are.
    pub fn local_addr(&self) -> SocketAddr {
        self.bound.address
    }

    /// Changes how many connections may wait.
    pub fn set_backlog(&self, backlog: usize) {
        let backlog = backlog.clamp(1, self.bound.shared.limits.backlog_max);
        let mut state = self.queue.state.lock();
        state.backlog = backlog;
        state.tell_all_of_space();
    }

    /// Refuses new connections from now on. Those that wait can still be accepted; then an accept fails.
    pub fn refuse(&self) {
        let mut state = self.queue.state.lock();
        state.closed = true;
        state.tell_all_of_space();
        let acceptors = state.acceptors.take();
        drop(state);
        acceptors.wake();
    }

    /// Ready when an accept would give a connection or an error.
    pub fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.queue.state.lock();
        if state.closed || !state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.acceptors.register(cx.waker());
        Poll::Pending
    }

    /// The next connection and its peer; `WouldBlock` when none waits.
    pub fn try_accept(&self) -> Result<(Conn, SocketAddr), NetError> {
        let mut state = self.queue.state.lock();
        match state.waiting.pop() {
            Some((party, conn)) => {
                state.tell_of_space(&party);
                drop(state);
                let peer = conn.peer_addr();
                Ok((conn, peer))
            }
            None if state.closed => Err(NetError::NetworkDown),
            None => Err(NetError::WouldBlock),
        }
    }

    /// [`Listener::try_accept`] that leaves the waker when none waits.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<(Conn, SocketAddr), NetError>> {
        loop {
            match self.try_accept() {
                Err(NetError::WouldBlock) => std::task::ready!(self.poll_acceptable(cx)),
                done => return Poll::Ready(done),
            }
        }
    }

    /// Waits for the next connection. `NetworkDown` once the pod's network has been taken down.
    pub async fn accept(&self) -> Result<(Conn, SocketAddr), NetError> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// The connections that wait at a listener: as many of each party as the listener asked for, which are accepted in turn.
/// Each has its seat in the pod, which bounds how many they are together.
#[derive(Debug)]
pub(crate) struct AcceptQueue {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    waiting: Turns<Conn>,
    /// Told once for each place of the party that becomes free.
    spaces: HashMap<Option<Party>, Weak<Notify>>,
    /// With so many it is looked which of them nobody waits for any more.
    sweep_at: usize,
    backlog: usize,
    closed: bool,
    acceptors: WakerSet,
}

impl AcceptQueue {
    fn new(backlog: usize) -> Self {
        let (waiting, spaces, acceptors) = Default::default();
        Self {
            state: Mutex::new(State {
                waiting,
                spaces,
                sweep_at: SPACES_MIN,
                backlog,
                closed: false,
                acceptors,
            }),
        }
    }

    /// What is told of each place that becomes free for the caller.
    pub(crate) fn space(&self, caller: &Caller) -> Arc<Notify> {
        let (mut state, party) = (self.state.lock(), caller.party());
        if let Some(space) = state.spaces.get(&party).and_then(Weak::upgrade) {
            return space;
        }
        if state.spaces.len() >= state.sweep_at {
            state.spaces.retain(|_, space| space.strong_count() > 0);
            state.sweep_at = SPACES_MIN.max(2 * state.spaces.len());
        }
        let space = Arc::new(Notify::new());
        state.spaces.insert(party, Arc::downgrade(&space));
        space
    }

    /// Puts a connection into the queue that `make` makes, if there is a place for it.
    pub(crate) fn offer<R>(
        &self,
        caller: &Caller,
        make: impl FnOnce() -> Result<(Conn, R), NetError>,
    ) -> Result<R, NetError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(NetError::ConnectionRefused);
        }
        let party = caller.party();
        if state.waiting.weight_of(&party) >= state.backlog {
            return Err(NetError::WouldBlock);
        }
        let (conn, result) = make()?;
        state.waiting.push(party, conn, 1);
        let acceptors = state.acceptors.take();
        drop(state);
        acceptors.wake();
        Ok(result)
    }

    /// Refuses from now on and resets what waits.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.tell_all_of_space();
        let mut waiting = std::mem::take(&mut state.waiting);
        let acceptors = state.acceptors.take();
        drop(state);
        acceptors.wake();
        while let Some((_, conn)) = waiting.pop() {
            conn.reset();
        }
    }
}

impl State {
    fn tell_of_space(&self, party: &Option<Party>) {
        if let Some(space) = self.spaces.get(party).and_then(Weak::upgrade) {
            space.notify_one();
        }
    }

    fn tell_all_of_space(&self) {
        self.spaces.values().filter_map(Weak::upgrade).for_each(|space| space.notify_waiters());
    }
}
