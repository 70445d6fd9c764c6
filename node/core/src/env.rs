//! A container's environment and arguments.
//!
//! Order as in kubelet's `makeEnvironmentVariables`: `envFrom`, then `env` over it in order, then the variables of
//! services where the name is still free.

use std::collections::BTreeMap;

use crate::{
    fields::{self, PodFacts},
    sources::{KeyedData, Service, Sources},
    spec::{Container, EnvVarSource, KeyRef, Pod},
};

/// The whole environment of a container, in order of names; or the message of a CreateContainerConfigError.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &PodFacts,
) -> Result<Vec<(String, String)>, String> {
    let namespace = &pod.metadata.namespace;
    let mut env = from_objects(container, namespace, sources)?;
    let services = service_variables(pod, sources);
    for variable in &container.env {
        let value = match &variable.value_from {
            None => {
                Some(expand(&variable.value, |name| env.get(name).or_else(|| services.get(name)).cloned()))
            }
            Some(source) => from_source(pod, container, source, sources, facts)?,
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        env.entry(name).or_insert(value);
    }
    env.entry("HOSTNAME".to_owned()).or_insert_with(|| pod.hostname().to_owned());
    Ok(env.into_iter().collect())
}

/// The arguments, argv[0] first: `command` and `args` with variables expanded, or the last part of the image's name
/// and `args`.
pub fn arguments(container: &Container, env: &[(String, String)]) -> Vec<String> {
    let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let mut arguments: Vec<String> = container.command.iter().map(|part| expand(part, lookup)).collect();
    if arguments.is_empty() {
        arguments.push(program_name(&container.image).to_owned());
    }
    arguments.extend(container.args.iter().map(|part| expand(part, lookup)));
    arguments
}

/// `hello` of `ghcr.io/x/hello:1.0`.
fn program_name(image: &str) -> &str {
    let path = image.split_once('@').map_or(image, |(path, _)| path);
    let last = path.rsplit('/').next().unwrap_or(path);
    if image.starts_with("file://") { last } else { last.split_once(':').map_or(last, |(name, _)| name) }
}

fn from_objects(
    container: &Container,
    namespace: &str,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::new();
    for from in &container.env_from {
        let (reference, found, noun) = if let Some(reference) = &from.config_map_ref {
            (reference, sources.config_map(namespace, &reference.name), "configmap")
        } else if let Some(reference) = &from.secret_ref {
            (reference, sources.secret(namespace, &reference.name), "secret")
        } else {
            continue;
        };
        let Some(data) = found else {
            if reference.optional {
                continue;
            }
            return Err(not_found(noun, &reference.name));
        };
        for key in data.entries.keys() {
            let name = format!("{}{key}", from.prefix);
            if let Some(value) = data.text(key).filter(|_| is_variable_name(&name)) {
                env.insert(name, value);
            }
        }
    }
    Ok(env)
}

/// A name that a process can have in its environment.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    facts: &PodFacts,
) -> Result<Option<String>, String> {
    let namespace = &pod.metadata.namespace;
    if let Some(reference) = &source.config_map_key_ref {
        let found = sources.config_map(namespace, &reference.name);
        key_of(found.map(AsRef::as_ref), reference, namespace, "configmap", "ConfigMap")
    } else if let Some(reference) = &source.secret_key_ref {
        let found = sources.secret(namespace, &reference.name);
        key_of(found.map(AsRef::as_ref), reference, namespace, "secret", "Secret")
    } else if let Some(reference) = &source.field_ref {
        fields::field(pod, facts, &reference.field_path).map(Some)
    } else if let Some(reference) = &source.resource_field_ref {
        fields::resource(pod, facts, Some(container), reference).map(Some)
    } else {
        Ok(Some(String::new()))
    }
}

fn key_of(
    found: Option<&KeyedData>,
    reference: &KeyRef,
    namespace: &str,
    noun: &str,
    kind: &str,
) -> Result<Option<String>, String> {
    let Some(data) = found else {
        return if reference.optional { Ok(None) } else { Err(not_found(noun, &reference.name)) };
    };
    match data.text(&reference.key) {
        Some(value) => Ok(Some(value)),
        None if reference.optional => Ok(None),
        None => Err(format!("couldn't find key {} in {kind} {namespace}/{}", reference.key, reference.name)),
    }
}

pub(crate) fn not_found(noun: &str, name: &str) -> String {
    format!("{noun} {name:?} not found")
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; what is unknown or malformed stays as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables of services: those of the pod's namespace where service links are on, and always `kubernetes`.
fn service_variables(pod: &Pod, sources: &Sources) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let links = pod.spec.enable_service_links.unwrap_or(true);
    for ((namespace, name), service) in &sources.services {
        let own = links && *namespace == pod.metadata.namespace;
        let master = namespace == "default" && name == "kubernetes";
        if (own || master) && service.has_address() {
            add_service(&mut env, name, service);
        }
    }
    env
}

