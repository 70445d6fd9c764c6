//! What is known of a kind: its names, how its objects are checked, completed and shown.
//!
//! A kind is native, declared in this binary by a [`Native`] in `kinds/`, or declared by an object of the cluster, a
//! CustomResourceDefinition ([`Declared`]). Everything else is generic over [`Kind`].

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    admission::NotAdmitted,
    declared::{Declared, ScalePaths},
    field_error::FieldError,
    name::ResourceName,
    schema::{self, Types},
    validate::{keys::duplicate_keys, status::conditions},
    view::View,
};

/// A name that is the binary's or the cluster's.
pub type Text = Cow<'static, str>;

/// A served kind: one group, version and plural.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub plural: Text,
    pub singular: Text,
    /// What a list of them is called: `PodList`.
    pub list: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub namespaced: bool,
    /// In alphabetical order, as discovery shows them.
    pub verbs: &'static [&'static str],
    pub subresources: Vec<Subresource>,
    /// The key in OpenAPI and in [`Kind::types`]: `io.k8s.api.apps.v1.Deployment`.
    pub schema: Text,
    /// The first is the name. Those of priority 1 are shown with `-o wide` only.
    pub columns: Vec<Column>,
    /// What field selectors may name beyond `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<Text>,
    /// What `metadata.name` must look like.
    pub name_rule: NameRule,
    /// Which fields beside `metadata` and `status` move `metadata.generation` when they change.
    pub generational: Generational,
    pub(crate) behaviour: Behaviour,
}

/// What a kind does with its objects.
#[derive(Debug)]
pub(crate) enum Behaviour {
    Native(&'static Native),
    Declared(Box<Declared>),
}

/// The fields that count as an object's specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generational {
    /// These; none where the kind has no generation.
    Fields(&'static [&'static str]),
    /// All but `metadata`, `apiVersion`, `kind` and, where it is a part of its own, `status`.
    All,
}

/// The declaration of a kind of this binary.
#[derive(Debug)]
pub struct Native {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    pub schema: &'static str,
    pub columns: &'static [Column],
    /// The cells of an object's row, in the order of `columns`.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// Fills in what the client left out, as kube-apiserver's defaulting does. Idempotent. At a create it is called
    /// after the client's `status` was dropped, so that the initial status (a pod's `Pending`) is filled in as well.
    pub defaults: fn(&mut Value),
    /// The faults of a new object or (with the old one) of an update, `metadata` aside. Called after `defaults`.
    pub validate: fn(&Value, Option<&Value>) -> Vec<FieldError>,
    /// The faults of a changed status that are this kind's own; all of them are [`Kind::status_faults`]. Called after
    /// `defaults`.
    pub validate_status: fn(&Value) -> Vec<FieldError>,
    /// What of an object has no effect, in words for its author.
    pub warn: Option<fn(&Value) -> Vec<String>>,
    /// What a new object needs in its namespace.
    pub admit: fn(&str, &Value, &View) -> Result<(), NotAdmitted>,
    pub selectable_fields: &'static [&'static str],
    pub name_rule: NameRule,
    /// The resource whose objects these are in the store, where it is another one: core's `events`.
    pub storage: Option<&'static Native>,
    /// Turns an object as it is stored into this kind's form. Does nothing where `storage` is none.
    pub from_storage: fn(&mut Value),
    /// Turns an object of this kind's form into the stored one. Does nothing where `storage` is none.
    pub to_storage: fn(&mut Value),
    /// The stored name of a field that selectors name, where it is another one: `regarding.name`.
    pub storage_field: fn(&str) -> Option<String>,
    pub generational: &'static [&'static str],
    /// Its objects go on for a while when they are deleted, and are told what they were then; what changes meanwhile is
    /// checked as ever.
    pub graceful: bool,
    /// Its objects are created with the status that their creator gives them.
    pub registers_with_status: bool,
}

