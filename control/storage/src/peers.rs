//! The other control nodes: their addresses and the channels to them.

use std::{collections::BTreeMap, sync::Arc};

use coracle_objects::View;
use coracle_proto::tls::{self, ClientTls};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tonic::transport::Channel;

/// Control nodes that are known at most; a cluster has far fewer.
const PEERS_MAX: usize = 64;

/// The resource whose objects are the members.
pub const MEMBERS: &str = "members.coracle.dev";

/// `spec` of a member object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberSpec {
    /// Its id in raft.
    pub id: u64,
    /// As people call it, a DNS label.
    pub name: String,
    /// `host:port` of its one port.
    pub address: String,
    /// The build that runs; empty until the member has announced it.
    #[serde(default)]
    pub version: String,
    /// The newest level that it knows; 0 until announced. Its name in the object is that of the first builds.
    #[serde(default, rename = "entryFormat")]
    pub level: u8,
}

#[derive(Deserialize)]
struct MemberObject {
    spec: MemberSpec,
}

impl MemberSpec {
    /// The fields of a member object beside its metadata.
    pub fn to_body(&self) -> Value {
        json!({ "spec": self })
    }
}

/// The members by their objects, in order of their ids. What is not readable is left out.
pub fn members(view: &View) -> BTreeMap<u64, MemberSpec> {
    let objects = view.list(MEMBERS, None).filter_map(|object| object.parse::<MemberObject>().ok());
    objects.map(|member| (member.spec.id, member.spec)).take(PEERS_MAX).collect()
}

/// Where the members are, and a channel to each, made when first used.
pub struct Peers {
    tls: ClientTls,
    known: Mutex<BTreeMap<u64, Known>>,
}

struct Known {
    address: String,
    channel: Option<Channel>,
    logs: Option<Channel>,
}

impl Peers {
    /// `tls` shows this member's peer certificate.
    pub fn new(tls: ClientTls) -> Self {
        Self { tls, known: Mutex::default() }
    }

    /// What raft's transport opens its channels with.
    pub fn connector(self: &Arc<Self>) -> Arc<dyn Fn(String) -> Channel + Send + Sync> {
        let peers = self.clone();
        Arc::new(move |address| tls::channel(&address, peers.tls.clone()))
    }

    /// Replaces the addresses; channels to addresses that stay are kept.
    pub fn set(&self, addresses: &BTreeMap<u64, String>) {
        let mut known = self.known.lock();
        known.retain(|id, peer| addresses.get(id) == Some(&peer.address));
        for (&id, address) in addresses.iter().take(PEERS_MAX) {
            known.entry(id).or_insert_with(|| Known { address: address.clone(), channel: None, logs: None });
        }
    }

    /// Where a member is, as far as this one knows.
    pub fn address(&self, id: u64) -> Option<String> {
        self.known.lock().get(&id).map(|peer| peer.address.clone())
    }

    /// Where all known members are, this one among them.
    pub fn addresses(&self) -> BTreeMap<u64, String> {
        self.known.lock().iter().map(|(&id, peer)| (id, peer.address.clone())).collect()
    }

    /// A channel to a member whose address is known. It connects at its first call.
    pub fn channel(&self, id: u64) -> Option<Channel> {
        let mut known = self.known.lock();
        let peer = known.get_mut(&id)?;
        let channel = peer.channel.get_or_insert_with(|| tls::channel(&peer.address, self.tls.clone()));
        Some(channel.clone())
    }

    /// The same for logs, whose readers may be slow: they must not hold up what else is asked of the member.
    pub(crate) fn logs_channel(&self, id: u64) -> Option<Channel> {
        let mut known = self.known.lock();
        let peer = known.get_mut(&id)?;
        let make = || tls::streaming_channel(&peer.address, self.tls.clone());
        Some(peer.logs.get_or_insert_with(make).clone())
    }
}
