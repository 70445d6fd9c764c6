//! How many bytes of requests a control node holds at a time: of each connection, each identity, and in all.
//!
//! A body is counted as it comes, and for as long as its request has it. What would be too much is refused at once:
//! a request that waited would hold what others wait for.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::Sleep;

use crate::{identity::Caller, newcomers::Place};

/// Bytes of requests in flight of all callers that are no members. Members have theirs beside it, so that no user and no
/// node takes the room of raft.
const ALL_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Of one identity on all its connections, and on one of them.
const USER_BYTES_MAX: usize = 128 * 1024 * 1024;
const USER_CONNECTION_BYTES_MAX: usize = 64 * 1024 * 1024;
const NODE_BYTES_MAX: usize = 16 * 1024 * 1024;
const NODE_CONNECTION_BYTES_MAX: usize = 8 * 1024 * 1024;
const MEMBER_BYTES_MAX: usize = 128 * 1024 * 1024;
const MEMBER_CONNECTION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Of one connection without a certificate, which may join and nothing else. How many there are at a time is bounded.
const ANONYMOUS_CONNECTION_BYTES_MAX: usize = 64 * 1024;

/// Connections of one node at a time: its link, and what it pulls.
const NODE_CONNECTIONS_MAX: usize = 64;

/// Connections of one user at a time, as a part of all that the control node takes.
const USER_CONNECTIONS_PART: usize = 2;

/// Until the next bytes of a message must have come that is in flight.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a body is not read to its end.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotRead {
    #[error("too many bytes of requests are in flight; try again in a moment")]
    NoRoom,
    #[error("the message is larger than the {0} bytes that this caller may send")]
    TooLarge(usize),
    #[error("the rest of the message did not come in time")]
    Stalled,
}

/// All bytes in flight, and the identities that are connected.
pub struct Inflow {
    user_connections_max: usize,
    all: Arc<AtomicUsize>,
    identities: Mutex<BTreeMap<String, Weak<Identity>>>,
}

#[derive(Default)]
struct Identity {
    bytes: AtomicUsize,
    connections: AtomicUsize,
}

/// One connection's share.
#[derive(Clone)]
pub struct Share {
    connection: Arc<AtomicUsize>,
    connection_max: usize,
    /// With the most that it may have.
    identity: Option<(Arc<Identity>, usize)>,
    all: Option<Arc<AtomicUsize>>,
    counted: Arc<Mutex<Counted>>,
}

/// What a connection is counted as for as long as it is open: a newcomer until it has shown a certificate or a good token,
/// and one of an identity's then.
struct Counted {
    newcomer: Option<Place>,
    _open: Option<Open>,
}

struct Open(Arc<Identity>);

