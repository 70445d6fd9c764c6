//! `coracle delete`: deletes objects and waits until they are gone.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    args::{Cascade, DeleteArgs, DryRun},
    client::{Body, Cluster, NoSuchKind, Refused},
    commands::deploy,
    names::encode,
    output,
    selection::{self, Target},
};

/// How often a deleted object is looked for.
const POLL: Duration = Duration::from_millis(100);

pub async fn run(args: &DeleteArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    if let Some(name) = app(&cluster, args).await? {
        return deploy::delete_app(&cluster, args, name).await;
    }
    let targets = targets(&cluster, args).await?;
    if targets.is_empty() {
        output::note("No resources found");
        return Ok(());
    }
    delete(&cluster, args, &targets).await
}

/// The name of what `coracle deploy` made: one word that is no kind.
async fn app<'a>(cluster: &Cluster, args: &'a DeleteArgs) -> Result<Option<&'a str>> {
    let chosen = args.all || args.selector.is_some() || args.all_namespaces;
    let [word] = &args.what[..] else { return Ok(None) };
    if chosen || word.contains(['/', ',']) {
        return Ok(None);
    }
    let is_kind = cluster.kinds(word).await;
    Ok(is_kind.is_err_and(|error| error.is::<NoSuchKind>()).then_some(word))
}

/// The objects that go, each by its name.
async fn targets(cluster: &Cluster, args: &DeleteArgs) -> Result<Vec<Target>> {
    if !args.filenames.is_empty() {
        return selection::by_files(cluster, &args.filenames, args.namespaced.namespace.as_deref()).await;
    }
    let targets = selection::by_words(cluster, &args.what).await?;
    let named = targets.iter().any(|target| target.name.is_some());
    match (named, args.all || args.selector.is_some()) {
        (true, true) => bail!("names cannot be given together with --all or a selector"),
        (true, false) if args.all_namespaces => {
            bail!("an object cannot be deleted by its name across all namespaces")
        }
        (true, false) => Ok(targets),
        (false, true) => listed(cluster, args, &targets).await,
        (false, false) => bail!("{} is given, but no name: say which, or --all", args.what.join(" ")),
    }
}

/// All objects of the kinds that the selector takes.
async fn listed(cluster: &Cluster, args: &DeleteArgs, kinds: &[Target]) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for target in kinds {
        let path = if args.all_namespaces { target.kind.everywhere() } else { target.path()? };
        let selector = args.selector.iter().map(|selector| format!("?labelSelector={}", encode(selector)));
        let list = cluster.get(&(path + &selector.collect::<String>())).await?.unwrap_or_default();
        for object in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            found.push(Target {
                kind: target.kind.clone(),
                namespace: text("namespace"),
                name: Some(text("name")),
            });
        }
    }
    Ok(found)
}

pub async fn delete(cluster: &Cluster, args: &DeleteArgs, targets: &[Target]) -> Result<()> {
    let body = serde_json::to_vec(&options(args))?;
    let (mut going, mut refusals) = (Vec::new(), Vec::new());
    for target in targets {
        let (path, name) = (target.path()?, target.name.as_deref().unwrap_or_default());
        let what = format!("{} \"{name}\"", target.kind.prefix());
        let answer = match args.dry_run {
            DryRun::Client => cluster.get(&path).await.and_then(|object| {
                object.with_context(|| format!("{} {name:?} not found", target.kind.resource()))
            }),
            _ => request(cluster, &path, &body).await,
        };
        match answer {
            Ok(object) => {
                output::line(format!("{what} {}", done(args)))?;
                going.push((what, path, uid(&object)));
            }
            Err(error) if Refused::is_absence(&error) && may_be_gone(args) => {}
            Err(error) if targets.len() > 1 => refusals.push(error),
            Err(error) => return Err(error),
        }
    }
    if args.wait && args.dry_run == DryRun::None {
        let deadline = tokio::time::Instant::now() + args.timeout;
        for (what, path, uid) in going {
            wait_gone(cluster, &path, uid.as_deref(), deadline)
                .await
                .with_context(|| format!("waiting for {what} to go"))?;
        }
    }
    let Some(last) = refusals.pop() else { return Ok(()) };
    refusals.iter().for_each(|refusal| output::note(crate::told(refusal)));
    Err(last)
}

async fn request(cluster: &Cluster, path: &str, body: &[u8]) -> Result<Value> {
    let request = http::Request::delete(path).header("content-type", "application/json");
    let (_, answer) = cluster.send(request.body(Body::from(body.to_vec()))?).await?;
    Ok(serde_json::from_slice(&answer).unwrap_or_default())
}

fn options(args: &DeleteArgs) -> Value {
    let policy = match args.cascade {
        Cascade::Background => "Background",
        Cascade::Foreground => "Foreground",
        Cascade::Orphan => "Orphan",
    };
    let mut options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy });
    let grace = match (args.grace_period, args.force, args.now) {
        (Some(seconds), _, _) => Some(seconds),
        (None, true, _) => Some(0),
        (None, false, true) => Some(1),
        (None, false, false) => None,
    };
    if let Some(seconds) = grace {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if args.dry_run == DryRun::Server {
        options["dryRun"] = json!(["All"]);
    }
    options
}

/// Whether what is not there is no fault: what was listed may have gone with its owner meanwhile.
fn may_be_gone(args: &DeleteArgs) -> bool {
    args.ignore_not_found || args.all || args.selector.is_some()
}

fn done(args: &DeleteArgs) -> &'static str {
    match (args.dry_run, args.force) {
        (DryRun::Client, _) => "deleted (dry run)",
        (DryRun::Server, _) => "deleted (server dry run)",
        (DryRun::None, true) => "force deleted",
        (DryRun::None, false) => "deleted",
    }
}

/// Of the object, or of a Status that tells of it.
fn uid(answer: &Value) -> Option<String> {
    let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
    uid.map(str::to_owned)
}

/// Waits until an object is gone, or another one of its name is there.
async fn wait_gone(
    cluster: &Cluster,
    path: &str,
    uid: Option<&str>,
    deadline: tokio::time::Instant,
) -> Result<()> {
    while let Some(object) = cluster.get(path).await? {
        if uid.is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let held =
                object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str);
            match held.collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => bail!("it is still there: see --timeout, or look at its node"),
                finalizers => bail!("it is still there, held by its finalizers {finalizers}"),
            }
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> DeleteArgs {
        let line = format!("coracle delete {line}");
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Delete(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_those_of_kubectl() {
        let of = |line: &str| {
            let args = args(line);
            (
                options(&args)["propagationPolicy"].clone(),
                options(&args)["gracePeriodSeconds"].clone(),
                args.wait,
            )
        };
        assert_eq!(of("pod a"), ("Background".into(), Value::Null, true));
        assert_eq!(of("pod a --cascade orphan --now"), ("Orphan".into(), 1.into(), true));
        assert_eq!(of("pod a --force --wait=false"), ("Background".into(), 0.into(), false));
        assert_eq!(of("pod a --cascade foreground --grace-period 7"), ("Foreground".into(), 7.into(), true));
        assert_eq!(options(&args("pod a --dry-run server"))["dryRun"], json!(["All"]));
        let may_be_gone = |line: &str| may_be_gone(&args(line));
        assert!(may_be_gone("pods --all") && may_be_gone("rs,pods -l app=a"), "they were listed");
        assert!(may_be_gone("pod a --ignore-not-found") && !may_be_gone("pod a"));
    }
}
