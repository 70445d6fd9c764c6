//! The network by itself, without guests.

mod callers;
mod connections;
mod datagrams;
mod names;
mod pipes;

use super::{Isolated, Namespace, NamespaceConfig, NetLimits, Uplink};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 128, 0, 5));

fn namespace() -> Namespace {
    namespace_with(NetLimits::default(), Arc::new(Isolated))
}

fn namespace_with(limits: NetLimits, uplink: Arc<dyn Uplink>) -> Namespace {
    Namespace::new(
        NamespaceConfig { hostname: "web-0".into(), tenant: "default".into(), addresses: vec![POD], limits },
        uplink,
    )
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker and the count of its wakes.
fn counter() -> (Waker, Arc<Woken>) {
    let woken = Arc::new(Woken::default());
    (Waker::from(woken.clone()), woken)
}

fn pending<T>(poll: Poll<T>) -> bool {
    poll.is_pending()
}

fn context(waker: &Waker) -> Context<'_> {
    Context::from_waker(waker)
}
