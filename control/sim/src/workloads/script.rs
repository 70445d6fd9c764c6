//! What is done to a cluster in one run: requests in bytes, nodes that die and return. All of it follows from the seed
//! before anything happens, so that a run with fewer steps is a run too.

use coracle_objects::{Kind, View, by_plural};
use serde_json::{Value, json};

use super::{
    door::{Ask, schemas},
    edits::{self, Change, Edit},
    manifests::{self, KINDS},
    values,
};
use crate::rng::Rng;

/// Most replicas that one object asks for.
const REPLICAS_MAX: i64 = 5;

const NAMES: [&str; 3] = ["x", "y", "z"];
const NAMESPACES: [&str; 2] = ["default", "a"];
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

#[derive(Clone, Debug)]
pub struct Script {
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Step {
    /// Since the step before.
    pub wait_ms: u64,
    pub act: Act,
}

#[derive(Clone, Debug)]
pub enum Act {
    Write(Box<Write>),
    /// A machine dies.
    Kill(&'static str),
    /// It comes back; `fresh` where its process began anew.
    Return {
        node: &'static str,
        fresh: bool,
    },
    /// Another member of the control plane leads.
    Lead,
    /// The leader freezes for so long, its sockets open.
    Freeze {
        ms: u64,
    },
    /// All machines say nothing for so long, and nothing else happens meanwhile.
    Hush {
        ms: u64,
    },
}

/// A request to be.
#[derive(Clone, Debug)]
pub struct Write {
    pub method: &'static str,
    pub path: String,
    pub form: Form,
    pub base: Value,
    pub edits: Vec<Edit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    None,
    Json,
    /// JSON is YAML too, read by another parser.
    Yaml,
    Merge,
    Strategic,
    JsonPatch,
}

impl Form {
    fn content_type(self) -> &'static str {
        match self {
            Form::None => "",
            Form::Json => "application/json",
            Form::Yaml => "application/yaml",
            Form::Merge => "application/merge-patch+json",
            Form::Strategic => "application/strategic-merge-patch+json",
            Form::JsonPatch => "application/json-patch+json",
        }
    }
}

impl Write {
    /// The request in bytes. Where it names an object's uid, it is that of the view.
    pub fn render(&self, view: &View) -> Ask {
        let mut ask = self.unresolved();
        ask.body = with_uids(ask.body, view);
        ask
    }

