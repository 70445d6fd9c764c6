//! What a deployment consists of, and what of it is made or changed. Pure but for the reading of what there is.
//!
//! What others have set stays: only what was asked for is in a change, and lists are merged by their keys, or sent whole
//! with the resourceVersion that they were read at.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_objects::kinds::own_hosts;
use serde_json::{Value, json};

use super::function;
use crate::{
    args::EnvSource,
    client::{Cluster, native_kind},
};

/// Marks what `coracle deploy` made, and `coracle delete NAME` removes.
pub const MADE_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "coracle-deploy");
/// Annotation of a Deployment: the images that were pushed for it, newest last.
pub const PUSHED: &str = "coracle.dev/pushed-images";
/// How many of them are remembered.
const PUSHED_MAX: usize = 16;
/// Annotation of pods: the version of the Secret that they have their variables from. Another one makes new pods.
const SECRET_VERSION: &str = "coracle.dev/secret-version";
const PORT_DEFAULT: u16 = 80;
/// For how long a program must run before its pod counts as available: one that crashes or ends at once never does.
const PROGRAM_READY_SECONDS: u64 = 2;
/// The kinds of what is made, in the order in which it is.
pub const KINDS: [&str; 5] = ["secrets", "functions", "deployments", "services", "ingresses"];

/// What is asked for; what is none stays as it is.
pub struct Wanted {
    pub name: String,
    pub image: String,
    /// Whether the image is pushed for this deployment.
    pub pushed: bool,
    /// Whether it is a program that serves by itself, and not called for each request.
    pub is_program: bool,
    pub is_function: bool,
    pub host: Option<String>,
    pub replicas: Option<u32>,
    pub port: Option<u16>,
    pub variables: BTreeMap<String, String>,
    pub env_from: Vec<EnvSource>,
    pub secrets: BTreeMap<String, String>,
    pub args: Vec<String>,
}

/// What there is of that name already.
#[derive(Default)]
pub struct Standing {
    pub secret: Option<Value>,
    pub deployment: Option<Value>,
    pub service: Option<Value>,
    pub ingress: Option<Value>,
    pub function: Option<Value>,
}

/// One object that is created, or changed by a strategic merge.
pub struct Change {
    /// Plural.
    pub kind: &'static str,
    pub create: bool,
    pub body: Value,
}

impl Change {
    pub fn name(&self) -> String {
        self.body["metadata"]["name"].as_str().unwrap_or_default().to_owned()
    }
}

impl Standing {
    pub async fn read(cluster: &Cluster, name: &str) -> Result<Self> {
        let get = async |kind: &str| {
            let path = native_kind(kind)?.object(&cluster.namespace, name)?;
            cluster.get(&path).await
        };
        Ok(Self {
            secret: get("secrets").await?,
            deployment: get("deployments").await?,
            service: get("services").await?,
            ingress: get("ingresses").await?,
            function: get("functions").await?,
        })
    }

    /// The host that its Ingress or Function answers for.
    pub fn host(&self, name: &str) -> Option<String> {
        if let Some(function) = &self.function {
            return own_hosts(function).into_iter().next();
        }
        let rules = self.ingress.as_ref()?["spec"]["rules"].as_array()?;
        let rule = rules.iter().find(|rule| leads_to(rule, name))?;
        rule["host"].as_str().filter(|host| !host.is_empty()).map(str::to_owned)
    }
}

/// What has to be made or changed, in this order.
pub fn changes(wanted: &Wanted, standing: &Standing) -> Result<Vec<Change>> {
    if wanted.is_function || standing.function.is_some() {
        return function::changes(wanted, standing);
    }
    let mut changes = Vec::new();
    changes.extend(secret(wanted, standing.secret.as_ref())?);
    changes.push(match &standing.deployment {
        None => Change { kind: "deployments", create: true, body: new_deployment(wanted) },
        Some(old) => Change { kind: "deployments", create: false, body: changed_deployment(wanted, old)? },
    });
    changes.extend(service(wanted, standing)?);
    changes.extend(ingress(wanted, standing.ingress.as_ref())?);
    Ok(changes)
}

pub(super) fn labels(name: &str) -> Value {
    json!({ "app": name, MADE_BY.0: MADE_BY.1 })
}

/// Whether `coracle deploy` made it.
pub fn is_own(object: &Value) -> bool {
    object["metadata"]["labels"][MADE_BY.0] == MADE_BY.1
}

/// What others made may lead anywhere, and the URL with it.
pub(super) fn ensure_own(object: &Value, kind: &str, name: &str) -> Result<()> {
    ensure!(
        is_own(object),
        "the {kind} {name} is not of `coracle deploy`: choose another --name, or delete it with `coracle delete \
         {}/{name}`",
        kind.to_lowercase()
    );
    Ok(())
}

/// The metadata of a change of what was read, in force only while that is the newest.
fn unchanged(name: &str, old: &Value) -> Value {
    json!({ "name": name, "resourceVersion": old["metadata"]["resourceVersion"] })
}

