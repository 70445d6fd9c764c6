//! Whose names are whose: two kinds of one group have none in common, and of two definitions the older has them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    declared::has_its_names,
    fields::{list, text},
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
}

#[derive(Clone, Debug)]
struct Wanted {
    revision: Revision,
    created: Option<String>,
    group: String,
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
        next
    }

    /// The definitions, the oldest first, and the name that another kind has already, where there is one.
    pub fn settled(&self) -> Vec<(&str, Option<&str>)> {
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
        let mut settled = Vec::with_capacity(all.len());
        for (name, wanted) in all {
            let taken = taken.entry(&wanted.group).or_default();
            let of_another = |own: &str| {
                taken.contains(own) || held.get(&(&*wanted.group, own)).is_some_and(|holder| *holder != name)
            };
            let conflict = wanted.names.iter().map(String::as_str).find(|own| of_another(own));
            if conflict.is_none() {
                taken.extend(wanted.names.iter().map(String::as_str));
            }
            settled.push((name.as_str(), conflict));
        }
        settled
    }

    /// The names that a definition has, where they were found to be its own.
    pub fn accepted(&self, definition: &str) -> Option<&[String]> {
        self.by_definition.get(definition)?.accepted.as_deref()
    }

    /// The definitions that are served, the oldest first.
    pub fn served(&self) -> Vec<&str> {
        let served = |(name, conflict): &(&str, Option<&str>)| {
            let accepted = self.by_definition.get(*name).is_some_and(|wanted| wanted.accepted.is_some());
            // What this binary serves is nobody else's, whatever a status says.
            super::by_resource(name).is_none() && (conflict.is_none() || accepted)
        };
        self.settled().into_iter().filter(served).map(|(name, _)| name).collect()
    }

    /// The name that another kind has already; none where all are the definition's own.
    pub fn conflict(&self, definition: &str) -> Option<&str> {
        self.settled().into_iter().find(|(name, _)| *name == definition)?.1
    }
}

impl Wanted {
    fn of(object: &Object) -> Wanted {
        let definition: Value = object.parse().unwrap_or_default();
        let accepted = has_its_names(&definition).then(|| names_at(&definition, "/status/acceptedNames"));
        Wanted {
            revision: object.revision,
            created: object.meta.creation_timestamp.clone(),
            group: text(&definition, "/spec/group").to_owned(),
            names: names_at(&definition, "/spec/names"),
            accepted,
        }
    }
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
