//! The schemas as types: made once, walked without looking at a schema again.

use std::collections::BTreeMap;

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
    /// The struct at this index of its [`Types`].
    Struct(usize),
}

impl Type {
    /// Whether it is one value without others in it.
    pub fn is_plain(&self) -> bool {
        !matches!(self, Type::Struct(_) | Type::List(..) | Type::Map(_) | Type::AnyObject | Type::Any)
    }

    /// The struct of this binary's [`types`] that it is, or that its elements or values are.
    pub fn innermost(&self) -> Option<&'static Struct> {
        match self {
            Type::Struct(index) => Some(types().get(*index)),
            Type::List(inner, _) | Type::Map(inner) => inner.innermost(),
            _ => None,
        }
    }

    /// As Go calls it, in words for messages.
    pub fn shown(&self, types: &Types) -> String {
        match self {
            Type::Any => "interface {}".to_owned(),
            Type::AnyObject => "map[string]interface {}".to_owned(),
            Type::Text => "string".to_owned(),
            Type::Boolean => "bool".to_owned(),
            Type::Int32 => "int32".to_owned(),
            Type::Int64 => "int64".to_owned(),
            Type::Number => "float64".to_owned(),
            Type::IntOrString => "intstr.IntOrString".to_owned(),
            Type::Quantity => "resource.Quantity".to_owned(),
            Type::Time { fraction: false } => "v1.Time".to_owned(),
            Type::Time { fraction: true } => "v1.MicroTime".to_owned(),
            Type::List(element, _) => format!("[]{}", element.shown(types)),
            Type::Map(element) => format!("map[string]{}", element.shown(types)),
            Type::Struct(index) => types.get(*index).qualified().to_owned(),
        }
    }
}

/// A field of a struct.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    pub type_: Type,
    pub merge: Merge,
    /// Null is a value of it, and not the same as if it were absent.
    pub nullable: bool,
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
    /// Fields that are not among its own are kept.
    pub open: bool,
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

/// Types, and those on which they build.
#[derive(Debug, Default)]
pub struct Types {
    /// Their structs have the first indices.
    base: Option<&'static Types>,
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

    /// The types of these schemas, which may refer to each other and to those of this binary.
    pub fn declared(schemas: &BTreeMap<String, Value>) -> Types {
        let mut compiler = Compiler { schemas, types: Types { base: Some(types()), ..Types::default() } };
        for name in schemas.keys() {
            compiler.enter(name);
        }
        compiler.types
    }

    /// The type of a schema.
    pub fn by_name(&self, schema: &str) -> Option<&Type> {
        self.named.get(schema).or_else(|| self.base?.by_name(schema))
    }

    /// The struct of a schema, where it is one.
    pub fn by_schema(&self, schema: &str) -> Option<&Struct> {
        match self.by_name(schema)? {
            Type::Struct(index) => Some(self.get(*index)),
            _ => None,
        }
    }

    pub fn get(&self, index: usize) -> &Struct {
        match self.base {
            Some(base) if index < base.structs.len() => &base.structs[index],
            Some(base) => &self.structs[index - base.structs.len()],
            None => &self.structs[index],
        }
    }

    /// Whether they are a definition's. Go's zero values are for none of its nulls.
    pub fn is_declared(&self) -> bool {
        self.base.is_some()
    }

    fn next_index(&self) -> usize {
        self.base.map_or(0, |base| base.structs.len()) + self.structs.len()
    }

    /// A struct of its own, not of its base.
    fn own(&mut self, index: usize) -> &mut Struct {
        let first = self.base.map_or(0, |base| base.structs.len());
        &mut self.structs[index - first]
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
        if let Some(known) = self.types.by_name(name) {
            return known.clone();
        }
        let type_ = match name {
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Type::IntOrString,
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => Type::Quantity,
            "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => Type::Time { fraction: false },
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => Type::Time { fraction: true },
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON" => Type::Any,
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
        let says = |extension: &str| schema.get(extension) == Some(&Value::Bool(true));
        if says("x-kubernetes-int-or-string") {
            // Which integers and texts the schema's rules say.
            return Type::Any;
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
                (_, Some(values)) if values.is_object() => Type::Map(Box::new(self.inner(Some(values)))),
                (Some(Value::Object(properties)), _) => {
                    let index = self.declare("struct", schema);
                    self.fill(index, schema, properties);
                    Type::Struct(index)
                }
                // What is declared and not said to be open has the fields that are said.
                _ if self.types.base.is_some() && !says("x-kubernetes-preserve-unknown-fields") => {
                    let index = self.declare("struct", schema);
                    self.fill(index, schema, &Map::new());
                    Type::Struct(index)
                }
                _ => Type::AnyObject,
            },
            _ => Type::Any,
        }
    }

    fn declare(&mut self, name: &str, schema: &Value) -> usize {
        let index = self.types.next_index();
        let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        let (schema, merge) = (name.to_owned(), Merge::of(schema));
        self.types.structs.push(Struct { schema, merge, open, ..Struct::default() });
        index
    }

    fn fill(&mut self, index: usize, schema: &Value, properties: &Map<String, Value>) {
        let mut field = |schema: &Value| {
            let nullable = schema.get("nullable") == Some(&Value::Bool(true));
            Field { type_: self.of(schema), merge: Merge::of(schema), nullable }
        };
        let mut fields: BTreeMap<String, Field> =
            properties.iter().map(|(name, schema)| (name.clone(), field(schema))).collect();
        let struct_ = self.types.own(index);
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
