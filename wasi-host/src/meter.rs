//! What one store's handles take of the host.
//!
//! The host's functions keep what guests ask for in the store's resource table, and no one of them has a place for a charge.
//! So the table is looked at before each call of a guest, when its room or the call before gives reason to:
//!
//! - places in the table are charged as the table grows, in steps that double, and there are no more than were charged for;
//! - so are places in the table in which wasmtime keeps the tasks, streams and futures of WASI 0.3;
//! - what grows without a place more, such as header fields, is added up after each call that may have made some of it
//!   larger. How large an entry is its capability says.
//!
//! A call can thus add at most its own part before it is counted. Where that is refused, the guest gets no more places, and
//! of its capabilities little more, until it lets go of what it has.

use std::sync::Arc;

use wasmtime::component::ResourceTable;

use crate::capability::content_bytes;
use crate::ledger::{Account, Charge, Holding, Refused};
use crate::limits::RESOURCES_MAX;

/// Bytes of the host that a store takes as it is made, the first places of its table and small fields included.
const STORE_BYTES: u64 = 48 << 10;

/// Places of the table of tasks, streams and futures of a new store of WASI 0.3. Each is charged as one of the other table.
const TASKS_MIN: usize = 256;

/// Places that have to be free there as a call begins: all the requests that an instance may have can begin without one.
const TASKS_AHEAD: usize = 96;

/// Places of a new store's table.
const PLACES_MIN: usize = 32;

/// Places that have to be free as a call begins; none takes as many.
const PLACES_AHEAD: usize = 8;

/// Bytes of the host that a place in the table takes, with what stands there.
const PLACE_BYTES: u64 = 512;

/// Bytes of contents that are part of [`STORE_BYTES`].
const CONTENTS_FREE: u64 = 4 << 10;

/// One store's part of its container's account.
pub(crate) struct Meter {
    charge: Charge,
    /// What was charged as the store was made.
    base: u64,
    places: usize,
    /// Places of the table of tasks; none on the engine of 0.2.
    tasks: usize,
    contents: u64,
    /// The contents of the table are more than was admitted.
    is_over: bool,
}

impl Meter {
    /// Charges for a new store, whose guest has a copy of so many bytes of arguments and environment.
    pub(crate) fn new(account: &Arc<Account>, copied: u64, is_async: bool) -> Result<Meter, Refused> {
        let tasks = if is_async { TASKS_MIN } else { 0 };
        let base = STORE_BYTES + copied + tasks as u64 * PLACE_BYTES;
        let charge = account.charge(Holding::Heap, base)?;
        Ok(Meter { charge, base, places: PLACES_MIN, tasks, contents: 0, is_over: false })
    }

    /// An empty table with as many places as are charged for.
    pub(crate) fn table(&self) -> ResourceTable {
        let mut table = ResourceTable::new();
        table.set_max_capacity(self.places);
        table
    }

    /// Something more that the store holds as long as it lives.
    pub(crate) fn hold(&mut self, bytes: u64) -> Result<(), Refused> {
        self.charge.grow(bytes)?;
        self.base += bytes;
        Ok(())
    }

    /// So many things that one call keeps, each as much as what stands in the table, until the charge is dropped.
    pub(crate) fn of_call(&self, things: u32) -> Result<Charge, Refused> {
        self.charge.account().charge(Holding::Heap, u64::from(things) * PLACE_BYTES)
    }

    /// Before a call: has the table grow where it is nearly full. Places are used again, so that one near the end is taken
    /// only where all before it have been.
    pub(crate) fn make_room(&mut self, table: &mut ResourceTable) {
        let near_end = u32::try_from(self.places - PLACES_AHEAD).unwrap_or(u32::MAX);
        if self.places < RESOURCES_MAX && table.get_any_mut(near_end).is_ok() {
            self.grow(table);
        }
    }

    #[cold]
    fn grow(&mut self, table: &mut ResourceTable) {
        let places = (self.places * 2).min(RESOURCES_MAX);
        match self.charge.grow((places - self.places) as u64 * PLACE_BYTES) {
            Ok(()) => {
                self.places = places;
                table.set_max_capacity(places);
            }
            Err(refused) => self.charge.account().remember(refused),
        }
    }

