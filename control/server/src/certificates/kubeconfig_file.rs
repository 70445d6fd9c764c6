//! Keeps the admin kubeconfig at the members' addresses and with a certificate that is good.

use std::{collections::BTreeMap, sync::Arc};

use coracle_storage::peers::MemberSpec;
use parking_lot::Mutex;

use super::Credentials;
use crate::{data_dir::DataDir, error::ServerError, kubeconfig::kubeconfig};

/// The file in the data directory.
pub const KUBECONFIG: &str = "kubeconfig";

/// The file [`KUBECONFIG`].
pub struct KubeconfigFile {
    data: Arc<DataDir>,
    credentials: Arc<Credentials>,
    me: MemberSpec,
    addresses: Mutex<BTreeMap<u64, String>>,
}

impl KubeconfigFile {
    /// For members at these addresses. Does not write it yet.
    pub fn new(
        data: Arc<DataDir>,
        credentials: Arc<Credentials>,
        me: MemberSpec,
        addresses: BTreeMap<u64, String>,
    ) -> Self {
        Self { data, credentials, me, addresses: Mutex::new(addresses) }
    }

    /// Writes it with these members.
    pub fn follow(&self, addresses: &BTreeMap<u64, String>) -> Result<(), ServerError> {
        self.addresses.lock().clone_from(addresses);
        self.write()
    }

    /// Writes it with the present certificates, where anything has changed.
    pub fn write(&self) -> Result<(), ServerError> {
        let addresses = self.addresses.lock();
        let others = addresses.iter().filter(|(id, _)| **id != self.me.id);
        let others = others.map(|(id, address)| (format!("member-{id}"), address.clone())).collect();
        let ca = &self.credentials.authorities().serving.bundle();
        let text = kubeconfig(ca, &self.credentials.leaves().admin, &self.me.address, &others);
        self.data.write(KUBECONFIG, text.as_bytes())
    }
}
