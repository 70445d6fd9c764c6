//! Routes: which backend a host and path lead to. Who they are of is all the same here: Ingresses and Functions are sources of
//! them.

#[cfg(test)]
mod tests;

use crate::model::{HostRoutes, PathKind, PathRoute, RouteBackend, RouteSet, RouteSource};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// All routes, ready to be asked. A copy shares them with the original; to take those of one object in costs what there is
/// for its own hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Router {
    sets: imbl::HashMap<RouteSource, Arc<RouteSet>>,
    exact: imbl::HashMap<String, Arc<Host>>,
    /// By the domain behind the `*.`.
    wildcard: imbl::HashMap<String, Arc<Host>>,
    /// Of all namespaces, for hosts that nobody has.
    rest: Arc<Rest>,
    /// What each namespace has for its own hosts beside the rules for them.
    own_rests: imbl::HashMap<Arc<str>, Arc<Rest>>,
}

/// Who asks for a host, and the rules that each has for it.
#[derive(Debug, Clone, Default)]
struct Host {
    /// In how many rules. The first is of who asked first; of those that asked at once by name.
    claims: BTreeMap<Claim, usize>,
    by_namespace: BTreeMap<Arc<str>, Arc<Own>>,
}

/// Since when a namespace asks for a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    since: String,
    namespace: Arc<str>,
}

/// What one namespace has for a host.
#[derive(Debug, Clone, Default)]
struct Own {
    rules: usize,
    paths: Paths,
}

/// The routes for any host, and what is beyond all routes.
#[derive(Debug, Clone, Default)]
struct Rest {
    any: Paths,
    /// The oldest one's counts.
    defaults: imbl::OrdMap<Arc<Age>, Arc<Target>>,
}

/// What of several comes first: the older one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    created: String,
    source: RouteSource,
}

/// The paths of one host. However many somebody has written for it, and however they are nested, a request costs what
/// its own path is long.
#[derive(Debug, Clone, Default)]
struct Paths {
    exact: imbl::HashMap<String, Targets>,
    /// Without the slashes at their ends, by their hashes.
    prefixes: imbl::HashMap<u64, Vec<(String, Targets)>>,
    /// How many prefixes have so many elements.
    depths: BTreeMap<usize, usize>,
}

/// What objects have for one path, one each, by age.
type Targets = Vec<(Arc<Age>, Arc<Target>)>;

/// A backend and the namespace it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: Arc<str>,
    pub(crate) backend: RouteBackend,
    /// Its services are revisions of a function, which may have no instances while nobody asks for them.
    pub(crate) is_function: bool,
}

impl Router {
    /// The routes of an object are these now, or are gone.
    ///
    /// Routes of several objects of one namespace for one host are taken together, the older one's first; a host that
    /// another namespace asked for first is left to that. The oldest default backend counts, and for a host that a
    /// namespace has only what is of that namespace.
    pub(crate) fn put(&mut self, source: &RouteSource, routes: Option<RouteSet>) {
        if let Some(former) = self.sets.remove(source) {
            self.take_in(source, &former, false);
        }
        if let Some(routes) = routes {
            self.take_in(source, &routes, true);
            self.sets.insert(source.clone(), Arc::new(routes));
        }
    }

    /// Adds what an object has, or removes it.
    fn take_in(&mut self, source: &RouteSource, routes: &RouteSet, is_there: bool) {
        let namespace = &source.name().namespace;
        let age = Arc::new(Age { created: routes.created.clone(), source: source.clone() });
        let target = |backend: &RouteBackend| {
            let is_function = matches!(source, RouteSource::Function(_));
            let target = || Target { namespace: namespace.clone(), backend: backend.clone(), is_function };
            is_there.then(target).map(Arc::new)
        };
        if let Some(backend) = &routes.default_backend {
            let target = target(&backend.clone().into());
            self.with_rests(namespace, |rest| rest.set_default(&age, target.clone()));
        }
        for rule in &routes.hosts {
            let mut targets = rule.paths.iter().map(|path| (path, target(&path.backend)));
            match &rule.host {
                Some(host) => self.with_host(host, |host| host.take_in(rule, &age, is_there, targets)),
                None => {
                    let targets: Vec<_> = targets.by_ref().collect();
                    let set = |rest: &mut Rest| {
                        targets.iter().for_each(|(path, target)| rest.any.set(path, &age, target.clone()));
                    };
                    self.with_rests(namespace, set);
                }
            }
        }
    }

