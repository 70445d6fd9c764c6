//! The store in the names of the controllers: each has a service account, and what it writes is admitted as that.

use std::collections::BTreeMap;

use coracle_api::{Admission, Admitted, UserInfo};
use coracle_storage::ReplicatedStorage;

/// See the module.
pub struct Accounts {
    storage: ReplicatedStorage,
    admission: Admission,
    by_name: BTreeMap<&'static str, Admitted<ReplicatedStorage>>,
}

impl Accounts {
    pub fn new(storage: ReplicatedStorage, admission: Admission) -> Self {
        Self { storage, admission, by_name: BTreeMap::new() }
    }

    /// The store for the account of this name.
    pub fn storage_of(&mut self, account: &'static str) -> Admitted<ReplicatedStorage> {
        let made = || self.admission.storage_of(self.storage.clone(), UserInfo::component(account));
        self.by_name.entry(account).or_insert_with(made).clone()
    }
}
