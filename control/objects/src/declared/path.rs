//! The paths by which definitions name fields: the part of kubectl's JSONPath that leads to values.

use serde_json::Value;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(usize),
    /// All elements.
    Each,
    /// The elements of which a field has this text: `[?(@.type=="Ready")]`.
    Where(String, String),
}

/// A way to values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

/// Steps of one path, so that what a user writes stays short.
const STEPS_MAX: usize = 64;

impl Path {
    /// Reads `.spec.list[0]['a.b'].x`, with or without braces around it. None where it is another form.
    pub fn parse(text: &str) -> Option<Path> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = step(rest)?;
            steps.extend(step);
            if steps.len() > STEPS_MAX {
                return None;
            }
            rest = after;
        }
        Some(Path(steps))
    }

    /// The first value that it leads to.
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        first(&self.0, value)
    }

    /// As a JSON pointer (RFC 6901), where it is fields only.
    fn pointer(&self) -> Option<String> {
        let mut pointer = String::new();
        for step in &self.0 {
            let Step::Field(name) = step else { return None };
            pointer.push('/');
            pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
        }
        Some(pointer)
    }
}

/// Whether a text is a path.
pub fn is_path(text: &str) -> bool {
    Path::parse(text).is_some()
}

/// The JSON pointer of a path that names fields only.
pub fn pointer(path: &str) -> Option<String> {
    Path::parse(path)?.pointer()
}

fn first<'a>(steps: &[Step], value: &'a Value) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Field(name) => first(rest, value.get(name)?),
        Step::Index(index) => first(rest, value.get(index)?),
        Step::Each => value.as_array()?.iter().find_map(|element| first(rest, element)),
        Step::Where(field, wanted) => {
            let fits = |element: &&Value| element.get(field).and_then(Value::as_str) == Some(wanted);
            value.as_array()?.iter().filter(fits).find_map(|element| first(rest, element))
        }
    }
}

/// The next step of a text, and what is left of the text. A dot alone is no step.
fn step(text: &str) -> Option<(Option<Step>, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, rest) = bracket(rest)?;
        return Some((Some(inner), rest));
    }
    let text = text.strip_prefix('.').unwrap_or(text);
    let (mut name, mut chars) = (String::new(), text.char_indices());
    let mut end = text.len();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => {
                end = at;
                break;
            }
            char => name.push(char),
        }
    }
    let rest = &text[end..];
    match name.as_str() {
        "" if rest.starts_with('[') => Some((None, rest)),
        "" if rest.is_empty() => Some((None, rest)),
        "" => None,
        "*" => Some((Some(Step::Each), rest)),
        _ => Some((Some(Step::Field(name)), rest)),
    }
}

/// What stands in brackets.
fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(rest) = text.strip_prefix("?(@.") {
        let (field, rest) = rest.split_once("==")?;
        let (wanted, rest) = quoted(rest.trim_start())?;
        return Some((Step::Where(field.trim().to_owned(), wanted), rest.trim_start().strip_prefix(")]")?));
    }
    if text.starts_with(['\'', '"']) {
        let (name, rest) = quoted(text)?;
        return Some((Step::Field(name), rest.strip_prefix(']')?));
    }
    let (inner, rest) = text.split_once(']')?;
    let step = if inner == "*" { Step::Each } else { Step::Index(inner.parse().ok()?) };
    Some((step, rest))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|char| matches!(char, '\'' | '"'))?;
    let (inner, rest) = text[1..].split_once(quote)?;
    Some((inner.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_the_first_value() {
        let object = json!({"spec": {"n": 3, "a.b": "dotted", "list": [{"x": 1}, {"x": 2}]},
            "status": {"conditions": [{"type": "A", "status": "no"}, {"type": "Ready", "status": "True"}]}});
        for (path, found) in [
            (".spec.n", json!(3)),
            ("{.spec.n}", json!(3)),
            (r".spec.a\.b", json!("dotted")),
            (".spec['a.b']", json!("dotted")),
            (".spec.list[1].x", json!(2)),
            (".spec.list[*].x", json!(1)),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!("True")),
            (".status.conditions[?(@.type=='Ready')].status", json!("True")),
        ] {
            assert_eq!(Path::parse(path).unwrap().first(&object), Some(&found), "{path}");
        }
        assert_eq!(Path::parse(".spec.missing.x").unwrap().first(&object), None);
        for path in ["..spec", ".spec[", ".spec[x]", ".a[?(@.x)]", ".a[?(@.x==1)]", r".a\"] {
            assert_eq!(Path::parse(path), None, "{path}");
        }
        assert_eq!(pointer(".spec.a/b"), Some("/spec/a~1b".to_owned()));
        assert_eq!(pointer(".spec.list[0]"), None);
    }
}
