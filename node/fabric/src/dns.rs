//! Names, as a pod's resolver would find them.
//!
//! The cluster's names follow the Kubernetes DNS specification 1.1; a pod searches its own namespace first.
//! Names beyond the cluster are asked of the node's own resolver.

use crate::tables::{Service, Tables};
use coracle_wasi_host::net::NetError;
use rand::seq::SliceRandom;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Names with fewer dots than this are searched first, as `ndots:5` has it in pods.
const SEARCH_BELOW_DOTS: usize = 5;

/// Questions to the node's resolver at once; more wait.
const OUTSIDE_LOOKUPS_MAX: usize = 64;

/// Questions of one pod to the node's resolver at once; more wait.
const POD_LOOKUPS_MAX: usize = 8;

/// How long the node's resolver has for an answer.
const OUTSIDE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the cluster knows of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// At least one address.
    Addresses(Vec<IpAddr>),
    /// The name stands for another one (a service of type ExternalName).
    Alias(String),
    /// The name is the cluster's to know, and it does not exist.
    Nothing,
    /// Not the cluster's to know.
    NotOurs,
}

/// Looks a name up in the cluster, for a pod of `namespace`. The name is in lower case, without its last dot.
pub(crate) fn find(tables: &Tables, domain: &str, namespace: &str, name: &str) -> Found {
    if let Some(inner) = strip_domain(name, domain) {
        return inner.map_or(Found::Nothing, |inner| find_inside(tables, inner));
    }
    let dots = name.matches('.').count();
    if dots < SEARCH_BELOW_DOTS {
        for inner in [format!("{name}.{namespace}.svc"), format!("{name}.svc"), name.to_owned()] {
            match find_inside(tables, &inner) {
                Found::Nothing | Found::NotOurs => {}
                found => return found,
            }
        }
    }
    // A bare label or a name of the cluster's own form is nobody else's.
    if dots == 0 || name.ends_with(".svc") { Found::Nothing } else { Found::NotOurs }
}

/// The part of a name before the cluster's domain; the inner option is none for the domain itself.
fn strip_domain<'a>(name: &'a str, domain: &str) -> Option<Option<&'a str>> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(None) } else { rest.strip_suffix('.').map(Some) }
}

/// Looks up a name without the cluster's domain.
fn find_inside(tables: &Tables, name: &str) -> Found {
    let labels: Vec<&str> = name.split('.').collect();
    match labels[..] {
        [service, namespace, "svc"] => match tables.service(namespace, service) {
            Some(service) => service_addresses(service),
            None => Found::Nothing,
        },
        [host, service, namespace, "svc"] => match tables.service(namespace, service) {
            Some(service) => endpoint_addresses(tables, service, host),
            None => Found::Nothing,
        },
        [host, namespace, "pod"] => {
            let address = dashed_address(host).or_else(|| tables.pod(namespace, host));
            address.map_or(Found::Nothing, |address| Found::Addresses(vec![address]))
        }
        _ => Found::Nothing,
    }
}

fn service_addresses(service: &Service) -> Found {
    if let Some(name) = &service.entry.external_name {
        return Found::Alias(name.trim_end_matches('.').to_ascii_lowercase());
    }
    if !service.entry.addresses.is_empty() {
        return Found::Addresses(service.entry.addresses.clone());
    }
    let mut addresses: Vec<IpAddr> = service.serving().map(|(_, endpoint)| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shuffle(&mut rand::rng());
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

/// An endpoint by its hostname, by its pod's name, or by its address with dashes.
fn endpoint_addresses(tables: &Tables, service: &Service, host: &str) -> Found {
    let wanted = dashed_address(host).or_else(|| tables.pod(&service.entry.namespace, host));
    let addresses: Vec<IpAddr> = service
        .serving()
        .filter(|(_, endpoint)| {
            endpoint.hostname.as_deref() == Some(host) || wanted == Some(endpoint.address)
        })
        .map(|(_, endpoint)| endpoint.address)
        .collect();
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

fn dashed_address(text: &str) -> Option<IpAddr> {
    let four = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    four.ok().or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// The lookups of one pod that are under way.
#[derive(Clone)]
pub(crate) struct PodLookups(Arc<Semaphore>);

impl Default for PodLookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(POD_LOOKUPS_MAX)))
    }
}

