//! The other objects that a pod's environment and volumes are made of: config maps, secrets, services.

mod keyed;

use std::{fmt, sync::Arc};

use imbl::OrdMap;
use serde::Deserialize;

pub use self::keyed::KeyedData;
use crate::{CoreError, spec::parse_without_nulls};

/// Objects by namespace and name, as the link delivered them. A copy shares everything with the original.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    pub config_maps: Objects<Keyed>,
    pub secrets: Objects<Keyed>,
    pub services: Objects<Arc<Service>>,
}

type Objects<T> = OrdMap<(String, String), T>;

/// A config map or secret, as far as this node is sent it.
#[derive(Clone, Debug, PartialEq)]
pub enum Keyed {
    Data(Arc<KeyedData>),
    /// It is there, and this node is not sent it: why, and the mend.
    Withheld(Arc<str>),
}

impl Keyed {
    /// Whether pods come out otherwise with the other.
    fn differs(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Data(one), Self::Data(other)) => one.revision != other.revision,
            (one, other) => one != other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
    Service,
}

impl Kind {
    /// As messages speak of one.
    pub fn noun(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Service => "service",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Service => "Service",
        })
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    ConfigMap(Keyed),
    Secret(Keyed),
    Service(Arc<Service>),
}

impl Source {
    /// One that this node is not sent, with the reason; none where the resource is not one of which that is said.
    pub fn withheld(resource: &str, why: &str) -> Option<Self> {
        let keyed = Keyed::Withheld(why.into());
        match resource {
            "configmaps" => Some(Self::ConfigMap(keyed)),
            "secrets" => Some(Self::Secret(keyed)),
            _ => None,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Secret(_) => Kind::Secret,
            Self::Service(_) => Kind::Service,
        }
    }
}

impl Sources {
    /// True where pods come out otherwise with it than before; see [`crate::Observed::source_changed`].
    pub fn put(&mut self, own: (String, String), source: Source) -> bool {
        let put = |maps: &mut Objects<Keyed>, own, now: Keyed| {
            maps.insert(own, now.clone()).is_none_or(|before| before.differs(&now))
        };
        match source {
            Source::ConfigMap(now) => put(&mut self.config_maps, own, now),
            Source::Secret(now) => put(&mut self.secrets, own, now),
            Source::Service(service) => {
                let before = self.services.insert(own, service.clone());
                of_use(before.as_ref()) != of_use(Some(&service))
            }
        }
    }

    /// True where pods come out otherwise without it.
    pub fn remove(&mut self, kind: Kind, own: &(String, String)) -> bool {
        match kind {
            Kind::ConfigMap => self.config_maps.remove(own).is_some(),
            Kind::Secret => self.secrets.remove(own).is_some(),
            Kind::Service => of_use(self.services.remove(own).as_ref()).is_some(),
        }
    }

    /// What a reference to a config map or secret leads to: none where it is not there and need not be. Else the message
    /// of what it waits for. One that is withheld is there, and waited for, whatever need not be there.
    pub fn keyed(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        optional: bool,
    ) -> Result<Option<&KeyedData>, String> {
        let own = (namespace.to_owned(), name.to_owned());
        let found = match kind {
            Kind::ConfigMap => self.config_maps.get(&own),
            Kind::Secret => self.secrets.get(&own),
            Kind::Service => None,
        };
        let noun = kind.noun();
        match found {
            Some(Keyed::Data(data)) => Ok(Some(data)),
            Some(Keyed::Withheld(why)) => Err(format!("{noun} {name:?} is not sent to this node: {why}")),
            None if optional => Ok(None),
            None => Err(format!("{noun} {name:?} not found")),
        }
    }

    /// The services of a namespace, by name.
    pub fn services_of(&self, namespace: &str) -> impl Iterator<Item = (&str, &Service)> {
        let all = self.services.range((namespace.to_owned(), String::new())..);
        all.take_while(move |((of, _), _)| of == namespace)
            .map(|((_, name), service)| (name.as_str(), &**service))
    }
}

/// A service as far as environments show it.
fn of_use(service: Option<&Arc<Service>>) -> Option<&Service> {
    service.map(AsRef::as_ref).filter(|service| service.has_address())
}

/// What the environment variables of a service are made of. Without an address it has none, and no ports here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub cluster_ip: String,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

impl Service {
    pub fn parse(json: &[u8]) -> Result<Self, CoreError> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Spec {
            #[serde(rename = "clusterIP")]
            cluster_ip: String,
            ports: Vec<ServicePort>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Raw {
            spec: Spec,
        }
        let raw: Raw = parse_without_nulls(json, "service")?;
        let mut service = Self { cluster_ip: raw.spec.cluster_ip, ports: raw.spec.ports };
        if !service.has_address() {
            service.ports = Vec::new();
        }
        Ok(service)
    }

    /// Headless and external services have no address of their own.
    pub fn has_address(&self) -> bool {
        !self.cluster_ip.is_empty() && self.cluster_ip != "None"
    }
}
