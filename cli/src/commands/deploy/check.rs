//! What can be known before anything is made: of the file or image, the name, and what the cluster has.

use std::path::Path;

use anyhow::{Context, Result, bail};
use coracle_objects::kinds::{GATEWAY_CONTROLLER, function_hosts, ingress_class};
use coracle_wasi_host::{Entry, Examined, examine};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    everywhere, gateway, image,
    objects::{Standing, Wanted},
};
use crate::{
    args::{DeployArgs, EnvSource},
    client::{Cluster, native_kind},
    commands::push::{WASM_BYTES_MAX, split_name},
    environment, input,
    project::{self, Project},
};

/// A deployment that can be carried out, as far as that is known.
pub struct Checked {
    pub wanted: Wanted,
    /// The file that is pushed before.
    pub push: Option<Pushed>,
    /// The host that the gateway answers for: the one that is asked for, else the Ingress', else one of the name.
    pub host: String,
    /// The host:port of a gateway.
    pub gateway: String,
}

/// A file under its digest, so that a changed file is a changed image.
pub struct Pushed {
    pub repository: String,
    pub tag: String,
    pub bytes: Vec<u8>,
}

pub async fn run(cluster: &Cluster, args: &DeployArgs) -> Result<Checked> {
    // A Service's name is the narrowest of all.
    let ensure_name = |name: &str| native_kind("services")?.object(&cluster.namespace, name);
    args.name.as_deref().map(ensure_name).transpose()?;
    let variables = environment::variables(&args.env_file, &args.env)?;
    for (key, _) in &args.secrets {
        environment::ensure_name(key)?;
        if variables.contains_key(key) {
            bail!("{key} is both a variable and a --secret: give it once");
        }
    }
    let Found { image, name, examined, push, port } = component(cluster, args).await?;
    let name = args.name.clone().unwrap_or(name);
    ensure_name(&name)?;
    let host = args.host.clone().unwrap_or_else(|| format!("{name}.localhost"));
    let wanted = Wanted {
        name,
        image,
        pushed: push.is_some(),
        is_program: examined.is_some_and(|examined| examined.entry == Entry::Command),
        is_function: args.function,
        host: args.host.clone(),
        replicas: args.replicas,
        port: args.port.or(port),
        variables,
        env_from: args.env_from.clone(),
        secrets: args.secrets.iter().cloned().collect(),
        args: args.args.clone(),
    };
    let gateway = gateway(cluster).await?;
    ensure_sources(cluster, &args.env_from).await?;
    let standing = Standing::read(cluster, &wanted.name).await?;
    let host = standing.host(&wanted.name).filter(|_| args.host.is_none()).unwrap_or(host);
    ensure_host_is_free(cluster, &wanted.name, &host).await?;
    Ok(Checked { wanted, push, host, gateway })
}

/// What is to run.
struct Found {
    image: String,
    /// The name that follows from it.
    name: String,
    /// What it is, as far as that is known.
    examined: Option<Examined>,
    /// What has to be pushed first.
    push: Option<Pushed>,
    /// The port that a project's program listens on.
    port: Option<u16>,
}

async fn component(cluster: &Cluster, args: &DeployArgs) -> Result<Found> {
    let given = &args.image;
    let path = Path::new(given);
    let is_path = [".", "..", "/"].iter().any(|start| given.starts_with(start)) || given.ends_with('/');
    if path.join(project::FILE).is_file() || is_path && path.is_dir() {
        let project = Project::open(path)?;
        let built = project.build().await?;
        return Ok(Found { port: project.port(), ..of_file(&built, project.name(), args)? });
    }
    let is_file = !given.contains("://") && (given.ends_with(".wasm") || path.is_file());
    if !is_file {
        let last = given.rsplit('/').next().unwrap_or(given);
        let name = dns_label(last.split([':', '@']).next().unwrap_or(last).trim_end_matches(".wasm"));
        // A file of the nodes only they can look at.
        let examined = match given.starts_with("file://") {
            true => None,
            false => Some(ensure_serves(&image::component(cluster, given).await?, given)?),
        };
        return Ok(Found { image: given.clone(), name, examined, push: None, port: None });
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).context("the file has no name")?;
    of_file(path, &dns_label(stem), args)
}

