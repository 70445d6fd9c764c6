//! Who is at the other end of a tunnel.

use crate::NodeIdentity;
use arc_swap::ArcSwapOption;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a node's certificate carries: this organization, and this before the node's name. Kubernetes' Node
/// authorizer has the same.
const ORGANIZATION: &str = "system:nodes";
const NAME_PREFIX: &str = "system:node:";

/// What stands before the uid of the node's Node in the one name of its certificate that is a URI.
const UID_PREFIX: &str = "urn:uuid:";

/// How long a peer waits to be heard of.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);

/// A node, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerNode {
    pub(crate) name: Arc<str>,
    /// Of the Node that the certificate is bound to.
    uid: Option<String>,
}

/// The node that the chain's first certificate was issued to. The chain has been verified by TLS; the CA signs other
/// clients as well, and those are no nodes.
pub(super) fn peer_node(chain: Option<&[CertificateDer<'_>]>) -> Option<PeerNode> {
    let (_, certificate) = X509Certificate::from_der(chain?.first()?).ok()?;
    let subject = certificate.subject();
    let is_node = subject.iter_organization().any(|name| name.as_str() == Ok(ORGANIZATION));
    let name = subject.iter_common_name().next()?.as_str().ok()?.strip_prefix(NAME_PREFIX)?;
    let names = certificate.subject_alternative_name().ok()?;
    let uid = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(UID_PREFIX).map(str::to_owned),
            _ => None,
        })
    });
    is_node.then(|| PeerNode { name: name.into(), uid })
}

/// The nodes of the cluster as this one has been told: tunnels are theirs alone. A node that is deleted is none any more,
/// and neither is one that another has taken the name of.
pub(crate) struct Members {
    /// `None` until this node has been told; until then it has no pods to be reached.
    known: ArcSwapOption<BTreeMap<String, Option<NodeIdentity>>>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

impl Members {
    pub(crate) fn new() -> Self {
        Self { known: ArcSwapOption::default(), changes: watch::Sender::new(0) }
    }

    pub(crate) fn set(&self, known: BTreeMap<String, Option<NodeIdentity>>) {
        if self.known.load().as_deref() != Some(&known) {
            self.known.store(Some(Arc::new(known)));
            self.changes.send_modify(|count| *count += 1);
        }
    }

    pub(crate) fn knows(&self, peer: &PeerNode) -> bool {
        let known = self.known.load();
        let Some(known) = known.as_deref() else { return true };
        match (known.get(&*peer.name), &peer.uid) {
            (None, _) => false,
            (Some(None), _) => true,
            (Some(Some(identity)), Some(uid)) => *uid == identity.uid,
            (Some(Some(identity)), None) => !identity.bound,
        }
    }

    /// Whether a peer is a member, or turns out to be one in a moment: the news of a node may be slower than its first
    /// tunnel.
    pub(super) async fn admits(&self, peer: &PeerNode) -> bool {
        tokio::time::timeout(NEWS_TIMEOUT, self.until(|| self.knows(peer))).await.is_ok()
    }

    /// Resolves once a peer is no member any more.
    pub(super) async fn lost(&self, peer: &PeerNode) {
        self.until(|| !self.knows(peer)).await;
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        // No change is missed that comes after the question.
        let mut changes = self.changes.subscribe();
        while !holds() {
            // The sender lives as long as this.
            let _ = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_who_has_the_certificate_of_its_node() {
        let members = Members::new();
        let peer = |uid: Option<&str>| PeerNode { name: "n".into(), uid: uid.map(str::to_owned) };
        let known = |identity: Option<NodeIdentity>| {
            members.set([("n".to_owned(), identity)].into());
            [None, Some("1"), Some("2")].map(|uid| members.knows(&peer(uid)))
        };
        assert!(members.knows(&peer(None)), "nothing is known yet");
        let identity = |bound| Some(NodeIdentity { uid: "1".into(), bound });
        assert_eq!(known(identity(true)), [false, true, false]);
        assert_eq!(known(identity(false)), [true, true, false], "of an older version");
        assert_eq!(known(None), [true, true, true]);
        members.set(BTreeMap::new());
        assert!(!members.knows(&peer(Some("1"))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_of_which_the_news_is_slow_is_let_in() {
        let members = Arc::new(Members::new());
        let known = |name: &str| BTreeMap::from([(name.to_owned(), None)]);
        members.set(known("other"));
        let peer = PeerNode { name: "n".into(), uid: None };
        assert!(!members.admits(&peer).await, "nobody has heard of it");
        let (waiting, waited) = (members.clone(), peer.clone());
        let admitted = tokio::spawn(async move { waiting.admits(&waited).await });
        tokio::time::sleep(NEWS_TIMEOUT / 2).await;
        assert!(!admitted.is_finished());
        members.set(known("n"));
        assert!(admitted.await.unwrap());
        let (waiting, waited) = (members.clone(), peer.clone());
        let lost = tokio::spawn(async move { waiting.lost(&waited).await });
        tokio::task::yield_now().await;
        assert!(!lost.is_finished());
        members.set(known("other"));
        lost.await.unwrap();
        // Who has gone before anybody watched is lost as well.
        members.lost(&peer).await;
    }
}