fn add_service(env: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(first) = service.ports.first() else { return };
    let prefix = variable_part(name);
    let address = &service.cluster_ip;
    env.insert(format!("{prefix}_SERVICE_HOST"), address.clone());
    env.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        env.insert(format!("{prefix}_SERVICE_PORT_{}", variable_part(&port.name)), port.port.to_string());
    }
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let url = format!("{}://{address}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            env.insert(format!("{prefix}_PORT"), url.clone());
        }
        let stem = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        env.insert(format!("{stem}_PROTO"), protocol.to_lowercase());
        env.insert(format!("{stem}_PORT"), port.port.to_string());
        env.insert(format!("{stem}_ADDR"), address.clone());
        env.insert(stem, url);
    }
}

fn variable_part(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sources::ServicePort;

    fn sources() -> Sources {
        let mut sources = Sources::default();
        let data = KeyedData::from_config_map(br#"{"data":{"A":"from map","COLOR":"red"}}"#, 1).unwrap();
        sources.config_maps.insert(("d".into(), "cfg".into()), Arc::new(data));
        let data = KeyedData::from_secret(br#"{"data":{"password":"czNjcmV0"}}"#, 1).unwrap();
        sources.secrets.insert(("d".into(), "pw".into()), Arc::new(data));
        let service = Service {
            cluster_ip: "10.96.3.4".into(),
            ports: vec![ServicePort { name: "http".into(), port: 80, protocol: "TCP".into() }],
        };
        sources.services.insert(("d".into(), "redis-master".into()), Arc::new(service.clone()));
        sources.services.insert(("default".into(), "kubernetes".into()), Arc::new(service.clone()));
        sources.services.insert(("other".into(), "hidden".into()), Arc::new(service));
        sources
    }

    fn env_of(spec: &str) -> Result<BTreeMap<String, String>, String> {
        let json = format!(
            r#"{{"metadata":{{"name":"p","namespace":"d","uid":"u"}},"spec":{{"containers":[{spec}]}}}}"#
        );
        let pod = Pod::parse(json.as_bytes()).unwrap();
        let facts = PodFacts { node_name: "n1".into(), ..Default::default() };
        environment(&pod, &pod.spec.containers[0], &sources(), &facts).map(|env| env.into_iter().collect())
    }

    #[test]
    fn values_come_from_everywhere_in_kubelets_order() {
        let env = env_of(
            r#"{"name":"c","image":"i","envFrom":[{"configMapRef":{"name":"cfg"}},
                {"prefix":"P_","secretRef":{"name":"pw"}},{"configMapRef":{"name":"none","optional":true}}],
                "env":[{"name":"A","value":"own"},{"name":"B","value":"$(A) $(COLOR) $(NOPE) $$(A) $"},
                {"name":"NODE","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}},
                {"name":"PW","valueFrom":{"secretKeyRef":{"name":"pw","key":"password"}}},
                {"name":"HOST","value":"$(REDIS_MASTER_SERVICE_HOST)"},
                {"name":"GONE","valueFrom":{"configMapKeyRef":{"name":"cfg","key":"x","optional":true}}}]}"#,
        )
        .unwrap();
        assert_eq!(env["A"], "own");
        assert_eq!(env["B"], "own red $(NOPE) $(A) $");
        assert_eq!(env["P_password"], "s3cret");
        assert_eq!(env["NODE"], "n1");
        assert_eq!(env["PW"], "s3cret");
        assert_eq!(env["HOST"], "10.96.3.4");
        assert_eq!(env["HOSTNAME"], "p");
        assert_eq!(env["REDIS_MASTER_PORT"], "tcp://10.96.3.4:80");
        assert_eq!(env["REDIS_MASTER_PORT_80_TCP_ADDR"], "10.96.3.4");
        assert_eq!(env["KUBERNETES_SERVICE_PORT_HTTP"], "80");
        assert!(!env.contains_key("GONE") && !env.keys().any(|key| key.starts_with("HIDDEN")));
    }

    #[test]
    fn what_is_missing_is_named_as_upstream_names_it() {
        let error = |spec: &str| env_of(spec).unwrap_err();
        let missing = r#"{"name":"c","image":"i","envFrom":[{"configMapRef":{"name":"none"}}]}"#;
        assert_eq!(error(missing), "configmap \"none\" not found");
        let key = r#"{"name":"c","image":"i","env":[{"name":"A","valueFrom":
            {"secretKeyRef":{"name":"pw","key":"nope"}}}]}"#;
        assert_eq!(error(key), "couldn't find key nope in Secret d/pw");
    }

    #[test]
    fn arguments_start_with_the_programs_name() {
        let container = |json: &str| serde_json::from_str::<Container>(json).unwrap();
        let env = vec![("A".to_owned(), "1".to_owned())];
        let plain = container(r#"{"image":"ghcr.io/x/hello:1.0","args":["-n","$(A)"]}"#);
        assert_eq!(arguments(&plain, &env), ["hello", "-n", "1"]);
        let command = container(r#"{"image":"hello","command":["prog","x$(A)"],"args":["y"]}"#);
        assert_eq!(arguments(&command, &env), ["prog", "x1", "y"]);
        assert_eq!(program_name("localhost:5000/hello"), "hello");
        assert_eq!(program_name("file:///a/b.wasm"), "b.wasm");
    }
}
