//! What a definition's schema asks of values, beyond their types: the structural part of OpenAPI v3 in the words of
//! kube-apiserver's validation.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use super::{
    formats,
    pattern::{Pattern, compile, cost},
};
use crate::{
    field_error::{Cause, FIELD_ERRORS_MAX, FieldError},
    value_set::ValueSet,
};

/// Places of values and schemas that one validation looks at. A schema is a user's, and so is the object: together they can
/// ask for more than any real ones do.
const STEPS_MAX: usize = 4_000_000;

/// A schema, compiled.
#[derive(Debug, Default)]
pub struct Rules {
    type_: Option<JsonType>,
    int_or_string: bool,
    nullable: bool,
    open: bool,
    /// It is a whole object, which says what it is.
    embedded: bool,
    format: Option<String>,
    enum_: Vec<Value>,
    bounds: Bounds,
    pattern: Option<Arc<Pattern>>,
    required: Vec<String>,
    pub(super) properties: BTreeMap<String, Rules>,
    /// Of the values of a map.
    pub(super) values: Option<Box<Rules>>,
    pub(super) items: Option<Box<Rules>>,
    unique: bool,
    list_keys: Vec<String>,
    all_of: Vec<Rules>,
    any_of: Vec<Rules>,
    one_of: Vec<Rules>,
    not: Option<Box<Rules>>,
    pub(super) default: Option<Value>,
    /// Whether there is one here or below.
    has_defaults: bool,
}

