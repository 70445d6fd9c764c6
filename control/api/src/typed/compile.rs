//! The schemas as types: made once, walked without looking at a schema again.

use std::{collections::HashMap, fmt, sync::OnceLock};

use serde_json::{Map, Value};

use super::lengths;
use crate::schemas;

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Anything, null as well.
    Any,
    /// An object of any fields: a raw extension.
    AnyObject,
    Text,
    Boolean,
    Int32,
    Int64,
    Number,
    IntOrString,
    Quantity,
    /// With whole seconds, or with a fraction of them.
    Time {
        fraction: bool,
    },
    /// With how many elements it may have.
    List(Box<Type>, usize),
    /// From text to this.
    Map(Box<Type>),
    /// The struct at this index.
    Struct(usize),
}

impl Type {
    /// Whether it is one value without others in it.
    pub fn is_plain(&self) -> bool {
        !matches!(self, Type::Struct(_) | Type::List(..) | Type::Map(_) | Type::AnyObject | Type::Any)
    }
}

/// An object with fields of its own.
#[derive(Debug, Default)]
pub struct Struct {
    /// As Go calls it: `DeploymentSpec`.
    pub name: &'static str,
    /// As Go calls it elsewhere: `v1.DeploymentSpec`.
    qualified: String,
    fields: HashMap<&'static str, Type>,
    /// The times that every reader asks for: what is left out gets its zero value.
    pub times: Vec<&'static str>,
}

impl Struct {
    pub fn field(&self, name: &str) -> Option<&Type> {
        self.fields.get(name)
    }

    #[cfg(test)]
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &Type)> {
        self.fields.iter().map(|(name, type_)| (*name, type_))
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }
}

/// All types.
#[derive(Debug, Default)]
pub struct Types {
    structs: Vec<Struct>,
    named: HashMap<&'static str, Type>,
}

impl Types {
    pub fn by_name(&self, schema: &str) -> Option<&Type> {
        self.named.get(schema)
    }

    pub fn get(&self, index: usize) -> &Struct {
        &self.structs[index]
    }

    /// The type of a schema by name. A struct is entered before its fields are looked at, since structs may nest in
    /// themselves.
    fn enter(&mut self, name: &'static str) -> Type {
        if let Some(known) = self.named.get(name) {
            return known.clone();
        }
        let type_ = match name {
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Type::IntOrString,
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => Type::Quantity,
            "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => Type::Time { fraction: false },
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => Type::Time { fraction: true },
            _ => {
                let Some(schema) = schemas::get(name) else { return Type::Any };
                match schema.get("properties").and_then(Value::as_object) {
                    None => self.of(schema),
                    Some(properties) => {
                        let index = self.structs.len();
                        let (go, qualified) = go_names(name);
                        self.structs.push(Struct { name: go, qualified, ..Struct::default() });
                        self.named.insert(name, Type::Struct(index));
                        self.fill(index, schema, properties);
                        Type::Struct(index)
                    }
                }
            }
        };
        self.named.insert(name, type_.clone());
        type_
    }

    fn of(&mut self, schema: &'static Value) -> Type {
        if let Some(name) = schemas::reference(schema) {
            return self.enter(name);
        }
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or("");
        match text("type") {
            "string" => Type::Text,
            "boolean" => Type::Boolean,
            "integer" if text("format") == "int32" => Type::Int32,
            "integer" => Type::Int64,
            "number" => Type::Number,
            "array" => {
                let element = self.inner(schema.get("items"));
                let max = if element.is_plain() { lengths::PLAIN_MAX } else { lengths::STRUCTS_MAX };
                Type::List(Box::new(element), max)
            }
            "object" => match (schema.get("properties"), schema.get("additionalProperties")) {
                (_, Some(values)) => Type::Map(Box::new(self.inner(Some(values)))),
                (Some(Value::Object(properties)), None) => {
                    let index = self.structs.len();
                    let qualified = "struct".to_owned();
                    self.structs.push(Struct { name: "struct", qualified, ..Struct::default() });
                    self.fill(index, schema, properties);
                    Type::Struct(index)
                }
                (_, None) => Type::AnyObject,
            },
            _ => Type::Any,
        }
    }

    fn fill(&mut self, index: usize, schema: &'static Value, properties: &'static Map<String, Value>) {
        let mut fields: HashMap<&str, Type> =
            properties.iter().map(|(field, schema)| (field.as_str(), self.of(schema))).collect();
        for (field, type_) in &mut fields {
            if let (Type::List(_, max), Some(stated)) =
                (type_, lengths::stated(self.structs[index].name, field))
            {
                *max = stated;
            }
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        // Validation asks for the times with a fraction, in words of its own.
        let is_time = |name: &&str| fields.get(name) == Some(&Type::Time { fraction: false });
        let times = required.filter_map(Value::as_str).filter(is_time).collect();
        (self.structs[index].fields, self.structs[index].times) = (fields, times);
    }

    fn inner(&mut self, schema: Option<&'static Value>) -> Type {
        schema.map_or(Type::Any, |schema| self.of(schema))
    }
}

/// All types, made once.
pub fn types() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(|| {
        let mut types = Types::default();
        for name in schemas::all().keys() {
            types.enter(name);
        }
        types
    })
}

/// `DeploymentSpec` and `v1.DeploymentSpec`.
fn go_names(schema: &'static str) -> (&'static str, String) {
    let mut parts = schema.rsplit('.');
    let (kind, version) = (parts.next().unwrap_or(schema), parts.next().unwrap_or(""));
    (kind, format!("{version}.{kind}"))
}

/// As Go calls it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Any => f.write_str("interface {}"),
            Type::AnyObject => f.write_str("map[string]interface {}"),
            Type::Text => f.write_str("string"),
            Type::Boolean => f.write_str("bool"),
            Type::Int32 => f.write_str("int32"),
            Type::Int64 => f.write_str("int64"),
            Type::Number => f.write_str("float64"),
            Type::IntOrString => f.write_str("intstr.IntOrString"),
            Type::Quantity => f.write_str("resource.Quantity"),
            Type::Time { fraction: false } => f.write_str("v1.Time"),
            Type::Time { fraction: true } => f.write_str("v1.MicroTime"),
            Type::List(element, _) => write!(f, "[]{element}"),
            Type::Map(element) => write!(f, "map[string]{element}"),
            Type::Struct(index) => f.write_str(&types().get(*index).qualified),
        }
    }
}
