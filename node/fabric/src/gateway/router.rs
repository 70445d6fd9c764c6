//! Which backend a host and path lead to.

use crate::model::{Backend, IngressEntry, IngressPath, PathKind};
use std::collections::HashMap;

/// The rules of all Ingresses, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct Router {
    exact: HashMap<String, Vec<Rule>>,
    /// By the domain behind the `*.`.
    wildcard: HashMap<String, Vec<Rule>>,
    any: Vec<Rule>,
    default: Option<Target>,
}

#[derive(Debug)]
struct Rule {
    path: String,
    kind: PathKind,
    target: Target,
}

/// A backend and the namespace it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) backend: Backend,
}

impl Router {
    /// Rules of several Ingresses for one host are taken together; the first default backend counts.
    pub(crate) fn build(ingresses: Vec<IngressEntry>) -> Router {
        let mut router = Router::default();
        for ingress in ingresses {
            let target = |backend| Target { namespace: ingress.namespace.clone(), backend };
            if router.default.is_none() {
                router.default = ingress.default_backend.map(target);
            }
            for rule in ingress.rules {
                let rules = rule.paths.into_iter().map(|path: IngressPath| Rule {
                    path: if path.path.is_empty() { "/".to_owned() } else { path.path },
                    kind: path.kind,
                    target: target(path.backend),
                });
                router.rules_of(rule.host.as_deref()).extend(rules);
            }
        }
        router
    }

    fn rules_of(&mut self, host: Option<&str>) -> &mut Vec<Rule> {
        match host.map(str::to_ascii_lowercase) {
            None => &mut self.any,
            Some(host) => match host.strip_prefix("*.") {
                Some(domain) => self.wildcard.entry(domain.to_owned()).or_default(),
                None => self.exact.entry(host).or_default(),
            },
        }
    }

    /// The target for a host, without its port, and a path: the exact host before the wildcard before no host,
    /// then the longest path; the default backend last.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<&Target> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        // A wildcard stands for exactly one label.
        let behind = host.split_once('.').map(|(_, domain)| domain);
        let by_host =
            [self.exact.get(&host), behind.and_then(|domain| self.wildcard.get(domain)), Some(&self.any)];
        by_host.into_iter().flatten().find_map(|rules| best(rules, path)).or(self.default.as_ref())
    }
}

fn best<'a>(rules: &'a [Rule], path: &str) -> Option<&'a Target> {
    let mut found: Option<&Rule> = None;
    for rule in rules.iter().filter(|rule| rule.matches(path)) {
        let rank = |rule: &Rule| (rule.path.trim_end_matches('/').len(), rule.kind == PathKind::Exact);
        // The earlier of two equal ones stays.
        if found.is_none_or(|best| rank(rule) > rank(best)) {
            found = Some(rule);
        }
    }
    found.map(|rule| &rule.target)
}

impl Rule {
    fn matches(&self, path: &str) -> bool {
        match self.kind {
            PathKind::Exact => self.path == path,
            PathKind::Prefix | PathKind::ImplementationSpecific => {
                let prefix = self.path.trim_end_matches('/');
                let rest = path.strip_prefix(prefix);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
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
        IngressRule { host: host.map(str::to_owned), paths }
    }

    #[test]
    fn hosts_and_paths_as_kubernetes_documents_them() {
        use PathKind::{Exact, ImplementationSpecific, Prefix};
        let router = Router::build(vec![
            IngressEntry {
                namespace: "shop".into(),
                name: "first".into(),
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
            ("a.wild.example", "/any/y", "any"),
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
}
