//! Whose names are whose: two kinds of one group have none in common, and of two definitions the older has them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    declared::{has_its_names, names_in_use},
    fields::{flag, list, text},
    kind::Kind,
    kinds::DEFINITIONS,
    name::Revision,
    object::Object,
    view::View,
};

/// The names that definitions want.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_definition: BTreeMap<String, Wanted>,
    /// The definitions, the oldest first.
    order: Vec<String>,
    /// By definition the name that another kind has already.
    conflicts: BTreeMap<String, String>,
    /// What is served as `apiVersion` and `kind`, beside the kinds of this binary.
    kinds: BTreeSet<(String, String)>,
}

#[derive(Clone, Debug)]
struct Wanted {
    revision: Revision,
    created: Option<String>,
    group: String,
    /// The kind and the versions that are served of it, as `apiVersion` and `kind`.
    kinds: Vec<(String, String)>,
    names: Vec<String>,
    /// Those that were found to be its own once: they stay so.
    accepted: Option<Vec<String>>,
}

impl Names {
    /// Those of a state. Only what has changed is read again.
    pub fn next(&self, view: &View) -> Names {
        let mut next = Names::default();
        for object in view.list(DEFINITIONS, None) {
            let wanted = match self.by_definition.get(object.name()) {
                Some(known) if known.revision == object.revision => known.clone(),
                _ => Wanted::of(object),
            };
            next.by_definition.insert(object.name().to_owned(), wanted);
        }
        next.settle();
        let kinds = next.served().flat_map(|name| &next.by_definition[name].kinds).cloned().collect();
        next.kinds = kinds;
        next
    }

    /// Whether there are objects of this `apiVersion` and `kind`: of a kind of this binary, or of one that is declared.
    pub fn serves(&self, api_version: &str, kind: &str) -> bool {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        super::by_kind(group, version, kind).is_some()
            || self.kinds.contains(&(api_version.to_owned(), kind.to_owned()))
    }

    /// Whether something is served that was not before.
    pub fn serves_more_than(&self, before: &Names) -> bool {
        !self.kinds.is_subset(&before.kinds)
    }

    /// Says whose names are whose.
    fn settle(&mut self) {
        let mut taken: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for kind in super::kinds() {
            taken.entry(&kind.group).or_default().extend(names_of(kind));
        }
        let mut all: Vec<(&String, &Wanted)> = self.by_definition.iter().collect();
        all.sort_by_key(|(name, wanted)| (&wanted.created, *name));
        // What is served under its names goes on: nobody else's wishes change that.
        let mut held: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        for (name, wanted) in &all {
            let group: &str = &wanted.group;
            let free = |own: &&String| taken.get(group).is_none_or(|taken| !taken.contains(own.as_str()));
            for own in wanted.accepted.iter().flatten().filter(free) {
                held.entry((group, own)).or_insert(name);
            }
        }
        let (mut order, mut conflicts) = (Vec::with_capacity(all.len()), BTreeMap::new());
        for (name, wanted) in all {
            let taken = taken.entry(&wanted.group).or_default();
            let of_another = |own: &str| {
                taken.contains(own) || held.get(&(&*wanted.group, own)).is_some_and(|holder| *holder != name)
            };
            match wanted.names.iter().find(|own| of_another(own)) {
                Some(conflict) => _ = conflicts.insert(name.clone(), conflict.clone()),
                None => taken.extend(wanted.names.iter().map(String::as_str)),
            }
            order.push(name.clone());
        }
        (self.order, self.conflicts) = (order, conflicts);
    }

    /// The names that a definition has, where they were found to be its own.
    pub fn accepted(&self, definition: &str) -> Option<&[String]> {
        self.by_definition.get(definition)?.accepted.as_deref()
    }

    /// The definitions that are served, the oldest first.
    pub fn served(&self) -> impl Iterator<Item = &str> {
        // What this binary serves is nobody else's, whatever a status says.
        let own = |name: &&str| super::by_resource(name).is_none();
        let served = |name: &&str| self.conflict(name).is_none() || self.accepted(name).is_some();
        self.order.iter().map(String::as_str).filter(own).filter(served)
    }

    /// The name that another kind has already; none where all are the definition's own.
    pub fn conflict(&self, definition: &str) -> Option<&str> {
        self.conflicts.get(definition).map(String::as_str)
    }

    /// The definitions with which it stands otherwise than it did.
    pub fn resettled(&self, before: &Names) -> Vec<String> {
        let all = self
            .conflicts
            .keys()
            .chain(before.conflicts.keys().filter(|name| !self.conflicts.contains_key(*name)));
        all.filter(|name| self.conflict(name) != before.conflict(name)).cloned().collect()
    }
}

impl Wanted {
    fn of(object: &Object) -> Wanted {
        let definition: Value = object.parse().unwrap_or_default();
        let group = text(&definition, "/spec/group").to_owned();
        let accepted = has_its_names(&definition).then(|| names_at(&definition, "/status/acceptedNames"));
        Wanted {
            revision: object.revision,
            created: object.meta.creation_timestamp.clone(),
            kinds: kinds_of(&definition, &group),
            group,
            names: names_at(&definition, "/spec/names"),
            accepted,
        }
    }
}

fn kinds_of(definition: &Value, group: &str) -> Vec<(String, String)> {
    let kind = text(definition, &format!("{}/kind", names_in_use(definition)));
    let versions = list(definition, "/spec/versions").iter().filter(|version| flag(version, "/served"));
    versions.map(|version| (format!("{group}/{}", text(version, "/name")), kind.to_owned())).collect()
}

fn names_at(definition: &Value, at: &str) -> Vec<String> {
    let own = |name: &str| text(definition, &format!("{at}/{name}")).to_owned();
    let short = list(definition, &format!("{at}/shortNames")).iter().filter_map(Value::as_str);
    let names: BTreeSet<String> = ["plural", "singular", "kind", "listKind"]
        .into_iter()
        .map(own)
        .chain(short.map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect();
    names.into_iter().collect()
}

/// All names by which a kind could be meant within its group.
fn names_of(kind: &Kind) -> impl Iterator<Item = &str> {
    let own = [&kind.plural, &kind.singular, &kind.kind, &kind.list];
    own.into_iter().chain(&kind.short_names).map(AsRef::as_ref)
}
