//! The cluster's three certificate authorities and what they sign.
//!
//! | CA | signs | so that |
//! |---|---|---|
//! | peer | control members, as clients | members know each other |
//! | serving | control nodes, as servers | everyone knows a control node; join tokens pin its key |
//! | client | administrators, nodes | the API knows who asks |
//!
//! Every control node holds the keys of all three and makes its own certificates, at each start and before they end.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use coracle_proto::tls::{self, BACKDATED, SERVER_NAME, public_key_pin};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use serde::{Deserialize, Serialize};

use crate::{config::KUBERNETES_SERVICE_IP, data_dir::DataDir, error::ServerError};

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Of what the authorities sign, where nothing else is said.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// `O` of a control member's certificate.
pub const CONTROL_ORGANIZATION: &str = "coracle:control";
/// `O` of an administrator's certificate.
pub const MASTERS_ORGANIZATION: &str = "system:masters";
/// `O` of a node's certificate, and what stands before the node's name in its `CN`.
pub const NODES_ORGANIZATION: &str = "system:nodes";
pub const NODE_USER_PREFIX: &str = "system:node:";

/// One authority: its certificate and its key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    pub certificate_pem: String,
    key_pem: String,
    /// For how long what it signs is good.
    #[serde(skip, default = "leaf_life")]
    leaf_life: Duration,
}

/// Everything with which a control node signs.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authorities {
    pub peer: Authority,
    pub serving: Authority,
    pub client: Authority,
    /// Signs the tokens of service accounts (PEM).
    pub service_account_key_pem: String,
}

/// A certificate with its CA behind it, and its key.
#[derive(Clone)]
pub struct Leaf {
    pub chain_pem: String,
    pub key_pem: String,
}

/// Whom a certificate is for.
pub struct Subject<'a> {
    pub common_name: &'a str,
    pub organization: &'a str,
    /// DNS names and addresses.
    pub names: Vec<String>,
    pub server: bool,
}

impl Authority {
    fn generate(name: &str, cluster_id: &str) -> Result<Self, ServerError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} of cluster {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, CA_LIFE);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { certificate_pem, key_pem: key.serialize_pem(), leaf_life: LEAF_LIFE })
    }

    /// A certificate for a new key.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Leaf, ServerError> {
        let key = KeyPair::generate()?;
        Ok(Leaf { chain_pem: self.sign(subject, &key)?, key_pem: key.serialize_pem() })
    }

    /// A certificate for the key of a signing request. Nothing else is taken from the request.
    pub fn sign_request(&self, subject: &Subject<'_>, csr_pem: &str) -> Result<String, ServerError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        self.sign(subject, &request.public_key)
    }

    fn sign(&self, subject: &Subject<'_>, key: &impl PublicKeyData) -> Result<String, ServerError> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, KeyPair::from_pem(&self.key_pem)?)?;
        let mut params = CertificateParams::new(subject.names.clone())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, subject.organization);
        params.distinguished_name.push(DnType::CommonName, subject.common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, self.leaf_life);
        let certificate = params.signed_by(key, &issuer)?;
        Ok(certificate.pem() + &self.certificate_pem)
    }
}

impl Authorities {
    pub fn generate(cluster_id: &str) -> Result<Self, ServerError> {
        Ok(Self {
            peer: Authority::generate("Coracle peers", cluster_id)?,
            serving: Authority::generate("Coracle serving", cluster_id)?,
            client: Authority::generate("Coracle clients", cluster_id)?,
            service_account_key_pem: KeyPair::generate()?.serialize_pem(),
        })
    }

    /// The same, whose certificates are good for so long.
    pub fn with_leaf_life(mut self, life: Duration) -> Self {
        for authority in [&mut self.peer, &mut self.serving, &mut self.client] {
            authority.leaf_life = life;
        }
        self
    }

    pub fn load(data: &DataDir) -> Result<Self, ServerError> {
        let authority = |name: &str| -> Result<Authority, ServerError> {
            Ok(Authority {
                certificate_pem: read(data, &format!("pki/{name}-ca.crt"))?,
                key_pem: read(data, &format!("pki/{name}-ca.key"))?,
                leaf_life: LEAF_LIFE,
            })
        };
        Ok(Self {
            peer: authority("peer")?,
            serving: authority("serving")?,
            client: authority("client")?,
            service_account_key_pem: read(data, "pki/service-account.key")?,
        })
    }

