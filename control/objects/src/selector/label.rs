//! Label selectors, of query strings (`app in (a, b),!old`) and of objects (`matchLabels`, `matchExpressions`).

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::SelectorError;
use crate::{
    fields,
    validate::syntax::{label_value_faults, qualified_name_faults},
};

/// Requirements of one selector: each is asked of each object that a list, a watch or a controller looks at.
pub const REQUIREMENTS_MAX: usize = 1000;

/// Requirements on labels, all of which must hold. One without requirements matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    /// Matches nothing, whatever the requirements: the selector of an object that has none.
    pub nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted; empty for `Exists` and `Absent`, one for `Equals`, `NotEquals`, `Greater` and `Less`.
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    /// Also holds where the label is absent.
    NotEquals,
    In,
    /// Also holds where the label is absent.
    NotIn,
    Exists,
    Absent,
    /// Integers; does not hold for a label that is none.
    Greater,
    Less,
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let invalid = |text: String| Err(SelectorError::Requirement(text));
        if let Some(fault) = qualified_name_faults(key).into_iter().next() {
            return invalid(format!("key: Invalid value: {key:?}: {fault}"));
        }
        if let Some(fault) = values.iter().find_map(|value| label_value_faults(value).into_iter().next()) {
            return invalid(format!("values: Invalid value: {values:?}: {fault}"));
        }
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return invalid(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                        .into(),
                );
            }
            Operator::Greater | Operator::Less if values[0].parse::<i64>().is_err() => {
                return invalid(format!(
                    "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    values[0]
                ));
            }
            _ => {}
        }
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let label = labels.get(&self.key);
        let listed = |value: &String| self.values.binary_search(value).is_ok();
        let compared =
            |value: &String| Some((value.parse::<i64>().ok()?, self.values[0].parse::<i64>().ok()?));
        match self.operator {
            Operator::Equals | Operator::In => label.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::Absent => label.is_none(),
            Operator::Greater => label.and_then(compared).is_some_and(|(value, bound)| value > bound),
            Operator::Less => label.and_then(compared).is_some_and(|(value, bound)| value < bound),
        }
    }
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Parses the form of the query parameter `labelSelector`. Superfluous commas and spaces are accepted.
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { rest: query };
        let mut requirements = Vec::new();
        loop {
            parser.skip_separators();
            if parser.rest.is_empty() {
                return Ok(Self { requirements, nothing: false });
            }
            if requirements.len() >= REQUIREMENTS_MAX {
                return Err(SelectorError::TooMany(REQUIREMENTS_MAX));
            }
            requirements.push(parser.requirement()?);
            parser.skip_spaces();
            if !parser.rest.is_empty() && !parser.rest.starts_with(',') {
                return Err(parser.fault("','"));
            }
        }
    }

    /// Takes a `v1.LabelSelector`. Absent or null matches nothing, an empty one everything.
    pub fn from_json(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|selector| !selector.is_null()) else {
            return Ok(Self::nothing());
        };
        let count =
            fields::count(selector, "/matchLabels") + fields::list(selector, "/matchExpressions").len();
        if count > REQUIREMENTS_MAX {
            return Err(SelectorError::TooMany(REQUIREMENTS_MAX));
        }
        let mut requirements = Vec::new();
        for (key, value) in fields::entries(selector, "/matchLabels") {
            let value = value.as_str().unwrap_or("").to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in fields::list(selector, "/matchExpressions") {
            let operator = match fields::text(expression, "/operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Absent,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            let values = fields::list(expression, "/values");
            let values = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(fields::text(expression, "/key"), operator, values)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Takes a map of labels that all must be equal: a service's `spec.selector`. An absent or empty one matches nothing,
    /// nor does one of more labels than an object may have.
    pub fn from_map(labels: Option<&Value>) -> Self {
        let labels = labels.and_then(Value::as_object);
        let Some(labels) = labels.filter(|labels| (1..=REQUIREMENTS_MAX).contains(&labels.len())) else {
            return Self::nothing();
        };
        let equal = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.as_str().unwrap_or("").to_owned()],
        };
        Self { requirements: labels.iter().map(equal).collect(), nothing: false }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Matches labels that are still JSON (`metadata.labels`; null for none).
    pub fn matches_value(&self, labels: &Value) -> bool {
        let labels = fields::entries(labels, "")
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        self.matches(&labels)
    }
}

impl fmt::Display for LabelSelector {
    /// The query form, which [`LabelSelector::parse`] takes back. One that matches nothing has no such form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nothing {
            return f.write_str("<nothing>");
        }
        for (index, Requirement { key, operator, values }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let first = values.first().map_or("", String::as_str);
            match operator {
                Operator::Equals => write!(f, "{key}={first}")?,
                Operator::NotEquals => write!(f, "{key}!={first}")?,
                Operator::In => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::Absent => write!(f, "!{key}")?,
                Operator::Greater => write!(f, "{key}>{first}")?,
                Operator::Less => write!(f, "{key}<{first}")?,
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn skip_separators(&mut self) {
        self.rest = self.rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes a run of characters that are not special; may be empty.
    fn word(&mut self) -> &'a str {
        self.skip_spaces();
        let special = |c: char| c.is_whitespace() || "!=<>(),".contains(c);
        let end = self.rest.find(special).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn fault(&self, expected: &str) -> SelectorError {
        SelectorError::Syntax(format!("found '{}', expected: {expected}", self.rest))
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.take("!") {
            let key = self.word();
            return Requirement::new(key, Operator::Absent, Vec::new());
        }
        let key = self.word();
        if key.is_empty() {
            return Err(self.fault("!, identifier, or 'end of string'"));
        }
        self.skip_spaces();
        for (token, operator) in [
            ("==", Operator::Equals),
            ("=", Operator::Equals),
            ("!=", Operator::NotEquals),
            (">", Operator::Greater),
            ("<", Operator::Less),
        ] {
            if self.take(token) {
                return Requirement::new(key, operator, vec![self.word().to_owned()]);
            }
        }
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = match self.word() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            other => {
                return Err(SelectorError::Syntax(format!(
                    "found '{other}', expected: in, notin, =, ==, !=, >, <"
                )));
            }
        };
        Requirement::new(key, operator, self.values()?)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.skip_spaces();
        if !self.take("(") {
            return Err(self.fault("'('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.word().to_owned());
            self.skip_spaces();
            if self.take(")") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err(self.fault("',' or ')'"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split_whitespace()
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn queries_match_as_documented() {
        let cases = [
            ("", "a=1", true),
            ("a=1", "a=1", true),
            ("a==1 , b!=2", "a=1 b=3", true),
            ("a==1,b!=2", "a=1", true),
            ("a!=1", "a=1", false),
            ("a in (1, 2)", "a=2", true),
            ("a in (1,2)", "b=2", false),
            ("a notin (1,2)", "b=2", true),
            ("a notin (1,2),b", "a=3", false),
            ("example.com/part", "example.com/part=x", true),
            ("!a", "b=1", true),
            ("!a", "a=", false),
            ("a=", "a=", true),
            ("a=,b=1", "a= b=1", true),
            ("a in ()", "a=", true),
            ("a>3", "a=4", true),
            ("a>3", "a=x", false),
            ("a<3", "a=4", false),
            ("a=1,a=1", "a=1", true),
            ("a=1,,b=2,", "a=1 b=2", true),
        ];
        for (query, with, expected) in cases {
            let selector = LabelSelector::parse(query).unwrap();
            assert_eq!(selector.matches(&labels(with)), expected, "{query} on {with}");
            let again = LabelSelector::parse(&selector.to_string()).unwrap();
            assert_eq!(again, selector, "{query} printed as {selector}");
        }
    }

    #[test]
    fn broken_queries_are_refused() {
        for query in
            ["=a", "a in", "a in (b", "a is b", "a b", "a=b=c", "a=(b)", "a>x", "-a=1", "a=b!", "!", "a in b"]
        {
            assert!(LabelSelector::parse(query).is_err(), "{query}");
        }
    }

    #[test]
    fn requirements_are_bounded() {
        let query = |count: usize| (0..count).map(|at| format!("!a{at}")).collect::<Vec<_>>().join(",");
        assert!(LabelSelector::parse(&query(REQUIREMENTS_MAX)).is_ok());
        let refusal = LabelSelector::parse(&query(REQUIREMENTS_MAX + 1)).unwrap_err();
        assert_eq!(refusal.to_string(), "a selector may have at most 1000 requirements");
        let labels = |count: usize| (0..count).map(|at| (format!("a{at}"), json!("x"))).collect::<Value>();
        for (count, bounded) in [(REQUIREMENTS_MAX, false), (REQUIREMENTS_MAX + 1, true)] {
            let labels = labels(count);
            assert_eq!(LabelSelector::from_map(Some(&labels)).nothing, bounded);
            let selector = json!({"matchLabels": labels});
            assert_eq!(LabelSelector::from_json(Some(&selector)).is_err(), bounded);
        }
    }

    #[test]
    fn selectors_of_objects() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["cache"]}, {"key": "track", "operator": "Exists"}]});
        let selector = LabelSelector::from_json(Some(&selector)).unwrap();
        assert_eq!(selector.to_string(), "app=web,tier notin (cache),track");
        assert!(selector.matches(&labels("app=web track=stable")));
        assert!(!selector.matches(&labels("app=web track=stable tier=cache")));
        assert!(selector.matches_value(&json!({"app": "web", "track": "x"})));
        assert!(LabelSelector::from_json(Some(&json!({}))).unwrap().matches(&labels("")));
        assert!(!LabelSelector::from_json(None).unwrap().matches(&labels("")));
        assert!(
            LabelSelector::from_json(Some(&json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})))
                .is_err()
        );
        assert!(!LabelSelector::from_map(Some(&json!({}))).matches(&labels("a=1")));
        assert!(LabelSelector::from_map(Some(&json!({"a": "1"}))).matches(&labels("a=1 b=2")));
    }
}
