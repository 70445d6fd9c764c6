//! One certificate authority: what it signs, and how another one takes its place.

use std::time::{Duration, SystemTime};

use coracle_proto::tls::{self, BACKDATED};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use serde::{Deserialize, Serialize};

use crate::{NODE_UID_PREFIX, PkiError};

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// An authority certifies the one that will take its place, which certifies leaves.
const ROOT_PATH_LENGTH: u8 = 1;

/// Of what the authorities sign, where nothing else is said.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// An authority: its certificate and its key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    pub certificate_pem: String,
    pub(crate) key_pem: String,
    /// Will take its place: is trusted, signs nothing yet.
    #[serde(default)]
    next: Option<Next>,
    /// Whose place it has taken: is trusted, signs nothing any more.
    #[serde(default)]
    previous: Option<Previous>,
    /// For how long what it signs is good.
    #[serde(skip, default = "leaf_life")]
    pub(crate) leaf_life: Duration,
}

#[derive(Clone, Serialize, Deserialize)]
struct Next {
    certificate_pem: String,
    key_pem: String,
    /// Its key, certified by the one whose place it takes.
    cross_pem: String,
    /// The key of the one whose place it takes, certified by it: where that one cannot certify others.
    #[serde(default)]
    reverse_pem: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Previous {
    certificate_pem: String,
    cross_pem: String,
    /// Goes on signing for servers, as no chain from the next one to it is good.
    #[serde(default)]
    signs: Option<Signs>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Signs {
    key_pem: String,
    reverse_pem: String,
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
    pub(crate) fn generate(name: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let certificate_pem = params(name, ROOT_PATH_LENGTH).self_signed(&key)?.pem();
        Ok(Self::of(certificate_pem, key.serialize_pem()))
    }

    pub(crate) fn of(certificate_pem: String, key_pem: String) -> Self {
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
    pub(crate) fn begin_change(&mut self, name: &str) -> Result<(), PkiError> {
        let key = KeyPair::generate()?;
        let root = params(name, ROOT_PATH_LENGTH);
        let certificate_pem = root.self_signed(&key)?.pem();
        let cross_pem = params(name, 0).signed_by(&key, &self.issuer()?)?.pem();
        let key_pem = key.serialize_pem();
        let reverse_pem = match leaves_only(&self.certificate_pem)? {
            Some(former) => {
                let former_key = KeyPair::from_pem(&self.key_pem)?;
                Some(params(&former, 0).signed_by(&former_key, &Issuer::new(root, key))?.pem())
            }
            None => None,
        };
        self.next = Some(Next { certificate_pem, key_pem, cross_pem, reverse_pem });
        Ok(())
    }

    /// The next one signs, then the former one is no longer trusted.
    pub(crate) fn next_stage(&mut self) {
        match self.next.take() {
            Some(next) => {
                let certificate_pem = std::mem::replace(&mut self.certificate_pem, next.certificate_pem);
                let key_pem = std::mem::replace(&mut self.key_pem, next.key_pem);
                let signs = next.reverse_pem.map(|reverse_pem| Signs { key_pem, reverse_pem });
                self.previous = Some(Previous { certificate_pem, cross_pem: next.cross_pem, signs });
            }
            None => self.previous = None,
        }
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        Ok(Issuer::from_ca_cert_pem(&self.certificate_pem, KeyPair::from_pem(&self.key_pem)?)?)
    }

    /// A certificate for a new key.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Leaf, PkiError> {
        let key = KeyPair::generate()?;
        Ok(Leaf { chain_pem: self.sign(subject, None, &key)?, key_pem: key.serialize_pem() })
    }

    /// A certificate for a server that is known by this authority, by whoever trusts the one that it takes the place of
    /// too. Clients hold to the letter what a certificate says of the chains below it.
    pub fn issue_for_server(&self, subject: &Subject<'_>) -> Result<Leaf, PkiError> {
        let Some((previous, signs)) =
            self.previous.as_ref().and_then(|previous| Some((previous, previous.signs.as_ref()?)))
        else {
            return self.issue(subject);
        };
        let issuer = Issuer::from_ca_cert_pem(&previous.certificate_pem, KeyPair::from_pem(&signs.key_pem)?)?;
        let key = KeyPair::generate()?;
        let mut chain_pem = self.sign_as(&issuer, subject, None, &key)?;
        for behind in [&signs.reverse_pem, &self.certificate_pem, &previous.certificate_pem] {
            chain_pem += behind;
        }
        Ok(Leaf { chain_pem, key_pem: key.serialize_pem() })
    }

    /// A certificate for the key of a signing request. Nothing else is taken from the request.
    pub fn sign_request(&self, subject: &Subject<'_>, csr_pem: &str) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        self.sign(subject, None, &request.public_key)
    }

    /// The same for a node: the certificate is good as long as there is the Node with this uid.
    pub fn sign_nodes_request(
        &self,
        subject: &Subject<'_>,
        node_uid: &str,
        csr_pem: &str,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        self.sign(subject, Some(node_uid), &request.public_key)
    }

    fn sign(
        &self,
        subject: &Subject<'_>,
        node_uid: Option<&str>,
        key: &impl PublicKeyData,
    ) -> Result<String, PkiError> {
        Ok(self.sign_as(&self.issuer()?, subject, node_uid, key)? + &self.behind_leaves())
    }

    /// The certificate alone.
    fn sign_as(
        &self,
        issuer: &Issuer<'static, KeyPair>,
        subject: &Subject<'_>,
        node_uid: Option<&str>,
        key: &impl PublicKeyData,
    ) -> Result<String, PkiError> {
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
        Ok(params.signed_by(key, issuer)?.pem())
    }

    /// What follows a certificate that it signs.
    fn behind_leaves(&self) -> String {
        let Some(previous) = &self.previous else { return self.certificate_pem.clone() };
        // Whoever trusts the former authority only, an old kubeconfig or join token say, follows this to it. It comes
        // first: OpenSSL takes the first that fits, and whoever trusts the new one has that already.
        [previous.cross_pem.as_str(), &self.certificate_pem, &previous.certificate_pem].concat()
    }

    /// Whether this authority, as it is now, made a chain that is known to be of some authority of ours.
    pub fn stands_behind(&self, chain_pem: &str) -> bool {
        chain_pem.ends_with(&self.behind_leaves())
    }
}

/// The name of an authority that says of itself that it has no authority below it, as all had that were made before
/// 0.2: what it certifies is refused by clients that look, as those in Go and with OpenSSL do.
fn leaves_only(certificate_pem: &str) -> Result<Option<String>, PkiError> {
    let unreadable = || tls::TlsError::Empty { what: "CA" };
    let der = tls::certificates(certificate_pem, "CA")?.into_iter().next().ok_or_else(unreadable)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| unreadable())?;
    let length = parsed.basic_constraints().ok().flatten().and_then(|found| found.value.path_len_constraint);
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(name.filter(|_| length == Some(0)).map(str::to_owned))
}

/// `path_length` authorities may stand between it and a leaf.
fn params(name: &str, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
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

#[cfg(test)]
impl Authority {
    /// As they were made before 0.2.
    pub(crate) fn generate_old(name: &str) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        Ok(Self::of(params(name, 0).self_signed(&key)?.pem(), key.serialize_pem()))
    }
}
