//! The datagrams that wait at one socket.
//!
//! Anybody may send to it, so each party that does has a line of its own, which gets one more while it holds less than
//! what is free, and they are received in turn.

use super::NetError;
use super::callers::Caller;
use super::seat::Budget;
use super::turns::Turns;
use super::waker_set::WakerSet;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::net::SocketAddr;
use std::sync::Arc;

/// What a datagram that waits is counted for beside its payload, so that empty ones are bounded as well.
const DATAGRAM_OVERHEAD_BYTES: usize = 64;

#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    bytes_max: usize,
    /// What all sockets of the namespace may hold together.
    budget: Arc<Budget>,
}

/// Of one socket, with its peer and what became of what it sent.
#[derive(Debug, Default)]
pub(super) struct State {
    waiting: Turns<(SocketAddr, Bytes)>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) error: Option<NetError>,
    pub(super) closed: bool,
    pub(super) receivers: WakerSet,
}

impl Mailbox {
    pub(crate) fn new(bytes_max: usize, budget: Arc<Budget>) -> Self {
        Self { state: Mutex::default(), bytes_max, budget }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Puts a datagram of `caller` in. One that finds no room is dropped; a mailbox that is connected to another peer
    /// refuses it.
    pub(crate) fn put(&self, from: SocketAddr, caller: &Caller, payload: Bytes) -> Result<(), NetError> {
        let mut state = self.state.lock();
        if state.peer.is_some_and(|peer| peer != from) {
            return Err(NetError::ConnectionRefused);
        }
        let room = self.budget.room_of_mailbox(self.bytes_max, state.waiting.is_empty());
        let (party, cost) = (caller.party(), cost(&payload));
        let free = room.saturating_sub(state.waiting.weight());
        if cost > free || state.waiting.weight_of(&party) >= free {
            return Ok(());
        }
        self.budget.add(cost);
        state.waiting.push(party, (from, payload), cost);
        let receivers = state.receivers.take();
        drop(state);
        receivers.wake();
        Ok(())
    }

    /// The next datagram and its sender.
    pub(super) fn take(&self, state: &mut State) -> Option<(SocketAddr, Bytes)> {
        let (_, (from, payload)) = state.waiting.pop()?;
        self.budget.remove(cost(&payload));
        Some((from, payload))
    }

    /// Drops what others than the peer have sent.
    pub(super) fn keep_only(&self, state: &mut State, peer: SocketAddr) {
        let before = state.waiting.weight();
        state.waiting.retain(|(from, _)| *from == peer);
        self.budget.remove(before - state.waiting.weight());
    }

    pub(super) fn fail(&self, error: NetError) {
        self.change(|state| state.error = Some(error));
    }

    pub(crate) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Changes what receivers wait for.
    fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        how(&mut state);
        let receivers = state.receivers.take();
        drop(state);
        receivers.wake();
    }
}

impl State {
    /// Whether a receive would give a datagram or an error.
    pub(super) fn is_receivable(&self) -> bool {
        self.error.is_some() || self.closed || !self.waiting.is_empty()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.budget.remove(self.state.get_mut().waiting.weight());
    }
}

fn cost(payload: &Bytes) -> usize {
    payload.len() + DATAGRAM_OVERHEAD_BYTES
}