    /// The request with uids by the names of their objects.
    pub fn unresolved(&self) -> Ask {
        let mut document = self.base.clone();
        match self.form {
            Form::None => {}
            Form::Json | Form::Yaml => self.edits.iter().for_each(|edit| edit.apply(&mut document)),
            Form::Merge | Form::Strategic => {
                for edit in &self.edits {
                    coracle_objects::patch::merge(&mut document, &edit.as_merge());
                    // A merge drops nulls, which are what this is about.
                    edit.apply(&mut document);
                }
            }
            Form::JsonPatch => {
                let mut operations = document.as_array().cloned().unwrap_or_default();
                operations.extend(self.edits.iter().map(Edit::as_operation));
                document = operations.into();
            }
        }
        edits::cap_replicas(&mut document, REPLICAS_MAX);
        let body = match self.form {
            Form::None => vec![],
            _ => document.to_string().into_bytes(),
        };
        let (method, path, content_type) = (self.method, self.path.clone(), self.form.content_type());
        Ask { method, path, content_type, accept: "", body }
    }
}

/// Where a uid is to stand that is known only when the request is sent.
fn uid_of(of: &Known) -> String {
    format!("@uid|{}|{}|{}@", of.kind.storage_resource(), of.namespace, of.name)
}

/// Puts uids in where they stand by the names of their objects.
pub fn with_uids(body: Vec<u8>, view: &View) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(&body) else { return body };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("@uid|") {
        out.push_str(&rest[..start]);
        let Some(length) = rest[start + 1..].find('@') else { break };
        let mut parts = rest[start + 5..start + 1 + length].split('|');
        let mut part = || parts.next().unwrap_or_default();
        let key = coracle_objects::ObjectKey::new(part(), part(), part());
        out.push_str(view.get(&key).map_or("nobody", |object| object.meta.uid.as_str()));
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out.into_bytes()
}

/// An object that the script has made, if it was admitted.
#[derive(Clone)]
struct Known {
    kind: &'static Kind,
    namespace: &'static str,
    name: &'static str,
}

impl Known {
    fn path(&self, rest: &str) -> String {
        format!("{}/{}{rest}", collection(self.kind, self.namespace), self.name)
    }
}

/// The path of a kind's objects, of those in a namespace where it has any.
pub fn collection(kind: &Kind, namespace: &str) -> String {
    let root = match &*kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    match kind.namespaced {
        true => format!("{root}/namespaces/{namespace}/{}", kind.plural),
        false => format!("{root}/{}", kind.plural),
    }
}

impl Script {
    /// Where `calm`, no owners are in circles and no machine dies.
    pub fn draw(rng: &mut Rng, calm: bool) -> Script {
        let mut author = Author { rng: rng.fork(), steps: vec![], known: vec![], calm };
        if author.rng.chance(800) {
            author.namespace("a");
        }
        for _ in 0..rng.between(5, 18) {
            author.step();
        }
        Script { steps: author.steps }
    }
}

/// The same edits for patches that know no elements of lists: each sets the whole list.
fn whole_lists(base: &Value, edits: Vec<Edit>) -> Vec<Edit> {
    let mut document = base.clone();
    let whole = edits.into_iter().map(|edit| {
        edit.apply(&mut document);
        let Some(at) = edit.way.iter().position(|step| step.parse::<usize>().is_ok()) else { return edit };
        let pointer: String = edit.way[..at].iter().map(|step| format!("/{step}")).collect();
        let list = document.pointer(&pointer).cloned().unwrap_or_default();
        Edit { way: edit.way[..at].to_vec(), change: Change::Set(list) }
    });
    whole.collect()
}

struct Author {
    rng: Rng,
    steps: Vec<Step>,
    known: Vec<Known>,
    calm: bool,
}

impl Author {
    fn push(&mut self, act: Act) {
        let wait_ms = if self.rng.chance(450) { 0 } else { self.rng.between(1, 2_500) };
        self.steps.push(Step { wait_ms, act });
    }

    fn write(&mut self, method: &'static str, path: String, form: Form, base: Value, edits: Vec<Edit>) {
        self.push(Act::Write(Box::new(Write { method, path, form, base, edits })));
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..52 => self.create(),
            52..66 => self.patch(),
            66..72 => self.replace(),
            72..77 => self.status(),
            77..80 => self.scale(),
            80..86 => self.delete(),
            86..88 if !self.calm => self.away(),
            88..93 if !self.calm => self.circle(),
            93..95 => self.let_go(),
            95..97 if !self.calm => self.machine(),
            97 if self.rng.chance(500) => self.push(Act::Lead),
            97 => self.bind(),
            98 => self.collection(),
            99 => self.end_namespace(),
            _ => self.create(),
        }
    }

    fn namespace(&mut self, name: &'static str) {
        let base = json!({ "metadata": { "name": name } });
        self.write("POST", "/api/v1/namespaces".into(), Form::Json, base, vec![]);
    }