/// Numbers and how many of something there may be.
#[derive(Debug, Default)]
struct Bounds {
    minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    length: (Option<u64>, Option<u64>),
    items: (Option<u64>, Option<u64>),
    properties: (Option<u64>, Option<u64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonType {
    Object,
    Array,
    Text,
    Integer,
    Number,
    Boolean,
}

impl JsonType {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::Text,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::Text => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    fn is_of(self, value: &Value) -> bool {
        match self {
            Self::Object => value.is_object(),
            Self::Array => value.is_array(),
            Self::Text => value.is_string(),
            Self::Integer => value.is_i64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
        }
    }
}

impl Rules {
    /// Compiles a schema. What is no schema asks for nothing.
    pub fn of(schema: &Value) -> Rules {
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        let says = |key: &str| schema.get(key) == Some(&Value::Bool(true));
        let list = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
        let texts = |key: &str| list(key).filter_map(Value::as_str).map(str::to_owned).collect();
        let all = |key: &str| list(key).map(Rules::of).collect();
        let inner = |key: &str| {
            schema.get(key).filter(|inner| inner.is_object()).map(|inner| Box::new(Rules::of(inner)))
        };
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let mut rules = Rules {
            type_: text("type").and_then(JsonType::parse),
            int_or_string: says("x-kubernetes-int-or-string"),
            nullable: says("nullable"),
            open: says("x-kubernetes-preserve-unknown-fields"),
            embedded: says("x-kubernetes-embedded-resource"),
            format: text("format").map(str::to_owned),
            enum_: list("enum").cloned().collect(),
            bounds: Bounds {
                minimum: number("minimum"),
                maximum: number("maximum"),
                exclusive_minimum: says("exclusiveMinimum"),
                exclusive_maximum: says("exclusiveMaximum"),
                multiple_of: number("multipleOf").filter(|factor| *factor > 0.0),
                length: (count("minLength"), count("maxLength")),
                items: (count("minItems"), count("maxItems")),
                properties: (count("minProperties"), count("maxProperties")),
            },
            pattern: text("pattern").and_then(|pattern| compile(pattern).ok()),
            required: texts("required"),
            properties: properties.map(|(name, schema)| (name.clone(), Rules::of(schema))).collect(),
            values: inner("additionalProperties"),
            items: inner("items"),
            unique: says("uniqueItems") || text("x-kubernetes-list-type") == Some("set"),
            list_keys: match text("x-kubernetes-list-type") {
                Some("map") => texts("x-kubernetes-list-map-keys"),
                _ => Vec::new(),
            },
            all_of: all("allOf"),
            any_of: all("anyOf"),
            one_of: all("oneOf"),
            not: inner("not"),
            default: schema.get("default").cloned(),
            has_defaults: false,
        };
        let parts = rules.properties.values().chain(rules.values.as_deref()).chain(rules.items.as_deref());
        rules.has_defaults = rules.default.is_some() || parts.into_iter().any(|part| part.has_defaults);
        rules
    }

    pub fn has_defaults(&self) -> bool {
        self.has_defaults
    }

    pub(super) fn takes_null(&self) -> bool {
        self.nullable || (self.type_.is_none() && !self.int_or_string && self.open)
    }

    /// What is wrong with an object.
    pub fn faults(&self, object: &Value) -> Vec<FieldError> {
        let mut check = Check { errors: Vec::new(), steps: STEPS_MAX };
        check.value(object, self, "");
        if check.steps == 0 {
            let detail = "the definition's schema asks for too much work with this object";
            check.errors.push(FieldError::forbidden("", detail));
        }
        check.errors
    }
}

/// What is found, and how much more work there may be.
struct Check {
    errors: Vec<FieldError>,
    steps: usize,
}

impl Check {
    fn is_over(&self) -> bool {
        self.steps == 0 || self.errors.len() >= FIELD_ERRORS_MAX
    }

    fn value(&mut self, value: &Value, rules: &Rules, at: &str) {
        self.steps = self.steps.saturating_sub(1);
        if self.is_over() {
            return;
        }
        if value.is_null() {
            if !rules.takes_null() {
                self.wrong_type(value, rules, at);
            }
            return;
        }
        let is_type = if rules.int_or_string {
            value.is_string() || JsonType::Integer.is_of(value)
        } else {
            rules.type_.is_none_or(|type_| type_.is_of(value))
        };
        if !is_type {
            return self.wrong_type(value, rules, at);
        }
        if !rules.enum_.is_empty() && !ValueSet::of(&rules.enum_).contains(value) {
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let supported: Vec<String> = rules.enum_.iter().map(shown).collect();
            let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
            self.errors.push(FieldError::not_supported(at, value.clone(), &supported));
        }
        match value {
            Value::String(text) => self.text(text, rules, at),
            Value::Number(_) => self.number(value, rules, at),
            Value::Array(list) => self.list(list, rules, at),
            Value::Object(map) => self.object(map, rules, at),
            _ => {}
        }
        self.junctors(value, rules, at);
    }

    fn wrong_type(&mut self, value: &Value, rules: &Rules, at: &str) {
        let expected =
            if rules.int_or_string { "integer,string" } else { rules.type_.map_or("any", JsonType::name) };
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Object(_) => "object".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Bool(_) => "boolean".to_owned(),
            Value::Number(number) if number.is_f64() => "number".to_owned(),
            Value::Number(_) => "integer".to_owned(),
            Value::String(_) => "string".to_owned(),
        };
        let detail = format!("{at} in body must be of type {expected}: {found:?}");
        let mut error = FieldError::invalid(at, found, detail);
        error.reason = Cause::TypeInvalid;
        self.errors.push(error);
    }

    fn should(&mut self, at: &str, value: impl Into<Value>, what: &str) {
        self.errors.push(FieldError::invalid(at, value, format!("{at} in body should {what}")));
    }

    fn text(&mut self, text: &str, rules: &Rules, at: &str) {
        if let (Some(min), _) = rules.bounds.length
            && (text.chars().count() as u64) < min
        {
            self.should(at, text, &format!("be at least {min} chars long"));
        }
        if let (_, Some(max)) = rules.bounds.length
            && text.chars().count() as u64 > max
        {
            self.errors.push(FieldError::too_long(at, max.try_into().unwrap_or(usize::MAX)));
        }
        if let Some(pattern) = &rules.pattern
            && !pattern.is_match(text)
        {
            self.should(at, text, &format!("match '{pattern}'"));
        }
        if let Some(format) = &rules.format
            && !rules.int_or_string
            && !formats::is_of(text, format)
        {
            let detail = format!("{at} in body must be of type {format}: {text:?}");
            self.errors.push(FieldError::invalid(at, text, detail));
        }
    }

    fn number(&mut self, value: &Value, rules: &Rules, at: &str) {
        let Some(number) = value.as_f64() else { return };
        let bounds = &rules.bounds;
        if let Some(min) = bounds.minimum
            && (number < min || (bounds.exclusive_minimum && number == min))
        {
            let than = if bounds.exclusive_minimum { "greater than" } else { "greater than or equal to" };
            self.should(at, value.clone(), &format!("be {than} {min}"));
        }
        if let Some(max) = bounds.maximum
            && (number > max || (bounds.exclusive_maximum && number == max))
        {
            let than = if bounds.exclusive_maximum { "less than" } else { "less than or equal to" };
            self.should(at, value.clone(), &format!("be {than} {max}"));
        }
        if let Some(factor) = bounds.multiple_of
            && (number / factor).fract() != 0.0
        {
            self.should(at, value.clone(), &format!("be a multiple of {factor}"));
        }
        if rules.format.as_deref() == Some("int32") && !(-2_147_483_648.0..=2_147_483_647.0).contains(&number)
        {
            self.should(at, value.clone(), "be of type int32");
        }
    }

    fn list(&mut self, list: &[Value], rules: &Rules, at: &str) {
        let count = list.len() as u64;
        if let (Some(min), _) = rules.bounds.items
            && count < min
        {
            self.should(at, count, &format!("have at least {min} items"));
        }
        if let (_, Some(max)) = rules.bounds.items
            && count > max
        {
            self.errors.push(FieldError::too_many(at, list.len(), max.try_into().unwrap_or(usize::MAX)));
        }
        self.unique(list, rules, at);
        if let Some(items) = &rules.items {
            for (index, value) in list.iter().enumerate() {
                if self.is_over() {
                    return;
                }
                self.value(value, items, &format!("{at}[{index}]"));
            }
        }
    }

    /// No element twice; in a map, no two elements with the same keys.
    fn unique(&mut self, list: &[Value], rules: &Rules, at: &str) {
        if !rules.unique && rules.list_keys.is_empty() {
            return;
        }
        let mut seen = ValueSet::default();
        for (index, value) in list.iter().enumerate() {
            let key: Value = match rules.list_keys.as_slice() {
                [] => value.clone(),
                keys => {
                    let given = |name: &String| {
                        let default = || rules.items.as_ref()?.properties.get(name)?.default.clone();
                        Some((name.clone(), value.get(name).cloned().or_else(default)?))
                    };
                    Value::Object(keys.iter().filter_map(given).collect::<Map<_, _>>())
                }
            };
            if !seen.add(&key, index) {
                self.errors.push(FieldError::duplicate(format!("{at}[{index}]"), key));
            }
            if self.is_over() {
                return;
            }
        }
    }

    fn object(&mut self, map: &Map<String, Value>, rules: &Rules, at: &str) {
        let inner = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        for name in rules.required.iter().filter(|name| !map.contains_key(*name)) {
            self.errors.push(FieldError::required(inner(name), ""));
        }
        for name in ["apiVersion", "kind"].into_iter().filter(|_| rules.embedded) {
            if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                self.errors.push(FieldError::required(inner(name), "must not be empty"));
            }
        }
        let count = map.len() as u64;
        if let (Some(min), _) = rules.bounds.properties
            && count < min
        {
            self.should(at, count, &format!("have at least {min} properties"));
        }
        if let (_, Some(max)) = rules.bounds.properties
            && count > max
        {
            self.should(at, count, &format!("have at most {max} properties"));
        }
        for (name, value) in map {
            if self.is_over() {
                return;
            }
            if let Some(rules) = rules.properties.get(name).or(rules.values.as_deref()) {
                self.value(value, rules, &inner(name));
            }
        }
    }