/// A part of an object with a path of its own: `pods/NAME/status`.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub endpoint: Endpoint,
    /// Group, version and kind of its body.
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub verbs: &'static [&'static str],
}

/// What answers at the path of a subresource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The status, which is written apart from the rest.
    Status,
    /// The number of replicas, as `autoscaling/v1` has it.
    Scale,
    /// What a container has written.
    Log,
    /// Gives a pod to a node.
    Binding,
    /// The finalizers in a namespace's specification, which nothing else changes.
    Finalize,
}

/// A column of the table that `kubectl get` prints.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: Text,
    /// OpenAPI's types: `string`, `integer`, `number`, `boolean`; `date` where a declared kind shows an age.
    pub type_: Text,
    /// `name` for the name's column, else mostly empty.
    pub format: Text,
    pub description: Text,
    /// 0 = always, 1 = wide only.
    pub priority: i32,
}

/// What names of a kind must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 bytes.
    Subdomain,
    /// RFC 1123 label, at most 63 bytes.
    Label,
    /// RFC 1035 label: begins with a letter.
    Label1035,
    /// An IP address in its canonical form.
    IpAddress,
}

impl Kind {
    /// The kind of a declaration of this binary.
    pub(crate) fn native(native: &'static Native) -> Self {
        let texts = |all: &'static [&'static str]| all.iter().copied().map(Text::Borrowed).collect();
        Self {
            group: native.group.into(),
            version: native.version.into(),
            kind: native.kind.into(),
            plural: native.plural.into(),
            singular: native.singular.into(),
            list: format!("{}List", native.kind).into(),
            short_names: texts(native.short_names),
            categories: texts(native.categories),
            namespaced: native.namespaced,
            verbs: native.verbs,
            subresources: native.subresources.to_vec(),
            schema: native.schema.into(),
            columns: native.columns.to_vec(),
            selectable_fields: texts(native.selectable_fields),
            name_rule: native.name_rule,
            generational: Generational::Fields(native.generational),
            behaviour: Behaviour::Native(native),
        }
    }

    /// Whether the kind is of this binary and has this name there.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        matches!(self.behaviour, Behaviour::Native(native) if native.group == group && native.kind == kind)
    }

    /// The resource as clients name it: `events.events.k8s.io`. Keys of the store take [`Kind::storage_resource`].
    pub fn resource(&self) -> ResourceName {
        ResourceName::new(&self.plural, &self.group)
    }

    /// The resource under which the store keeps the objects: that of [`Kind::resource`] but for shared ones.
    pub fn storage_resource(&self) -> ResourceName {
        match self.stored_elsewhere() {
            Some(native) => ResourceName::new(native.plural, native.group),
            None => self.resource(),
        }
    }

    /// Whether objects are stored in another form than this kind's.
    pub fn is_converted(&self) -> bool {
        match &self.behaviour {
            Behaviour::Native(native) => native.storage.is_some(),
            Behaviour::Declared(declared) => declared.is_converted(),
        }
    }

    /// Whether an object, as it is stored, is in this kind's form. What a definition's version has stored once may be of
    /// another.
    pub fn is_form_of(&self, json: &[u8]) -> bool {
        match &self.behaviour {
            Behaviour::Native(native) => native.storage.is_none(),
            Behaviour::Declared(declared) => !declared.is_converted() && declared.is_version_of(json),
        }
    }

    /// apiVersion and kind of the objects as they are stored.
    pub fn stored_as(&self) -> (String, Text) {
        match &self.behaviour {
            Behaviour::Native(Native { storage: Some(stored), .. }) => {
                (api_version(stored.group, stored.version), stored.kind.into())
            }
            Behaviour::Native(_) => (self.api_version(), self.kind.clone()),
            Behaviour::Declared(declared) => {
                (api_version(&self.group, declared.stored_version()), self.kind.clone())
            }
        }
    }

    fn stored_elsewhere(&self) -> Option<&'static Native> {
        match self.behaviour {
            Behaviour::Native(native) => native.storage,
            Behaviour::Declared(_) => None,
        }
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// The definition's part, where the kind is declared by one.
    pub fn declared(&self) -> Option<&Declared> {
        match &self.behaviour {
            Behaviour::Native(_) => None,
            Behaviour::Declared(declared) => Some(declared),
        }
    }

    /// Where its objects have what a Scale shows.
    pub fn scale_paths(&self) -> ScalePaths {
        self.declared().and_then(Declared::scale).cloned().unwrap_or_else(|| ScalePaths {
            replicas: "/spec/replicas".to_owned(),
            status_replicas: "/status/replicas".to_owned(),
            selector: None,
        })
    }

    /// The types of its objects, and of what they consist of.
    pub fn types(&self) -> &Types {
        match &self.behaviour {
            Behaviour::Native(_) => schema::types(),
            Behaviour::Declared(declared) => declared.types(),
        }
    }

    pub fn subresource(&self, endpoint: Endpoint) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.endpoint == endpoint)
    }

    /// Whether the kind has this subresource.
    pub fn has(&self, endpoint: Endpoint) -> bool {
        self.subresource(endpoint).is_some()
    }

    /// Whether a client may do this to the objects themselves.
    pub fn takes(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The cells of an object's row, in the order of its columns.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match &self.behaviour {
            Behaviour::Native(native) => (native.cells)(object, now),
            Behaviour::Declared(declared) => declared.cells(object, now),
        }
    }

    /// See [`Native::defaults`].
    pub fn defaults(&self, object: &mut Value) {
        match &self.behaviour {
            Behaviour::Native(native) => (native.defaults)(object),
            Behaviour::Declared(declared) => declared.defaults(object),
        }
    }

    /// See [`Native::validate`].
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        match &self.behaviour {
            Behaviour::Native(native) => (native.validate)(object, old),
            Behaviour::Declared(declared) => declared.validate(object, old),
        }
    }

    /// See [`Native::warn`].
    pub fn warn(&self) -> Option<fn(&Value) -> Vec<String>> {
        match &self.behaviour {
            Behaviour::Native(native) => native.warn,
            Behaviour::Declared(_) => None,
        }
    }

    /// See [`Native::admit`].
    pub fn admit(&self, namespace: &str, object: &Value, view: &View) -> Result<(), NotAdmitted> {
        match &self.behaviour {
            Behaviour::Native(native) => (native.admit)(namespace, object, view),
            Behaviour::Declared(_) => Ok(()),
        }
    }

    /// Turns an object as it is stored into this kind's form. What is stored may be older than a declared kind's defaults.
    pub fn from_storage(&self, object: &mut Value) {
        match &self.behaviour {
            Behaviour::Native(native) => (native.from_storage)(object),
            Behaviour::Declared(declared) => declared.defaults(object),
        }
    }

    /// See [`Native::to_storage`].
    pub fn to_storage(&self, object: &mut Value) {
        if let Behaviour::Native(native) = self.behaviour {
            (native.to_storage)(object);
        }
    }

    /// See [`Native::storage_field`].
    pub fn storage_field(&self, field: &str) -> Option<String> {
        match self.behaviour {
            Behaviour::Native(native) => (native.storage_field)(field),
            Behaviour::Declared(_) => None,
        }
    }

    /// See [`Native::graceful`].
    pub fn is_graceful(&self) -> bool {
        matches!(self.behaviour, Behaviour::Native(Native { graceful: true, .. }))
    }

    /// See [`Native::registers_with_status`].
    pub fn registers_with_status(&self) -> bool {
        matches!(self.behaviour, Behaviour::Native(Native { registers_with_status: true, .. }))
    }

    /// Whether `metadata.generation` counts this kind's changes.
    pub fn spec_is_generational(&self) -> bool {
        self.generational != Generational::Fields(&[])
    }

    /// All faults of a changed status: what the kind says, and what all kinds have in common.
    pub fn status_faults(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = match &self.behaviour {
            Behaviour::Native(native) => (native.validate_status)(object),
            Behaviour::Declared(declared) => return declared.validate(object, old),
        };
        conditions(object, &mut errors);
        if let Some((status, schema)) = object.get("status").zip(schema::child(&self.schema, "status")) {
            errors.extend(duplicate_keys(status, schema, "status"));
        }
        errors
    }

    /// Whether an update from `old` to `new` moves `metadata.generation`.
    pub fn moves_generation(&self, old: &Value, new: &Value) -> bool {
        match self.generational {
            Generational::Fields(fields) => fields.iter().any(|field| old.get(field) != new.get(field)),
            Generational::All => {
                let counts = |name: &str| match name {
                    "metadata" | "apiVersion" | "kind" => false,
                    "status" => !self.has(Endpoint::Status),
                    _ => true,
                };
                let names = [old, new].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys());
                names.into_iter().any(|name| counts(name) && old.get(name) != new.get(name))
            }
        }
    }
}

fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// What most declarations share. A declaration overrides the rest with `..Native::BASE`.
impl Native {
    pub(crate) const BASE: Native = Native {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL_VERBS,
        subresources: &[],
        schema: "",
        columns: &[],
        cells: |_, _| Vec::new(),
        defaults: |_| (),
        validate: |_, _| Vec::new(),
        validate_status: |_| Vec::new(),
        warn: None,
        admit: |_, _, _| Ok(()),
        selectable_fields: &[],
        name_rule: NameRule::Subdomain,
        storage: None,
        from_storage: |_| (),
        to_storage: |_| (),
        storage_field: |_| None,
        generational: &[],
        graceful: false,
        registers_with_status: false,
    };
}

pub(crate) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Subresource {
    /// One whose body is of `v1` of a group.
    pub(crate) const fn new(
        endpoint: Endpoint,
        group: &'static str,
        kind: &'static str,
        verbs: &'static [&'static str],
    ) -> Self {
        let (group, kind) = (Text::Borrowed(group), Text::Borrowed(kind));
        Self { endpoint, group, version: Text::Borrowed("v1"), kind, verbs }
    }

    /// The status of a kind.
    pub(crate) const fn status(group: &'static str, kind: &'static str) -> Self {
        Self::new(Endpoint::Status, group, kind, &["get", "patch", "update"])
    }

    /// The scale of a kind that counts replicas.
    pub(crate) const fn scale() -> Self {
        Self::new(Endpoint::Scale, "autoscaling", "Scale", &["get", "patch", "update"])
    }
}