    fn kind(&mut self) -> &'static Kind {
        let total = KINDS.iter().map(|(_, _, weight)| weight).sum();
        let mut at = self.rng.below(total);
        for (group, plural, weight) in KINDS {
            if at < *weight {
                return by_plural(group, "v1", plural).expect("the table has served kinds only");
            }
            at -= weight;
        }
        unreachable!("the weights add up")
    }

    fn of_known(&mut self) -> Option<Known> {
        self.rng.pick(&self.known.clone()).cloned()
    }

    fn known_of(&mut self, plurals: &[&str]) -> Option<Known> {
        let fitting: Vec<Known> =
            self.known.iter().filter(|one| plurals.contains(&&*one.kind.plural)).cloned().collect();
        self.rng.pick(&fitting).cloned()
    }

    fn form(&mut self) -> Form {
        if self.rng.chance(750) { Form::Json } else { Form::Yaml }
    }

    fn edits(&mut self, document: &Value, kind: &Kind, least: u64) -> Vec<Edit> {
        let count = match self.rng.below(10) {
            0..=3 => 0,
            4..=7 => 1,
            _ => self.rng.between(2, 4),
        };
        let schema = schemas().get(&*kind.schema).unwrap_or(&Value::Null);
        let mut edited = document.clone();
        let mut edits = vec![];
        for _ in 0..count.max(least) {
            let edit = edits::draw(&edited, schema, &mut self.rng);
            edit.apply(&mut edited);
            edits.push(edit);
        }
        edits
    }

    fn create(&mut self) {
        let kind = self.kind();
        let namespace = if kind.namespaced { *self.rng.pick(&NAMESPACES).unwrap_or(&"a") } else { "" };
        let name = *self.rng.pick(&NAMES).unwrap_or(&"x");
        let mut base = manifests::draw(&kind.plural, &kind.group, name, &mut self.rng);
        if kind.plural == "ipaddresses" {
            base["metadata"]["name"] = "10.96.0.99".into();
        }
        if self.rng.chance(180) {
            base["metadata"]["ownerReferences"] = json!([self.owner()]);
        }
        if self.rng.chance(60) {
            base["metadata"]["finalizers"] = json!(["example.com/hold"]);
        }
        let mut edits = self.edits(&base, kind, 0);
        if self.rng.chance(20) {
            edits.push(Edit::set(&["metadata", "generateName"], "g-".into()));
            edits.push(Edit { way: vec!["metadata".into(), "name".into()], change: Change::Remove });
        }
        let form = self.form();
        self.write("POST", collection(kind, namespace), form, base, edits);
        self.known.push(Known { kind, namespace, name });
    }

    fn owner(&mut self) -> Value {
        let controller = self.rng.chance(300);
        let mut reference = match self.of_known().filter(|_| self.rng.chance(850)) {
            Some(known) => json!({
                "apiVersion": known.kind.api_version(), "kind": known.kind.kind, "name": known.name,
                "uid": uid_of(&known), "controller": controller,
            }),
            None => json!({ "apiVersion": "v1", "kind": "Pod", "name": "gone", "uid": "gone" }),
        };
        if self.rng.chance(600) {
            reference["blockOwnerDeletion"] = true.into();
        }
        reference
    }

    fn patch(&mut self) {
        let Some(known) = self.of_known() else { return self.create() };
        let base = manifests::draw(&known.kind.plural, &known.kind.group, known.name, &mut self.rng);
        let mut edits = self.edits(&base, known.kind, 1);
        let form = *self.rng.pick(&[Form::Merge, Form::Strategic, Form::JsonPatch]).unwrap_or(&Form::Merge);
        if form != Form::JsonPatch {
            edits = whole_lists(&base, edits);
        }
        let empty = if form == Form::JsonPatch { json!([]) } else { json!({}) };
        self.write("PATCH", known.path(""), form, empty, edits);
    }

    fn replace(&mut self) {
        let Some(known) = self.of_known() else { return self.create() };
        let base = manifests::draw(&known.kind.plural, &known.kind.group, known.name, &mut self.rng);
        let edits = self.edits(&base, known.kind, 0);
        let form = self.form();
        self.write("PUT", known.path(""), form, base, edits);
    }

    fn status(&mut self) {
        let Some(known) =
            self.known_of(&["deployments", "replicasets", "pods", "services", "ingresses", "nodes"])
        else {
            return self.create();
        };
        let schema = schemas().get(&*known.kind.schema).unwrap_or(&Value::Null);
        let field = schema.pointer("/properties/status").unwrap_or(&Value::Null);
        let status = values::of_schema(field, &mut self.rng, 0);
        if self.rng.chance(500) {
            let edits = vec![Edit::set(&["status"], status)];
            self.write("PATCH", known.path("/status"), Form::Merge, json!({}), edits);
        } else {
            let base = json!({ "metadata": { "name": known.name }, "status": status });
            self.write("PUT", known.path("/status"), Form::Json, base, vec![]);
        }
    }

    fn scale(&mut self) {
        let Some(known) = self.known_of(&["deployments", "replicasets"]) else { return self.create() };
        let replicas =
            if self.rng.chance(700) { self.rng.below(5).into() } else { values::any(&mut self.rng) };
        if self.rng.chance(500) {
            let edits = vec![Edit::set(&["spec", "replicas"], replicas)];
            self.write("PATCH", known.path("/scale"), Form::Merge, json!({}), edits);
        } else {
            let base = json!({ "metadata": { "name": known.name }, "spec": { "replicas": replicas } });
            self.write("PUT", known.path("/scale"), Form::Json, base, vec![]);
        }
    }

    fn delete_of(&mut self, known: &Known, foreground: bool) {
        let policy = if foreground {
            "Foreground"
        } else {
            self.rng.pick(&["Foreground", "Background", "Orphan", ""]).copied().unwrap_or("")
        };
        let mut base = json!({});
        if !policy.is_empty() {
            base["propagationPolicy"] = policy.into();
        }
        if self.rng.chance(200) {
            base["gracePeriodSeconds"] = self
                .rng
                .pick(&[json!(0), json!(1), json!(-1), json!(1.0), json!(i64::MAX)])
                .cloned()
                .unwrap_or_default();
        }
        self.write("DELETE", known.path(""), Form::Json, base, vec![]);
    }

    fn delete(&mut self) {
        let Some(known) = self.of_known() else { return self.create() };
        self.delete_of(&known, false);
    }

    /// Objects that own each other, or one itself; mostly one of them is deleted in the foreground.
    fn circle(&mut self) {
        while self.known.len() < 2 {
            self.create();
        }
        let length = self.rng.between(1, 3) as usize;
        let members: Vec<Known> = (0..length).filter_map(|_| self.of_known()).collect();
        for (index, member) in members.iter().enumerate() {
            let owner = &members[(index + 1) % members.len()];
            let mut reference = json!({
                "apiVersion": owner.kind.api_version(), "kind": owner.kind.kind, "name": owner.name,
                "uid": uid_of(owner),
            });
            if self.rng.chance(800) {
                reference["blockOwnerDeletion"] = true.into();
            }
            if self.rng.chance(200) {
                reference["controller"] = true.into();
            }
            let edits = vec![Edit::set(&["metadata", "ownerReferences"], json!([reference]))];
            self.write("PATCH", member.path(""), Form::Merge, json!({}), edits);
        }
        if self.rng.chance(800) {
            self.delete_of(&members[0].clone(), true);
        }
    }

    /// Takes finalizers off.
    fn let_go(&mut self) {
        let Some(known) = self.of_known() else { return self.create() };
        let edits = vec![Edit::set(&["metadata", "finalizers"], Value::Null)];
        self.write("PATCH", known.path(""), Form::Merge, json!({}), edits);
    }

    fn machine(&mut self) {
        let node = *self.rng.pick(&NODES).unwrap_or(&"n1");
        self.push(Act::Kill(node));
        if self.rng.chance(600) {
            self.create();
            let fresh = self.rng.chance(500);
            self.push(Act::Return { node, fresh });
        }
        if self.rng.chance(150) {
            self.write("DELETE", format!("/api/v1/nodes/{node}"), Form::None, Value::Null, vec![]);
        }
    }

    /// The control plane or its nodes are away, mostly for longer than anybody waits.
    fn away(&mut self) {
        let ms = if self.rng.chance(500) { 15_000 } else { self.rng.between(200, 20_000) };
        if self.rng.chance(200) {
            self.push(Act::Hush { ms });
        } else {
            self.push(Act::Freeze { ms });
        }
    }

    fn bind(&mut self) {
        let Some(known) = self.known_of(&["pods"]) else { return self.create() };
        let node = *self.rng.pick(&["n1", "n2", "n3", "ghost"]).unwrap_or(&"n1");
        let base = json!({ "metadata": { "name": known.name }, "target": { "kind": "Node", "name": node } });
        let kind = by_plural("", "v1", "pods").map_or(known.kind, |pods| &**pods);
        let edits = self.edits(&base, kind, 0);
        self.write("POST", known.path("/binding"), Form::Json, base, edits);
    }

    fn collection(&mut self) {
        let Some(known) = self.of_known() else { return self.create() };
        let path = format!("{}?labelSelector=app%3Dx", collection(known.kind, known.namespace));
        self.write("DELETE", path, Form::None, Value::Null, vec![]);
    }

    fn end_namespace(&mut self) {
        self.write("DELETE", "/api/v1/namespaces/a".into(), Form::None, Value::Null, vec![]);
        if self.rng.chance(300) {
            self.namespace("a");
        }
    }
}
