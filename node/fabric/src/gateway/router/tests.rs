//! Whose a host is, and which path is the longest.

use super::*;
use crate::model::{BackendPort, ServiceBackend};
use crate::names::Name;

impl Router {
    /// Of objects that are told in this order, with their namespaces.
    fn build(sets: Vec<(&str, RouteSet)>) -> Self {
        let mut router = Self::default();
        for (at, (namespace, routes)) in sets.into_iter().enumerate() {
            router.put(&source(namespace, &format!("{at:03}")), Some(routes));
        }
        router
    }

    /// All that are there, as they were told.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (RouteSource, RouteSet)> {
        self.sets.iter().map(|(source, routes)| (source.clone(), (**routes).clone()))
    }
}

fn source(namespace: &str, name: &str) -> RouteSource {
    RouteSource::Ingress(Name::new(namespace, name))
}

fn path(path: &str, kind: PathKind, service: &str) -> PathRoute {
    PathRoute { path: path.into(), kind, backend: backend(service).into() }
}

fn backend(service: &str) -> ServiceBackend {
    ServiceBackend { service: service.into(), port: BackendPort::Number(80) }
}

fn rule(host: Option<&str>, paths: Vec<PathRoute>) -> HostRoutes {
    HostRoutes { host: host.map(str::to_owned), since: String::new(), paths }
}

