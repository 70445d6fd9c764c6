//! Which backend a host and path lead to.

use crate::model::{Backend, IngressEntry, IngressPath, IngressRule, PathKind};
use crate::names::Name;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// The rules of all Ingresses, ready to be asked. A copy shares them with the original; to take an Ingress in costs what
/// there is for its own hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Router {
    ingresses: imbl::HashMap<Name, Arc<IngressEntry>>,
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

/// The rules for any host, and what is beyond all rules.
#[derive(Debug, Clone, Default)]
struct Rest {
    any: Paths,
    /// The oldest one's counts.
    defaults: BTreeMap<Arc<Age>, Arc<Target>>,
}

/// What of several Ingresses comes first: the older one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    created: String,
    name: Name,
}

/// The paths of one host. However many somebody has written for it, and however they are nested, a request costs what
/// its own path is long.
#[derive(Debug, Clone, Default)]
struct Paths {
    exact: HashMap<String, Targets>,
    /// Without the slashes at their ends, by their hashes.
    prefixes: HashMap<u64, Vec<(String, Targets)>>,
    /// How many prefixes have so many elements.
    depths: BTreeMap<usize, usize>,
}

/// What Ingresses have for one path, one each, by age.
type Targets = Vec<(Arc<Age>, Arc<Target>)>;

/// A backend and the namespace it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: Arc<str>,
    pub(crate) backend: Backend,
}

impl Router {
    /// An Ingress is so now, or is gone.
    ///
    /// Rules of several Ingresses of one namespace for one host are taken together, the older one's first; a host that
    /// another namespace asked for first is left to that. The oldest default backend counts, and for a host that a
    /// namespace has only what is of that namespace.
    pub(crate) fn put(&mut self, name: &Name, entry: Option<IngressEntry>) {
        if let Some(former) = self.ingresses.remove(name) {
            self.take_in(name, &former, false);
        }
        if let Some(entry) = entry {
            self.take_in(name, &entry, true);
            self.ingresses.insert(name.clone(), Arc::new(entry));
        }
    }

