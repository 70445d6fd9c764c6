//! Pods that end while their images are pulled.

use coracle_proto::tls;
use parking_lot::RwLock;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpListener;

use super::*;

/// Control nodes that are asked one after the other, none of which answers: together they take longer than a test waits.
const SILENT: usize = 200;

/// A registry that takes connections and says nothing.
async fn silent() -> (TcpListener, Registry) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = ClientConfig::builder_with_provider(tls::provider());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    (listener, Registry::new(Arc::new(RwLock::new(vec![address; SILENT])), config.into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_given_up_with_its_pod() {
    let dir = tempfile::tempdir().unwrap();
    let (listener, registry) = silent().await;
    let mut rig = Rig::with(dir.path(), Vec::new(), Parts { registry, ..Parts::default() });
    rig.tell(Down::Synced(Synced { revision: 1 })).await;
    let before = rig.held().await;
    for (uid, gone_from_the_cluster) in [("graceful", false), ("forced", true)] {
        let mut slow = pod(uid, json!({ "containers": [{ "name": "c", "image": "slow:1.0" }] }));
        rig.put("pods", slow.clone()).await;
        if !gone_from_the_cluster {
            rig.give_block("10.128.7.0/24").await;
        }
        let _asked = listener.accept().await.unwrap();
        if gone_from_the_cluster {
            rig.delete("pods", &slow).await;
        } else {
            slow["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            slow["metadata"]["deletionGracePeriodSeconds"] = 30.into();
            rig.put("pods", slow.clone()).await;
            rig.until(|body| matches!(body, Up::PodGone(gone) if gone.uid == uid).then_some(())).await;
            rig.delete("pods", &slow).await;
        }
        rig.until_held(&before).await;
    }
    assert!(!rig.seen.iter().filter_map(event_reason).any(|reason| reason == "Failed"));
    rig.stop().await;
}
