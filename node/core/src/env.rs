//! A container's environment and arguments.
//!
//! Order as in kubelet's `makeEnvironmentVariables`: `envFrom`, then `env` over it in order, then the variables of
//! services where the name is still free.

use std::collections::BTreeMap;

use crate::{
    fields::{self, PodFacts},
    sources::{Kind, Service, Sources},
    spec::{Container, EnvVarSource, KeyRef, Pod},
};

/// Names, values and arguments of one container together, in bytes, everything expanded: what Linux gives a process
/// by default is of the same order.
pub const ENVIRONMENT_BYTES_MAX: usize = 1024 * 1024;
/// What may be read on the way, in bytes: values that others take the place of count here, though not above.
const READ_BYTES_MAX: usize = 4 * ENVIRONMENT_BYTES_MAX;
/// Namespace and name of the service that every container knows.
pub const MASTER: (&str, &str) = ("default", "kubernetes");
/// A message shows so much of a name, in bytes.
const SHOWN_BYTES_MAX: usize = 128;

/// The whole environment of a container, in order of names; or the message of a CreateContainerConfigError.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &PodFacts,
) -> Result<Vec<(String, String)>, String> {
    let namespace = &pod.metadata.namespace;
    let mut env = Environment::default();
    add_objects(&mut env, container, namespace, sources)?;
    let services = service_variables(pod, sources)?;
    for variable in &container.env {
        let value = match &variable.value_from {
            None => {
                let room = ENVIRONMENT_BYTES_MAX.min(env.left_to_read());
                let known = |name: &str| env.values.get(name).or_else(|| services.values.get(name));
                let value = expand(&variable.value, room, |name| known(name).map(String::as_str));
                Some(value.ok_or_else(|| too_large(&variable.name))?)
            }
            Some(source) => from_source(pod, container, source, sources, facts)?,
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value)?;
        }
    }
    for (name, value) in services.values {
        if !env.values.contains_key(&name) {
            env.set(name, value)
                .map_err(|message| format!("{message}; enableServiceLinks: false leaves services out"))?;
        }
    }
    if !env.values.contains_key("HOSTNAME") {
        env.set("HOSTNAME".to_owned(), pod.hostname().to_owned())?;
    }
    Ok(env.values.into_iter().collect())
}

/// The arguments, argv[0] first: `command` and `args` with variables expanded, or the last part of the image's name
/// and `args`. `env` is what [`environment`] gave. An error is the message of a CreateContainerConfigError.
pub fn arguments(container: &Container, env: &[(String, String)]) -> Result<Vec<String>, String> {
    let taken: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    let mut room = ENVIRONMENT_BYTES_MAX.saturating_sub(taken);
    let mut arguments = Vec::with_capacity(1 + container.command.len() + container.args.len());
    if container.command.is_empty() {
        arguments.push(program_name(&container.image).to_owned());
    }
    for (field, parts) in [("command", &container.command), ("args", &container.args)] {
        for (index, part) in parts.iter().enumerate() {
            let argument = expand(part, room, |name| value_of(env, name)).ok_or_else(|| {
                format!(
                    "{field}[{index}] takes the container's environment and arguments beyond \
                     {ENVIRONMENT_BYTES_MAX} bytes"
                )
            })?;
            room -= argument.len();
            arguments.push(argument);
        }
    }
    Ok(arguments)
}

/// The value of a variable in an environment, which is in order of names.
pub(crate) fn value_of<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let at = env.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
    Some(&env[at].1)
}

/// Variables, as far as there is room for them.
#[derive(Default)]
struct Environment {
    values: BTreeMap<String, String>,
    /// Of all names and values.
    bytes: usize,
    /// Of these and of those whose place others took.
    read: usize,
}

impl Environment {
    fn left_to_read(&self) -> usize {
        READ_BYTES_MAX - self.read
    }

    fn set(&mut self, name: String, value: String) -> Result<(), String> {
        let size = name.len() + value.len();
        let before = self.values.get(&name).map_or(0, |value| name.len() + value.len());
        let bytes = self.bytes - before + size;
        if bytes > ENVIRONMENT_BYTES_MAX || size > self.left_to_read() {
            return Err(too_large(&name));
        }
        (self.bytes, self.read) = (bytes, self.read + size);
        self.values.insert(name, value);
        Ok(())
    }
}

fn too_large(name: &str) -> String {
    let shown: String = name.chars().take(SHOWN_BYTES_MAX).collect();
    format!(
        "environment variable {shown:?} takes the container's environment beyond {ENVIRONMENT_BYTES_MAX} bytes"
    )
}