/// A file, which becomes an image of the name that it gets.
fn of_file(path: &Path, name: &str, args: &DeployArgs) -> Result<Found> {
    let bytes = input::bytes(path, WASM_BYTES_MAX)?;
    let examined = ensure_serves(&bytes, &path.display().to_string())?;
    let name = args.name.clone().unwrap_or_else(|| name.to_owned());
    let (repository, _) = split_name(&name)?;
    let tag = hex::encode(Sha256::digest(&bytes))[..12].to_string();
    let image = format!("{repository}:{tag}");
    let push = Some(Pushed { repository, tag, bytes });
    Ok(Found { image, name, examined: Some(examined), push, port: None })
}

/// Refuses what no node runs, and what computes and ends.
fn ensure_serves(wasm: &[u8], what: &str) -> Result<Examined> {
    let examined = examine(wasm).with_context(|| format!("{what} cannot be deployed"))?;
    if !examined.serves {
        bail!(
            "{what} serves nothing: it is a program (wasi:cli/run) without sockets, which computes and ends, so no URL would \
             answer. Run it once as a pod: `coracle push FILE NAME:TAG`, then `kubectl run NAME --image NAME:TAG \
             --restart Never`"
        );
    }
    Ok(examined)
}

/// What the environment is taken from must be there.
async fn ensure_sources(cluster: &Cluster, sources: &[EnvSource]) -> Result<()> {
    for source in sources {
        let (kind, name) = match source {
            EnvSource::ConfigMap(name) => ("configmaps", name),
            EnvSource::Secret(name) => ("secrets", name),
        };
        let path = native_kind(kind)?.object(&cluster.namespace, name)?;
        if cluster.get(&path).await?.is_none() {
            bail!(
                "--env-from: there is no {} {name:?} in namespace {}",
                kind.trim_end_matches('s'),
                cluster.namespace
            );
        }
    }
    Ok(())
}

/// Of two Ingresses with one host and path only the older serves.
async fn ensure_host_is_free(cluster: &Cluster, name: &str, host: &str) -> Result<()> {
    let all = everywhere(cluster, "ingresses").await?;
    let classes = everywhere(cluster, "ingressclasses").await?;
    let own = (&*cluster.namespace, name);
    if let Some(by) = taken_by(&all, &classes, own, host) {
        bail!("the host {host} is served by the Ingress {by} already: choose another with --host");
    }
    if let Some(by) = function_with(&everywhere(cluster, "functions").await?, own, host) {
        bail!("the host {host} is served by the Function {by} already: choose another with --host");
    }
    Ok(())
}

/// Another function that answers for a host.
fn function_with(functions: &[Value], own: (&str, &str), host: &str) -> Option<String> {
    functions.iter().find_map(|function| {
        let meta = &function["metadata"];
        let (namespace, name) = (meta["namespace"].as_str()?, meta["name"].as_str()?);
        let taken = function_hosts(function).contains(&host.to_ascii_lowercase());
        (taken && (namespace, name) != own).then(|| format!("{namespace}/{name}"))
    })
}

fn taken_by(ingresses: &[Value], classes: &[Value], own: (&str, &str), host: &str) -> Option<String> {
    ingresses.iter().filter(|ingress| is_served(ingress, classes)).find_map(|ingress| {
        let meta = &ingress["metadata"];
        let (namespace, name) = (meta["namespace"].as_str()?, meta["name"].as_str()?);
        let serves_all = |rule: &Value| {
            let paths = rule["http"]["paths"].as_array();
            rule["host"] == host && paths.into_iter().flatten().any(|path| path["path"] == "/")
        };
        let taken = ingress["spec"]["rules"].as_array()?.iter().any(serves_all);
        (taken && (namespace, name) != own).then(|| format!("{namespace}/{name}"))
    })
}