    /// Places that are charged for in the table of tasks.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks
    }

    /// The place of that table which is taken only where it is nearly full.
    pub(crate) fn tasks_near_end(&self) -> u32 {
        u32::try_from(self.tasks.saturating_sub(TASKS_AHEAD)).unwrap_or(u32::MAX)
    }

    /// As many places for tasks as there may be now, where there may be more than there are.
    #[cold]
    pub(crate) fn grow_tasks(&mut self) -> Option<usize> {
        let places = (self.tasks * 2).min(RESOURCES_MAX);
        let more = places - self.tasks;
        if more == 0 {
            return None;
        }
        match self.hold(more as u64 * PLACE_BYTES) {
            Ok(()) => self.tasks = places,
            Err(refused) => {
                self.charge.account().remember(refused);
                return None;
            }
        }
        Some(places)
    }

    /// Before a call, where the last one may have made something larger: adds up what the table's contents are.
    pub(crate) fn count(&mut self, table: &mut ResourceTable) {
        let contents: u64 = table.iter_mut().map(|entry| content_bytes(entry)).sum();
        self.contents = contents.saturating_sub(CONTENTS_FREE);
        let all = self.base + (self.places - PLACES_MIN) as u64 * PLACE_BYTES + self.contents;
        let admitted = self.charge.set(all);
        // What was refused is held nevertheless: it stays too much for as long as the account would refuse more.
        let account = self.charge.account();
        self.is_over = admitted.is_err() || (self.is_over && account.is_pressed(Holding::Heap));
        if let Err(refused) = admitted {
            self.charge.set_held(all);
            self.charge.account().remember(refused);
        }
    }

    /// True while the contents are more than was admitted.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use wasmtime_wasi_http::FieldMap;

    use super::*;
    use crate::ledger::{Ledger, NodeBounds};

    /// A store's meter in a pod that may hold so many bytes beside what each has for certain.
    fn meter(heap: u64) -> (Arc<Account>, Meter) {
        let bounds = NodeBounds { memory: None, heap, files: 0, files_guaranteed: 0 };
        let account = Ledger::new(bounds).pod(&"default".into(), None).container(None);
        let meter = Meter::new(&account, 100, false).expect("within what is certain");
        (account, meter)
    }

    #[test]
    fn places_are_charged_as_they_are_needed_and_no_more_than_that() {
        let (account, mut meter) = meter(4 << 20);
        let before = account.held(Holding::Heap);
        assert_eq!(before, STORE_BYTES + 100);
        let mut table = meter.table();
        let mut pushed = 0;
        let full = loop {
            meter.make_room(&mut table);
            if let Err(full) = table.push(0_u8) {
                break full;
            }
            pushed += 1;
        };
        assert!(matches!(full, wasmtime::component::ResourceTableError::Full));
        assert_eq!(account.held(Holding::Heap), before + (pushed - PLACES_MIN as u64) * PLACE_BYTES);
        assert!(pushed > 1000 && account.refusal().is_some(), "{pushed}");
        drop(meter);
        assert_eq!(account.held(Holding::Heap), 0);
    }

    #[test]
    fn places_for_tasks_are_charged_as_they_are_needed() {
        let bounds = NodeBounds { memory: None, heap: 4 << 20, files: 0, files_guaranteed: 0 };
        let account = Ledger::new(bounds).pod(&"default".into(), None).container(None);
        let mut meter = Meter::new(&account, 0, true).expect("within what is certain");
        let before = account.held(Holding::Heap);
        assert_eq!(before, STORE_BYTES + TASKS_MIN as u64 * PLACE_BYTES);
        assert_eq!(meter.tasks_near_end() as usize, TASKS_MIN - TASKS_AHEAD);
        let mut places = TASKS_MIN;
        while let Some(more) = meter.grow_tasks() {
            assert!(more > places && more <= RESOURCES_MAX);
            places = more;
            assert_eq!(account.held(Holding::Heap), before + (places - TASKS_MIN) as u64 * PLACE_BYTES);
        }
        assert!(places > 1000 && places == meter.tasks() && account.refusal().is_some(), "{places}");
        // Counting contents forgets none of them.
        meter.count(&mut ResourceTable::new());
        assert_eq!(account.held(Holding::Heap), before + (places - TASKS_MIN) as u64 * PLACE_BYTES);
        drop(meter);
        assert_eq!(account.held(Holding::Heap), 0);
    }

    #[test]
    fn contents_are_counted_and_given_back_with_what_held_them() {
        let (account, mut meter) = meter(1 << 20);
        let before = account.held(Holding::Heap);
        let mut table = meter.table();
        let mut fields = FieldMap::new_mutable(64 << 10);
        let value = http::HeaderValue::from_bytes(&vec![b'x'; 60 << 10]).expect("a value");
        fields.append_raw(http::header::COOKIE, value).expect("within the limit");
        let first = table.push(fields.clone()).expect("room");
        meter.count(&mut table);
        assert!((50 << 10..64 << 10).contains(&(account.held(Holding::Heap) - before)) && !meter.is_over());
        for _ in 0..20 {
            table.push(fields.clone()).expect("room");
        }
        meter.count(&mut table);
        assert!(meter.is_over(), "more than there is, and counted nevertheless");
        meter.count(&mut table);
        assert!(meter.is_over(), "as long as it is there");
        assert!(account.held(Holding::Heap) > 20 * (60 << 10) && account.is_pressed(Holding::Heap));
        table.delete(first).expect("there");
        table.iter_mut().for_each(|entry| {
            if let Some(fields) = entry.downcast_mut::<FieldMap>() {
                *fields = FieldMap::default();
            }
        });
        meter.count(&mut table);
        assert!(!meter.is_over());
        assert_eq!(account.held(Holding::Heap), before);
    }
}