    fn junctors(&mut self, value: &Value, rules: &Rules, at: &str) {
        for part in &rules.all_of {
            self.value(value, part, at);
        }
        let must = |what: &str| FieldError::invalid(at, Value::Null, format!("{at} in body must {what}"));
        if !rules.any_of.is_empty() && !rules.any_of.iter().any(|part| self.fits(value, part)) {
            self.errors.push(must("validate at least one schema (anyOf)"));
        }
        if !rules.one_of.is_empty() {
            let fitting = rules.one_of.iter().filter(|part| self.fits(value, part)).count();
            if fitting != 1 {
                let found = if fitting == 0 {
                    "none valid".to_owned()
                } else {
                    format!("{fitting} valid alternatives")
                };
                self.errors.push(must(&format!("validate one and only one schema (oneOf). Found {found}")));
            }
        }
        if let Some(not) = &rules.not
            && self.fits(value, not)
        {
            self.errors.push(must("not validate the schema (not)"));
        }
    }

    /// Whether a value is as a schema asks. The work is of the same account.
    fn fits(&mut self, value: &Value, rules: &Rules) -> bool {
        let mut check = Check { errors: Vec::new(), steps: self.steps };
        check.value(value, rules, "");
        self.steps = check.steps;
        check.errors.is_empty()
    }
}

