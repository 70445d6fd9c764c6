//! Waiting: for a time, and until something that is open can be read or written.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime_wasi::clocks::WasiClocksView as _;
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};

use super::call::Call;
use super::descriptors::{Entry, Fd};
use super::errno::{Done, Errno, Failure};
use crate::logs::LogStream;
use crate::net::{Conn, Listener};
use crate::stdin::Input;

/// Things that one call may wait for.
const SUBSCRIPTIONS_MAX: u32 = 1_024;

/// As many are part of what its store takes anyway: who waits for a few things is never refused.
const SUBSCRIPTIONS_FREE: u32 = 8;

const SUBSCRIPTION_BYTES: u32 = 48;
const EVENT_BYTES: usize = 32;

/// Types of events.
const CLOCK: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;

/// Clocks.
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;

/// The time is one of the clock's, not one from now on.
const ABSOLUTE: u16 = 1;

/// Nothing more will come.
const HANGUP: u16 = 1;

/// What the program has said of something that it waits for.
struct Subscription {
    userdata: [u8; 8],
    tag: u8,
    wait: Wait,
}

enum Wait {
    /// It has come already, or cannot.
    Over(Result<u16, Errno>),
    Time(Pin<Box<Sleep>>),
    Stdin(Pin<Box<WaitForCancellationFutureOwned>>),
    Output(LogStream),
    Connections(Arc<Listener>),
    Bytes(Arc<Conn>),
    Room(Arc<Conn>),
}

pub(super) async fn poll_oneoff(call: &mut Call<'_>, from: u32, events: u32, count: u32, out: u32) -> Done {
    // Nothing would ever come.
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Err(Errno::INVAL.into());
    }
    // Kept as long as what it is for.
    let charged = count.saturating_sub(SUBSCRIPTIONS_FREE);
    let _charge = if charged > 0 { Some(call.hold(charged)?) } else { None };
    let all = call.bytes(from, count * SUBSCRIPTION_BYTES)?.to_vec();
    let mut waits = Vec::new();
    for one in all.chunks_exact(SUBSCRIPTION_BYTES as usize) {
        waits.push(subscription(call, one)?);
    }
    let come = poll_fn(|context| {
        let come: Vec<u8> = waits.iter_mut().filter_map(|one| one.poll(context)).flatten().collect();
        if come.is_empty() { Poll::Pending } else { Poll::Ready(come) }
    });
    let come = come.await;
    call.write(events, &come)?;
    Ok(call.write_size(out, come.len() / EVENT_BYTES)?)
}

fn subscription(call: &mut Call<'_>, bytes: &[u8]) -> Result<Subscription, Failure> {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let userdata = bytes[..8].try_into().unwrap_or_default();
    let tag = bytes[8];
    let wait = match tag {
        CLOCK => {
            let time = u64::from_le_bytes(bytes[24..32].try_into().unwrap_or_default());
            let is_absolute = number(40) as u16 & ABSOLUTE != 0;
            let left = left(call, number(16), time, is_absolute)?;
            Wait::Time(Box::pin(tokio::time::sleep(left)))
        }
        READ => readable(call, number(16)).unwrap_or_else(|errno| Wait::Over(Err(errno))),
        WRITE => writable(call, number(16)).unwrap_or_else(|errno| Wait::Over(Err(errno))),
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(Subscription { userdata, tag, wait })
}

/// How long it is until then.
fn left(call: &mut Call<'_>, clock: u32, time: u64, is_absolute: bool) -> Done<Duration> {
    let mut clocks = call.preview1().wasi.clocks();
    let now = match clock {
        _ if !is_absolute => 0,
        MONOTONIC => monotonic_clock::Host::now(&mut clocks).map_err(Failure::Trap)?,
        REALTIME => {
            let now = wall_clock::Host::now(&mut clocks).map_err(Failure::Trap)?;
            now.seconds.saturating_mul(1_000_000_000) + u64::from(now.nanoseconds)
        }
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(Duration::from_nanos(time.saturating_sub(now)))
}

fn readable(call: &mut Call<'_>, fd: Fd) -> Result<Wait, Errno> {
    Ok(match call.entry(fd)? {
        Entry::File { .. } => Wait::Over(Ok(0)),
        Entry::Listener { listener, .. } => Wait::Connections(Arc::clone(listener)),
        Entry::Conn { conn, .. } => Wait::Bytes(Arc::clone(conn)),
        Entry::Stdin => match &call.preview1().descriptors.stdin {
            Input::Until(until) => Wait::Stdin(Box::pin(until.clone().cancelled_owned())),
            Input::Sent(conn) => Wait::Bytes(Arc::clone(conn)),
            Input::AtEnd => Wait::Over(Ok(HANGUP)),
        },
        Entry::Output(_) | Entry::Dir { .. } => return Err(Errno::BADF),
    })
}

fn writable(call: &mut Call<'_>, fd: Fd) -> Result<Wait, Errno> {
    Ok(match call.entry(fd)? {
        Entry::File { .. } => Wait::Over(Ok(0)),
        Entry::Output(stream) => Wait::Output(stream.another()),
        Entry::Conn { conn, .. } => Wait::Room(Arc::clone(conn)),
        Entry::Stdin | Entry::Listener { .. } | Entry::Dir { .. } => return Err(Errno::BADF),
    })
}

impl Subscription {
    /// The event, once it has come.
    fn poll(&mut self, context: &mut Context<'_>) -> Option<[u8; EVENT_BYTES]> {
        let is_ready = |polled: Poll<()>| polled.is_ready().then_some(Ok(0));
        let come = match &mut self.wait {
            Wait::Over(come) => Some(*come),
            Wait::Time(sleep) => is_ready(sleep.as_mut().poll(context)),
            Wait::Stdin(ended) => ended.as_mut().poll(context).is_ready().then_some(Ok(HANGUP)),
            Wait::Output(stream) => is_ready(stream.poll_room(context)),
            Wait::Connections(listener) => is_ready(listener.poll_acceptable(context)),
            Wait::Bytes(conn) => is_ready(conn.poll_readable(context)),
            Wait::Room(conn) => is_ready(conn.poll_writable(context)),
        }?;
        Some(self.event(come))
    }

    fn event(&self, come: Result<u16, Errno>) -> [u8; EVENT_BYTES] {
        let mut event = [0; EVENT_BYTES];
        event[..8].copy_from_slice(&self.userdata);
        event[10] = self.tag;
        match come {
            Ok(flags) => {
                // That there is something, not how much.
                event[16] = u8::from(self.tag != CLOCK && flags & HANGUP == 0);
                event[24..26].copy_from_slice(&flags.to_le_bytes());
            }
            Err(Errno(number)) => event[8..10].copy_from_slice(&number.to_le_bytes()),
        }
        event
    }
}
