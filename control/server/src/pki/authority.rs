//! One certificate authority: what it signs, and how another one takes its place.

use std::time::{Duration, SystemTime};

use coracle_proto::tls::BACKDATED;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use serde::{Deserialize, Serialize};

use super::NODE_UID_PREFIX;
use crate::error::ServerError;

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Of what the authorities sign, where nothing else is said.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// An authority: its certificate and its key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    pub certificate_pem: String,
    pub(super) key_pem: String,
    /// Will take its place: is trusted, signs nothing yet.
    #[serde(default)]
    next: Option<Next>,
    /// Whose place it has taken: is trusted, signs nothing any more.
    #[serde(default)]
    previous: Option<Previous>,
    /// For how long what it signs is good.
    #[serde(skip, default = "leaf_life")]
    pub(super) leaf_life: Duration,
}

#[derive(Clone, Serialize, Deserialize)]
struct Next {
    certificate_pem: String,
    key_pem: String,
    /// Its key, certified by the one whose place it takes.
    cross_pem: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct Previous {
    certificate_pem: String,
    cross_pem: String,
}

/// How far the change of an authority is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Everybody is to trust the new one beside the old one.
    Trusting,
    /// Certificates are of the new one; the old one is still trusted.
    Issuing,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusting => "trusting",
            Self::Issuing => "issuing",
        }
    }
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
    /// A new one. `name` must be of its own: callers are told apart by the name of who signed their certificate.
    pub(super) fn generate(name: &str) -> Result<Self, ServerError> {
        let key = KeyPair::generate()?;
        let certificate_pem = params(name).self_signed(&key)?.pem();
        Ok(Self::of(certificate_pem, key.serialize_pem()))
    }

    pub(super) fn of(certificate_pem: String, key_pem: String) -> Self {
        Self { certificate_pem, key_pem, next: None, previous: None, leaf_life: LEAF_LIFE }
    }

    /// The certificates (PEM) that are to be trusted: those of what it signed and will sign during a change.
    pub fn bundle(&self) -> String {
        let mut bundle = self.certificate_pem.clone();
        bundle.extend(self.next.iter().map(|next| next.certificate_pem.as_str()));
        bundle.extend(self.previous.iter().map(|previous| previous.certificate_pem.as_str()));
        bundle
    }

    /// How far a change is; `None` where there is none.
    pub fn stage(&self) -> Option<Stage> {
        match (&self.next, &self.previous) {
            (Some(_), _) => Some(Stage::Trusting),
            (None, Some(_)) => Some(Stage::Issuing),
            (None, None) => None,
        }
    }

    /// Makes the one that will take its place, which everybody is to trust from now on.
    pub(super) fn begin_change(&mut self, name: &str) -> Result<(), ServerError> {
        let key = KeyPair::generate()?;
        let certificate_pem = params(name).self_signed(&key)?.pem();
        let cross_pem = params(name).signed_by(&key, &self.issuer()?)?.pem();
        self.next = Some(Next { certificate_pem, key_pem: key.serialize_pem(), cross_pem });
        Ok(())
    }

    /// The next one signs, then the former one is no longer trusted.
    pub(super) fn next_stage(&mut self) {
        match self.next.take() {
            Some(next) => {
                let certificate_pem = std::mem::replace(&mut self.certificate_pem, next.certificate_pem);
                self.previous = Some(Previous { certificate_pem, cross_pem: next.cross_pem });
                self.key_pem = next.key_pem;
            }
            None => self.previous = None,
        }
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, ServerError> {
        Ok(Issuer::from_ca_cert_pem(&self.certificate_pem, KeyPair::from_pem(&self.key_pem)?)?)
    }

    /// A certificate for a new key.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Leaf, ServerError> {
        let key = KeyPair::generate()?;
        Ok(Leaf { chain_pem: self.sign(subject, None, &key)?, key_pem: key.serialize_pem() })
    }

    /// A certificate for the key of a signing request. Nothing else is taken from the request.
    pub fn sign_request(&self, subject: &Subject<'_>, csr_pem: &str) -> Result<String, ServerError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        self.sign(subject, None, &request.public_key)
    }

    /// The same for a node: the certificate is good as long as there is the Node with this uid.
    pub fn sign_nodes_request(
        &self,
        subject: &Subject<'_>,
        node_uid: &str,
        csr_pem: &str,
    ) -> Result<String, ServerError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        self.sign(subject, Some(node_uid), &request.public_key)
    }

    fn sign(
        &self,
        subject: &Subject<'_>,
        node_uid: Option<&str>,
        key: &impl PublicKeyData,
    ) -> Result<String, ServerError> {
        let issuer = self.issuer()?;
        let mut params = CertificateParams::new(subject.names.clone())?;
        if let Some(uid) = node_uid {
            params.subject_alt_names.push(SanType::URI(format!("{NODE_UID_PREFIX}{uid}").try_into()?));
        }
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
        Ok(params.signed_by(key, &issuer)?.pem() + &self.behind_leaves())
    }

    /// What follows a certificate that it signs.
    fn behind_leaves(&self) -> String {
        let mut chain = self.certificate_pem.clone();
        // Whoever trusts the former authority only, an old kubeconfig or join token say, follows this to it.
        if let Some(previous) = &self.previous {
            chain += &previous.cross_pem;
            chain += &previous.certificate_pem;
        }
        chain
    }

    /// Whether this authority, as it is now, made a chain that is known to be of some authority of ours.
    pub fn stands_behind(&self, chain_pem: &str) -> bool {
        chain_pem.ends_with(&self.behind_leaves())
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_LIFE);
    params
}

fn leaf_life() -> Duration {
    LEAF_LIFE
}

fn valid_for(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + life).into();
}
