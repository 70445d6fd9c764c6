//! The cluster's three certificate authorities and what they sign.
//!
//! | CA | signs | so that |
//! |---|---|---|
//! | peer | control members, as clients | members know each other |
//! | serving | control nodes, as servers | everyone knows a control node; join tokens pin its key |
//! | client | administrators, nodes | the API knows who asks |
//!
//! Every control node holds the keys of all three and makes its own certificates, at each start and before they end.

mod authority;

use std::{collections::BTreeMap, time::Duration};

use coracle_objects::claims::KUBERNETES_SERVICE_IP;
use coracle_proto::tls::{self, SERVER_NAME, TlsError, public_key_pin};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use authority::{Authority, LEAF_LIFE, Leaf, Stage, Subject};

/// The file that has all of it. The others are there for people and programs that look for one certificate.
pub const AUTHORITIES_FILE: &str = "pki/authorities.json";

const SERVICE_ACCOUNT_KEY_FILE: &str = "pki/service-account.key";

/// `O` of a control member's certificate.
pub const CONTROL_ORGANIZATION: &str = "coracle:control";
/// What stands before the raft id in the `CN` of a control member's certificate.
pub const MEMBER_PREFIX: &str = "coracle:member:";
/// `O` of an administrator's certificate.
pub const MASTERS_ORGANIZATION: &str = "system:masters";
/// `O` of a node's certificate, and what stands before the node's name in its `CN`.
pub const NODES_ORGANIZATION: &str = "system:nodes";
pub const NODE_USER_PREFIX: &str = "system:node:";
/// What stands before the uid of a node's Node in the one name of its certificate that is a URI (RFC 9562).
pub const NODE_UID_PREFIX: &str = "urn:uuid:";

/// Why something was not made or signed.
#[derive(Debug, Error)]
pub enum PkiError {
    #[error("a key or certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    #[error("the TLS settings could not be made")]
    Tls(#[from] TlsError),
}

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorityName {
    Peer,
    Serving,
    Client,
}

/// Everything with which a control node signs.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authorities {
    pub peer: Authority,
    pub serving: Authority,
    pub client: Authority,
    /// Signs the tokens of service accounts (PEM).
    pub service_account_key_pem: String,
    /// Grows with each step of a change of authorities.
    #[serde(default)]
    pub generation: u64,
}

impl AuthorityName {
    pub const ALL: [Self; 3] = [Self::Peer, Self::Serving, Self::Client];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Serving => "serving",
            Self::Client => "client",
        }
    }

    /// `cn` of the authority that is made for this generation of the authorities.
    fn common_name(self, generation: u64, cluster_id: &str) -> String {
        let name = match self {
            Self::Peer => "Coracle peers",
            Self::Serving => "Coracle serving",
            Self::Client => "Coracle clients",
        };
        match generation {
            0 => format!("{name} of cluster {cluster_id}"),
            _ => format!("{name} {generation} of cluster {cluster_id}"),
        }
    }
}

impl Authorities {
    pub fn generate(cluster_id: &str) -> Result<Self, PkiError> {
        Ok(Self {
            peer: Authority::generate(&AuthorityName::Peer.common_name(0, cluster_id))?,
            serving: Authority::generate(&AuthorityName::Serving.common_name(0, cluster_id))?,
            client: Authority::generate(&AuthorityName::Client.common_name(0, cluster_id))?,
            service_account_key_pem: KeyPair::generate()?.serialize_pem(),
            generation: 0,
        })
    }

    fn get(&self, name: AuthorityName) -> &Authority {
        match name {
            AuthorityName::Peer => &self.peer,
            AuthorityName::Serving => &self.serving,
            AuthorityName::Client => &self.client,
        }
    }

    fn get_mut(&mut self, name: AuthorityName) -> &mut Authority {
        match name {
            AuthorityName::Peer => &mut self.peer,
            AuthorityName::Serving => &mut self.serving,
            AuthorityName::Client => &mut self.client,
        }
    }

    /// Those that are being changed.
    pub fn changing(&self) -> BTreeMap<AuthorityName, Stage> {
        AuthorityName::ALL.into_iter().filter_map(|name| Some((name, self.get(name).stage()?))).collect()
    }

