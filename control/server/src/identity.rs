//! Who is at the other end of a connection: decided by which CA signed the client's certificate.

use std::time::{Duration, SystemTime};

use coracle_api::UserInfo;
use coracle_leader::node_object::BoundTo;
use coracle_pki::{Authorities, CONTROL_ORGANIZATION, MEMBER_PREFIX, NODE_UID_PREFIX, NODES_ORGANIZATION};
use coracle_proto::tls;
use rustls_pki_types::CertificateDer;
use tonic::Status;
use x509_parser::{
    prelude::{GeneralName, X509Certificate},
    x509::X509Name,
};

use crate::{
    access::Audience,
    authorization::{FORMER_MEMBERS, MEMBERS},
    error::ServerError,
};

/// The peer of one connection. In the extensions of each of its requests.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Without a client certificate.
    Anonymous,
    /// Another control node, by its raft id.
    Member(u64),
    /// What was a control node once, and is none any more.
    FormerMember(u64),
    /// An administrator, a node or another user of the API.
    Client(UserInfo),
}

/// Whom a connection is of, and what its certificate says. Whether that still counts is judged at each request.
#[derive(Clone, Debug)]
pub struct Peer {
    pub caller: Caller,
    /// `None` for callers that are anonymous.
    pub certificate: Option<Shown>,
}

/// What is kept of a client's certificate.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The name of the CA that signed it, as it is encoded.
    issuer: Vec<u8>,
    /// When it ends.
    pub ends: SystemTime,
    /// Of the Node that it was issued for; `None` for others, and from versions before there was such a thing.
    pub bound_to: Option<BoundTo>,
}

/// Tells callers apart. The TLS handshake has verified the chain already; CAs sign leaves directly and have
/// different names, so the issuer's name says which one it was.
#[derive(Clone)]
pub struct Callers {
    peer_cas: Vec<Vec<u8>>,
    client_cas: Vec<Vec<u8>>,
}

impl Callers {
    pub fn new(authorities: &Authorities) -> Result<Self, ServerError> {
        let subjects = |pem: &str| -> Result<Vec<Vec<u8>>, ServerError> {
            let mut subjects = vec![];
            for der in tls::certificates(pem, "CA")? {
                let parsed = parse(&der).ok_or(tls::TlsError::Empty { what: "CA" })?;
                subjects.push(parsed.subject().as_raw().to_vec());
            }
            Ok(subjects)
        };
        Ok(Self {
            peer_cas: subjects(&authorities.peer.bundle())?,
            client_cas: subjects(&authorities.client.bundle())?,
        })
    }

    /// `chain` is what the client showed in the handshake, leaf first.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        let caller = self.identify(chain);
        let leaf = chain.and_then(<[_]>::first).and_then(parse);
        let certificate = leaf.filter(|_| !matches!(caller, Caller::Anonymous)).map(|leaf| Shown {
            issuer: leaf.issuer().as_raw().to_vec(),
            ends: SystemTime::UNIX_EPOCH
                + Duration::from_secs(leaf.validity().not_after.timestamp().max(0) as u64),
            bound_to: node_uid(&leaf).map(BoundTo),
        });
        Peer { caller, certificate }
    }

    /// Whether the CA that signed a certificate is one that is trusted now.
    pub fn trusts(&self, shown: &Shown) -> bool {
        self.peer_cas.iter().chain(&self.client_cas).any(|ca| *ca == shown.issuer)
    }

    /// `chain` is what the client showed in the handshake, leaf first.
    pub fn identify(&self, chain: Option<&[CertificateDer<'_>]>) -> Caller {
        let Some(leaf) = chain.and_then(<[_]>::first).and_then(parse) else { return Caller::Anonymous };
        let issuer = leaf.issuer().as_raw();
        let groups = organizations(leaf.subject());
        let user = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or("");
        let one_of = |cas: &[Vec<u8>]| cas.iter().any(|ca| issuer == ca.as_slice());
        if one_of(&self.peer_cas) {
            let control = groups.iter().any(|group| group == CONTROL_ORGANIZATION);
            let id = user.strip_prefix(MEMBER_PREFIX).and_then(|id| id.parse().ok());
            id.filter(|id| control && *id != 0).map_or(Caller::Anonymous, Caller::Member)
        } else if one_of(&self.client_cas) {
            // Who is a control node the other CA says.
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            let groups: Vec<&str> =
                groups.into_iter().filter(|group| ![MEMBERS, FORMER_MEMBERS].contains(group)).collect();
            Caller::Client(UserInfo::new(user, &groups).completed())
        } else {
            Caller::Anonymous
        }
    }
}