/// `hello` of `ghcr.io/x/hello:1.0`.
fn program_name(image: &str) -> &str {
    let path = image.split_once('@').map_or(image, |(path, _)| path);
    let last = path.rsplit('/').next().unwrap_or(path);
    if image.starts_with("file://") { last } else { last.split_once(':').map_or(last, |(name, _)| name) }
}

fn add_objects(
    env: &mut Environment,
    container: &Container,
    namespace: &str,
    sources: &Sources,
) -> Result<(), String> {
    for from in &container.env_from {
        let (kind, reference) = if let Some(reference) = &from.config_map_ref {
            (Kind::ConfigMap, reference)
        } else if let Some(reference) = &from.secret_ref {
            (Kind::Secret, reference)
        } else {
            continue;
        };
        let data = sources.keyed(kind, namespace, &reference.name, reference.optional)?;
        for (key, value) in data.iter().flat_map(|data| data.iter()) {
            let name = format!("{}{key}", from.prefix);
            if is_variable_name(&name) {
                env.set(name, String::from_utf8_lossy(&value).into_owned())?;
            }
        }
    }
    Ok(())
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
        key_of(Kind::ConfigMap, reference, namespace, sources)
    } else if let Some(reference) = &source.secret_key_ref {
        key_of(Kind::Secret, reference, namespace, sources)
    } else if let Some(reference) = &source.field_ref {
        fields::field(pod, facts, &reference.field_path).map(Some)
    } else if let Some(reference) = &source.resource_field_ref {
        fields::resource(pod, facts, Some(container), reference).map(Some)
    } else {
        Ok(Some(String::new()))
    }
}

fn key_of(
    kind: Kind,
    reference: &KeyRef,
    namespace: &str,
    sources: &Sources,
) -> Result<Option<String>, String> {
    let Some(data) = sources.keyed(kind, namespace, &reference.name, reference.optional)? else {
        return Ok(None);
    };
    match data.text(&reference.key) {
        Some(value) => Ok(Some(value)),
        None if reference.optional => Ok(None),
        None => Err(format!("couldn't find key {} in {kind} {namespace}/{}", reference.key, reference.name)),
    }
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; what is unknown or malformed stays as it is. None where the
/// whole would have more bytes than `bytes_max`; no more than those are ever made.
pub(crate) fn expand<'a>(
    text: &str,
    bytes_max: usize,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Option<String> {
    let mut out = Bounded { text: String::new(), bytes_max };
    let mut rest = text;
    // Behind the last parenthesis nothing is a reference: it is not looked for again at each dollar.
    let end = text.rfind(')').map_or(0, |at| at + 1);
    while let Some(at) = rest.find('$') {
        out.push(&rest[..at])?;
        rest = &rest[at + 1..];
        let closed = text.len() - rest.len() < end;
        if let Some(after) = rest.strip_prefix('$') {
            out.push("$")?;
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').filter(|_| closed).and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => out.push(value)?,
                None => {
                    out.push("$(")?;
                    out.push(name)?;
                    out.push(")")?;
                }
            }
            rest = after;
        } else {
            out.push("$")?;
        }
    }
    out.push(rest)?;
    Some(out.text)
}

/// A text that grows up to a bound.
struct Bounded {
    text: String,
    bytes_max: usize,
}

impl Bounded {
    fn push(&mut self, more: &str) -> Option<()> {
        if more.len() > self.bytes_max - self.text.len() {
            return None;
        }
        self.text.push_str(more);
        Some(())
    }
}

/// The variables of services: those of the pod's namespace where service links are on, and always `kubernetes`.
fn service_variables(pod: &Pod, sources: &Sources) -> Result<Environment, String> {
    let mut env = Environment::default();
    let links = pod.has_service_links();
    let master = (MASTER.0.to_owned(), MASTER.1.to_owned());
    let master = sources.services.get(&master).map(|service| (MASTER.1, &**service));
    let own = links.then(|| sources.services_of(&pod.metadata.namespace)).into_iter().flatten();
    for (name, service) in master.into_iter().chain(own).filter(|(_, service)| service.has_address()) {
        add_service(&mut env, name, service)
            .map_err(|message| format!("{message}; enableServiceLinks: false leaves services out"))?;
    }
    Ok(env)
}

