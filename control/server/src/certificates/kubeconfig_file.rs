//! Keeps the admin kubeconfig at the members' addresses and with a certificate that is good.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::Credentials;
use crate::{data_dir::DataDir, error::ServerError, kubeconfig::kubeconfig, peers::MemberSpec};

/// The file `kubeconfig` in the data directory.
pub struct KubeconfigFile {
    data: Arc<DataDir>,
    credentials: Arc<Credentials>,
    me: MemberSpec,
    members: Mutex<BTreeMap<u64, MemberSpec>>,
}

impl KubeconfigFile {
    /// Writes it, with this member alone.
    pub fn new(
        data: Arc<DataDir>,
        credentials: Arc<Credentials>,
        me: MemberSpec,
    ) -> Result<Self, ServerError> {
        let file = Self { data, credentials, me, members: Mutex::default() };
        file.write()?;
        Ok(file)
    }

    /// Writes it with these members.
    pub fn follow(&self, members: &BTreeMap<u64, MemberSpec>) -> Result<(), ServerError> {
        *self.members.lock() = members.clone();
        self.write()
    }

    /// Writes it with the present certificates.
    pub fn write(&self) -> Result<(), ServerError> {
        let members = self.members.lock();
        let others = members.values().filter(|member| member.id != self.me.id);
        let others = others.map(|member| (format!("member-{}", member.id), member.address.clone())).collect();
        let ca = &self.credentials.authorities().serving.bundle();
        let text = kubeconfig(ca, &self.credentials.leaves().admin, &self.me.address, &others);
        self.data.write("kubeconfig", text.as_bytes())
    }
}
