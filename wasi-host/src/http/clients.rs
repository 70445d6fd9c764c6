//! Clients share what a container can serve at once.
//!
//! A client whose requests take long, because it sends or takes slowly or because they are made for that, has at most as
//! many of them under way as could still begin: half of all where it is alone. So however many it has, another is served.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::serving::source_of;

/// Requests of one client that are served whatever others could have.
const FREE: usize = 4;

/// Requests under way of each client of one container.
#[derive(Default)]
pub(super) struct Clients {
    under_way: Mutex<HashMap<IpAddr, usize>>,
}

/// A request that is under way, until it is dropped.
pub(super) struct UnderWay {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// One more request of the client, unless it has as many as could still begin.
    pub(super) fn begin(
        self: &Arc<Self>,
        client: IpAddr,
        could_begin: impl FnOnce() -> usize,
    ) -> Option<UnderWay> {
        let client = source_of(client);
        let own = self.under_way.lock().get(&client).copied().unwrap_or(0);
        // Not under the lock: who looks at the instances waits for locks under which requests are dropped.
        if own >= FREE && own >= could_begin() {
            return None;
        }
        *self.under_way.lock().entry(client).or_default() += 1;
        Some(UnderWay { clients: Arc::clone(self), client })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.clients.under_way.lock();
        if let Some(own) = under_way.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                under_way.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_leaves_as_much_as_it_has() {
        let clients = Arc::new(Clients::default());
        let (all, other) = (100, IpAddr::from([10, 0, 0, 2]));
        let mut held = Vec::new();
        while let Some(one) = clients.begin([10, 0, 0, 1].into(), || all - held.len()) {
            held.push(one);
        }
        assert_eq!(held.len(), all / 2);
        let others: Vec<_> = (0..all / 4).map(|_| clients.begin(other, || all / 2)).collect();
        assert!(others.iter().all(Option::is_some));
        // A few are never refused here.
        assert!(clients.begin([10, 0, 0, 3].into(), || 0).is_some());
        drop((held, others));
        assert!(clients.under_way.lock().is_empty());
    }
}