#[test]
fn hosts_and_paths_as_kubernetes_documents_them() {
    use PathKind::{Exact, ImplementationSpecific, Prefix};
    let router = Router::build(vec![
        (
            "shop",
            RouteSet {
                created: String::new(),
                default_backend: Some(backend("fallback")),
                hosts: vec![
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
        ),
        (
            "other",
            RouteSet {
                created: "2026-01-01T00:00:00Z".into(),
                default_backend: Some(backend("late")),
                hosts: vec![rule(None, vec![path("/any", ImplementationSpecific, "any")])],
            },
        ),
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
        assert_eq!(router.route(host, path).unwrap().backend.choose(0).service, service, "{host}{path}");
    }
    assert_eq!(&*router.route("elsewhere", "/any").unwrap().namespace, "other");
    assert_eq!(Router::default().route("foo.example", "/"), None);
}

#[test]
fn a_host_is_of_who_asked_for_it_first() {
    let entry = |created: &str, namespace: &'static str, mut hosts: Vec<HostRoutes>| {
        let unsaid = hosts.iter_mut().filter(|rule| rule.since.is_empty());
        unsaid.for_each(|rule| rule.since = created.into());
        (namespace, RouteSet { created: created.into(), default_backend: None, hosts })
    };
    let edited = |rule: HostRoutes| HostRoutes { since: "2026-04-01T00:00:00Z".into(), ..rule };
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
    let route =
        |host: &str, path: &str| router.route(host, path).map(|to| to.backend.choose(0).service.as_str());
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
    let entry = |namespace: &'static str, default: Option<&str>, hosts: Vec<HostRoutes>| {
        (namespace, RouteSet { default_backend: default.map(backend), hosts, ..RouteSet::default() })
    };
    let one = |host: Option<&str>, at: &str, name: &str| rule(host, vec![path(at, PathKind::Prefix, name)]);
    let router = Router::build(vec![
        entry("a", None, vec![one(Some("a.example"), "/only", "own"), one(Some("*.a.wild"), "/only", "own")]),
        entry("b", Some("default-b"), vec![one(Some("*.example"), "/", "wild-b"), one(None, "/", "any-b")]),
        entry("c", None, vec![one(Some("c.other"), "/only", "own"), one(None, "/rest", "any-c")]),
    ]);
    let route =
        |host: &str, path: &str| router.route(host, path).map(|to| to.backend.choose(0).service.as_str());
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
    let routes = RouteSet { hosts: vec![rule(None, paths)], ..RouteSet::default() };
    let router = Router::build(vec![("d", routes)]);
    let begun = std::time::Instant::now();
    for _ in 0..100_000 {
        assert_eq!(router.route("h", "/b"), None);
    }
    for at in (1..4_000).step_by(40) {
        let asked = format!("{}/b", "/a".repeat(at));
        assert_eq!(router.route("h", &asked).map(|target| &*target.backend.choose(0).service), Some("deep"));
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
    let paths: Vec<PathRoute> = rules.iter().map(|(at, kind, name)| path(at, *kind, name)).collect();
    let routes = RouteSet { hosts: vec![rule(None, paths)], ..RouteSet::default() };
    let router = Router::build(vec![("d", routes)]);
    for path in asked {
        let found = router.route("h", &path).map(|target| target.backend.choose(0).service.as_str());
        assert_eq!(found, by_scan(&rules, &path), "{path}");
    }
}

/// Which namespace has which host, claim by claim in the order in which they were made.
fn holders(sets: &BTreeMap<RouteSource, RouteSet>) -> BTreeMap<String, Arc<str>> {
    let rules =
        sets.iter().flat_map(|(source, routes)| routes.hosts.iter().map(move |rule| (source.name(), rule)));
    let mut claims: Vec<_> =
        rules.filter_map(|(name, rule)| Some((&rule.since, &name.namespace, rule.host.clone()?))).collect();
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
    let mut there: BTreeMap<RouteSource, RouteSet> = BTreeMap::new();
    for step in 0..600 {
        let pick = |rng: &mut StdRng, some: &[&str]| some.choose(rng).unwrap().to_string();
        let namespace = pick(&mut rng, &["k", "l", "m"]);
        let source = source(&namespace, &pick(&mut rng, &["one", "two"]));
        let is_there = step < 500 && rng.random_bool(0.7);
        let rule = |rng: &mut StdRng| HostRoutes {
            host: rng.random_bool(0.8).then(|| pick(rng, &hosts)),
            since: format!("{}", rng.random_range(0..3)),
            paths: (0..rng.random_range(0..4))
                .map(|_| {
                    let kind = *[PathKind::Exact, PathKind::Prefix].choose(rng).unwrap();
                    path(&pick(rng, &paths), kind, &format!("{namespace}{}", rng.random_range(0..100)))
                })
                .collect(),
        };
        let routes = is_there.then(|| RouteSet {
            created: format!("{}", rng.random_range(0..3)),
            default_backend: rng.random_bool(0.3).then(|| backend("default")),
            hosts: (0..rng.random_range(0..4)).map(|_| rule(&mut rng)).collect(),
        });
        router.put(&source, routes.clone());
        match routes {
            Some(routes) => drop(there.insert(source, routes)),
            None => drop(there.remove(&source)),
        }
        let mut fresh = Router::default();
        there.iter().rev().for_each(|(source, routes)| fresh.put(source, Some(routes.clone())));
        let holders = holders(&there);
        for host in ["a.x", "b.x", "c.x", "c.a.x", "d.a.x", "y", "z"] {
            for path in ["/", "/p", "/p/q", "/p/q/r", "/o"] {
                let found = router.route(host, path);
                assert_eq!(found, fresh.route(host, path), "{host}{path} at {step}");
                let above = host.split_once('.').and_then(|(_, domain)| holders.get(&format!("*.{domain}")));
                let holder = holders.get(host).or(above);
                if let (Some(found), Some(holder)) = (found, holder) {
                    assert_eq!(found.namespace, *holder, "{host}{path} at {step}");
                }
            }
        }
    }
    there.keys().for_each(|source| router.put(source, None));
    let Router { sets, exact, wildcard, rest, own_rests } = &router;
    assert!(sets.is_empty() && exact.is_empty() && wildcard.is_empty() && own_rests.is_empty());
    assert!(rest.is_empty() && rest.any.depths.is_empty());
}

#[test]
fn parts_of_the_requests_are_as_large_as_they_say() {
    let parts =
        RouteBackend::Split([(90, backend("new")), (9, backend("old")), (1, backend("older"))].into());
    let mut asked: BTreeMap<&str, usize> = BTreeMap::new();
    for chance in 0..1_000 {
        *asked.entry(&parts.choose(chance).service).or_default() += 1;
    }
    assert_eq!(asked, [("new", 900), ("old", 90), ("older", 10)].into());
    assert_eq!(parts.choose(u64::MAX).service, "new");
}
