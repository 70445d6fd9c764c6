//! A kind's objects as the server's table of them (`meta.k8s.io` Table), printed as kubectl prints it.

use serde_json::Value;

use crate::{client::ServedKind, output::align};

/// How tables are printed.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// With the columns of lower priority.
    pub wide: bool,
    pub headers: bool,
    /// A first column with the namespaces.
    pub namespaces: bool,
    /// A last column with the labels.
    pub labels: bool,
    /// Names begin with the kind.
    pub kinds: bool,
}

pub struct Table {
    pub kind: ServedKind,
    answer: Value,
}

impl Table {
    pub fn new(kind: ServedKind, answer: Value) -> Self {
        Self { kind, answer }
    }

    /// Adds the rows of another answer of the same kind.
    pub fn extend(&mut self, mut answer: Value) {
        if let (Some(rows), Some(more)) = (self.answer["rows"].as_array_mut(), answer["rows"].as_array_mut())
        {
            rows.append(more);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows().is_empty()
    }

    fn rows(&self) -> &[Value] {
        self.answer["rows"].as_array().map_or(&[], Vec::as_slice)
    }

    pub fn render(&self, look: &Look) -> String {
        align(&self.lines(look))
    }

    /// The cells of all lines, the head's first.
    pub fn lines(&self, look: &Look) -> Vec<Vec<String>> {
        let empty = Vec::new();
        let columns = self.answer["columnDefinitions"].as_array().unwrap_or(&empty);
        let is_shown = |at: &usize| look.wide || columns[*at]["priority"].as_i64().unwrap_or(0) == 0;
        let shown: Vec<usize> = (0..columns.len()).filter(is_shown).collect();
        let namespaces = look.namespaces && self.kind.namespaced;
        let mut lines = Vec::with_capacity(self.rows().len() + 1);
        if look.headers {
            let mut head: Vec<String> = namespaces.then(|| "NAMESPACE".to_owned()).into_iter().collect();
            head.extend(
                shown.iter().map(|at| columns[*at]["name"].as_str().unwrap_or_default().to_uppercase()),
            );
            head.extend(look.labels.then(|| "LABELS".to_owned()));
            lines.push(head);
        }
        for row in self.rows() {
            let meta = &row["object"]["metadata"];
            let namespace = || meta["namespace"].as_str().unwrap_or_default().to_owned();
            let mut line: Vec<String> = namespaces.then(namespace).into_iter().collect();
            for at in &shown {
                let text = cell(&row["cells"][*at]);
                let is_name = look.kinds && columns[*at]["format"] == "name";
                line.push(if is_name { format!("{}/{text}", self.kind.prefix()) } else { text });
            }
            line.extend(look.labels.then(|| labels(meta)));
            lines.push(line);
        }
        lines
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

fn labels(meta: &Value) -> String {
    let pairs = meta["labels"].as_object().into_iter().flatten();
    let mut texts: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    texts.sort();
    if texts.is_empty() { "<none>".into() } else { texts.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::native_kind;

    const PLAIN: Look = Look { wide: false, headers: true, namespaces: false, labels: false, kinds: false };

    fn table(kind: &str, name: &str) -> Table {
        let answer = json!({
            "columnDefinitions": [{"name": "Name", "format": "name", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [{"cells": [name, "10.128.0.2"],
                      "object": {"metadata": {"namespace": "default", "labels": {"app": "a", "b": "c"}}}}],
        });
        Table::new(native_kind(kind).unwrap(), answer)
    }

    #[test]
    fn a_table_shows_what_it_is_asked_to() {
        let pods = table("pods", "hello");
        assert_eq!(pods.render(&PLAIN), "NAME\nhello\n");
        assert_eq!(pods.render(&Look { wide: true, ..PLAIN }), "NAME    IP\nhello   10.128.0.2\n");
        assert_eq!(pods.render(&Look { namespaces: true, ..PLAIN }), "NAMESPACE   NAME\ndefault     hello\n");
        assert_eq!(pods.render(&Look { headers: false, ..PLAIN }), "hello\n");
        assert_eq!(pods.render(&Look { labels: true, ..PLAIN }), "NAME    LABELS\nhello   app=a,b=c\n");
        let deployments = table("deploy", "hello");
        assert_eq!(deployments.render(&Look { kinds: true, ..PLAIN }), "NAME\ndeployment.apps/hello\n");
        let nodes = table("nodes", "n1");
        assert_eq!(
            nodes.render(&Look { namespaces: true, ..PLAIN }),
            "NAME\nn1\n",
            "nodes have no namespace"
        );
    }

    #[test]
    fn answers_of_one_kind_are_one_table() {
        let mut pods = table("pods", "a");
        pods.extend(table("pods", "b").answer);
        assert_eq!(pods.render(&PLAIN), "NAME\na\nb\n");
    }

    #[test]
    fn cells_carry_no_terminal_escapes() {
        assert_eq!(table("pods", "a\x1b[2J").render(&PLAIN), "NAME\na^[[2J\n");
    }
}
