//! What is taken though disks are nearly full: what makes room, and what leads to that.

use coracle_objects::{Transaction, View, Write};

/// An update may add so many bytes to an object though the disk is nearly full: deleting begins with an update.
pub const GROWTH_BYTES_MAX: usize = 256;

/// Whether a transaction makes the state notably larger.
pub fn grows(view: &View, transaction: &Transaction) -> bool {
    transaction.writes.iter().any(|write| match write {
        Write::Delete { .. } => false,
        Write::Put { key, draft } => {
            let before = view.get(key).map(|object| object.draft().len() + GROWTH_BYTES_MAX);
            before.is_none_or(|bytes_max| draft.len() > bytes_max)
        }
    })
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Object, ObjectKey};

    use super::*;

    #[test]
    fn a_full_disk_takes_deletes_and_what_leads_to_them() {
        let key = ObjectKey::new("configmaps", "default", "a");
        let draft = |bytes: usize| format!(r#"{{"metadata":{{"name":"a"}},"x":"{}"}}"#, "y".repeat(bytes));
        let object = Object::from_draft(key.clone(), draft(1000).as_bytes(), 1).unwrap();
        let mut view = View::default();
        view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.into());

        let update = |bytes| Transaction::update(key.clone(), draft(bytes).into(), 1);
        assert!(!grows(&view, &Transaction::delete(key.clone(), 1)));
        assert!(!grows(&view, &update(10)) && !grows(&view, &update(1000 + GROWTH_BYTES_MAX)));
        assert!(grows(&view, &update(1001 + GROWTH_BYTES_MAX)));
        let other = ObjectKey::new("configmaps", "default", "b");
        assert!(grows(&view, &Transaction::create(other, draft(1).into())));
    }
}