    /// Adds what an Ingress has, or removes it.
    fn take_in(&mut self, name: &Name, entry: &IngressEntry, is_there: bool) {
        let namespace = &name.namespace;
        let age = Arc::new(Age { created: entry.created.clone(), name: name.clone() });
        let target = |backend: &Backend| {
            let target = || Target { namespace: namespace.clone(), backend: backend.clone() };
            is_there.then(target).map(Arc::new)
        };
        if let Some(backend) = &entry.default_backend {
            let target = target(backend);
            self.with_rests(namespace, |rest| rest.set_default(&age, target.clone()));
        }
        for rule in &entry.rules {
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
        rule: &IngressRule,
        age: &Arc<Age>,
        is_there: bool,
        targets: impl Iterator<Item = (&'a IngressPath, Option<Arc<Target>>)>,
    ) {
        let namespace = age.name.namespace.clone();
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
        self.defaults.first_key_value().map(|(_, target)| &**target)
    }

    fn is_empty(&self) -> bool {
        self.defaults.is_empty() && self.any.is_empty()
    }
}

impl Paths {
    /// Of two equal ones of one Ingress the first stays.
    fn set(&mut self, rule: &IngressPath, age: &Arc<Age>, target: Option<Arc<Target>>) {
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

/// What one Ingress has for a path, or has no longer.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BackendPort;

    impl Router {
        /// Of Ingresses that are told in this order.
        fn build(ingresses: Vec<IngressEntry>) -> Self {
            let mut router = Self::default();
            for (at, ingress) in ingresses.into_iter().enumerate() {
                let name = Name::new(&ingress.namespace, &format!("{at:03}"));
                router.put(&name, Some(ingress));
            }
            router
        }

        /// All that are there, as they were told.
        pub(crate) fn ingresses(&self) -> impl Iterator<Item = &IngressEntry> {
            self.ingresses.values().map(|entry| &**entry)
        }
    }

    fn path(path: &str, kind: PathKind, service: &str) -> IngressPath {
        IngressPath { path: path.into(), kind, backend: backend(service) }
    }

    fn backend(service: &str) -> Backend {
        Backend { service: service.into(), port: BackendPort::Number(80) }
    }

    fn rule(host: Option<&str>, paths: Vec<IngressPath>) -> IngressRule {
        IngressRule { host: host.map(str::to_owned), since: String::new(), paths }
    }

    #[test]
    fn hosts_and_paths_as_kubernetes_documents_them() {
        use PathKind::{Exact, ImplementationSpecific, Prefix};
        let router = Router::build(vec![
            IngressEntry {
                namespace: "shop".into(),
                name: "first".into(),
                created: String::new(),
                default_backend: Some(backend("fallback")),
                rules: vec![
                    rule(
                        Some("foo.example"),
                        vec![
                            path("/", Prefix, "root"),
                            path("/aaa/bbb", Prefix, "deep"),
                            path("/aaa", Prefix, "shallow"),
                            path("/aaa/bbb", Exact, "exact"),
                        ],
                    ),
                    rule(Some("*.wild.example"), vec![path("/x/", Prefix, "wild")]),
                ],
            },
            IngressEntry {
                namespace: "other".into(),
                name: "second".into(),
                created: "2026-01-01T00:00:00Z".into(),
                default_backend: Some(backend("late")),
                rules: vec![rule(None, vec![path("/any", ImplementationSpecific, "any")])],
            },
        ]);
        for (host, path, service) in [
            ("foo.example", "/", "root"),
            ("FOO.example.", "/zzz", "root"),
            ("foo.example", "/aaa", "shallow"),
            ("foo.example", "/aaa/", "shallow"),
            ("foo.example", "/aaa/bb", "shallow"),
            ("foo.example", "/aaabbb", "root"),
            ("foo.example", "/aaa/bbb", "exact"),
            ("foo.example", "/aaa/bbb/ccc", "deep"),
            ("a.wild.example", "/x", "wild"),
            ("a.wild.example", "/x/y", "wild"),
            // Another namespace's rule for any host is none for what somebody has.
            ("a.wild.example", "/any/y", "fallback"),
            ("a.b.wild.example", "/x", "fallback"),
            ("wild.example", "/x", "fallback"),
            ("elsewhere", "/any", "any"),
            ("elsewhere", "/none", "fallback"),
        ] {
            assert_eq!(router.route(host, path).unwrap().backend.service, service, "{host}{path}");
        }
        assert_eq!(&*router.route("elsewhere", "/any").unwrap().namespace, "other");
        assert_eq!(Router::default().route("foo.example", "/"), None);
    }

    #[test]
    fn a_host_is_of_who_asked_for_it_first() {
        let entry = |created: &str, namespace: &str, mut rules: Vec<IngressRule>| {
            rules
                .iter_mut()
                .filter(|rule| rule.since.is_empty())
                .for_each(|rule| rule.since = created.into());
            let (namespace, created) = (namespace.into(), created.into());
            IngressEntry { namespace, name: "i".into(), created, default_backend: None, rules }
        };
        let edited = |rule: IngressRule| IngressRule { since: "2026-04-01T00:00:00Z".into(), ..rule };
        let one = |host: &str, at: &str, name: &str| rule(Some(host), vec![path(at, PathKind::Prefix, name)]);
        let router = Router::build(vec![
            entry(
                "2026-02-01T00:00:00Z",
                "b",
                vec![one("a.example", "/", "thief"), one("b.example", "/", "own")],
            ),
            entry("2026-03-01T00:00:00Z", "a", vec![one("A.example", "/deep", "deep")]),
            entry(
                "2026-01-01T00:00:00Z",
                "a",
                vec![
                    one("a.example", "/x", "first"),
                    one("*.wild", "/", "wild"),
                    // The older one asks for it when another has it already.
                    edited(one("b.example", "/", "thief")),
                    edited(one("*.mine", "/", "thief")),
                ],
            ),
            entry("2026-03-01T00:00:00Z", "d", vec![one("shop.mine", "/", "shop")]),
            // More exact than what is held, and less.
            entry(
                "2026-02-01T00:00:00Z",
                "c",
                vec![one("sub.wild", "/", "thief"), one("*.example", "/", "rest")],
            ),
        ]);
        let route = |host: &str, path: &str| router.route(host, path).map(|to| to.backend.service.as_str());
        assert_eq!(route("a.example", "/x"), Some("first"));
        assert_eq!(route("a.example", "/deep/er"), Some("deep"), "one namespace shares its host");
        assert_eq!(route("b.example", "/"), Some("own"));
        assert_eq!(route("sub.wild", "/"), Some("wild"));
        assert_eq!(route("shop.mine", "/"), Some("shop"));
        assert_eq!(route("other.mine", "/"), Some("thief"), "nobody else has that");
        assert_eq!(route("c.example", "/"), Some("rest"));
        assert_eq!(route("a.example", "/x/y"), Some("first"));
    }

    #[test]
    fn what_is_sent_to_a_host_stays_in_the_namespace_that_has_it() {
        let entry = |namespace: &str, default: Option<&str>, rules: Vec<IngressRule>| IngressEntry {
            namespace: namespace.into(),
            default_backend: default.map(backend),
            rules,
            ..IngressEntry::default()
        };
        let one =
            |host: Option<&str>, at: &str, name: &str| rule(host, vec![path(at, PathKind::Prefix, name)]);
        let router = Router::build(vec![
            entry(
                "a",
                None,
                vec![one(Some("a.example"), "/only", "own"), one(Some("*.a.wild"), "/only", "own")],
            ),
            entry(
                "b",
                Some("default-b"),
                vec![one(Some("*.example"), "/", "wild-b"), one(None, "/", "any-b")],
            ),
            entry("c", None, vec![one(Some("c.other"), "/only", "own"), one(None, "/rest", "any-c")]),
        ]);
        let route = |host: &str, path: &str| router.route(host, path).map(|to| to.backend.service.as_str());
        for (host, path, service) in [
            ("a.example", "/only", Some("own")),
            ("a.example", "/login", None),
            ("x.a.wild", "/login", None),
            ("b.example", "/login", Some("wild-b")),
            ("c.other", "/rest", Some("any-c")),
            ("c.other", "/login", None),
            ("nobodys", "/login", Some("any-b")),
            ("nobodys", "/rest", Some("any-c")),
        ] {
            assert_eq!(route(host, path), service, "{host}{path}");
        }
    }

    #[test]
    fn nested_prefixes_cost_nobody_time() {
        let deep = |at: usize| path(&"/a".repeat(at), PathKind::Prefix, "deep");
        let long = |at: usize| path(&format!("/{}", "a".repeat(at)), PathKind::Prefix, "long");
        let paths = (1..4_000).map(deep).chain((1..4_000).map(long)).collect();
        let entry = IngressEntry { rules: vec![rule(None, paths)], ..IngressEntry::default() };
        let router = Router::build(vec![entry]);
        let begun = std::time::Instant::now();
        for _ in 0..100_000 {
            assert_eq!(router.route("h", "/b"), None);
        }
        for at in (1..4_000).step_by(40) {
            let asked = format!("{}/b", "/a".repeat(at));
            assert_eq!(router.route("h", &asked).map(|target| &*target.backend.service), Some("deep"));
        }
        // Each step through what is nested takes some tens of nanoseconds, of which there would be some 800 million.
        assert!(begun.elapsed() < std::time::Duration::from_secs(8), "{:?}", begun.elapsed());
    }

    /// As documented, rule by rule.
    fn by_scan<'a>(rules: &'a [(String, PathKind, String)], path: &str) -> Option<&'a str> {
        let mut found: Option<&(String, PathKind, String)> = None;
        for rule in rules {
            let prefix = rule.0.trim_end_matches('/');
            let matches = match rule.1 {
                PathKind::Exact => rule.0 == path,
                _ => path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            };
            let rank = |(path, kind, _): &(String, PathKind, String)| {
                (path.trim_end_matches('/').len(), *kind == PathKind::Exact)
            };
            if matches && found.is_none_or(|best| rank(rule) > rank(best)) {
                found = Some(rule);
            }
        }
        found.map(|(_, _, name)| name.as_str())
    }

    #[test]
    fn few_of_many_paths_are_looked_at_and_the_same_is_found() {
        let parts = ["", "a", "aa", "b", "a.b", "a-b"];
        let mut rules = Vec::new();
        let mut asked = vec!["/".to_owned(), "/z".to_owned(), "/a/z/a".to_owned(), "/a/".to_owned()];
        for (at, one) in parts.iter().enumerate() {
            for (other_at, other) in parts.iter().enumerate() {
                let path = format!("/{one}/{other}").replace("//", "/");
                let kind = if (at + other_at) % 3 == 0 { PathKind::Exact } else { PathKind::Prefix };
                rules.push((path.clone(), kind, format!("s{at}-{other_at}")));
                asked.extend([path.clone(), format!("{path}/x"), format!("{path}x")]);
            }
        }
        let paths: Vec<IngressPath> = rules.iter().map(|(at, kind, name)| path(at, *kind, name)).collect();
        let entry = IngressEntry { rules: vec![rule(None, paths)], ..IngressEntry::default() };
        let router = Router::build(vec![entry]);
        for path in asked {
            let found = router.route("h", &path).map(|target| target.backend.service.as_str());
            assert_eq!(found, by_scan(&rules, &path), "{path}");
        }
    }

    /// Which namespace has which host, claim by claim in the order in which they were made.
    fn holders(ingresses: &BTreeMap<Name, IngressEntry>) -> BTreeMap<String, Arc<str>> {
        let rules =
            ingresses.iter().flat_map(|(name, entry)| entry.rules.iter().map(move |rule| (name, rule)));
        let mut claims: Vec<_> = rules
            .filter_map(|(name, rule)| Some((&rule.since, &name.namespace, rule.host.clone()?)))
            .collect();
        claims.sort();
        let mut holders: BTreeMap<String, Arc<str>> = BTreeMap::new();
        for (_, namespace, host) in claims {
            let above = host.split_once('.').and_then(|(_, domain)| holders.get(&format!("*.{domain}")));
            if above.is_none_or(|holder| holder == namespace) {
                holders.entry(host).or_insert_with(|| namespace.clone());
            }
        }
        holders
    }

    #[test]
    fn what_comes_and_goes_leaves_the_same_as_if_it_had_never_been() {
        use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
        let mut rng = StdRng::seed_from_u64(7);
        let hosts = ["a.x", "b.x", "*.x", "*.a.x", "c.a.x", "y"];
        let paths = ["/", "/p", "/p/q", "/p/q/", ""];
        let mut router = Router::default();
        let mut there: BTreeMap<Name, IngressEntry> = BTreeMap::new();
        for step in 0..600 {
            let pick = |rng: &mut StdRng, some: &[&str]| some.choose(rng).unwrap().to_string();
            let namespace = pick(&mut rng, &["k", "l", "m"]);
            let name = Name::new(&namespace, &pick(&mut rng, &["one", "two"]));
            let is_there = step < 500 && rng.random_bool(0.7);
            let rule = |rng: &mut StdRng| IngressRule {
                host: rng.random_bool(0.8).then(|| pick(rng, &hosts)),
                since: format!("{}", rng.random_range(0..3)),
                paths: (0..rng.random_range(0..4))
                    .map(|_| {
                        let kind = *[PathKind::Exact, PathKind::Prefix].choose(rng).unwrap();
                        path(&pick(rng, &paths), kind, &format!("{namespace}{}", rng.random_range(0..100)))
                    })
                    .collect(),
            };
            let entry = is_there.then(|| IngressEntry {
                namespace: namespace.clone(),
                name: name.name.to_string(),
                created: format!("{}", rng.random_range(0..3)),
                default_backend: rng.random_bool(0.3).then(|| backend("default")),
                rules: (0..rng.random_range(0..4)).map(|_| rule(&mut rng)).collect(),
            });
            router.put(&name, entry.clone());
            match entry {
                Some(entry) => drop(there.insert(name, entry)),
                None => drop(there.remove(&name)),
            }
            let mut fresh = Router::default();
            there.iter().rev().for_each(|(name, entry)| fresh.put(name, Some(entry.clone())));
            let holders = holders(&there);
            for host in ["a.x", "b.x", "c.x", "c.a.x", "d.a.x", "y", "z"] {
                for path in ["/", "/p", "/p/q", "/p/q/r", "/o"] {
                    let found = router.route(host, path);
                    assert_eq!(found, fresh.route(host, path), "{host}{path} at {step}");
                    let above =
                        host.split_once('.').and_then(|(_, domain)| holders.get(&format!("*.{domain}")));
                    let holder = holders.get(host).or(above);
                    if let (Some(found), Some(holder)) = (found, holder) {
                        assert_eq!(found.namespace, *holder, "{host}{path} at {step}");
                    }
                }
            }
        }
        there.keys().for_each(|name| router.put(name, None));
        let Router { ingresses, exact, wildcard, rest, own_rests } = &router;
        assert!(ingresses.is_empty() && exact.is_empty() && wildcard.is_empty() && own_rests.is_empty());
        assert!(rest.is_empty() && rest.any.depths.is_empty());
    }
}