    pub fn save(&self, data: &DataDir) -> Result<(), ServerError> {
        for (name, authority) in [("peer", &self.peer), ("serving", &self.serving), ("client", &self.client)]
        {
            data.write(&format!("pki/{name}-ca.crt"), authority.certificate_pem.as_bytes())?;
            data.write(&format!("pki/{name}-ca.key"), authority.key_pem.as_bytes())?;
        }
        data.write("pki/service-account.key", self.service_account_key_pem.as_bytes())
    }

    /// What a joining control node is given.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plain value encodes into memory")
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// What join tokens pin.
    pub fn serving_pin(&self) -> Result<[u8; 32], ServerError> {
        let certificates = tls::certificates(&self.serving.certificate_pem, "serving CA")?;
        Ok(public_key_pin(&certificates[0])?)
    }

    /// For the TLS port of a control node that is reached as `hosts`.
    pub fn issue_serving(&self, name: &str, hosts: &[String]) -> Result<Leaf, ServerError> {
        let mut names: Vec<String> = [
            SERVER_NAME,
            "localhost",
            "127.0.0.1",
            "::1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            KUBERNETES_SERVICE_IP,
        ]
        .map(String::from)
        .into();
        names.extend(hosts.iter().filter(|host| !names.contains(host)).cloned().collect::<Vec<_>>());
        let subject = Subject { common_name: name, organization: CONTROL_ORGANIZATION, names, server: true };
        self.serving.issue(&subject)
    }

    /// For what a control node asks of the other members.
    pub fn issue_peer(&self, name: &str) -> Result<Leaf, ServerError> {
        let subject =
            Subject { common_name: name, organization: CONTROL_ORGANIZATION, names: vec![], server: false };
        self.peer.issue(&subject)
    }

    /// For an administrator of the cluster.
    pub fn issue_admin(&self) -> Result<Leaf, ServerError> {
        let subject = Subject {
            common_name: "kubernetes-admin",
            organization: MASTERS_ORGANIZATION,
            names: vec![],
            server: false,
        };
        self.client.issue(&subject)
    }
}

fn leaf_life() -> Duration {
    LEAF_LIFE
}

fn valid_for(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + life).into();
}

fn read(data: &DataDir, name: &str) -> Result<String, ServerError> {
    let path = data.path(name);
    fs::read_to_string(&path).map_err(ServerError::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_survive_their_bytes_and_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let made = Authorities::generate("c").unwrap();
        made.save(&data).unwrap();
        let loaded = Authorities::load(&data).unwrap();
        assert_eq!(loaded.serving_pin().unwrap(), made.serving_pin().unwrap());
        let sent = Authorities::from_bytes(&made.to_bytes()).unwrap();
        assert_eq!(sent.peer.certificate_pem, made.peer.certificate_pem);
    }

    #[test]
    fn leaves_make_tls_settings() {
        let made = Authorities::generate("c").unwrap();
        let serving = made.issue_serving("a", &["10.0.0.1".into(), "localhost".into()]).unwrap();
        let peer = made.issue_peer("a").unwrap();
        let trusted = [made.peer.certificate_pem.as_str(), made.client.certificate_pem.as_str()];
        tls::server_config(&serving.chain_pem, &serving.key_pem, &trusted, false).unwrap();
        tls::client_config(&made.serving.certificate_pem, &peer.chain_pem, &peer.key_pem).unwrap();
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let made = Authorities::generate("c").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["evil.example".into()]).unwrap();
        wish.distinguished_name.push(DnType::OrganizationName, MASTERS_ORGANIZATION);
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
        let subject = Subject {
            common_name: "system:node:n",
            organization: NODES_ORGANIZATION,
            names: vec!["n".into()],
            server: true,
        };
        let chain = made.client.sign_request(&subject, &csr).unwrap();
        let der = tls::certificates(&chain, "test").unwrap().remove(0);
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(parsed.subject().to_string(), "O=system:nodes, CN=system:node:n");
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(made.client.sign_request(&subject, "not a request").is_err());
    }
}
