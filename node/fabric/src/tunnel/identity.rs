//! Who is at the other end of a tunnel.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a node's certificate carries: this organization, and this before the node's name. Kubernetes' Node
/// authorizer has the same.
const ORGANIZATION: &str = "system:nodes";
const NAME_PREFIX: &str = "system:node:";

/// The name of the node that the chain's first certificate was issued to. The chain has been verified by TLS;
/// the CA signs other clients as well, and those are no nodes.
pub(super) fn node_name(chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(chain?.first()?).ok()?;
    let subject = certificate.subject();
    let is_node = subject.iter_organization().any(|name| name.as_str() == Ok(ORGANIZATION));
    let name = subject.iter_common_name().next()?.as_str().ok()?.strip_prefix(NAME_PREFIX)?;
    is_node.then(|| name.to_owned())
}
