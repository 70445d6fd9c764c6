//! The cluster's network as this node hears of it: Kubernetes objects in, `coracle_fabric::NetworkChange` out.

mod builder;
mod objects;
mod read;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
};

use coracle_fabric::{Fabric, Name, NetworkChange, PodIdentity};
use coracle_wasi_host::net::{Namespace, Uplink};
use serde_json::Value;
use tokio::sync::mpsc;

use self::builder::Builder;
use crate::decode::Key;

/// Where a node object says how its fabric is reached.
pub const FABRIC_ANNOTATION: &str = "coracle.dev/fabric-address";

/// The node's share of the network, or none where pods have only each other's loopback (tests of the executor).
#[derive(Clone, Default)]
pub struct PodNetwork {
    fabric: Option<Fabric>,
    builder: Option<Arc<Builder>>,
    /// Instances of functions that serve, or do so no more: told in their order by a thread of their own.
    serving: Option<mpsc::UnboundedSender<NetworkChange>>,
}

impl PodNetwork {
    /// Starts the thread that tells the fabric what the cluster looks like.
    pub fn start(fabric: Fabric) -> io::Result<Self> {
        let told = fabric.clone();
        let builder = Builder::start(move |changes| told.change(changes))?;
        let (serving, told) = mpsc::unbounded_channel();
        let of = fabric.clone();
        thread::Builder::new().name("instances".to_owned()).spawn(move || tell_serving(&of, told))?;
        Ok(Self { fabric: Some(fabric), builder: Some(Arc::new(builder)), serving: Some(serving) })
    }

    /// What a pod of this Kubernetes namespace reaches beyond itself.
    pub fn uplink(&self, namespace: &str) -> Arc<dyn Uplink> {
        match &self.fabric {
            Some(fabric) => fabric.uplink(namespace),
            None => Arc::new(coracle_wasi_host::net::Isolated),
        }
    }

    /// The pod of this network is reached by the address from now on.
    pub fn attach(&self, address: IpAddr, network: Namespace, pod: PodIdentity) {
        if let Some(fabric) = &self.fabric {
            fabric.attach(address, network, pod);
        }
    }

    pub fn detach(&self, address: IpAddr) {
        if let Some(fabric) = &self.fabric {
            fabric.detach(address);
        }
    }

    /// A pod of this node is an instance of a function's revision, and serves at this address, or does so no more. Of each
    /// pod it is told twice: what waits is bounded by the pods.
    pub fn serve(&self, revision: Name, at: SocketAddr, is_there: bool) {
        if let Some(serving) = &self.serving {
            // The thread lives as long as this.
            let _ = serving.send(NetworkChange::Served(revision, at, is_there));
        }
    }

    /// An object of the network is so now, or is gone. The fabric hears of it soon.
    pub fn change(&self, key: Key, object: Option<Value>) {
        if let Some(builder) = &self.builder {
            builder.change(key, object);
        }
    }

    /// Containers that are started from now on rely on all that changed.
    pub fn hurry(&self) {
        if let Some(builder) = &self.builder {
            builder.hurry();
        }
    }

    /// Containers that are started from now on rely on what changed of namespaces, nodes and claims.
    pub fn hurry_clusters(&self) {
        if let Some(builder) = &self.builder {
            builder.hurry_clusters();
        }
    }

    /// Returns when the fabric knows what a container of this Kubernetes namespace relies on that is started at the time of
    /// the call.
    pub fn told(&self, namespace: &str) -> impl Future<Output = ()> + Send + use<> {
        let told = self.builder.as_ref().map(|builder| builder.told(namespace));
        async move {
            if let Some(told) = told {
                told.await;
            }
        }
    }

    /// How many objects of the network there are.
    pub fn held(&self) -> usize {
        self.builder.as_ref().map_or(0, |builder| builder.held())
    }
}

fn tell_serving(fabric: &Fabric, mut told: mpsc::UnboundedReceiver<NetworkChange>) {
    let mut changes = Vec::new();
    while let Some(first) = told.blocking_recv() {
        changes.push(first);
        while let Ok(next) = told.try_recv() {
            changes.push(next);
        }
        fabric.change(std::mem::take(&mut changes));
    }
}