fn add_service(env: &mut Environment, name: &str, service: &Service) -> Result<(), String> {
    let Some(first) = service.ports.first() else { return Ok(()) };
    let prefix = variable_part(name);
    let address = &service.cluster_ip;
    env.set(format!("{prefix}_SERVICE_HOST"), address.clone())?;
    env.set(format!("{prefix}_SERVICE_PORT"), first.port.to_string())?;
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        env.set(format!("{prefix}_SERVICE_PORT_{}", variable_part(&port.name)), port.port.to_string())?;
    }
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let url = format!("{}://{address}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            env.set(format!("{prefix}_PORT"), url.clone())?;
        }
        let stem = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        env.set(format!("{stem}_PROTO"), protocol.to_lowercase())?;
        env.set(format!("{stem}_PORT"), port.port.to_string())?;
        env.set(format!("{stem}_ADDR"), address.clone())?;
        env.set(stem, url)?;
    }
    Ok(())
}

fn variable_part(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sources::{Keyed, KeyedData, ServicePort, Source};

    fn own(name: &str) -> (String, String) {
        ("d".to_owned(), name.to_owned())
    }

    fn sources() -> Sources {
        let mut sources = Sources::default();
        let data = KeyedData::from_config_map(br#"{"data":{"A":"from map","COLOR":"red"}}"#, 1).unwrap();
        sources.put(own("cfg"), Source::ConfigMap(Keyed::Data(Arc::new(data))));
        let data = KeyedData::from_secret(br#"{"data":{"password":"czNjcmV0"}}"#, 1).unwrap();
        sources.put(own("pw"), Source::Secret(Keyed::Data(Arc::new(data))));
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
        env_from(spec, &sources())
    }

    fn env_from(spec: &str, sources: &Sources) -> Result<BTreeMap<String, String>, String> {
        let json = format!(
            r#"{{"metadata":{{"name":"p","namespace":"d","uid":"u"}},"spec":{{"containers":[{spec}]}}}}"#
        );
        let pod = Pod::parse(json.as_bytes()).unwrap();
        let facts = PodFacts { node_name: "n1".into(), ..Default::default() };
        environment(&pod, &pod.spec.containers[0], sources, &facts).map(|env| env.into_iter().collect())
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
    fn what_is_withheld_is_waited_for_whether_or_not_it_is_optional() {
        let mut sources = sources();
        for (name, source) in [
            ("cfg", Source::ConfigMap(Keyed::Withheld("too much; less".into()))),
            ("pw", Source::Secret(Keyed::Withheld("too much; less".into()))),
        ] {
            assert!(sources.put(own(name), source.clone()) && !sources.put(own(name), source));
        }
        for optional in [true, false] {
            let error = |field: &str, name: &str, key: &str| {
                let reference = format!(r#"{{"name":"{name}"{key},"optional":{optional}}}"#);
                let (list, item) = if key.is_empty() {
                    ("envFrom", format!(r#"{{"{field}":{reference}}}"#))
                } else {
                    ("env", format!(r#"{{"name":"A","valueFrom":{{"{field}":{reference}}}}}"#))
                };
                env_from(&format!(r#"{{"name":"c","image":"i","{list}":[{item}]}}"#), &sources).unwrap_err()
            };
            let config_map = "configmap \"cfg\" is not sent to this node: too much; less";
            assert_eq!(error("configMapRef", "cfg", ""), config_map);
            assert_eq!(error("configMapKeyRef", "cfg", r#","key":"A""#), config_map);
            let secret = "secret \"pw\" is not sent to this node: too much; less";
            assert_eq!(error("secretRef", "pw", ""), secret);
            assert_eq!(error("secretKeyRef", "pw", r#","key":"A""#), secret);
        }
    }

    #[test]
    fn arguments_start_with_the_programs_name() {
        let container = |json: &str| serde_json::from_str::<Container>(json).unwrap();
        let env = vec![("A".to_owned(), "1".to_owned())];
        let plain = container(r#"{"image":"ghcr.io/x/hello:1.0","args":["-n","$(A)"]}"#);
        assert_eq!(arguments(&plain, &env).unwrap(), ["hello", "-n", "1"]);
        let command = container(r#"{"image":"hello","command":["prog","x$(A)"],"args":["y"]}"#);
        assert_eq!(arguments(&command, &env).unwrap(), ["prog", "x1", "y"]);
        assert_eq!(program_name("localhost:5000/hello"), "hello");
        assert_eq!(program_name("file:///a/b.wasm"), "b.wasm");
    }

    /// Variables each of which names the one before it so many times.
    fn levels(times: &[usize]) -> String {
        let mut env = format!(r#"{{"name":"v0","value":"{}"}}"#, "x".repeat(500));
        for (level, times) in times.iter().enumerate() {
            let value = format!("$(v{level})").repeat(*times);
            env.push_str(&format!(r#",{{"name":"v{}","value":"{value}"}}"#, level + 1));
        }
        format!(r#"{{"name":"c","image":"i","env":[{env}]}}"#)
    }

    #[test]
    fn an_environment_that_multiplies_is_refused_by_the_name_of_a_variable() {
        assert_eq!(env_of(&levels(&[200, 8])).unwrap()["v2"].len(), 800_000);
        let message = env_of(&levels(&[2000, 200])).unwrap_err();
        assert_eq!(
            message,
            "environment variable \"v2\" takes the container's environment beyond 1048576 bytes"
        );
        // One reference at a time never builds more than the bound either.
        assert!(env_of(&levels(&[1000, 1000, 1000, 1000])).unwrap_err().contains("\"v2\""));
        let expanded = expand("$(A)$(A)", 5, |_| Some("abc"));
        assert_eq!(expanded, None);
        assert_eq!(expand("$(A)$(A)", 6, |_| Some("abc")).as_deref(), Some("abcabc"));
    }

    #[test]
    fn what_takes_the_place_of_itself_again_and_again_is_bounded_too() {
        let again = format!(
            r#"{{"name":"c","image":"i","env":[{}{{"name":"A","value":"end"}}]}}"#,
            format!(r#"{{"name":"A","value":"{}"}},"#, "x".repeat(1000)).repeat(5000)
        );
        assert!(env_of(&again).unwrap_err().contains("\"A\""));
        // Objects too, which are never expanded.
        let mut sources = sources();
        let large = format!(r#"{{"data":{{"LARGE":"{}"}}}}"#, "x".repeat(100_000));
        let data = KeyedData::from_config_map(large.as_bytes(), 1).unwrap();
        sources.put(own("large"), Source::ConfigMap(Keyed::Data(Arc::new(data))));
        let env = |times: usize| {
            let from = vec![r#"{"configMapRef":{"name":"large"}}"#; times].join(",");
            let json = format!(
                r#"{{"metadata":{{"name":"p","namespace":"d","uid":"u"}},
                    "spec":{{"containers":[{{"name":"c","image":"i","envFrom":[{from}]}}]}}}}"#
            );
            let pod = Pod::parse(json.as_bytes()).unwrap();
            environment(&pod, &pod.spec.containers[0], &sources, &PodFacts::default())
        };
        assert!(env(20).is_ok());
        assert!(env(100).unwrap_err().contains("\"LARGE\""));
    }

    #[test]
    fn arguments_count_with_the_environment() {
        let container = |json: &str| serde_json::from_str::<Container>(json).unwrap();
        let env = vec![("A".to_owned(), "x".repeat(100_000))];
        let many =
            |times: usize| container(&format!(r#"{{"image":"i","args":["{}"]}}"#, "$(A)".repeat(times)));
        assert_eq!(arguments(&many(9), &env).unwrap()[1].len(), 900_000);
        let message = arguments(&many(10), &env).unwrap_err();
        assert!(
            message.starts_with("args[0] takes the container's environment and arguments beyond"),
            "{message}"
        );
        // Each of them has room, and all together have not.
        let one = "x".repeat(500_000);
        let several = container(&format!(r#"{{"image":"i","command":["{one}"],"args":["a","{one}"]}}"#));
        assert!(arguments(&several, &[]).is_ok());
        let message = arguments(&several, &env).unwrap_err();
        assert!(message.starts_with("args[1] takes"), "{message}");
    }

    #[test]
    fn services_beyond_the_bound_say_how_to_leave_them_out() {
        let mut sources = Sources::default();
        let port = |port| ServicePort { name: format!("p{port}"), port, protocol: "TCP".into() };
        let service = Service { cluster_ip: "10.96.3.4".into(), ports: (1..20_000).map(port).collect() };
        sources.services.insert(("d".into(), "wide".into()), Arc::new(service));
        let pod = |links| {
            let json = format!(
                r#"{{"metadata":{{"name":"p","namespace":"d","uid":"u"}},
                    "spec":{{"enableServiceLinks":{links},"containers":[{{"name":"c","image":"i"}}]}}}}"#
            );
            Pod::parse(json.as_bytes()).unwrap()
        };
        let env = |links| {
            let pod = pod(links);
            environment(&pod, &pod.spec.containers[0], &sources, &PodFacts::default())
        };
        let message = env(true).unwrap_err();
        assert!(message.ends_with("enableServiceLinks: false leaves services out"), "{message}");
        assert_eq!(env(false).unwrap().len(), 1);
    }
}