    /// The next generation, in which these authorities are being changed.
    pub fn begin_change(&mut self, names: &[AuthorityName], cluster_id: &str) -> Result<(), PkiError> {
        self.generation += 1;
        for &name in names {
            let common_name = name.common_name(self.generation, cluster_id);
            self.get_mut(name).begin_change(&common_name)?;
        }
        Ok(())
    }

    /// The next generation, in which what is being changed is one step further.
    pub fn next_stage(&mut self) {
        self.generation += 1;
        for name in self.changing().into_keys() {
            self.get_mut(name).next_stage();
        }
    }

    /// For how long certificates are good.
    pub fn leaf_life(&self) -> Duration {
        self.peer.leaf_life
    }

    /// The same, whose certificates are good for so long.
    pub fn with_leaf_life(mut self, life: Duration) -> Self {
        for authority in [&mut self.peer, &mut self.serving, &mut self.client] {
            authority.leaf_life = life;
        }
        self
    }

    /// From the files of the first versions, which had no [`AUTHORITIES_FILE`]; `read` gives one by its name.
    pub fn from_files<E>(read: impl Fn(&str) -> Result<String, E>) -> Result<Self, E> {
        let authority = |name: AuthorityName| -> Result<Authority, E> {
            let [certificate, key] = files_of(name);
            Ok(Authority::of(read(&certificate)?, read(&key)?))
        };
        Ok(Self {
            peer: authority(AuthorityName::Peer)?,
            serving: authority(AuthorityName::Serving)?,
            client: authority(AuthorityName::Client)?,
            service_account_key_pem: read(SERVICE_ACCOUNT_KEY_FILE)?,
            generation: 0,
        })
    }

    /// What is kept in a data dir: names and contents. That which has all of it is the last.
    pub fn to_files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for name in AuthorityName::ALL {
            let ([certificate, key], authority) = (files_of(name), self.get(name));
            files.push((certificate, authority.bundle().into_bytes()));
            files.push((key, authority.key_pem.clone().into_bytes()));
        }
        files.push((SERVICE_ACCOUNT_KEY_FILE.to_owned(), self.service_account_key_pem.clone().into_bytes()));
        files.push((AUTHORITIES_FILE.to_owned(), self.to_bytes()));
        files
    }

    /// What a joining control node is given.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plain value encodes into memory")
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// What new join tokens pin.
    pub fn serving_pin(&self) -> Result<[u8; 32], PkiError> {
        let certificates = tls::certificates(&self.serving.certificate_pem, "serving CA")?;
        Ok(public_key_pin(&certificates[0])?)
    }

    /// Whether a join token with this pin is of this cluster: also one that was made before a change of authorities.
    pub fn has_serving_pin(&self, pin: &[u8; 32]) -> Result<bool, PkiError> {
        let certificates = tls::certificates(&self.serving.bundle(), "serving CA")?;
        Ok(certificates.iter().any(|ca| public_key_pin(ca).is_ok_and(|known| known == *pin)))
    }

    /// For the TLS port of a control node that is reached as `hosts`.
    pub fn issue_serving(&self, name: &str, hosts: &[String]) -> Result<Leaf, PkiError> {
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
        self.serving.issue_for_server(&subject)
    }

    /// For what the control node with this raft id asks of the other members.
    pub fn issue_peer(&self, id: u64) -> Result<Leaf, PkiError> {
        let name = format!("{MEMBER_PREFIX}{id}");
        let subject =
            Subject { common_name: &name, organization: CONTROL_ORGANIZATION, names: vec![], server: false };
        self.peer.issue(&subject)
    }

    /// For an administrator of the cluster.
    pub fn issue_admin(&self) -> Result<Leaf, PkiError> {
        let subject = Subject {
            common_name: "kubernetes-admin",
            organization: MASTERS_ORGANIZATION,
            names: vec![],
            server: false,
        };
        self.client.issue(&subject)
    }
}

