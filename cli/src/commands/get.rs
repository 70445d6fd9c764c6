//! `coracle get`: prints objects as the server's tables, or whole.

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::{
    args::{GetArgs, Output},
    client::{Body, Cluster},
    names::encode,
};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub async fn run(args: &GetArgs) -> Result<()> {
    let cluster = Cluster::find(&args.connection)?;
    let paths = cluster.kind(&args.kind).await?;
    let mut path = match (&args.name, args.all_namespaces) {
        (Some(name), _) => paths.object(name)?,
        (None, true) => paths.everywhere,
        (None, false) => paths.collection,
    };
    if let Some(selector) = &args.selector {
        path = format!("{path}?labelSelector={}", encode(selector));
    }
    let table = matches!(args.output, None | Some(Output::Wide));
    let accept = if table { TABLE } else { "application/json" };
    let request = http::Request::get(&path).header("accept", accept).body(Body::default())?;
    let body = cluster.stream(request).await?.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    match args.output {
        None => print!("{}", render_table(&answer, false, args.all_namespaces)),
        Some(Output::Wide) => print!("{}", render_table(&answer, true, args.all_namespaces)),
        Some(Output::Json) => println!("{}", serde_json::to_string_pretty(&answer)?),
        Some(Output::Yaml) => print!("{}", serde_yaml_ng::to_string(&answer)?),
        Some(Output::Name) => {
            let single = std::slice::from_ref(&answer);
            for object in answer["items"].as_array().map_or(single, Vec::as_slice) {
                println!("{}", object["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
    }
    Ok(())
}

/// A meta.k8s.io Table as aligned text. `wide` takes the columns of lower priority too.
fn render_table(table: &Value, wide: bool, namespaces: bool) -> String {
    let empty = Vec::new();
    let columns = table["columnDefinitions"].as_array().unwrap_or(&empty);
    let shown: Vec<usize> =
        (0..columns.len()).filter(|at| wide || columns[*at]["priority"].as_i64().unwrap_or(0) == 0).collect();
    let rows = table["rows"].as_array().unwrap_or(&empty);
    if rows.is_empty() {
        return "No resources found.\n".into();
    }
    let mut lines = Vec::with_capacity(rows.len() + 1);
    let mut head: Vec<String> = if namespaces { vec!["NAMESPACE".into()] } else { Vec::new() };
    head.extend(shown.iter().map(|at| columns[*at]["name"].as_str().unwrap_or_default().to_uppercase()));
    lines.push(head);
    for row in rows {
        let mut line: Vec<String> = Vec::new();
        if namespaces {
            line.push(row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_string());
        }
        line.extend(shown.iter().map(|at| cell(&row["cells"][*at])));
        lines.push(line);
    }
    align(&lines)
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

/// Rows of text with their columns aligned, three spaces apart.
pub fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            lines.iter().filter_map(|line| line.get(at)).map(|text| text.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let row: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(row.join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_shows_wide_columns_only_when_asked() {
        let table = json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [{"cells": ["hello", "10.128.0.2"], "object": {"metadata": {"namespace": "default"}}}],
        });
        assert_eq!(render_table(&table, false, false), "NAME\nhello\n");
        assert_eq!(render_table(&table, true, false), "NAME    IP\nhello   10.128.0.2\n");
        assert_eq!(render_table(&table, false, true), "NAMESPACE   NAME\ndefault     hello\n");
    }
}