/// Whether gateways serve an Ingress: one that names no class, or a class of theirs.
fn is_served(ingress: &Value, classes: &[Value]) -> bool {
    ingress_class(ingress).is_none_or(|class| {
        let is_it = |one: &&Value| one["metadata"]["name"] == class;
        classes.iter().find(is_it).is_some_and(|one| one["spec"]["controller"] == GATEWAY_CONTROLLER)
    })
}

fn dns_label(text: &str) -> String {
    let label: String =
        text.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    label.trim_matches('-').chars().take(63).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn file_names_become_dns_labels() {
        assert_eq!(dns_label("hello_http"), "hello-http");
        assert_eq!(dns_label("_My App_"), "my-app");
    }

    #[test]
    fn samples_are_told_apart_by_what_they_serve() {
        for (name, wasm) in coracle_sample_artifacts::ALL {
            let serves = ensure_serves(wasm, name);
            let job = ["pi-job", "pi-legacy", "crash", "spin", "memory-hog", "files"].contains(name);
            assert_eq!(serves.is_err(), job, "{name}: {serves:?}");
        }
        let said = format!("{:#}", ensure_serves(b"#!/bin/sh", "script").unwrap_err());
        assert!(said.starts_with("script cannot be deployed: not WebAssembly"), "{said}");
    }

    #[test]
    fn a_host_that_another_ingress_serves_is_taken() {
        let rule = json!({ "host": "a.localhost", "http": { "paths": [{ "path": "/" }] } });
        let all = [json!({ "metadata": { "namespace": "n", "name": "a" }, "spec": { "rules": [rule] } })];
        assert_eq!(taken_by(&all, &[], ("n", "a"), "a.localhost"), None, "its own");
        assert_eq!(taken_by(&all, &[], ("m", "a"), "a.localhost").unwrap(), "n/a");
        assert_eq!(taken_by(&all, &[], ("m", "a"), "b.localhost"), None);
    }

    #[test]
    fn a_host_that_another_function_serves_is_taken() {
        let all = [json!({ "metadata": { "namespace": "n", "name": "a" },
            "spec": { "traffic": [{ "revision": "a-1", "tag": "old" }] } })];
        assert_eq!(function_with(&all, ("n", "a"), "a.localhost"), None, "its own");
        assert_eq!(function_with(&all, ("n", "b"), "old-A.localhost").unwrap(), "n/a");
        assert_eq!(function_with(&all, ("n", "b"), "b.localhost"), None);
    }

    #[test]
    fn an_ingress_of_another_class_takes_no_host() {
        let class = |name: &str, controller: &str| {
            let spec = json!({ "controller": controller });
            json!({ "metadata": { "name": name }, "spec": spec })
        };
        let classes = [class("coracle", GATEWAY_CONTROLLER), class("nginx", "k8s.io/ingress-nginx")];
        let taken = |field: Value, annotation: Value| {
            let rule = json!({ "host": "a.localhost", "http": { "paths": [{ "path": "/" }] } });
            let meta = json!({ "namespace": "n", "name": "a", "annotations": { "kubernetes.io/ingress.class": annotation } });
            let spec = json!({ "ingressClassName": field, "rules": [rule] });
            let all = [json!({ "metadata": meta, "spec": spec })];
            taken_by(&all, &classes, ("m", "a"), "a.localhost").is_some()
        };
        assert!(taken(Value::Null, Value::Null) && taken("".into(), "".into()), "of no class");
        assert!(taken("coracle".into(), Value::Null) && taken(Value::Null, "coracle".into()));
        assert!(taken("coracle".into(), "nginx".into()), "the field wins");
        assert!(!taken("nginx".into(), Value::Null) && !taken(Value::Null, "nginx".into()));
        assert!(!taken("nginx".into(), "coracle".into()));
        assert!(!taken("unknown".into(), Value::Null), "nobody serves it");
    }
}
