//! Which backend a host and path lead to.

use crate::model::{Backend, IngressEntry, IngressPath, PathKind};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The rules of all Ingresses, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Router {
    exact: HashMap<String, Host>,
    /// By the domain behind the `*.`.
    wildcard: HashMap<String, Host>,
    /// Of all namespaces, for hosts that nobody has.
    rest: Rest,
    /// What each namespace has for its own hosts beside the rules for them.
    own_rests: HashMap<String, Rest>,
}

/// The rules for one host, all of the namespace that has it.
#[derive(Debug)]
struct Host {
    namespace: String,
    paths: Paths,
}

/// The rules for any host, and what is beyond all rules.
#[derive(Debug, Default)]
struct Rest {
    any: Paths,
    default: Option<Target>,
}

/// The paths of one host. However many somebody has written for it, and however they are nested, a request costs what
/// its own path is long.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<String, Target>,
    /// Without the slashes at their ends, by their hashes.
    prefixes: HashMap<u64, Vec<(String, Target)>>,
    hashing: RandomState,
    /// Elements of the prefix that has most.
    deepest: usize,
}

/// A backend and the namespace it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) backend: Backend,
}

impl Router {
    /// Rules of several Ingresses of one namespace for one host are taken together, the older one's first; a host that
    /// another namespace asked for first is left to that. The oldest default backend counts, and for a host that a
    /// namespace has only what is of that namespace.
    pub(crate) fn build(mut ingresses: Vec<IngressEntry>) -> Router {
        let holders = Holders::of(&ingresses);
        // Of those of one age they stay in the order in which they are told.
        ingresses.sort_by(|one, other| one.created.cmp(&other.created));
        let mut router = Router::default();
        for ingress in ingresses {
            let namespace = ingress.namespace;
            let target = |backend| Target { namespace: namespace.clone(), backend };
            if let Some(backend) = ingress.default_backend {
                for rest in router.rests_of(&namespace) {
                    rest.default.get_or_insert_with(|| target(backend.clone()));
                }
            }
            for rule in ingress.rules {
                let Some(host) = &rule.host else {
                    for rest in router.rests_of(&namespace) {
                        rule.paths.iter().for_each(|path| rest.any.add(path, target(path.backend.clone())));
                    }
                    continue;
                };
                if holders.has(host, &namespace) {
                    let paths = router.paths_of(host, &namespace);
                    rule.paths.iter().for_each(|path| paths.add(path, target(path.backend.clone())));
                }
            }
        }
        router
    }

    fn rests_of(&mut self, namespace: &str) -> [&mut Rest; 2] {
        [&mut self.rest, self.own_rests.entry(namespace.to_owned()).or_default()]
    }

    /// The rules for a host that the namespace has.
    fn paths_of(&mut self, host: &str, namespace: &str) -> &mut Paths {
        let host = host.to_ascii_lowercase();
        let new = || Host { namespace: namespace.to_owned(), paths: Paths::default() };
        let host = match host.strip_prefix("*.") {
            Some(domain) => self.wildcard.entry(domain.to_owned()).or_insert_with(new),
            None => self.exact.entry(host).or_insert_with(new),
        };
        &mut host.paths
    }

    /// The target for a host, without its port, and a path: the exact host before the wildcard before no host,
    /// then the longest path; the default backend last. What is sent to a host that a namespace has stays there.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<&Target> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        // A wildcard stands for exactly one label.
        let behind = host.split_once('.').map(|(_, domain)| domain);
        let by_host = [self.exact.get(&host), behind.and_then(|domain| self.wildcard.get(domain))];
        let mut by_host = by_host.into_iter().flatten().peekable();
        let holder = by_host.peek().map(|host| host.namespace.as_str());
        let rest = match holder {
            None => Some(&self.rest),
            Some(namespace) => self.own_rests.get(namespace),
        };
        by_host
            .filter(|host| holder == Some(&*host.namespace))
            .find_map(|host| host.paths.best(path))
            .or_else(|| rest?.any.best(path))
            .or_else(|| rest?.default.as_ref())
    }
}

/// Which namespace has which host. What is for every host is nobody's.
#[derive(Default)]
struct Holders {
    by_host: HashMap<String, String>,
}

impl Holders {
    /// Who asked first has a host. Of those that asked at once it is who is told of first.
    fn of(ingresses: &[IngressEntry]) -> Self {
        let claims = ingresses.iter().flat_map(|ingress| {
            ingress
                .rules
                .iter()
                .filter_map(|rule| Some((&rule.since, rule.host.as_ref()?, &ingress.namespace)))
        });
        let mut claims: Vec<_> = claims.collect();
        claims.sort_by_key(|(since, ..)| *since);
        let mut holders = Self::default();
        for (_, host, namespace) in claims {
            holders.claim(host, namespace);
        }
        holders
    }

    fn has(&self, host: &str, namespace: &str) -> bool {
        self.by_host.get(&host.to_ascii_lowercase()).is_some_and(|holder| holder == namespace)
    }

    /// Takes a host for a namespace, unless another has it or the wildcard above it.
    fn claim(&mut self, host: &str, namespace: &str) {
        let host = host.to_ascii_lowercase();
        let above = host.split_once('.').and_then(|(_, domain)| self.by_host.get(&format!("*.{domain}")));
        if above.is_none_or(|holder| holder == namespace) {
            self.by_host.entry(host).or_insert_with(|| namespace.to_owned());
        }
    }
}

impl Paths {
    /// The earlier of two equal ones stays.
    fn add(&mut self, rule: &IngressPath, target: Target) {
        let path = if rule.path.is_empty() { "/" } else { &rule.path };
        match rule.kind {
            PathKind::Exact => {
                self.exact.entry(path.to_owned()).or_insert(target);
            }
            PathKind::Prefix | PathKind::ImplementationSpecific => {
                let path = path.trim_end_matches('/');
                let Some((elements, hash)) = self.hashes(path).enumerate().last() else { return };
                self.deepest = self.deepest.max(elements);
                let alike = self.prefixes.entry(hash.1).or_default();
                if alike.iter().all(|(other, _)| other != path) {
                    alike.push((path.to_owned(), target));
                }
            }
        }
    }

    /// Where each prefix of the path ends, element by element, with its hash.
    fn hashes<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (usize, u64)> + 'a {
        let starts = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let (mut hasher, mut hashed) = (self.hashing.build_hasher(), 0);
        starts.map(move |end| {
            hasher.write(&path.as_bytes()[hashed..end]);
            hashed = end;
            (end, hasher.finish())
        })
    }

    /// The longest path that matches: an exact one is never shorter than a prefix, and comes before it.
    fn best(&self, path: &str) -> Option<&Target> {
        self.exact.get(path).or_else(|| self.longest(path))
    }

    /// The longest prefix, element by element.
    fn longest(&self, path: &str) -> Option<&Target> {
        let ends: Vec<(usize, u64)> = self.hashes(path).take(self.deepest + 1).collect();
        ends.iter().rev().find_map(|(end, hash)| {
            let alike = self.prefixes.get(hash)?.iter();
            alike.filter(|(prefix, _)| *prefix == path[..*end]).map(|(_, target)| target).next()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackendPort, IngressRule};

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
                created: String::new(),
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
        assert_eq!(router.route("elsewhere", "/any").unwrap().namespace, "other");
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
}