pub(super) fn secret(wanted: &Wanted, old: Option<&Value>) -> Result<Option<Change>> {
    if wanted.secrets.is_empty() {
        return Ok(None);
    }
    let data: Value = wanted
        .secrets
        .iter()
        .map(|(key, value)| (key.clone(), Value::from(STANDARD.encode(value))))
        .collect();
    let name = &wanted.name;
    let Some(old) = old else {
        let meta = json!({ "name": name, "labels": labels(name) });
        let body =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "data": data });
        return Ok(Some(Change { kind: "secrets", create: true, body }));
    };
    if !is_own(old) {
        bail!(
            "the Secret {name} is not of `coracle deploy`: take it with --env-from secret/{name}, or choose another --name"
        );
    }
    Ok(Some(Change {
        kind: "secrets",
        create: false,
        body: json!({ "metadata": unchanged(name, old), "data": data }),
    }))
}

pub(super) fn env(wanted: &Wanted, again: bool) -> Vec<Value> {
    let mut env = Vec::new();
    for (key, value) in &wanted.variables {
        let mut variable = json!({ "name": key, "value": value });
        if again {
            // It may have had its value from elsewhere.
            variable["valueFrom"] = Value::Null;
        }
        env.push(variable);
    }
    for key in wanted.secrets.keys() {
        let reference = json!({ "secretKeyRef": { "name": wanted.name, "key": key } });
        let mut variable = json!({ "name": key, "valueFrom": reference });
        if again {
            variable["value"] = Value::Null;
        }
        env.push(variable);
    }
    env
}

pub(super) fn env_from(sources: &[EnvSource]) -> Vec<Value> {
    let source = |source: &EnvSource| match source {
        EnvSource::ConfigMap(name) => json!({ "configMapRef": { "name": name } }),
        EnvSource::Secret(name) => json!({ "secretRef": { "name": name } }),
    };
    sources.iter().map(source).collect()
}

fn new_deployment(wanted: &Wanted) -> Value {
    let name = &wanted.name;
    let selector = json!({ "app": name });
    let mut container = json!({
        "name": name, "image": wanted.image,
        "ports": [{ "containerPort": wanted.port.unwrap_or(PORT_DEFAULT) }],
    });
    for (field, list) in [("env", env(wanted, false)), ("envFrom", env_from(&wanted.env_from))] {
        if !list.is_empty() {
            container[field] = list.into();
        }
    }
    if !wanted.args.is_empty() {
        container["args"] = json!(wanted.args);
    }
    let mut meta = json!({ "name": name, "labels": labels(name) });
    if wanted.pushed {
        meta["annotations"] = json!({ PUSHED: wanted.image });
    }
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": wanted.replicas.unwrap_or(1),
            "selector": { "matchLabels": selector },
            "template": { "metadata": { "labels": selector }, "spec": { "containers": [container] } },
        },
    });
    if wanted.is_program {
        deployment["spec"]["minReadySeconds"] = PROGRAM_READY_SECONDS.into();
    }
    deployment
}

fn changed_deployment(wanted: &Wanted, old: &Value) -> Result<Value> {
    let own = own_container(wanted, old)?;
    let mut container = json!({ "name": own["name"], "image": wanted.image });
    let env = env(wanted, true);
    if !env.is_empty() {
        container["env"] = env.into();
    }
    let mut sources = own["envFrom"].as_array().cloned().unwrap_or_default();
    let more: Vec<Value> = env_from(&wanted.env_from)
        .into_iter()
        .filter(|source| !sources.iter().any(|old| is_source(old, source)))
        .collect();
    if !more.is_empty() {
        sources.extend(more);
        container["envFrom"] = sources.into();
    }
    if !wanted.args.is_empty() {
        container["args"] = json!(wanted.args);
    }
    if let Some(port) = wanted.port.filter(|port| own["ports"][0]["containerPort"] != *port) {
        // The first is the one that is served.
        let rest = own["ports"].as_array().into_iter().flatten().skip(1);
        let rest: Vec<Value> = rest.filter(|one| one["containerPort"] != port).cloned().collect();
        let mut ports = vec![json!({ "$patch": "replace" }), json!({ "containerPort": port })];
        ports.extend(rest);
        container["ports"] = ports.into();
    }
    let mut meta = unchanged(&wanted.name, old);
    if wanted.pushed {
        meta["annotations"] = json!({ PUSHED: pushed(wanted, old) });
    }
    let mut template = json!({ "spec": { "containers": [container] } });
    if !wanted.secrets.is_empty() {
        template["metadata"]["annotations"] = json!({ SECRET_VERSION: secret_version(old) });
    }
    let mut spec = json!({ "template": template });
    if let Some(replicas) = wanted.replicas {
        spec["replicas"] = replicas.into();
    }
    if wanted.is_program && old["spec"]["minReadySeconds"].as_u64().unwrap_or(0) == 0 {
        spec["minReadySeconds"] = PROGRAM_READY_SECONDS.into();
    }
    Ok(json!({ "metadata": meta, "spec": spec }))
}

