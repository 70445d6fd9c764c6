//! What this control node shows and trusts at this moment.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use coracle_pki::{Authorities, Leaf, PkiError};
use coracle_proto::tls::{self, ClientTls, ServerTls};
use coracle_storage::peers::MemberSpec;
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::{error::ServerError, identity::Callers, join::host};

/// The three certificates of a control node.
#[derive(Clone)]
pub struct Leaves {
    /// Of the one TLS port.
    pub serving: Leaf,
    /// Towards the other members.
    pub peer: Leaf,
    /// In the admin kubeconfig.
    pub admin: Leaf,
}

/// The authorities, this member's certificates of them, and the TLS configurations made of both.
pub struct Credentials {
    me: MemberSpec,
    authorities: ArcSwap<Authorities>,
    leaves: ArcSwap<Leaves>,
    callers: ArcSwap<Callers>,
    server: ServerTls,
    client: ClientTls,
    /// Held while something is replaced.
    replacing: Mutex<()>,
    /// Counts the replacements.
    news: watch::Sender<u64>,
}

impl Credentials {
    /// Issues this member's certificates; an administrator's that the kubeconfig has is kept while it is good.
    pub fn issue(
        authorities: Authorities,
        me: &MemberSpec,
        kept_admin: Option<Leaf>,
    ) -> Result<Self, ServerError> {
        let mut leaves = Leaves::issue(&authorities, me)?;
        if let Some(kept) = kept_admin.filter(|kept| is_good(kept, &authorities)) {
            leaves.admin = kept;
        }
        Ok(Self {
            me: me.clone(),
            callers: ArcSwap::from_pointee(Callers::new(&authorities)?),
            server: server_tls(&authorities, &leaves)?.into(),
            client: client_tls(&authorities, &leaves)?.into(),
            authorities: ArcSwap::from_pointee(authorities),
            leaves: ArcSwap::from_pointee(leaves),
            replacing: Mutex::new(()),
            news: watch::Sender::new(0),
        })
    }

    /// With which this member signs, and what is trusted.
    pub fn authorities(&self) -> Arc<Authorities> {
        self.authorities.load_full()
    }

    pub fn leaves(&self) -> Arc<Leaves> {
        self.leaves.load_full()
    }

    /// Tells callers of the port apart.
    pub fn callers(&self) -> Arc<Callers> {
        self.callers.load_full()
    }

    /// For connections to the port.
    pub fn server(&self) -> &ServerTls {
        &self.server
    }

    /// For connections to other members.
    pub fn client(&self) -> &ClientTls {
        &self.client
    }

    /// What join tokens pin.
    pub fn serving_pin(&self) -> Result<[u8; 32], PkiError> {
        self.authorities().serving_pin()
    }

    /// Counts up when something has been replaced.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// When the first of the certificates is to be renewed.
    pub fn due(&self) -> Result<SystemTime, ServerError> {
        let leaves = self.leaves();
        let mut due = tls::renewal_due(&leaves.serving.chain_pem)?;
        for leaf in [&leaves.peer, &leaves.admin] {
            due = due.min(tls::renewal_due(&leaf.chain_pem)?);
        }
        Ok(due)
    }

    /// New certificates from the same authorities.
    pub fn renew(&self) -> Result<(), ServerError> {
        let _replacing = self.replacing.lock();
        self.show(self.authorities())
    }

    /// Other authorities, and new certificates from them.
    pub fn replace(&self, authorities: Authorities) -> Result<(), ServerError> {
        let _replacing = self.replacing.lock();
        let life = self.authorities().leaf_life();
        self.show(Arc::new(authorities.with_leaf_life(life)))
    }

    fn show(&self, shown: Arc<Authorities>) -> Result<(), ServerError> {
        let authorities = &*shown;
        let leaves = Leaves::issue(authorities, &self.me)?;
        // Everything that can fail comes first, so that all of it changes or nothing.
        let (server, client) = (server_tls(authorities, &leaves)?, client_tls(authorities, &leaves)?);
        let callers = Callers::new(authorities)?;
        self.callers.store(Arc::new(callers));
        self.server.set(server);
        self.client.set(client);
        self.leaves.store(Arc::new(leaves));
        self.authorities.store(shown.clone());
        self.news.send_modify(|count| *count += 1);
        Ok(())
    }
}

impl Leaves {
    fn issue(authorities: &Authorities, me: &MemberSpec) -> Result<Self, ServerError> {
        Ok(Self {
            serving: authorities.issue_serving(&me.name, &[host(&me.address).to_owned()])?,
            peer: authorities.issue_peer(me.id)?,
            admin: authorities.issue_admin()?,
        })
    }
}

/// Whether a client's certificate is of the authority as it is now, and not due to be renewed.
fn is_good(leaf: &Leaf, authorities: &Authorities) -> bool {
    let fresh = tls::renewal_due(&leaf.chain_pem).is_ok_and(|due| due > SystemTime::now());
    fresh && authorities.client.stands_behind(&leaf.chain_pem)
}

fn server_tls(authorities: &Authorities, leaves: &Leaves) -> Result<ServerConfig, ServerError> {
    let (peer, client) = (authorities.peer.bundle(), authorities.client.bundle());
    let trusted = [peer.as_str(), client.as_str()];
    let leaf = &leaves.serving;
    let mut tls = tls::server_config(&leaf.chain_pem, &leaf.key_pem, &trusted, false)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn client_tls(authorities: &Authorities, leaves: &Leaves) -> Result<ClientConfig, ServerError> {
    let leaf = &leaves.peer;
    Ok(tls::client_config(&authorities.serving.bundle(), &leaf.chain_pem, &leaf.key_pem)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use coracle_pki::AuthorityName;

    #[test]
    fn an_administrators_certificate_is_kept_as_long_as_it_is_good() {
        let mut authorities = Authorities::generate("c").unwrap();
        let me = MemberSpec { name: "a".into(), address: "127.0.0.1:1".into(), ..MemberSpec::default() };
        let kept = authorities.issue_admin().unwrap();
        let shown = |authorities: &Authorities, kept: &Leaf| {
            let credentials = Credentials::issue(authorities.clone(), &me, Some(kept.clone())).unwrap();
            credentials.leaves().admin.chain_pem.clone()
        };
        assert_eq!(shown(&authorities, &kept), kept.chain_pem);
        assert_ne!(
            shown(&Authorities::generate("c").unwrap(), &kept),
            kept.chain_pem,
            "of another authority"
        );
        let due = authorities.clone().with_leaf_life(Duration::ZERO).issue_admin().unwrap();
        assert_ne!(shown(&authorities, &due), due.chain_pem, "to be renewed");
        let broken = Leaf { chain_pem: "nonsense".into(), key_pem: String::new() };
        assert_ne!(shown(&authorities, &broken), broken.chain_pem);
        authorities.begin_change(&[AuthorityName::Client], "c").unwrap();
        assert_eq!(shown(&authorities, &kept), kept.chain_pem, "the old one signs");
        authorities.next_stage();
        assert_ne!(shown(&authorities, &kept), kept.chain_pem, "the new one signs");
    }
}