impl Caller {
    pub fn is_node(&self) -> bool {
        self.in_group(NODES_ORGANIZATION)
    }

    /// The name of the node that calls.
    pub fn node(&self) -> Option<&str> {
        match self {
            Caller::Client(user) => user.as_node(),
            _ => None,
        }
    }

    fn in_group(&self, group: &str) -> bool {
        matches!(self, Caller::Client(user) if user.is_in(group))
    }

    /// The user that it is to an authorizer.
    pub fn user(&self) -> UserInfo {
        let member = |id: &u64, group| UserInfo::new(format!("{MEMBER_PREFIX}{id}"), &[group]).completed();
        match self {
            Caller::Anonymous => UserInfo::anonymous(),
            Caller::Member(id) => member(id, MEMBERS),
            Caller::FormerMember(id) => member(id, FORMER_MEMBERS),
            Caller::Client(user) => user.clone(),
        }
    }
}

/// The caller of a gRPC request.
pub fn caller<T>(request: &tonic::Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anonymous)
}

/// Refuses a gRPC call of anyone but another control node.
#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
pub fn members_only<T>(request: &tonic::Request<T>) -> Result<(), Status> {
    Audience::Members.admit(&caller(request))
}

/// Refuses a gRPC call of anyone but an administrator or another control node.
#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
pub fn administrators_only<T>(request: &tonic::Request<T>) -> Result<(), Status> {
    Audience::Administrators.admit(&caller(request))
}

/// Why a control node that was removed may not call.
pub fn former_member(id: u64) -> Status {
    Status::permission_denied(format!("member {id} was removed from the cluster"))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(der).ok().map(|(_, certificate)| certificate)
}

/// The uid of the Node that a certificate is bound to, among its names.
fn node_uid(leaf: &X509Certificate<'_>) -> Option<String> {
    let names = leaf.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NODE_UID_PREFIX).map(str::to_owned),
        _ => None,
    })
}

fn organizations(name: &X509Name<'_>) -> Vec<String> {
    name.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_pki::{MASTERS_ORGANIZATION, Subject};

    fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
        tls::certificates(pem, "test").unwrap()
    }

    #[test]
    fn the_signing_ca_decides() {
        let authorities = Authorities::generate("c").unwrap();
        let callers = Callers::new(&authorities).unwrap();
        let peer = authorities.issue_peer(7).unwrap();
        assert!(matches!(callers.identify(Some(&chain(&peer.chain_pem))), Caller::Member(7)));
        for nobody in ["a", "coracle:member:", "coracle:member:0", "coracle:member:x"] {
            let subject = Subject {
                common_name: nobody,
                organization: CONTROL_ORGANIZATION,
                names: vec![],
                server: false,
            };
            let leaf = authorities.peer.issue(&subject).unwrap();
            assert!(matches!(callers.identify(Some(&chain(&leaf.chain_pem))), Caller::Anonymous), "{nobody}");
        }
        let admin = callers.identify(Some(&chain(&authorities.issue_admin().unwrap().chain_pem)));
        assert!(admin.in_group(MASTERS_ORGANIZATION) && !admin.is_node());
        assert!(matches!(callers.identify(None), Caller::Anonymous));
        let elsewhere = Authorities::generate("d").unwrap().issue_admin().unwrap();
        assert!(matches!(callers.identify(Some(&chain(&elsewhere.chain_pem))), Caller::Anonymous));
    }
}
