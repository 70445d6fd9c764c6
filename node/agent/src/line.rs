//! A line in which what the cluster says of its objects waits, for the disk or to be read. Of an object only the newest
//! waits: who writes one again and again makes the line no longer, and those behind wait no longer for it.
//!
//! A newer version takes the place of the one that waits, so that what was said after that one sees it or a newer one,
//! never an older. A deletion keeps its own place, and what waits of the object is not waited for any more.

use std::collections::{BTreeMap, btree_map::Entry};

use coracle_proto::node::{ObjectEvent, object_event};

use crate::decode::Key;

/// What a place in the line takes beside the object's JSON, in bytes, about.
const PLACE_BYTES: usize = 512;

/// What can wait.
pub trait Waits {
    /// The object that it is about, if it is about one.
    fn object(&self) -> Option<&ObjectEvent>;
}

#[derive(Debug)]
pub struct Line<T> {
    all: BTreeMap<u64, T>,
    /// Of each object, as far as its next version may still take the place of the one that waits.
    places: BTreeMap<Key, Places>,
    next: u64,
    bytes: usize,
}

/// Where an object waits: a deletion is always before what came after it.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    deletion: Option<u64>,
    version: Option<u64>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), places: BTreeMap::new(), next: 0, bytes: 0 }
    }
}

impl<T: Waits> Line<T> {
    pub fn push(&mut self, one: T) {
        let Some(object) = one.object() else {
            self.append(one);
            return;
        };
        let (key, is_deletion) = (key(object), object.r#type() == object_event::Type::Delete);
        let Places { deletion, version } = self.places.get(&key).copied().unwrap_or_default();
        let places = if is_deletion {
            if let Some(gone) = version.and_then(|at| self.all.remove(&at)) {
                self.bytes -= size(&gone);
            }
            Places { deletion: deletion.or_else(|| Some(self.append(one))), version: None }
        } else {
            let at = version.unwrap_or_else(|| self.new_place());
            self.put(at, one);
            Places { deletion, version: Some(at) }
        };
        self.places.insert(key, places);
    }

    pub fn pop(&mut self) -> Option<T> {
        let (at, one) = self.all.pop_first()?;
        self.bytes -= size(&one);
        if let Some(object) = one.object()
            && let Entry::Occupied(mut places) = self.places.entry(key(object))
        {
            let Places { deletion, version } = places.get_mut();
            *deletion = deletion.filter(|place| *place != at);
            *version = version.filter(|place| *place != at);
            if deletion.is_none() && version.is_none() {
                places.remove();
            }
        }
        Some(one)
    }

    /// What comes from now on takes no place of what waits now.
    pub fn divide(&mut self) {
        self.places.clear();
    }

    /// Of all that waits, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn append(&mut self, one: T) -> u64 {
        let at = self.new_place();
        self.put(at, one);
        at
    }

    fn new_place(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn put(&mut self, at: u64, one: T) {
        self.bytes += size(&one);
        if let Some(before) = self.all.insert(at, one) {
            self.bytes -= size(&before);
        }
    }
}

fn key(object: &ObjectEvent) -> Key {
    (object.resource.clone(), object.namespace.clone(), object.name.clone())
}

fn size(one: &impl Waits) -> usize {
    PLACE_BYTES + one.object().map_or(0, |object| object.object_json.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    enum One {
        Object(ObjectEvent),
        Mark(&'static str),
    }

    impl Waits for One {
        fn object(&self) -> Option<&ObjectEvent> {
            if let Self::Object(object) = self { Some(object) } else { None }
        }
    }

    fn line(words: &[&'static str]) -> Line<One> {
        let mut line = Line::default();
        push(&mut line, words);
        line
    }

    /// `a1` is the first version of `a`, `-a` its deletion, `|` divides; anything else is no object.
    fn push(line: &mut Line<One>, words: &[&'static str]) {
        for word in words {
            let object = |name: &str, revision, r#type: object_event::Type| ObjectEvent {
                r#type: r#type.into(),
                name: name.into(),
                revision,
                object_json: vec![b'x'; 1000].into(),
                ..ObjectEvent::default()
            };
            match (word.strip_prefix('-'), word.split_at_checked(1)) {
                (Some(name), _) => {
                    line.push(One::Object(object(name, 0, object_event::Type::Delete)));
                }
                (None, Some(("|", _))) => line.divide(),
                (None, Some((name, version))) => match version.parse() {
                    Ok(revision) => {
                        line.push(One::Object(object(name, revision, object_event::Type::Put)));
                    }
                    Err(_) => line.push(One::Mark(word)),
                },
                (None, None) => {}
            }
        }
    }

    fn popped(line: &mut Line<One>, most: usize) -> Vec<String> {
        let all = std::iter::from_fn(|| line.pop()).take(most);
        let words = all.map(|one| match one {
            One::Object(object) if object.r#type() == object_event::Type::Delete => {
                format!("-{}", object.name)
            }
            One::Object(object) => format!("{}{}", object.name, object.revision),
            One::Mark(mark) => mark.to_owned(),
        });
        words.collect()
    }

    fn through(words: &[&'static str]) -> Vec<String> {
        popped(&mut line(words), usize::MAX)
    }

    #[test]
    fn a_newer_version_takes_the_place_of_the_one_that_waits() {
        assert_eq!(through(&["a1", "b1", "sync", "a2", "c1", "a3"]), ["a3", "b1", "sync", "c1"]);
    }

    #[test]
    fn deletions_keep_their_places_and_nothing_older_comes_after_them() {
        assert_eq!(through(&["a1", "b1", "-a"]), ["b1", "-a"]);
        assert_eq!(through(&["-a", "b1", "a2", "c1", "a3"]), ["-a", "b1", "a3", "c1"]);
        // Again and again: it is gone since the first.
        assert_eq!(through(&["a1", "-a", "b1", "a2", "-a", "a3", "-a", "-a"]), ["-a", "b1"]);
        assert_eq!(through(&["a1", "-a", "a2", "-a", "b1", "a3"]), ["-a", "b1", "a3"]);
    }

    #[test]
    fn what_has_left_the_line_is_not_replaced() {
        let mut line = line(&["a1", "b1", "-c", "c1"]);
        assert_eq!(popped(&mut line, 1), ["a1"]);
        push(&mut line, &["a2", "a3"]);
        assert_eq!(popped(&mut line, 2), ["b1", "-c"]);
        push(&mut line, &["-c"]);
        assert_eq!(popped(&mut line, 9), ["a3", "-c"]);
        assert!(line.places.is_empty());
    }

    #[test]
    fn nothing_is_replaced_across_a_division() {
        assert_eq!(through(&["a1", "-b", "|", "up", "a2", "-b", "a3"]), ["a1", "-b", "up", "a3", "-b"]);
    }

    #[test]
    fn the_line_is_as_long_as_the_objects_in_it() {
        let mut line = line(&["up", "a1", "b1"]);
        let bytes = line.bytes();
        assert_eq!(bytes, 3 * PLACE_BYTES + 2000);
        for _ in 0..1000 {
            push(&mut line, &["a2", "b2"]);
        }
        assert_eq!((line.bytes(), line.all.len()), (bytes, 3));
        for _ in 0..1000 {
            push(&mut line, &["a3", "-a"]);
        }
        assert_eq!(line.all.len(), 3);
        popped(&mut line, 9);
        assert_eq!((line.bytes(), line.places.len()), (0, 0));
    }
}