impl Endpoint {
    const ALL: [Endpoint; 5] = [Self::Status, Self::Scale, Self::Log, Self::Binding, Self::Finalize];

    /// The last part of its path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Log => "log",
            Self::Binding => "binding",
            Self::Finalize => "finalize",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.name() == name)
    }
}

impl Column {
    pub(crate) const fn name() -> Self {
        let description = "Name must be unique within a namespace.";
        Self::new("Name", "string", "name", description, 0)
    }

    pub(crate) const fn age() -> Self {
        Self::text("Age", "How long ago the object was created.")
    }

    pub(crate) const fn text(name: &'static str, description: &'static str) -> Self {
        Self::new(name, "string", "", description, 0)
    }

    pub(crate) const fn integer(name: &'static str, description: &'static str) -> Self {
        Self::new(name, "integer", "", description, 0)
    }

    /// A column of text for `-o wide`.
    pub(crate) const fn wide(name: &'static str, description: &'static str) -> Self {
        Self::new(name, "string", "", description, 1)
    }

    pub(crate) const fn new(
        name: &'static str,
        type_: &'static str,
        format: &'static str,
        description: &'static str,
        priority: i32,
    ) -> Self {
        Self {
            name: Text::Borrowed(name),
            type_: Text::Borrowed(type_),
            format: Text::Borrowed(format),
            description: Text::Borrowed(description),
            priority,
        }
    }
}