/// Counts the changes of the Secret: pods read it when they start.
fn secret_version(old: &Value) -> String {
    let told = old["spec"]["template"]["metadata"]["annotations"][SECRET_VERSION].as_str();
    let count: u64 = told.and_then(|text| text.parse().ok()).unwrap_or(1);
    count.saturating_add(1).to_string()
}

pub(super) fn is_source(old: &Value, wanted: &Value) -> bool {
    ["configMapRef", "secretRef"].iter().any(|field| {
        let name = &wanted[field]["name"];
        !name.is_null() && old[field]["name"] == *name
    })
}

/// The container that runs the image: the one of the deployment's name, or its only one.
fn own_container<'a>(wanted: &Wanted, old: &'a Value) -> Result<&'a Value> {
    let name = &wanted.name;
    let containers = old["spec"]["template"]["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    match containers.iter().find(|container| container["name"] == **name) {
        Some(own) => Ok(own),
        None if containers.len() == 1 => Ok(&containers[0]),
        None => bail!(
            "the Deployment {name} has {} containers, and none is named {name}: change the image with `kubectl set image`",
            containers.len()
        ),
    }
}

/// The images that were pushed, with the one that is now.
pub(super) fn pushed(wanted: &Wanted, old: &Value) -> String {
    let before = old["metadata"]["annotations"][PUSHED].as_str().unwrap_or_default();
    let mut images: Vec<&str> =
        before.split(',').filter(|image| !image.is_empty() && *image != wanted.image).collect();
    images.push(&wanted.image);
    images[images.len().saturating_sub(PUSHED_MAX)..].join(",")
}

fn service(wanted: &Wanted, standing: &Standing) -> Result<Option<Change>> {
    let name = &wanted.name;
    let Some(old) = &standing.service else {
        let template = standing.deployment.as_ref().map(|old| &old["spec"]["template"]);
        let selector = standing.deployment.as_ref().map(|old| old["spec"]["selector"]["matchLabels"].clone());
        let known = template
            .and_then(|template| template["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64());
        let port = wanted.port.map(u64::from).or(known).unwrap_or(PORT_DEFAULT.into());
        let body = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "labels": labels(name) },
            "spec": {
                "selector": selector.filter(Value::is_object).unwrap_or_else(|| json!({ "app": name })),
                "ports": [{ "port": 80, "targetPort": port }],
            },
        });
        return Ok(Some(Change { kind: "services", create: true, body }));
    };
    ensure_own(old, "Service", name)?;
    let Some(port) = wanted.port else { return Ok(None) };
    let is_there = |one: &Value| one["port"] == 80 && one["targetPort"] == port;
    if old["spec"]["ports"].as_array().into_iter().flatten().any(is_there) {
        return Ok(None);
    }
    let body = json!({ "metadata": unchanged(name, old), "spec": { "ports": [{ "port": 80, "targetPort": port }] } });
    Ok(Some(Change { kind: "services", create: false, body }))
}

fn ingress(wanted: &Wanted, old: Option<&Value>) -> Result<Option<Change>> {
    let name = &wanted.name;
    let rule = |host: &str| {
        let backend = json!({ "service": { "name": name, "port": { "number": 80 } } });
        json!({ "host": host, "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] } })
    };
    let Some(old) = old else {
        let host = wanted.host.clone().unwrap_or_else(|| format!("{name}.localhost"));
        let body = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": { "name": name, "labels": labels(name) },
            "spec": { "rules": [rule(&host)] },
        });
        return Ok(Some(Change { kind: "ingresses", create: true, body }));
    };
    ensure_own(old, "Ingress", name)?;
    let mut rules = old["spec"]["rules"].as_array().cloned().unwrap_or_default();
    let Some(host) = &wanted.host else {
        if !rules.iter().any(|rule| leads_to(rule, name)) {
            bail!(
                "no rule of the Ingress {name} leads to the Service {name} any more, so no URL would answer: give it one \
                 with --host"
            );
        }
        return Ok(None);
    };
    if rules.iter().any(|rule| leads_to(rule, name) && rule["host"] == **host) {
        return Ok(None);
    }
    match rules.iter_mut().find(|rule| leads_to(rule, name)) {
        Some(rule) => rule["host"] = host.as_str().into(),
        None => rules.push(rule(host)),
    }
    let body = json!({ "metadata": unchanged(name, old), "spec": { "rules": rules } });
    Ok(Some(Change { kind: "ingresses", create: false, body }))
}

fn leads_to(rule: &Value, service: &str) -> bool {
    let paths = rule["http"]["paths"].as_array();
    paths.into_iter().flatten().any(|path| path["backend"]["service"]["name"] == service)
}

#[cfg(test)]
mod tests;
