#[path = "/work/main/node/fabric/src/model.rs"]
mod model;
pub use model::*;
use std::{net::{IpAddr, SocketAddr}, sync::Arc};
use coracle_wasi_host::net::{Namespace, Uplink, Isolated};
pub struct Fabric;
pub struct FabricConfig { pub node_name: String, pub listen: SocketAddr, pub gateway_listen: Option<SocketAddr>, pub tls: FabricTls }
pub struct FabricTls { pub server: Arc<rustls::ServerConfig>, pub client: Arc<rustls::ClientConfig> }
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct FabricError;
impl Fabric {
    pub async fn start(_c: FabricConfig) -> Result<Fabric, FabricError> { Ok(Fabric) }
    pub fn address(&self) -> SocketAddr { ([127,0,0,1],1).into() }
    pub fn gateway_address(&self) -> Option<SocketAddr> { None }
    pub fn uplink(&self, _n: &str) -> Arc<dyn Uplink> { Arc::new(Isolated) }
    pub fn attach(&self, _a: IpAddr, _n: Namespace) {}
    pub fn detach(&self, _a: IpAddr) {}
    pub fn update(&self, _s: NetworkState) {}
    pub fn shutdown(&self) {}
}
