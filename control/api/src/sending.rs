//! Answers on their way out. A client may read as slowly as it likes, or not at all: what an answer keeps in memory until
//! then is bounded, by frames that are handed over one at a time, by the turn that the answer keeps until its last byte
//! is written, and by time.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use crate::lane::Turn;

/// Answers leave in parts of about this size.
pub const FRAME_BYTES: usize = 64 * 1024;

/// How long a client may take nothing of an answer, or of a watch that has something for it.
const TAKING_NOTHING_MAX: Duration = Duration::from_secs(30);

/// How long an answer may take as a whole. Until then it keeps the state that it shows.
const SENDING_MAX: Duration = Duration::from_secs(5 * 60);

/// An answer up to this size keeps no turn: it is no more than the head that comes with it.
const TINY_BYTES: u64 = 4 * 1024;

/// Lets an answer keep its request's turn until it is written: those that nobody reads are bounded too.
pub fn until_sent(response: Response, turn: Turn) -> Response {
    let upper = response.body().size_hint().upper();
    if upper.is_some_and(|bytes| bytes <= TINY_BYTES) {
        return response;
    }
    let until = Some(Instant::now() + SENDING_MAX);
    let (turn, timed) = (Some(Arc::new(turn)), upper.is_none_or(|bytes| bytes > FRAME_BYTES as u64));
    response.map(|body| Body::new(Sending::begin(body, turn, until, timed)))
}

/// Ends a watch that has something for its client while the client takes nothing.
pub fn while_taken(body: Body) -> Body {
    Body::new(Sending::begin(body, None, None, true))
}

/// Why an answer ends before its end.
#[derive(Debug)]
struct NotTaken;

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer was not taken in time")
    }
}

impl std::error::Error for NotTaken {}

/// A body that is being sent.
struct Sending {
    state: Arc<Mutex<State>>,
    /// Of the task that looks after the time.
    timer: Option<AbortHandle>,
}

/// What an answer keeps in memory. It is given up where the client takes nothing for too long: nobody asks the body for
/// more then, so that it cannot notice by itself.
struct State {
    /// None where it was given up.
    body: Option<Body>,
    /// Of the body's last frame, what was not handed over yet.
    rest: Bytes,
    turn: Option<Arc<Turn>>,
    /// When the last frame was handed over after which none was asked for yet.
    handed: Option<Instant>,
    until: Option<Instant>,
    /// Whether a task looks after the time.
    timed: bool,
}

impl Sending {
    fn begin(body: Body, turn: Option<Arc<Turn>>, until: Option<Instant>, timed: bool) -> Self {
        // Also a client that never takes the first frame takes nothing.
        let handed = Some(Instant::now());
        let state = State { body: Some(body), rest: Bytes::new(), turn, handed, until, timed };
        let mut sending = Self { state: Arc::new(Mutex::new(state)), timer: None };
        if timed {
            sending.look_after();
        }
        sending
    }

    fn look_after(&mut self) {
        self.timer = Some(tokio::spawn(look_after(Arc::downgrade(&self.state))).abort_handle());
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}

/// Gives an answer up where its time is over. Ends where the answer itself waits for something: it begins anew with the
/// next frame.
async fn look_after(state: Weak<Mutex<State>>) {
    while let Some(state_now) = state.upgrade() {
        let due = {
            let mut state = state_now.lock();
            let Some(handed) = state.handed else {
                state.timed = false;
                return;
            };
            let due = handed + TAKING_NOTHING_MAX;
            let due = state.until.map_or(due, |until| due.min(until));
            if due <= Instant::now() {
                tracing::debug!("an answer was given up: its client takes too little");
                (state.body, state.rest, state.turn) = (None, Bytes::new(), None);
                return;
            }
            due
        };
        drop(state_now);
        sleep_until(due).await;
    }
}

impl State {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.handed = None;
        while self.rest.is_empty() {
            let Some(body) = &mut self.body else {
                return Poll::Ready(Some(Err(axum::Error::new(NotTaken))));
            };
            match ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let part = self.rest.split_to(self.rest.len().min(FRAME_BYTES));
        self.handed = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(match &self.turn {
            Some(turn) => Bytes::from_owner(Held { part, _turn: turn.clone() }),
            None => part,
        }))))
    }

    fn is_at_its_end(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_some_and(Body::is_end_stream)
    }
}

/// Bytes that keep a turn until they are written to the network.
struct Held {
    part: Bytes,
    _turn: Arc<Turn>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.part
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let (frame, time_matters) = {
            let mut state = self.state.lock();
            let frame = ready!(state.poll(context));
            let time_matters = state.handed.is_some() && !state.timed && !state.is_at_its_end();
            state.timed |= time_matters;
            (frame, time_matters)
        };
        if time_matters {
            self.look_after();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.state.lock().is_at_its_end()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state.lock();
        let (hint, rest) =
            (state.body.as_ref().map(Body::size_hint).unwrap_or_default(), state.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}
