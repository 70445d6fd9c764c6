//! The schemas as types: made once, walked without looking at a schema again.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use super::{lengths, merge::Merge, reference, types};

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
    /// The struct at this index of all [`types`].
    Struct(usize),
}

impl Type {
    /// Whether it is one value without others in it.
    pub fn is_plain(&self) -> bool {
        !matches!(self, Type::Struct(_) | Type::List(..) | Type::Map(_) | Type::AnyObject | Type::Any)
    }

    /// The struct that it is, or that its elements or values are.
    pub fn innermost(&self) -> Option<&'static Struct> {
        match self {
            Type::Struct(index) => Some(types().get(*index)),
            Type::List(inner, _) | Type::Map(inner) => inner.innermost(),
            _ => None,
        }
    }
}

/// A field of a struct.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    pub type_: Type,
    pub merge: Merge,
}

/// An object with fields of its own.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Struct {
    /// `io.k8s.api.apps.v1.DeploymentSpec`; for one that stands within another it is `struct`.
    schema: String,
    fields: BTreeMap<String, Field>,
    /// How it merges wherever it is.
    pub merge: Merge,
    /// The times that every reader asks for: what is left out gets its zero value.
    pub times: Vec<String>,
}

impl Struct {
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// As Go calls it: `DeploymentSpec`.
    pub fn name(&self) -> &str {
        self.schema.rsplit('.').next().unwrap_or(&self.schema)
    }

    /// As Go calls it elsewhere: `v1.DeploymentSpec`.
    fn qualified(&self) -> &str {
        let dot = self.schema.rmatch_indices('.').nth(1);
        dot.map_or(&self.schema, |(at, _)| &self.schema[at + 1..])
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// By name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.fields.iter().map(|(name, field)| (name.as_str(), field))
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }
}

/// All types.
#[derive(Debug, Default)]
pub struct Types {
    structs: Vec<Struct>,
    named: BTreeMap<String, Type>,
}

impl Types {
    pub(super) fn of(schemas: &BTreeMap<String, Value>) -> Types {
        let mut compiler = Compiler { schemas, types: Types::default() };
        for name in schemas.keys() {
            compiler.enter(name);
        }
        compiler.types
    }

    /// The type of a schema.
    pub fn by_name(&self, schema: &str) -> Option<&Type> {
        self.named.get(schema)
    }

    /// The struct of a schema, where it is one.
    pub fn by_schema(&self, schema: &str) -> Option<&Struct> {
        match self.named.get(schema)? {
            Type::Struct(index) => Some(self.get(*index)),
            _ => None,
        }
    }

    pub fn get(&self, index: usize) -> &Struct {
        &self.structs[index]
    }
}

struct Compiler<'a> {
    schemas: &'a BTreeMap<String, Value>,
    types: Types,
}

impl Compiler<'_> {
    /// The type of a schema by name. A struct is entered before its fields are looked at, since structs may nest in
    /// themselves.
    fn enter(&mut self, name: &str) -> Type {
        if let Some(known) = self.types.named.get(name) {
            return known.clone();
        }
        let type_ = match name {
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Type::IntOrString,
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => Type::Quantity,
            "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => Type::Time { fraction: false },
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => Type::Time { fraction: true },
            _ => {
                let Some(schema) = self.schemas.get(name) else { return Type::Any };
                match schema.get("properties").and_then(Value::as_object) {
                    None => self.of(schema),
                    Some(properties) => {
                        let index = self.declare(name, schema);
                        self.types.named.insert(name.to_owned(), Type::Struct(index));
                        self.fill(index, schema, properties);
                        Type::Struct(index)
                    }
                }
            }
        };
        self.types.named.insert(name.to_owned(), type_.clone());
        type_
    }

    fn of(&mut self, schema: &Value) -> Type {
        if let Some(name) = reference(schema) {
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
                    let index = self.declare("struct", schema);
                    self.fill(index, schema, properties);
                    Type::Struct(index)
                }
                (_, None) => Type::AnyObject,
            },
            _ => Type::Any,
        }
    }

    fn declare(&mut self, name: &str, schema: &Value) -> usize {
        let (schema, merge) = (name.to_owned(), Merge::of(schema));
        self.types.structs.push(Struct { schema, merge, ..Struct::default() });
        self.types.structs.len() - 1
    }

    fn fill(&mut self, index: usize, schema: &Value, properties: &Map<String, Value>) {
        let mut field = |schema| Field { type_: self.of(schema), merge: Merge::of(schema) };
        let mut fields: BTreeMap<String, Field> =
            properties.iter().map(|(name, schema)| (name.clone(), field(schema))).collect();
        let struct_ = &mut self.types.structs[index];
        for (name, field) in &mut fields {
            if let (Type::List(_, max), Some(stated)) =
                (&mut field.type_, lengths::stated(struct_.name(), name))
            {
                *max = stated;
            }
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        // Validation asks for the times with a fraction, in words of its own.
        let is_time = |name: &&str| {
            fields.get(*name).is_some_and(|field| field.type_ == Type::Time { fraction: false })
        };
        struct_.times = required.filter_map(Value::as_str).filter(is_time).map(str::to_owned).collect();
        struct_.fields = fields;
    }

    fn inner(&mut self, schema: Option<&Value>) -> Type {
        schema.map_or(Type::Any, |schema| self.of(schema))
    }
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
            Type::Struct(index) => f.write_str(types().get(*index).qualified()),
        }
    }
}
