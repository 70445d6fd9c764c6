//! The other objects that a pod's environment and volumes are made of: config maps, secrets, services.

mod keyed;

use std::sync::Arc;

use imbl::OrdMap;
use serde::Deserialize;

pub use self::keyed::KeyedData;
use crate::{CoreError, spec::parse_without_nulls};

/// Objects by namespace and name, as the link delivered them. A copy shares everything with the original.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    pub config_maps: Objects<KeyedData>,
    pub secrets: Objects<KeyedData>,
    pub services: Objects<Service>,
}

type Objects<T> = OrdMap<(String, String), Arc<T>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
    Service,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    ConfigMap(Arc<KeyedData>),
    Secret(Arc<KeyedData>),
    Service(Arc<Service>),
}

impl Source {
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
        let keyed = |maps: &mut Objects<KeyedData>, own, data: Arc<KeyedData>| {
            let revision = data.revision;
            maps.insert(own, data).is_none_or(|before| before.revision != revision)
        };
        match source {
            Source::ConfigMap(data) => keyed(&mut self.config_maps, own, data),
            Source::Secret(data) => keyed(&mut self.secrets, own, data),
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

    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&Arc<KeyedData>> {
        self.config_maps.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<KeyedData>> {
        self.secrets.get(&(namespace.to_owned(), name.to_owned()))
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
