//! Clients share what a container can serve at once.
//!
//! A client whose requests take long, because it sends or takes slowly or because they are made for that, has at most as
//! many of them under way as could still begin: half of all where it is alone. So however many it has, another is served.
//! The pods of another namespace have no more than that together: each further pod takes of the same part. So do all pods
//! of other nodes, whose namespaces a node is not told.
//!
//! Pods of the component's own namespace count each for itself alone. They are its owner's, whose front may have all that
//! his back can serve; what one of them holds up is still no more than one client's part. Clients from outside are of no
//! namespace, whichever node they come by.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::refusals::{Bound, Refused, What};
use crate::serving::source_of;
use crate::shares::give_back;

/// Requests of one client, and of the pods of one namespace, that are served whatever others could have.
const FREE: usize = 4;

/// Requests under way of each client of one container.
#[derive(Default)]
pub(super) struct Clients {
    under_way: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    clients: HashMap<IpAddr, usize>,
    namespaces: HashMap<Arc<str>, usize>,
}

/// A request that is under way, until it is dropped.
pub(super) struct UnderWay {
    clients: Arc<Clients>,
    client: IpAddr,
    namespace: Option<Arc<str>>,
}

impl Clients {
    /// One more request of the client, unless it or the pods of its namespace have as many as could still begin. None for
    /// the namespace is whose pods count each for itself.
    pub(super) fn begin(
        self: &Arc<Self>,
        client: IpAddr,
        namespace: Option<Arc<str>>,
        could_begin: impl FnOnce() -> usize,
    ) -> Result<UnderWay, Refused> {
        let client = source_of(client);
        let most = self.under_way.lock().most_of(client, namespace.as_ref());
        // Not under the lock: who looks at the instances waits for locks under which requests are dropped.
        if most >= FREE {
            let could_begin = could_begin();
            if most >= could_begin {
                let limit = could_begin.max(FREE);
                return Err(Refused::of_share(
                    What::Requests,
                    Bound::Caller,
                    most,
                    limit,
                    most + could_begin,
                ));
            }
        }
        let mut under_way = self.under_way.lock();
        *under_way.clients.entry(client).or_default() += 1;
        if let Some(namespace) = &namespace {
            *under_way.namespaces.entry(namespace.clone()).or_default() += 1;
        }
        drop(under_way);
        Ok(UnderWay { clients: Arc::clone(self), client, namespace })
    }
}

impl Counts {
    /// What the client has, or its namespace where that has more.
    fn most_of(&self, client: IpAddr, namespace: Option<&Arc<str>>) -> usize {
        let own = self.clients.get(&client).copied().unwrap_or(0);
        let of_namespace = namespace.and_then(|namespace| self.namespaces.get(namespace)).copied();
        own.max(of_namespace.unwrap_or(0))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.clients.under_way.lock();
        give_back(&mut under_way.clients, &self.client);
        if let Some(namespace) = &self.namespace {
            give_back(&mut under_way.namespaces, namespace);
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
        while let Ok(one) = clients.begin([10, 0, 0, 1].into(), None, || all - held.len()) {
            held.push(one);
        }
        assert_eq!(held.len(), all / 2);
        let others: Vec<_> = (0..all / 4).map(|_| clients.begin(other, None, || all / 2)).collect();
        assert!(others.iter().all(Result::is_ok));
        // A few are never refused here.
        assert!(clients.begin([10, 0, 0, 3].into(), None, || 0).is_ok());
        drop((held, others));
        assert!(clients.under_way.lock().clients.is_empty());
    }

    #[test]
    fn the_pods_of_another_namespace_together_leave_as_much_as_they_have() {
        let clients = Arc::new(Clients::default());
        let all = 100_usize;
        let mut held = Vec::new();
        let fill = |held: &mut Vec<UnderWay>, namespace: Option<&str>| {
            let before = held.len();
            for pod in 0..10 {
                let begin = |free| clients.begin([10, 0, 0, pod].into(), namespace.map(Into::into), || free);
                while let Ok(one) = begin(all.saturating_sub(held.len())) {
                    held.push(one);
                }
            }
            held.len() - before
        };
        assert_eq!(fill(&mut held, Some("greedy")), all / 2);
        assert_eq!(fill(&mut held, Some("second")), all / 4);
        // Those of the component's own namespace have the rest between them, and no one of them alone.
        assert!(fill(&mut held, None) >= all / 4 - 1);
        drop(held);
        let under_way = clients.under_way.lock();
        assert!(under_way.clients.is_empty() && under_way.namespaces.is_empty());
    }
}