impl Open {
    /// One more of an identity; `None` where it has so many.
    fn one(identity: &Arc<Identity>, connections_max: usize) -> Option<Self> {
        let before = identity.connections.fetch_add(1, Relaxed);
        let open = Self(identity.clone());
        (before < connections_max).then_some(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

impl Inflow {
    /// Nothing in flight, for a control node that takes so many connections.
    pub fn new(connections_max: usize) -> Self {
        let user_connections_max = (connections_max / USER_CONNECTIONS_PART).max(1);
        Self { user_connections_max, all: Arc::default(), identities: Mutex::default() }
    }

    /// The share of a connection whose handshake is over; `None` where the caller has too many already. Who has shown a
    /// certificate makes room for newcomers.
    pub fn enter(&self, caller: &Caller, place: Place) -> Option<Share> {
        let (name, identity_max, connection_max, connections_max) = match caller {
            Caller::Anonymous => {
                return Some(Share {
                    connection: Arc::default(),
                    connection_max: ANONYMOUS_CONNECTION_BYTES_MAX,
                    identity: None,
                    all: None,
                    counted: Arc::new(Mutex::new(Counted { newcomer: Some(place), _open: None })),
                });
            }
            Caller::Member(id) | Caller::FormerMember(id) => {
                (format!("member {id}"), MEMBER_BYTES_MAX, MEMBER_CONNECTION_BYTES_MAX, usize::MAX)
            }
            Caller::Client(client) if caller.is_node() => (
                format!("client {}", client.name),
                NODE_BYTES_MAX,
                NODE_CONNECTION_BYTES_MAX,
                NODE_CONNECTIONS_MAX,
            ),
            Caller::Client(client) => (
                format!("client {}", client.name),
                USER_BYTES_MAX,
                USER_CONNECTION_BYTES_MAX,
                self.user_connections_max,
            ),
        };
        let identity = self.identity(name);
        let open = Open::one(&identity, connections_max)?;
        let member = matches!(caller, Caller::Member(_));
        Some(Share {
            connection: Arc::default(),
            connection_max,
            identity: Some((identity, identity_max)),
            all: (!member).then(|| self.all.clone()),
            counted: Arc::new(Mutex::new(Counted { newcomer: None, _open: Some(open) })),
        })
    }

    /// What a request has that came over a connection: where that has shown no certificate, what belongs to the user that
    /// the request's token names. The connection is the user's from then on, and no newcomer, unless the user has too many.
    pub fn share_of(&self, connection: &Share, caller: &Caller) -> Share {
        let Caller::Client(client) = caller else { return connection.clone() };
        if connection.identity.is_some() {
            return connection.clone();
        }
        let identity = self.identity(format!("client {}", client.name));
        let mut counted = connection.counted.lock();
        if counted.newcomer.is_some()
            && let Some(open) = Open::one(&identity, self.user_connections_max)
        {
            *counted = Counted { newcomer: None, _open: Some(open) };
        }
        Share {
            connection: connection.connection.clone(),
            connection_max: USER_CONNECTION_BYTES_MAX,
            identity: Some((identity, USER_BYTES_MAX)),
            all: Some(self.all.clone()),
            counted: connection.counted.clone(),
        }
    }

    fn identity(&self, name: String) -> Arc<Identity> {
        let mut identities = self.identities.lock();
        if let Some(known) = identities.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        // As many as are connected, of which there is a bound.
        identities.retain(|_, identity| identity.strong_count() > 0);
        let identity = Arc::<Identity>::default();
        identities.insert(name, Arc::downgrade(&identity));
        identity
    }
}

impl Share {
    /// For one request.
    pub fn hold(&self) -> Arc<Hold> {
        Arc::new(Hold { share: self.clone(), bytes: AtomicUsize::new(0), refused: AtomicBool::new(false) })
    }

    fn counters(&self) -> impl Iterator<Item = (&AtomicUsize, usize)> {
        let identity = self.identity.iter().map(|(identity, most)| (&identity.bytes, *most));
        let all = self.all.iter().map(|all| (&**all, ALL_BYTES_MAX));
        [(&*self.connection, self.connection_max)].into_iter().chain(identity).chain(all)
    }
}

/// What one request has of its connection's share, until it is dropped.
pub struct Hold {
    share: Share,
    bytes: AtomicUsize,
    refused: AtomicBool,
}

impl Hold {
    /// Takes so many bytes more, or none.
    pub fn take(&self, bytes: usize) -> Result<(), NotRead> {
        for (taken, (counter, most)) in self.share.counters().enumerate() {
            if counter.fetch_add(bytes, Relaxed) + bytes > most {
                let counters = self.share.counters().take(taken + 1);
                counters.for_each(|(counter, _)| _ = counter.fetch_sub(bytes, Relaxed));
                self.refused.store(true, Relaxed);
                return Err(NotRead::NoRoom);
            }
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        let bytes = bytes.min(self.bytes.load(Relaxed));
        self.bytes.fetch_sub(bytes, Relaxed);
        self.share.counters().for_each(|(counter, _)| _ = counter.fetch_sub(bytes, Relaxed));
    }

    /// Whether there was no room for the request.
    pub fn refused(&self) -> bool {
        self.refused.load(Relaxed)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.give_back(usize::MAX);
    }
}

/// What becomes of a body's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// They are gathered and kept until the request is answered.
    Whole,
    /// They are messages of gRPC, which are kept until the request is answered.
    Message,
    /// They are messages of gRPC: each is over when the next is asked for.
    Messages,
    /// They go on to a disk as they come.
    Through,
}

/// A request's body, counted.
pub struct Metered<B> {
    body: B,
    hold: Arc<Hold>,
    reading: Reading,
    bytes_max: usize,
    /// Of a whole body: what has come, and what was taken ahead of it.
    gathered: usize,
    ahead: usize,
    framing: Framing,
    /// Of messages that were handed out, and are over when the next is asked for.
    over: usize,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<B: Body<Data = Bytes>> Metered<B> {
    /// Takes room for all of a body whose length is known. One of more than `bytes_max`, which bounds a message or the whole,
    /// or than the connection may have at all, is refused before it comes.
    pub fn new(body: B, hold: Arc<Hold>, reading: Reading, bytes_max: usize) -> Result<Self, NotRead> {
        let known = body.size_hint().exact().filter(|_| reading == Reading::Whole);
        let ahead = known.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let bytes_max = bytes_max.min(hold.share.connection_max);
        if ahead > bytes_max {
            return Err(NotRead::TooLarge(bytes_max));
        }
        hold.take(ahead)?;
        let framing = Framing::default();
        Ok(Self { body, hold, reading, bytes_max, gathered: 0, ahead, framing, over: 0, patience: None })
    }

    fn count(&mut self, data: &[u8]) -> Result<(), NotRead> {
        match self.reading {
            Reading::Through => Ok(()),
            Reading::Whole => {
                self.gathered = self.gathered.saturating_add(data.len());
                if self.gathered > self.bytes_max {
                    return Err(NotRead::TooLarge(self.bytes_max));
                }
                let known = data.len().min(self.ahead);
                self.ahead -= known;
                self.hold.take(data.len() - known)
            }
            Reading::Message | Reading::Messages => {
                let Fed { announced, over } = self.framing.feed(data, self.bytes_max)?;
                if self.reading == Reading::Messages {
                    self.over += over;
                }
                self.hold.take(announced)
            }
        }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Metered<B> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        this.hold.give_back(std::mem::take(&mut this.over));
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.patience = None;
            return Poll::Ready(match frame {
                Some(Ok(frame)) => match frame.data_ref().map(|data| this.count(data)) {
                    Some(Err(refused)) => Some(Err(refused.into())),
                    _ => Some(Ok(frame)),
                },
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            });
        }
        // A stream may be silent for long, but not in the middle of a message.
        if this.hold.bytes.load(Relaxed) == 0 {
            return Poll::Pending;
        }
        let patience = this.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Some(Err(NotRead::Stalled.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where messages of gRPC begin and end: each has a byte of flags and four of its length in front.
#[derive(Default)]
struct Framing {
    head: Vec<u8>,
    /// Of the present message: its length with its head, and what has not come of it.
    length: usize,
    left: usize,
}

/// Bytes of messages that were announced, and of those that are complete.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fed {
    announced: usize,
    over: usize,
}

const HEAD_BYTES: usize = 5;

impl Framing {
    fn feed(&mut self, mut data: &[u8], bytes_max: usize) -> Result<Fed, NotRead> {
        let mut fed = Fed::default();
        while !data.is_empty() {
            if self.left == 0 {
                let (head, rest) = data.split_at(data.len().min(HEAD_BYTES - self.head.len()));
                self.head.extend_from_slice(head);
                data = rest;
                let &[_flags, a, b, c, d] = self.head.as_slice() else { continue };
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                self.head.clear();
                if self.left > bytes_max {
                    return Err(NotRead::TooLarge(bytes_max));
                }
                self.length = HEAD_BYTES + self.left;
                fed.announced += self.length;
            } else {
                let some = self.left.min(data.len());
                (self.left, data) = (self.left - some, &data[some..]);
            }
            if self.left == 0 {
                fed.over += std::mem::take(&mut self.length);
            }
        }
        Ok(fed)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::newcomers::Newcomers;

    fn user(name: &str) -> Caller {
        Caller::Client(coracle_api::UserInfo::new(name, &[]))
    }

    fn enter(inflow: &Inflow, caller: &Caller) -> Option<Share> {
        inflow.enter(caller, Newcomers::new(1).enter())
    }

    fn node(name: &str) -> Caller {
        Caller::Client(coracle_api::UserInfo::new(format!("system:node:{name}"), &["system:nodes"]))
    }

    #[test]
    fn what_one_identity_holds_takes_nothing_from_another() {
        let inflow = Inflow::new(64);
        let shares: Vec<Share> = (0..3).map(|_| enter(&inflow, &node("a")).unwrap()).collect();
        let holds: Vec<_> = shares.iter().map(Share::hold).collect();
        holds[0].take(NODE_CONNECTION_BYTES_MAX).unwrap();
        assert_eq!(holds[0].take(1), Err(NotRead::NoRoom), "of this connection");
        holds[1].take(NODE_CONNECTION_BYTES_MAX).unwrap();
        assert_eq!(holds[2].take(1), Err(NotRead::NoRoom), "of this identity");
        assert!(holds[2].refused() && !holds[1].refused());
        enter(&inflow, &node("b")).unwrap().hold().take(NODE_CONNECTION_BYTES_MAX).unwrap();
        drop(holds);
        assert_eq!(inflow.all.load(Relaxed), 0, "given back");
        shares[2].hold().take(NODE_CONNECTION_BYTES_MAX).unwrap();
    }

    #[test]
    fn all_together_have_a_bound_and_members_are_beside_it() {
        let inflow = Inflow::new(64);
        let shares: Vec<Share> =
            (0..64).map(|number| enter(&inflow, &node(&number.to_string())).unwrap()).collect();
        let holds: Vec<_> = shares.iter().map(Share::hold).collect();
        let taken = holds.iter().filter(|hold| hold.take(NODE_CONNECTION_BYTES_MAX).is_ok()).count();
        assert_eq!(taken, ALL_BYTES_MAX / NODE_CONNECTION_BYTES_MAX);
        enter(&inflow, &Caller::Member(1)).unwrap().hold().take(MEMBER_CONNECTION_BYTES_MAX).unwrap();
    }

    #[test]
    fn a_node_has_so_many_connections() {
        let inflow = Inflow::new(64);
        let mut open: Vec<_> =
            (0..NODE_CONNECTIONS_MAX).map(|_| enter(&inflow, &node("a")).unwrap()).collect();
        assert!(enter(&inflow, &node("a")).is_none());
        assert!(enter(&inflow, &node("b")).is_some());
        open.pop();
        assert!(enter(&inflow, &node("a")).is_some());
        drop(open);
        let identities = inflow.identities.lock();
        assert!(identities.values().all(|identity| identity.strong_count() == 0), "nothing is kept of them");
    }

    #[test]
    fn a_user_has_half_of_all_connections() {
        let inflow = Inflow::new(8);
        let open: Vec<_> = std::iter::from_fn(|| enter(&inflow, &user("a"))).collect();
        assert_eq!(open.len(), 4);
        assert!(enter(&inflow, &user("b")).is_some() && enter(&inflow, &node("n")).is_some());
        drop(open);
        assert!(enter(&inflow, &user("a")).is_some());
    }

    #[test]
    fn who_shows_a_good_token_is_no_newcomer_any_more() {
        let (inflow, newcomers) = (Inflow::new(4), Newcomers::new(1));
        let connect = || {
            let place = newcomers.enter();
            let lost = place.lost();
            (inflow.enter(&Caller::Anonymous, place).unwrap(), lost)
        };
        let (stranger, lost) = connect();
        drop(inflow.share_of(&stranger, &Caller::Anonymous));
        let (first, stays) = connect();
        assert!(lost.now_or_never().is_some(), "it made room");
        for _ in 0..3 {
            inflow.share_of(&first, &user("a"));
        }
        let (second, stays_too) = connect();
        inflow.share_of(&second, &user("a"));
        // The user has half of all, and this is one too many.
        let (third, lost) = connect();
        inflow.share_of(&third, &user("a"));
        assert!(enter(&inflow, &user("a")).is_none());
        let (_fourth, _) = connect();
        assert!(lost.now_or_never().is_some());
        assert!(stays.now_or_never().is_none() && stays_too.now_or_never().is_none());
        drop((first, second));
        assert!(enter(&inflow, &user("a")).is_some(), "given back");
    }

    #[test]
    fn messages_are_over_one_by_one_however_they_are_cut() {
        let mut wire = vec![];
        for length in [0_u8, 3, 200] {
            wire.extend([0, 0, 0, 0, length]);
            wire.extend(vec![7; length.into()]);
        }
        for cut in 1..wire.len() {
            let mut framing = Framing::default();
            let (mut announced, mut over) = (0, 0);
            for piece in wire.chunks(cut) {
                let fed = framing.feed(piece, 200).unwrap();
                (announced, over) = (announced + fed.announced, over + fed.over);
                assert!(over <= announced);
            }
            assert_eq!((announced, over), (wire.len(), wire.len()), "in pieces of {cut}");
        }
        let mut framing = Framing::default();
        assert_eq!(
            framing.feed(&wire[..10], 200),
            Ok(Fed { announced: 13, over: 5 }),
            "the empty one is over"
        );
        assert_eq!(Framing::default().feed(&[0, 0, 0, 1, 0], 200), Err(NotRead::TooLarge(200)));
    }
}