    /// Changes what is for any host, for all namespaces and for the hosts of this one.
    fn with_rests(&mut self, namespace: &Arc<str>, change: impl Fn(&mut Rest)) {
        change(Arc::make_mut(&mut self.rest));
        let own = self.own_rests.entry(namespace.clone()).or_default();
        change(Arc::make_mut(own));
        if own.is_empty() {
            self.own_rests.remove(namespace);
        }
    }

    fn with_host(&mut self, host: &str, change: impl FnOnce(&mut Host)) {
        let host = host.to_ascii_lowercase();
        let (hosts, host) = match host.strip_prefix("*.") {
            Some(domain) => (&mut self.wildcard, domain.to_owned()),
            None => (&mut self.exact, host),
        };
        let known = hosts.entry(host.clone()).or_default();
        change(Arc::make_mut(known));
        if known.claims.is_empty() {
            hosts.remove(&host);
        }
    }

    /// The target for a host, without its port, and a path: the exact host before the wildcard before no host,
    /// then the longest path; the default backend last. What is sent to a host that a namespace has stays there.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<&Target> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        // A wildcard stands for exactly one label.
        let behind = host.split_once('.').map(|(_, domain)| domain);
        let wildcard = behind.and_then(|domain| self.wildcard.get(domain));
        let above = wildcard.and_then(|host| host.first());
        let exact = self.exact.get(&host);
        let of_exact = exact.and_then(|host| host.holder_below(above));
        let of_wildcard = above.map(|claim| &claim.namespace);
        let holder = of_exact.or(of_wildcard);
        let rest = match holder {
            None => Some(&self.rest),
            Some(namespace) => self.own_rests.get(namespace),
        };
        let hosts = [(exact, of_exact), (wildcard, of_wildcard)].into_iter().filter(|(_, of)| *of == holder);
        let mut of_holder = hosts.filter_map(|(host, _)| host?.by_namespace.get(holder?));
        let found = of_holder.find_map(|own| own.paths.best(path));
        found.or_else(|| rest?.any.best(path)).or_else(|| rest?.default())
    }
}

impl Host {
    /// Adds a rule for the host, or removes it.
    fn take_in<'a>(
        &mut self,
        rule: &HostRoutes,
        age: &Arc<Age>,
        is_there: bool,
        targets: impl Iterator<Item = (&'a PathRoute, Option<Arc<Target>>)>,
    ) {
        let namespace = age.source.name().namespace.clone();
        let claim = Claim { since: rule.since.clone(), namespace: namespace.clone() };
        let own = Arc::make_mut(self.by_namespace.entry(namespace.clone()).or_default());
        targets.for_each(|(path, target)| own.paths.set(path, age, target));
        count(&mut own.rules, is_there);
        if own.rules == 0 {
            self.by_namespace.remove(&namespace);
        }
        let rules = self.claims.entry(claim.clone()).or_default();
        count(rules, is_there);
        if *rules == 0 {
            self.claims.remove(&claim);
        }
    }

    fn first(&self) -> Option<&Claim> {
        self.claims.first_key_value().map(|(claim, _)| claim)
    }

    /// The namespace that has the host, where `above` is the first to ask for the wildcard above it: who asks later than
    /// that may not have what is below, unless it is the same.
    fn holder_below(&self, above: Option<&Claim>) -> Option<&Arc<str>> {
        let first = self.first()?;
        match above {
            Some(above) if above < first => {
                self.by_namespace.get_key_value(&above.namespace).map(|(own, _)| own)
            }
            _ => Some(&first.namespace),
        }
    }
}