/// Asks the system; blocks.
type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// The node's own resolver.
pub(crate) struct OutsideResolver {
    permits: Arc<Semaphore>,
    lookup: Arc<Lookup>,
}

impl Default for OutsideResolver {
    fn default() -> Self {
        Self::new(Arc::new(|name| Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect())))
    }
}

impl OutsideResolver {
    fn new(lookup: Arc<Lookup>) -> Self {
        Self { permits: Arc::new(Semaphore::new(OUTSIDE_LOOKUPS_MAX)), lookup }
    }

    /// Asks for a name beyond the cluster. Whether its addresses may be reached is judged at the connect.
    ///
    /// This future is a guest's, who may let go of it at any time; the thread that asks goes on until it has an answer.
    /// So that thread is who holds the permits: those of the node, and those of the pod.
    pub(crate) async fn resolve(
        &self,
        runtime: &Handle,
        pod: &PodLookups,
        name: &str,
    ) -> Result<Vec<IpAddr>, NetError> {
        let gone = |_| NetError::NameTemporarilyUnknown;
        let of_pod = pod.0.clone().acquire_owned().await.map_err(gone)?;
        let (permits, lookup, name) = (self.permits.clone(), self.lookup.clone(), name.to_owned());
        let asking = runtime.spawn(tokio::time::timeout(OUTSIDE_LOOKUP_TIMEOUT, async move {
            let of_node = permits.acquire_owned().await.map_err(gone)?;
            let found = tokio::task::spawn_blocking(move || {
                let _permits = (of_pod, of_node);
                lookup(&name)
            });
            let found = found.await.map_err(|_| NetError::NameTemporarilyUnknown)?;
            let mut addresses = Vec::new();
            for address in found.map_err(|_| NetError::NameUnknown)? {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() { Err(NetError::NameUnknown) } else { Ok(addresses) }
        }));
        match asking.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(NetError::NameTemporarilyUnknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::{Condvar, Mutex};

    /// How many are asking and have asked, and whether they get their answers.
    #[derive(Default)]
    struct Asked {
        now: usize,
        most: usize,
        all: usize,
        answered: bool,
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pod_that_gives_up_has_no_more_lookups_for_it() {
        let asked = Arc::new((Mutex::new(Asked::default()), Condvar::new()));
        let (asking, answer) = (asked.clone(), IpAddr::from([198, 51, 100, 1]));
        let resolver = Arc::new(OutsideResolver::new(Arc::new(move |_| {
            let (state, changed) = &*asking;
            let mut state = state.lock();
            (state.now, state.all) = (state.now + 1, state.all + 1);
            state.most = state.most.max(state.now);
            changed.notify_all();
            changed.wait_while(&mut state, |state| !state.answered);
            state.now -= 1;
            Ok(vec![answer, answer])
        })));
        let (runtime, pod) = (Handle::current(), PodLookups::default());
        let ask = || {
            let (resolver, runtime, pod) = (resolver.clone(), runtime.clone(), pod.clone());
            tokio::spawn(async move { resolver.resolve(&runtime, &pod, "example.org").await })
        };
        let given_up: Vec<_> = (0..POD_LOOKUPS_MAX).map(|_| ask()).collect();
        let busy = asked.clone();
        let wait = move || busy.1.wait_while(&mut busy.0.lock(), |state| state.now < POD_LOOKUPS_MAX);
        tokio::task::spawn_blocking(wait).await.unwrap();
        for one in given_up {
            one.abort();
            assert!(one.await.is_err());
        }
        let more: Vec<_> = (0..POD_LOOKUPS_MAX).map(|_| ask()).collect();
        assert_eq!(pod.0.available_permits(), 0, "the threads of those who gave up count still");
        asked.0.lock().answered = true;
        asked.1.notify_all();
        for one in more {
            assert_eq!(one.await.unwrap(), Ok(vec![answer]));
        }
        let state = asked.0.lock();
        assert_eq!((state.most, state.all), (POD_LOOKUPS_MAX, 2 * POD_LOOKUPS_MAX));
    }
}
