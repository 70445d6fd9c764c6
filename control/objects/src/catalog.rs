//! The kinds that are served: those of this binary, and those that the cluster's CustomResourceDefinitions declare.
//!
//! A catalog follows from the state and is swapped as a whole. What a definition has declared is compiled again only when
//! it has changed.

mod names;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

pub use names::Names;

use crate::{
    declared::kinds_of,
    kind::Kind,
    kinds::{ALL, DEFINITIONS},
    name::ObjectKey,
    view::{Table, View},
};

/// All served kinds.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Preferred versions of a resource first; those of the binary before declared ones.
    kinds: Vec<Arc<Kind>>,
    /// By plural, group and version.
    by_plural: BTreeMap<(String, String, String), usize>,
    by_kind: BTreeMap<(String, String, String), usize>,
    /// The definitions that are served, by name.
    definitions: BTreeMap<String, Definition>,
    names: Names,
    /// The state of the definitions that it follows from.
    table: Option<Table>,
}

/// What became of one definition.
#[derive(Clone, Debug)]
struct Definition {
    /// What its kinds follow from: its specification, its names, and whether it ends.
    from: (String, i64, bool, Option<Vec<String>>),
    kinds: Vec<Arc<Kind>>,
}

impl Catalog {
    /// The kinds of this binary.
    pub fn native() -> &'static Arc<Catalog> {
        static NATIVE: LazyLock<Arc<Catalog>> = LazyLock::new(|| {
            let mut catalog = Catalog::default();
            for native in ALL {
                catalog.add(Arc::new(Kind::native(native)));
            }
            Arc::new(catalog)
        });
        &NATIVE
    }

    /// Whether the catalog is that of a state. O(1) where no definition has changed.
    pub fn is_of(&self, view: &View) -> bool {
        match (&self.table, view.tables.get(DEFINITIONS)) {
            (Some(own), Some(table)) => own.ptr_eq(table) || same(own, table),
            (None, Some(table)) => table.is_empty(),
            (Some(own), None) => own.is_empty(),
            (None, None) => true,
        }
    }

    /// The catalog of a state, with what this one has compiled already. The same definitions give the same catalog at every
    /// member: of two that want one name the older has it.
    pub fn next(&self, view: &View) -> Catalog {
        let mut next = Catalog { table: view.tables.get(DEFINITIONS).cloned(), ..Catalog::default() };
        for kind in &Catalog::native().kinds {
            next.add(kind.clone());
        }
        next.names = self.names.next(view);
        let names = next.names.clone();
        for name in names.served() {
            let Some(object) = view.get(&ObjectKey::new(DEFINITIONS, "", name)) else { continue };
            let ends = object.meta.deletion_timestamp.is_some();
            let accepted = names.accepted(name).map(<[_]>::to_vec);
            let from = (object.meta.uid.clone(), object.meta.generation, ends, accepted);
            let definition = match self.definitions.get(name) {
                Some(known) if known.from == from => known.clone(),
                _ => Definition { from, kinds: kinds_of(object).into_iter().map(Arc::new).collect() },
            };
            definition.kinds.iter().for_each(|kind| next.add(kind.clone()));
            next.definitions.insert(name.to_owned(), definition);
        }
        next
    }

    fn add(&mut self, kind: Arc<Kind>) {
        let id = |name: &str| (name.to_owned(), kind.group.to_string(), kind.version.to_string());
        self.by_plural.insert(id(&kind.plural), self.kinds.len());
        self.by_kind.insert(id(&kind.kind), self.kinds.len());
        self.kinds.push(kind);
    }

    /// Preferred versions of a resource first.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// The kind behind `/apis/<group>/<version>/<plural>`.
    pub fn by_plural(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let id = (plural.to_owned(), group.to_owned(), version.to_owned());
        self.by_plural.get(&id).map(|index| &self.kinds[*index])
    }

    /// The kind that a body with this apiVersion and kind is of.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let id = (kind.to_owned(), group.to_owned(), version.to_owned());
        self.by_kind.get(&id).map(|index| &self.kinds[*index])
    }

    /// The preferred version of a resource by its whole name: `deployments.apps`.
    pub fn by_resource(&self, resource: &str) -> Option<&Arc<Kind>> {
        let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
        self.kinds.iter().find(|kind| kind.group == group && kind.plural == plural)
    }
}

fn same(one: &Table, other: &Table) -> bool {
    one.len() == other.len() && one.diff(other).next().is_none()
}

/// The kinds of this binary: see [`Catalog::kinds`].
pub fn kinds() -> &'static [Arc<Kind>] {
    Catalog::native().kinds()
}

/// A kind of this binary: see [`Catalog::by_plural`].
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    Catalog::native().by_plural(group, version, plural)
}

/// A kind of this binary: see [`Catalog::by_kind`].
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<Kind>> {
    Catalog::native().by_kind(group, version, kind)
}

/// A kind of this binary: see [`Catalog::by_resource`].
pub fn by_resource(resource: &str) -> Option<&'static Arc<Kind>> {
    Catalog::native().by_resource(resource)
}

#[cfg(test)]
mod tests;