fn count(count: &mut usize, is_there: bool) {
    *count = if is_there { *count + 1 } else { count.saturating_sub(1) };
}

impl Rest {
    fn set_default(&mut self, age: &Arc<Age>, target: Option<Arc<Target>>) {
        match target {
            Some(target) => drop(self.defaults.insert(age.clone(), target)),
            None => drop(self.defaults.remove(age)),
        }
    }

    fn default(&self) -> Option<&Target> {
        self.defaults.get_min().map(|(_, target)| &**target)
    }

    fn is_empty(&self) -> bool {
        self.defaults.is_empty() && self.any.is_empty()
    }
}

impl Paths {
    /// Of two equal ones of one object the first stays.
    fn set(&mut self, rule: &PathRoute, age: &Arc<Age>, target: Option<Arc<Target>>) {
        let path = if rule.path.is_empty() { "/" } else { &rule.path };
        match rule.kind {
            PathKind::Exact => {
                let targets = self.exact.entry(path.to_owned()).or_default();
                set(targets, age, target);
                if targets.is_empty() {
                    self.exact.remove(path);
                }
            }
            PathKind::Prefix | PathKind::ImplementationSpecific => {
                self.set_prefix(path.trim_end_matches('/'), age, target);
            }
        }
    }

    fn set_prefix(&mut self, path: &str, age: &Arc<Age>, target: Option<Arc<Target>>) {
        let Some((elements, (_, hash))) = hashes(path).enumerate().last() else { return };
        let alike = self.prefixes.entry(hash).or_default();
        let known = alike.iter().position(|(other, _)| other == path);
        let at = known.unwrap_or_else(|| {
            alike.push((path.to_owned(), Targets::new()));
            *self.depths.entry(elements).or_default() += 1;
            alike.len() - 1
        });
        set(&mut alike[at].1, age, target);
        if !alike[at].1.is_empty() {
            return;
        }
        alike.swap_remove(at);
        if alike.is_empty() {
            self.prefixes.remove(&hash);
        }
        let as_deep = self.depths.entry(elements).or_default();
        *as_deep -= 1;
        if *as_deep == 0 {
            self.depths.remove(&elements);
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    /// The longest path that matches: an exact one is never shorter than a prefix, and comes before it.
    fn best(&self, path: &str) -> Option<&Target> {
        self.exact.get(path).and_then(oldest).or_else(|| self.longest(path))
    }

    /// The longest prefix, element by element.
    fn longest(&self, path: &str) -> Option<&Target> {
        let (deepest, _) = self.depths.last_key_value()?;
        let ends: Vec<(usize, u64)> = hashes(path).take(deepest + 1).collect();
        ends.iter().rev().find_map(|(end, hash)| {
            let (_, targets) = self.prefixes.get(hash)?.iter().find(|(prefix, _)| *prefix == path[..*end])?;
            oldest(targets)
        })
    }
}

/// What one object has for a path, or has no longer.
fn set(targets: &mut Targets, age: &Arc<Age>, target: Option<Arc<Target>>) {
    match (targets.binary_search_by(|(other, _)| other.cmp(age)), target) {
        (Err(at), Some(target)) => targets.insert(at, (age.clone(), target)),
        (Ok(at), None) => drop(targets.remove(at)),
        (Ok(_), Some(_)) | (Err(_), None) => {}
    }
}

fn oldest(targets: &Targets) -> Option<&Target> {
    targets.first().map(|(_, target)| &**target)
}

/// Where each prefix of the path ends, element by element, with its hash.
fn hashes(path: &str) -> impl Iterator<Item = (usize, u64)> {
    static HASHING: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let starts = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let (mut hasher, mut hashed) = (HASHING.build_hasher(), 0);
    starts.map(move |end| {
        hasher.write(&path.as_bytes()[hashed..end]);
        hashed = end;
        (end, hasher.finish())
    })
}
