//! `coracle functions`, `revisions`, `traffic` and `rollback`: what functions there are, and which revisions have the requests.

use anyhow::{Context, Result, bail, ensure};
use coracle_objects::{
    fields::{condition_true, integer, list, text},
    kinds::FUNCTION_LABEL,
};
use serde_json::{Value, json};

use super::{
    deploy::wait_function,
    get::{self, Request},
};
use crate::{
    args::{FunctionsArgs, RevisionsArgs, RollbackArgs, Share, TrafficArgs},
    client::{Body, Cluster, native_kind},
    names::encode,
    output,
};

pub async fn list_functions(args: &FunctionsArgs) -> Result<()> {
    let request = Request {
        what: "functions",
        selector: None,
        all_namespaces: args.all_namespaces,
        output: args.output,
    };
    get::listing(request, &args.namespaced).await
}

pub async fn list_revisions(args: &RevisionsArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    find(&cluster, &args.name).await?;
    let selector = Some(format!("{FUNCTION_LABEL}={}", args.name));
    let request = Request { what: "functionrevisions", selector, all_namespaces: false, output: args.output };
    get::listing(request, &args.namespaced).await
}

/// Shows which revisions have the requests, or says which are to have them.
pub async fn traffic(args: &TrafficArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    let function = find(&cluster, &args.name).await?;
    if args.shares.is_empty() && args.tags.is_empty() {
        return show(&function);
    }
    let part = |share: &Share| match share.revision.as_str() {
        "latest" => json!({ "latestRevision": true, "percent": share.percent }),
        name => json!({ "revision": name, "percent": share.percent }),
    };
    let mut parts: Vec<Value> = match args.shares.is_empty() {
        false => args.shares.iter().map(part).collect(),
        true => untagged(&function),
    };
    parts.extend(
        args.tags.iter().map(|(tag, revision)| json!({ "revision": revision, "percent": 0, "tag": tag })),
    );
    if args.tags.is_empty() {
        parts.extend(tagged(&function));
    }
    route(&cluster, &args.name, parts, args.timeout).await
}

/// Gives all requests to an earlier revision.
pub async fn rollback(args: &RollbackArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    let function = find(&cluster, &args.name).await?;
    let revision = match &args.to {
        Some(revision) => revision.clone(),
        None => before(&function, &revisions(&cluster, &args.name).await?)?,
    };
    let all = json!({ "revision": revision, "percent": 100 });
    let parts = [all].into_iter().chain(tagged(&function)).collect();
    route(&cluster, &args.name, parts, args.timeout).await
}

async fn find(cluster: &Cluster, name: &str) -> Result<Value> {
    let path = native_kind("functions")?.object(&cluster.namespace, name)?;
    cluster.get(&path).await?.with_context(|| {
        let namespace = &cluster.namespace;
        format!("there is no function {name:?} in namespace {namespace}: `coracle functions` lists them")
    })
}

async fn revisions(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let query = format!("?labelSelector={}", encode(&format!("{FUNCTION_LABEL}={name}")));
    let path = native_kind("functionrevisions")?.collection(&cluster.namespace) + &query;
    let answer = cluster.get(&path).await?.unwrap_or_default();
    Ok(list(&answer, "/items").to_vec())
}

/// The latest revision that has served before the one with the most requests.
fn before(function: &Value, revisions: &[Value]) -> Result<String> {
    let number = |name: &str| {
        let found = revisions.iter().find(|revision| text(revision, "/metadata/name") == name);
        found.and_then(|revision| integer(revision, "/spec/number"))
    };
    let first =
        list(function, "/status/traffic").iter().max_by_key(|part| integer(part, "/percent").unwrap_or(0));
    let current = first.and_then(|part| number(text(part, "/revision")));
    let current = current.context("it has served nothing yet: there is nothing to go back from")?;
    let earlier = revisions.iter().filter(|revision| condition_true(revision, "Ready"));
    let earlier =
        earlier.filter(|revision| integer(revision, "/spec/number").is_some_and(|number| number < current));
    let found = earlier.max_by_key(|revision| integer(revision, "/spec/number"));
    let found =
        found.context("there is no earlier revision that has served: `coracle revisions` lists them")?;
    Ok(text(found, "/metadata/name").to_owned())
}

fn tagged(function: &Value) -> Vec<Value> {
    let tagged =
        list(function, "/spec/traffic").iter().filter(|part| !text(part, "/tag").is_empty()).cloned();
    tagged
        .map(|mut part| {
            part["percent"] = 0.into();
            part
        })
        .collect()
}

fn untagged(function: &Value) -> Vec<Value> {
    let parts =
        list(function, "/spec/traffic").iter().filter(|part| integer(part, "/percent") > Some(0)).cloned();
    let mut parts: Vec<Value> = parts
        .map(|mut part| {
            part["tag"] = Value::Null;
            part
        })
        .collect();
    if parts.is_empty() {
        parts.push(json!({ "latestRevision": true, "percent": 100 }));
    }
    parts
}

/// Says which revisions are to have the requests, and waits until they have.
async fn route(cluster: &Cluster, name: &str, parts: Vec<Value>, timeout: std::time::Duration) -> Result<()> {
    let sum: i64 = parts.iter().filter_map(|part| integer(part, "/percent")).sum();
    ensure!(sum == 100, "the percentages are {sum} in sum: they must be 100");
    let path = native_kind("functions")?.object(&cluster.namespace, name)?;
    let request = http::Request::patch(&path).header("content-type", "application/merge-patch+json");
    let body = Body::from(serde_json::to_vec(&json!({ "spec": { "traffic": parts } }))?);
    cluster.send(request.body(body)?).await?;
    let function = wait_function(cluster, name, timeout, output::note).await?;
    show(&function)
}

fn show(function: &Value) -> Result<()> {
    let parts = list(function, "/status/traffic");
    if parts.is_empty() {
        bail!("no revision has requests yet: see `coracle revisions {}`", text(function, "/metadata/name"));
    }
    for part in parts {
        let (revision, percent) = (text(part, "/revision"), integer(part, "/percent").unwrap_or(0));
        let tag = match text(part, "/tag") {
            "" => String::new(),
            tag => format!("  {tag}: {}", text(part, "/url")),
        };
        output::line(format!("{revision}={percent}{tag}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_leads_to_what_served_before() {
        let revision = |number: i64, ready: &str| {
            json!({"metadata": {"name": format!("hello-{number}")}, "spec": {"number": number},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let all = [revision(1, "True"), revision(2, "True"), revision(3, "False"), revision(4, "True")];
        let with = |name: &str| {
            json!({"status": {"traffic": [{"revision": "hello-1", "percent": 10},
            {"revision": name, "percent": 90}]}})
        };
        assert_eq!(before(&with("hello-4"), &all).unwrap(), "hello-2");
        assert_eq!(before(&with("hello-2"), &all).unwrap(), "hello-1");
        assert!(before(&with("hello-1"), &all).unwrap_err().to_string().contains("no earlier revision"));
        assert!(before(&json!({}), &all).unwrap_err().to_string().contains("nothing to go back from"));
    }
}
