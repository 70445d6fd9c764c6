//! `coracle get`: prints objects as the server's tables, or whole.

mod table;
mod watch;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::table::{Look, Table};
use crate::{
    args::{Format, GetArgs, Namespaced, Output},
    client::{Body, Cluster, Refused},
    names::encode,
    output,
    selection::{self, Target},
};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub async fn run(args: &GetArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    let targets = targets(&cluster, args).await?;
    if args.watch {
        return watch::run(&cluster, args, &targets).await;
    }
    let (answers, mut refusals) = ask(&cluster, args, &targets).await?;
    match args.output {
        None | Some(Output::Wide) => print_tables(args, &targets, answers, refusals.is_empty())?,
        Some(Output::Json) => print_objects(&targets, answers, Format::Json)?,
        Some(Output::Yaml) => print_objects(&targets, answers, Format::Yaml)?,
        Some(Output::Name) => {
            for (target, answer) in &answers {
                for object in objects(answer) {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    output::line(format!("{}/{name}", target.kind.prefix()))?;
                }
            }
        }
    }
    let Some(last) = refusals.pop() else { return Ok(()) };
    refusals.iter().for_each(|refusal| output::note(crate::told(refusal)));
    Err(last)
}

/// A listing that another command prints.
pub struct Request {
    pub what: &'static str,
    pub selector: Option<String>,
    pub all_namespaces: bool,
    pub output: Option<Output>,
}

pub async fn listing(request: Request, namespaced: &Namespaced) -> Result<()> {
    let Request { what, selector, all_namespaces, output } = request;
    run(&GetArgs {
        what: vec![what.to_owned()],
        filenames: Vec::new(),
        all_namespaces,
        selector,
        field_selector: None,
        output,
        no_headers: false,
        show_labels: false,
        ignore_not_found: false,
        watch: false,
        namespaced: namespaced.clone(),
    })
    .await
}

/// What is asked for.
async fn targets(cluster: &Cluster, args: &GetArgs) -> Result<Vec<Target>> {
    if !args.filenames.is_empty() {
        return selection::by_files(cluster, &args.filenames, args.namespaced.namespace.as_deref()).await;
    }
    let targets = selection::by_words(cluster, &args.what).await?;
    if targets.iter().any(|target| target.name.is_some()) {
        if args.all_namespaces {
            bail!("an object cannot be asked for by its name across all namespaces");
        }
        if args.selector.is_some() || args.field_selector.is_some() {
            bail!("a name cannot be given together with a selector");
        }
    }
    Ok(targets)
}

/// The answer to each target, and the refusals of those that are not there.
async fn ask<'a>(
    cluster: &Cluster,
    args: &GetArgs,
    targets: &'a [Target],
) -> Result<(Vec<(&'a Target, Value)>, Vec<anyhow::Error>)> {
    let (mut answers, mut refusals) = (Vec::new(), Vec::new());
    // Without a quorum what a control node knows is better than nothing.
    let mut known = false;
    for target in targets {
        let mut answer = ask_one(cluster, args, target, known).await;
        if !known && answer.as_ref().is_err_and(Refused::is_for_now) {
            answer = ask_one(cluster, args, target, true).await;
            known = true;
            output::note(format!(
                "note: no quorum answers; this is what the control node at {} knew, and may be old",
                cluster.address()
            ));
        }
        match answer {
            Ok(answer) => answers.push((target, answer)),
            Err(error) if Refused::is_absence(&error) && args.ignore_not_found => {}
            Err(error) if error.is::<Refused>() && targets.len() > 1 => refusals.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok((answers, refusals))
}

/// `known`: what any control node knows suffices.
async fn ask_one(cluster: &Cluster, args: &GetArgs, target: &Target, known: bool) -> Result<Value> {
    let known: &[String] = if known { &["resourceVersion=0".to_owned()] } else { &[] };
    let request = http::Request::get(path(args, target, known)?).header("accept", accept(args));
    let (_, body) = cluster.send(request.body(Body::default())?).await?;
    serde_json::from_slice(&body).context("the answer is not JSON")
}

fn accept(args: &GetArgs) -> &'static str {
    if matches!(args.output, None | Some(Output::Wide)) { TABLE } else { "application/json" }
}

/// The path of a target, with what the command selects of it and further parts of a query.
fn path(args: &GetArgs, target: &Target, more: &[String]) -> Result<String> {
    let path = if args.all_namespaces { target.kind.everywhere() } else { target.path()? };
    let mut query: Vec<String> = more.to_vec();
    query.extend(args.selector.iter().map(|selector| format!("labelSelector={}", encode(selector))));
    query.extend(args.field_selector.iter().map(|selector| format!("fieldSelector={}", encode(selector))));
    Ok(if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) })
}

/// The objects of an answer, which is one or a list.
fn objects(answer: &Value) -> &[Value] {
    answer["items"].as_array().map_or(std::slice::from_ref(answer), Vec::as_slice)
}

fn look(args: &GetArgs, several: bool) -> Look {
    Look {
        wide: args.output == Some(Output::Wide),
        headers: !args.no_headers,
        namespaces: args.all_namespaces,
        labels: args.show_labels,
        kinds: several,
    }
}

/// One table a kind, with an empty line between. The objects' kinds are named where there are several.
fn print_tables(
    args: &GetArgs,
    targets: &[Target],
    answers: Vec<(&Target, Value)>,
    complete: bool,
) -> Result<()> {
    let several = answers.iter().any(|(target, _)| target.kind != answers[0].0.kind);
    let look = look(args, several);
    let mut tables: Vec<Table> = Vec::new();
    for (target, answer) in answers {
        match tables.last_mut() {
            Some(last) if last.kind == target.kind => last.extend(answer),
            _ => tables.push(Table::new(target.kind.clone(), answer)),
        }
    }
    tables.retain(|table| !table.is_empty());
    if tables.is_empty() && complete && !args.ignore_not_found {
        match args.all_namespaces || !targets.iter().any(|target| target.kind.namespaced) {
            true => output::note("No resources found"),
            false => output::note(format!("No resources found in {} namespace.", targets[0].namespace)),
        }
    }
    // Apart from each other only where they have heads, as kubectl prints them.
    let texts: Vec<String> = tables.iter().map(|table| table.render(&look)).collect();
    output::text(&texts.join(if look.headers { "\n" } else { "" }))
}

/// The object, where one was asked for by its name, or a list of all.
fn print_objects(targets: &[Target], answers: Vec<(&Target, Value)>, format: Format) -> Result<()> {
    if let [Target { name: Some(_), .. }] = targets {
        // Without an answer it is not there, which is no fault.
        return answers.first().map_or(Ok(()), |(_, object)| output::value(object, format));
    }
    let mut items = Vec::new();
    for (target, answer) in answers {
        let (api_version, kind) = (target.kind.api_version(), &target.kind.kind);
        for object in objects(&answer) {
            // Within a list of one kind servers leave it out.
            let mut item = json!({ "apiVersion": api_version, "kind": kind });
            if let (Some(item), Some(object)) = (item.as_object_mut(), object.as_object()) {
                item.extend(object.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            items.push(item);
        }
    }
    let list =
        json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": items });
    output::value(&list, format)
}