/// Of its certificate and its key.
fn files_of(name: AuthorityName) -> [String; 2] {
    ["crt", "key"].map(|ending| format!("pki/{}-ca.{ending}", name.as_str()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType};

    use super::*;

    #[test]
    fn authorities_survive_their_bytes_and_their_files() {
        let made = Authorities::generate("c").unwrap();
        let files: BTreeMap<String, Vec<u8>> = made.to_files().into_iter().collect();
        let read = |name: &str| String::from_utf8(files[name].clone());
        let loaded = Authorities::from_files(read).unwrap();
        assert_eq!(loaded.serving_pin().unwrap(), made.serving_pin().unwrap());
        assert_eq!(loaded.to_bytes(), made.to_bytes());
        let sent = Authorities::from_bytes(&files[AUTHORITIES_FILE]).unwrap();
        assert_eq!(sent.peer.certificate_pem, made.peer.certificate_pem);
    }

    #[test]
    fn a_change_keeps_what_was_given_out_good_until_its_end() {
        let mut made = Authorities::generate("c").unwrap();
        let old_pin = made.serving_pin().unwrap();
        let count = |pem: &str| tls::certificates(pem, "test").unwrap().len();
        made.begin_change(&[AuthorityName::Serving, AuthorityName::Peer], "c").unwrap();
        assert_eq!(made.serving_pin().unwrap(), old_pin, "the old one signs");
        assert_eq!((count(&made.serving.bundle()), count(&made.client.bundle())), (2, 1));
        made.next_stage();
        let new_pin = made.serving_pin().unwrap();
        assert_ne!(new_pin, old_pin);
        assert!(made.has_serving_pin(&old_pin).unwrap() && made.has_serving_pin(&new_pin).unwrap());
        assert_eq!(count(&made.issue_serving("a", &[]).unwrap().chain_pem), 4);
        made = Authorities::from_bytes(&made.to_bytes()).unwrap();
        assert_eq!(
            made.changing().into_keys().collect::<Vec<_>>(),
            [AuthorityName::Peer, AuthorityName::Serving]
        );
        made.next_stage();
        assert!(made.changing().is_empty() && !made.has_serving_pin(&old_pin).unwrap());
        assert_eq!((made.generation, count(&made.serving.bundle())), (3, 1));
    }

    /// What a client that trusts these authorities thinks of what a server shows. None where there is no OpenSSL.
    fn openssl_takes(trusted_pem: &str, chain_pem: &str) -> Option<bool> {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (trusted, chain) = (file("trusted", trusted_pem), file("chain", chain_pem));
        let mut command = std::process::Command::new("openssl");
        command.args(["verify", "-purpose", "sslserver", "-no-CApath", "-no-CAstore", "-CAfile"]);
        command.arg(trusted).arg("-untrusted").arg(&chain).arg(chain);
        match command.output() {
            Ok(output) => Some(output.status.success()),
            Err(error) => {
                let required = std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_some();
                assert!(!required, "openssl is required, and cannot be run: {error}");
                None
            }
        }
    }

    #[test]
    fn each_step_of_a_change_is_good_for_clients_that_look_closely() {
        for old in [Authority::generate("old").unwrap(), Authority::generate_old("old").unwrap()] {
            let mut made = Authorities { serving: old, ..Authorities::generate("c").unwrap() };
            let old = made.serving.certificate_pem.clone();
            let chain = |made: &Authorities| made.issue_serving("a", &[]).unwrap().chain_pem;
            assert_ne!(openssl_takes(&old, &chain(&made)), Some(false));
            made.begin_change(&[AuthorityName::Serving], "c").unwrap();
            let both = made.serving.bundle();
            for trusted in [&old, &both] {
                assert_ne!(openssl_takes(trusted, &chain(&made)), Some(false), "step 1");
            }
            made.next_stage();
            made = Authorities::from_bytes(&made.to_bytes()).unwrap();
            let new = made.serving.certificate_pem.clone();
            for trusted in [&old, &both, &made.serving.bundle(), &new] {
                assert_ne!(openssl_takes(trusted, &chain(&made)), Some(false), "step 2");
            }
            made.next_stage();
            assert_ne!(openssl_takes(&new, &chain(&made)), Some(false), "step 3");
            assert_ne!(openssl_takes(&old, &chain(&made)), Some(true), "the old one is worth nothing");
            // And the next change begins with one that can certify.
            made.begin_change(&[AuthorityName::Serving], "c").unwrap();
            made.next_stage();
            assert_ne!(openssl_takes(&new, &chain(&made)), Some(false));
        }
    }

    #[test]
    fn leaves_make_tls_settings() {
        let made = Authorities::generate("c").unwrap();
        let serving = made.issue_serving("a", &["10.0.0.1".into(), "localhost".into()]).unwrap();
        let peer = made.issue_peer(1).unwrap();
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
