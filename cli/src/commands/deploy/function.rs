//! `coracle deploy --function`: a Function, which has instances while it is called.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coracle_objects::fields::{condition, integer, list, text};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::objects::{
    Change, PUSHED, Standing, Wanted, ensure_own, env, env_from, is_source, labels, pushed, secret,
};
use crate::client::{Cluster, native_kind};

const POLL: Duration = Duration::from_millis(50);
/// How long a gateway may take to hear of a function, and what it says of hosts that it does not know.
const ROUTED_WITHIN: Duration = Duration::from_secs(5);
const UNKNOWN_HOST: &str = "the request is for nothing that is served here";
/// How much of an answer is looked at.
const ANSWER_BYTES: u64 = 1024;
/// For how long what may pass by itself is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// What has to be made or changed, in this order.
pub fn changes(wanted: &Wanted, standing: &Standing) -> Result<Vec<Change>> {
    for (object, kind) in [(&standing.deployment, "Deployment"), (&standing.ingress, "Ingress")] {
        ensure!(
            object.is_none(),
            "there is a {kind} {0}: choose another --name, or delete it with `coracle delete {0}`",
            wanted.name
        );
    }
    let mut changes = Vec::new();
    changes.extend(secret(wanted, standing.secret.as_ref())?);
    changes.push(match &standing.function {
        None => Change { kind: "functions", create: true, body: new(wanted) },
        Some(old) => Change { kind: "functions", create: false, body: changed(wanted, old)? },
    });
    Ok(changes)
}

fn new(wanted: &Wanted) -> Value {
    let name = &wanted.name;
    let mut meta = json!({ "name": name, "labels": labels(name) });
    if wanted.pushed {
        meta["annotations"] = json!({ PUSHED: wanted.image });
    }
    let mut spec = json!({ "image": wanted.image });
    for (field, list) in [("env", env(wanted, false)), ("envFrom", env_from(&wanted.env_from))] {
        if !list.is_empty() {
            spec[field] = list.into();
        }
    }
    said(wanted, &mut spec);
    json!({ "apiVersion": "coracle.dev/v1", "kind": "Function", "metadata": meta, "spec": spec })
}

/// What is given whole.
fn said(wanted: &Wanted, spec: &mut Value) {
    if !wanted.args.is_empty() {
        spec["args"] = json!(wanted.args);
    }
    if let Some(port) = wanted.port {
        spec["port"] = port.into();
    }
    if let Some(host) = &wanted.host {
        spec["hosts"] = json!([host]);
    }
}

fn changed(wanted: &Wanted, old: &Value) -> Result<Value> {
    ensure_own(old, "Function", &wanted.name)?;
    let mut meta = json!({ "name": wanted.name, "resourceVersion": old["metadata"]["resourceVersion"] });
    if wanted.pushed {
        meta["annotations"] = json!({ PUSHED: pushed(wanted, old) });
    }
    let mut spec = json!({ "image": wanted.image });
    let env = env(wanted, true);
    if !env.is_empty() {
        spec["env"] = env.into();
    }
    let mut sources = list(old, "/spec/envFrom").to_vec();
    let more = env_from(&wanted.env_from).into_iter();
    let more: Vec<Value> = more.filter(|source| !sources.iter().any(|old| is_source(old, source))).collect();
    if !more.is_empty() {
        sources.extend(more);
        spec["envFrom"] = sources.into();
    }
    said(wanted, &mut spec);
    if !list(old, "/spec/traffic").is_empty() {
        spec["traffic"] = all_to_the_latest(old);
    }
    Ok(json!({ "metadata": meta, "spec": spec }))
}

/// All requests go to what is deployed now; tags stay where they are.
fn all_to_the_latest(old: &Value) -> Value {
    let tagged = list(old, "/spec/traffic").iter().filter(|part| !text(part, "/tag").is_empty());
    let tagged = tagged.map(|part| {
        let mut part = part.clone();
        part["percent"] = 0.into();
        part
    });
    [json!({ "latestRevision": true, "percent": 100 })].into_iter().chain(tagged).collect()
}

