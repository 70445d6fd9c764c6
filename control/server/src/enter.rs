//! How a control node comes to belong to a cluster: makes one, joins one, or finds that it has one already.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use coracle_pki::Authorities;
use coracle_proto::join::{self, Build, JoinToken, Role};
use coracle_raft::chain;
use coracle_storage::encryption::SecretBox;
use tokio::net::TcpListener;

use crate::{
    authority_files,
    config::{ControlConfig, Mode},
    data_dir::{DataDir, Membership},
    error::ServerError,
    join::host,
    recover,
};

/// The raft id of the member that makes a cluster.
pub const FIRST_MEMBER: u64 = 1;

/// What a control node knows of its cluster before raft starts.
pub struct Entered {
    pub membership: Membership,
    pub authorities: Authorities,
    /// The keys for Secrets.
    pub secrets: SecretBox,
    /// The members' addresses by raft id, as far as they are known.
    pub peers: BTreeMap<u64, String>,
    /// The cluster is new: raft begins with this member alone, and `membership` is not recorded yet.
    pub founds: bool,
}

/// Belongs to a cluster as the configuration says, or as the data directory says already.
pub async fn enter(config: &ControlConfig, data: &DataDir, address: &str) -> Result<Entered, ServerError> {
    if data.path(recover::JOURNAL).exists() {
        return Err(ServerError::Recovering(data.root().to_owned()));
    }
    match (data.membership()?, &config.mode) {
        (Some(membership), _) => resume(config, data, membership, address),
        (None, Mode::Init) => found(config, data, address),
        (None, Mode::Join { addresses, token }) => {
            join_cluster(config, data, address, addresses, token).await
        }
        (None, Mode::Resume) => Err(ServerError::NothingToResume(data.root().to_owned())),
    }
}

fn resume(
    config: &ControlConfig,
    data: &DataDir,
    found: Membership,
    address: &str,
) -> Result<Entered, ServerError> {
    let authorities = authority_files::load(data)?;
    let secrets = SecretBox::load(&config.key_ring_path())?;
    if let Mode::Join { token, .. } = &config.mode {
        let token: JoinToken = token.parse()?;
        if !authorities.has_serving_pin(&token.ca_pin)? {
            let path = data.root().to_owned();
            return Err(ServerError::OtherCluster { path, cluster_id: found.cluster_id });
        }
    }
    let membership = Membership { address: address.into(), ..found.clone() };
    if membership != found
        && let Err(error) = data.record(&membership)
    {
        // The others are told of it all the same.
        tracing::warn!(error = chain(&error), "the new address is not written down");
    }
    let mut peers = data.peers();
    peers.insert(membership.member_id, address.into());
    Ok(Entered { membership, authorities, secrets, peers, founds: false })
}

fn found(config: &ControlConfig, data: &DataDir, address: &str) -> Result<Entered, ServerError> {
    data.begin()?;
    let cluster_id = uuid::Uuid::new_v4().to_string();
    let authorities = Authorities::generate(&cluster_id)?;
    authority_files::save(&authorities, data)?;
    let secrets = SecretBox::found(&config.key_ring_path())?;
    let membership = Membership::control(&cluster_id, FIRST_MEMBER, &config.name, address);
    let peers = [(FIRST_MEMBER, address.to_owned())].into();
    Ok(Entered { membership, authorities, secrets, peers, founds: true })
}

async fn join_cluster(
    config: &ControlConfig,
    data: &DataDir,
    address: &str,
    addresses: &[String],
    token: &str,
) -> Result<Entered, ServerError> {
    let token: JoinToken = token.parse()?;
    if token.role != Role::Control {
        return Err(ServerError::TokenRole { found: token.role.as_str() });
    }
    let build = Build { version: config.build.version.clone(), entry_format: config.build.level().into() };
    let response = join::join_as(addresses, &token, &config.name, address, &build).await?.response;
    let authorities =
        Authorities::from_bytes(&response.ca_keys_pem).ok_or(ServerError::JoinAnswer("the CA keys"))?;
    if !authorities.has_serving_pin(&token.ca_pin)? {
        return Err(ServerError::JoinAnswer("the serving CA that the token pins"));
    }
    if response.member_id == 0 || response.cluster_id.is_empty() {
        return Err(ServerError::JoinAnswer("a member id"));
    }
    data.begin()?;
    authority_files::save(&authorities, data)?;
    let secrets = SecretBox::join(&config.key_ring_path(), &response.key_ring)?;
    let mut peers: BTreeMap<u64, String> =
        response.members.into_iter().map(|member| (member.id, member.address)).collect();
    peers.insert(response.member_id, address.to_owned());
    data.record_peers(&peers)?;
    let membership = Membership::control(&response.cluster_id, response.member_id, &config.name, address);
    data.record(&membership)?;
    Ok(Entered { membership, authorities, secrets, peers, founds: false })
}

/// Listens where it is told; a port 0 takes the port of the last start where that is free.
pub async fn listen(address: SocketAddr, data: &DataDir) -> Result<TcpListener, ServerError> {
    if address.port() == 0 {
        let last = data.membership()?.and_then(|membership| port_of(&membership.address));
        if let Some(port) = last
            && let Ok(listener) = TcpListener::bind(SocketAddr::new(address.ip(), port)).await
        {
            return Ok(listener);
        }
    }
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

/// `host:port` under which others reach what listens on `bound`.
pub fn advertised(configured: Option<&str>, bound: SocketAddr) -> String {
    let joined = |host: &str, port: u16| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    let own = || if bound.ip().is_unspecified() { default_route(bound.ip()) } else { bound.ip() }.to_string();
    match configured {
        Some(address) => match port_of(address) {
            Some(port) if host(address).is_empty() => {
                joined(&own(), if port == 0 { bound.port() } else { port })
            }
            Some(port) => joined(host(address), if port == 0 { bound.port() } else { port }),
            None => joined(address.trim_start_matches('[').trim_end_matches(']'), bound.port()),
        },
        None => joined(&own(), bound.port()),
    }
}

fn port_of(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    // An IPv6 address without brackets has colons but no port.
    let ambiguous = host.contains(':') && !host.ends_with(']');
    port.parse().ok().filter(|_| !ambiguous)
}

/// This machine's address towards the world. Connecting a UDP socket sends nothing.
fn default_route(unspecified: IpAddr) -> IpAddr {
    let (local, remote) =
        if unspecified.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let address = UdpSocket::bind(local).and_then(|socket| {
        socket.connect(remote)?;
        socket.local_addr()
    });
    let loopback = IpAddr::from(std::net::Ipv4Addr::LOCALHOST);
    address.map_or(loopback, |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advertised_address_is_complete() {
        let bound: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        assert_eq!(advertised(None, bound), "127.0.0.1:6443");
        assert_eq!(advertised(Some("control.example"), bound), "control.example:6443");
        assert_eq!(advertised(Some("control.example:7000"), bound), "control.example:7000");
        assert_eq!(advertised(Some("10.0.0.1:0"), bound), "10.0.0.1:6443");
        assert_eq!(advertised(Some(":7000"), bound), "127.0.0.1:7000");
        assert_eq!(advertised(Some("fd00::1"), bound), "[fd00::1]:6443");
        assert_eq!(advertised(Some("[fd00::1]:7000"), bound), "[fd00::1]:7000");
        let any = advertised(None, "0.0.0.0:6443".parse().unwrap());
        assert!(!any.starts_with("0.0.0.0"), "{any}");
    }
}