/// What is wrong with a schema itself: it must be structural. Source: apiextensions' `ValidateStructural`.
pub fn schema_faults(schema: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let mut left = SCHEMAS_MAX;
    structural(schema, at, true, &mut left, errors);
    if left == 0 {
        errors.push(FieldError::too_many(at, SCHEMAS_MAX, SCHEMAS_MAX));
    }
}

/// Schemas within one, patterns counted with what they cost; the largest definitions in use have some ten thousand.
const SCHEMAS_MAX: usize = 50_000;

fn structural(schema: &Value, at: &str, root: bool, left: &mut usize, errors: &mut Vec<FieldError>) {
    *left = left.saturating_sub(1);
    if *left == 0 || errors.len() >= FIELD_ERRORS_MAX {
        return;
    }
    let Some(map) = schema.as_object() else {
        return errors.push(FieldError::wrong_type(at, schema.clone(), "a schema"));
    };
    for name in ["$ref", "definitions", "dependencies", "id", "patternProperties", "additionalItems"] {
        if map.contains_key(name) {
            errors.push(FieldError::forbidden(format!("{at}.{name}"), format!("{name} is not supported")));
        }
    }
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or("");
    let says = |key: &str| map.get(key) == Some(&Value::Bool(true));
    let type_ = text("type");
    let untyped = says("x-kubernetes-int-or-string") || says("x-kubernetes-preserve-unknown-fields");
    if root && type_ != "object" {
        errors.push(FieldError::invalid(format!("{at}.type"), type_, "must be object at the root"));
    } else if type_.is_empty() && !untyped {
        errors.push(FieldError::required(
            format!("{at}.type"),
            "must not be empty for specified object fields",
        ));
    } else if !type_.is_empty() && JsonType::parse(type_).is_none() {
        let known = ["array", "boolean", "integer", "number", "object", "string"];
        errors.push(FieldError::not_supported(format!("{at}.type"), type_, &known));
    }
    if type_ == "array" && !map.get("items").is_some_and(Value::is_object) {
        errors.push(FieldError::required(format!("{at}.items"), "must be specified"));
    }
    extensions(map, at, errors);
    if !map.get("properties").is_none_or(Value::is_object) {
        let field = format!("{at}.properties");
        errors.push(FieldError::wrong_type(field, map["properties"].clone(), "a map of schemas"));
    }
    if map.contains_key("properties") && map.contains_key("additionalProperties") {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(format!("{at}.additionalProperties"), detail));
    }
    let mut patterns = vec![map.get("pattern")];
    for key in ["allOf", "anyOf", "oneOf"] {
        let parts = map.get(key).and_then(Value::as_array).into_iter().flatten();
        patterns.extend(parts.map(|part| part.get("pattern")));
    }
    for pattern in patterns.into_iter().flatten().filter_map(Value::as_str) {
        match cost(pattern) {
            Ok(cost) => *left = left.saturating_sub(cost),
            Err(error) => {
                let detail = format!("must be a valid regular expression: {error}");
                errors.push(FieldError::invalid(format!("{at}.pattern"), pattern, detail));
            }
        }
    }
    if let Some(default) = map.get("default") {
        let (rules, mut whole) = (Rules::of(schema), default.clone());
        rules.fill_in(&mut whole);
        for mut error in rules.faults(&whole) {
            error.field =
                format!("{at}.default{}{}", if error.field.is_empty() { "" } else { "." }, error.field);
            errors.push(error);
        }
    }
    let properties = map.get("properties").and_then(Value::as_object).into_iter().flatten();
    for (name, inner) in properties {
        // What every object has may be restricted in its name only.
        if root && name == "metadata" {
            let named = inner.get("properties").and_then(Value::as_object).into_iter().flatten();
            for (name, _) in named.filter(|(name, _)| !matches!(name.as_str(), "name" | "generateName")) {
                let field = format!("{at}.properties[metadata].properties[{name}]");
                errors.push(FieldError::forbidden(
                    field,
                    "must not specify anything other than name and generateName",
                ));
            }
            continue;
        }
        structural(inner, &format!("{at}.properties[{name}]"), false, left, errors);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get(key).filter(|inner| inner.is_object()) {
            structural(inner, &format!("{at}.{key}"), false, left, errors);
        }
    }
}