/// Waits until the revision of the newest change serves, and has the requests that it is to have.
pub async fn wait_ready(
    cluster: &Cluster,
    name: &str,
    timeout: Duration,
    tell: impl Fn(String),
) -> Result<Value> {
    let path = native_kind("functions")?.object(&cluster.namespace, name)?;
    let begun = Instant::now();
    let (mut told, mut failing) = (String::new(), None);
    loop {
        let function = cluster.get(&path).await?.with_context(|| format!("function {name} is gone"))?;
        let ready = condition(&function, "Ready").cloned().unwrap_or_default();
        let is_seen =
            integer(&function, "/status/observedGeneration") == integer(&function, "/metadata/generation");
        let message = text(&ready, "/message").to_owned();
        match text(&ready, "/status") {
            "True" if is_seen => return Ok(function),
            "False" if is_seen => {
                let since = *failing.get_or_insert_with(Instant::now);
                ensure!(since.elapsed() < PATIENCE, "{name} does not serve: {message}");
            }
            _ => failing = None,
        }
        if !message.is_empty() && message != told {
            tell(format!("{}: {message}", text(&function, "/status/latestCreatedRevision")));
            told.clone_from(&message);
        }
        if begun.elapsed() > timeout {
            bail!("{name} does not serve after {} s: {message}", timeout.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the gateway knows of the host: it hears of a function a moment after that is ready. One that cannot be reached
/// from here is not waited for.
pub async fn wait_routed(gateway: &str, host: &str) {
    let begun = Instant::now();
    while begun.elapsed() < ROUTED_WITHIN {
        let asked = tokio::time::timeout(ROUTED_WITHIN, asks(gateway, host)).await;
        if !matches!(asked, Ok(Ok(answer)) if answer.contains(UNKNOWN_HOST)) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The begin of the answer to a request.
async fn asks(gateway: &str, host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(gateway).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            name: "hello".to_owned(),
            image: "hello:2".to_owned(),
            pushed: true,
            is_program: false,
            is_function: true,
            host: None,
            replicas: None,
            port: None,
            variables: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            env_from: Vec::new(),
            secrets: BTreeMap::new(),
            args: Vec::new(),
        }
    }

    #[test]
    fn what_others_set_stays_and_requests_go_to_what_is_deployed() {
        let made = changes(&wanted(), &Standing::default()).unwrap();
        assert_eq!(made[0].body["spec"], json!({"image": "hello:2", "env": [{"name": "A", "value": "1"}]}));
        let mut old = made[0].body.clone();
        old["metadata"]["resourceVersion"] = "7".into();
        old["spec"]["traffic"] = json!([{"revision": "hello-1", "percent": 90},
            {"revision": "hello-2", "percent": 10, "tag": "next"}]);
        let standing = Standing { function: Some(old), ..Standing::default() };
        let wanted = Wanted { host: Some("a.example".to_owned()), ..wanted() };
        let again = changes(&wanted, &standing).unwrap();
        assert!(!again[0].create);
        assert_eq!(again[0].body["metadata"]["resourceVersion"], "7");
        assert_eq!(
            again[0].body["spec"],
            json!({"image": "hello:2", "env": [{"name": "A", "value": "1", "valueFrom": null}], "hosts": ["a.example"],
                "traffic": [{"latestRevision": true, "percent": 100},
                    {"revision": "hello-2", "percent": 0, "tag": "next"}]})
        );
    }

    #[test]
    fn a_deployment_of_that_name_is_left_alone() {
        let standing = Standing { deployment: Some(json!({})), ..Standing::default() };
        let said = changes(&wanted(), &standing).err().unwrap().to_string();
        assert!(said.contains("there is a Deployment hello"), "{said}");
        let foreign = json!({"metadata": {"name": "hello"}, "spec": {"image": "x"}});
        let standing = Standing { function: Some(foreign), ..Standing::default() };
        let said = changes(&wanted(), &standing).err().unwrap().to_string();
        assert!(said.contains("the Function hello is not of `coracle deploy`"), "{said}");
    }
}