/// What Kubernetes' own extensions of a schema may say. Source: `ValidateStructural` and its `validateListSetMap`.
fn extensions(map: &Map<String, Value>, at: &str, errors: &mut Vec<FieldError>) {
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or("");
    let says = |key: &str| map.get(key) == Some(&Value::Bool(true));
    let type_ = text("type");
    if says("uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{at}.uniqueItems"), detail));
    }
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        errors.push(FieldError::forbidden(format!("{at}.additionalProperties"), "must not be false"));
    }
    if says("x-kubernetes-int-or-string") && !type_.is_empty() {
        let detail = "must be empty if x-kubernetes-int-or-string is true";
        errors.push(FieldError::invalid(format!("{at}.type"), type_, detail));
    }
    let open = map.get("x-kubernetes-preserve-unknown-fields");
    if open == Some(&Value::Bool(false)) {
        let field = format!("{at}.x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(field, false, "must be true or undefined"));
    } else if open.is_some() && !matches!(type_, "" | "object") {
        let detail = "must be object if x-kubernetes-preserve-unknown-fields is true";
        errors.push(FieldError::invalid(format!("{at}.type"), type_, detail));
    }
    if says("x-kubernetes-embedded-resource") && type_ != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(FieldError::invalid(format!("{at}.type"), type_, detail));
    }
    let list_type = text("x-kubernetes-list-type");
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        let field = format!("{at}.x-kubernetes-list-type");
        errors.push(FieldError::not_supported(field, list_type, &["atomic", "map", "set"]));
    }
    list_keys(map, at, list_type, errors);
    for key in ["allOf", "anyOf", "oneOf"] {
        let parts = map.get(key).and_then(Value::as_array).into_iter().flatten();
        for (index, part) in parts.enumerate() {
            let free = says("x-kubernetes-int-or-string");
            for name in ["type", "default", "nullable", "additionalProperties"] {
                if part.get(name).is_some() && !(free && name == "type") {
                    let field = format!("{at}.{key}[{index}].{name}");
                    errors.push(FieldError::forbidden(field, "must be empty to be structural"));
                }
            }
        }
    }
}

/// The keys of a list that is a map are fields of its elements, each of which is there.
fn list_keys(map: &Map<String, Value>, at: &str, list_type: &str, errors: &mut Vec<FieldError>) {
    let list = |value: Option<&Value>| -> Vec<String> {
        let all = value.and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let keys = list(map.get("x-kubernetes-list-map-keys"));
    let field = format!("{at}.x-kubernetes-list-map-keys");
    if list_type != "map" {
        if !keys.is_empty() {
            errors.push(FieldError::forbidden(field, "must not be set if x-kubernetes-list-type is not map"));
        }
        return;
    }
    if keys.is_empty() {
        errors.push(FieldError::required(field, "must not be empty if x-kubernetes-list-type is map"));
        return;
    }
    let items = map.get("items");
    let required = list(items.and_then(|items| items.get("required")));
    for key in keys {
        match items.and_then(|items| items.get("properties")?.get(&key)) {
            None => {
                let detail = "entries must all be names of item properties";
                errors.push(FieldError::invalid(&field, key, detail));
            }
            Some(property) if property.get("default").is_none() && !required.contains(&key) => {
                let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                              property";
                errors.push(FieldError::required(format!("{at}.items.properties[{key}].default"), detail));
            }
            Some(_) => {}
        }
    }
}
