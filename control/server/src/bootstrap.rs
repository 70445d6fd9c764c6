//! The objects that every cluster has from its beginning.

use bytes::Bytes;
use coracle_api::{ProposeError, Storage, new_draft};
use coracle_leader::node_object;
use coracle_objects::{
    Object, ObjectKey, Transaction, View, cluster_info_key,
    draft::{editable, encode},
    kinds::{GATEWAY_CONTROLLER, INGRESS_CLASSES},
};
use coracle_storage::peers::{MEMBERS, MemberSpec};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::config::{DNS_SERVICE_IP, KUBERNETES_SERVICE_IP};

/// Namespaces at birth.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Where the control plane keeps what it must not forget about the cluster.
pub struct ClusterInfo;

pub const CLUSTER_INFO: ClusterInfo = ClusterInfo;

impl ClusterInfo {
    pub fn key(&self) -> ObjectKey {
        cluster_info_key()
    }
}

/// The id for the next member. Ids grow and are never used twice.
pub fn next_member_id(info: &Object) -> u64 {
    editable(info)["data"]["nextMemberId"].as_str().and_then(|id| id.parse().ok()).unwrap_or(1)
}

/// Former clusters that are remembered.
const FORMER_IDS_MAX: usize = 8;

/// The ids that this cluster had before it was recovered. Nodes that joined then still belong to it.
pub fn former_ids(view: &View) -> Vec<String> {
    let info = view.get(&CLUSTER_INFO.key());
    let ids = info.map(|info| editable(info)["data"]["formerClusterIds"].as_str().unwrap_or("").to_owned());
    ids.unwrap_or_default().split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

/// Nodes that were made until then joined a cluster whose state this one was restored from.
pub const RESTORED_AT: &str = "restoredAt";

/// Whether a Node is of a node that joined the cluster which this one was restored from: its certificate is of authorities
/// that are no more, and it joins again as it joined first.
pub fn joins_anew(view: &View, node: &Object) -> bool {
    let moment = |text: &Value| text.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let restored =
        view.get(&CLUSTER_INFO.key()).and_then(|info| moment(&editable(info)["data"][RESTORED_AT]));
    let made = moment(&editable(node)["metadata"]["creationTimestamp"]);
    made.zip(restored).is_some_and(|(made, restored)| made <= restored) && !node_object::is_bound(node)
}

/// The former ids with the present one, as they are kept.
pub fn with_former_id(info: &Object) -> String {
    let draft = editable(info);
    let text = |field: &str| draft["data"][field].as_str().unwrap_or_default().to_owned();
    let (former, present) = (text("formerClusterIds"), text("clusterId"));
    let mut ids: Vec<&str> =
        former.split(',').chain([present.as_str()]).filter(|id| !id.is_empty()).collect();
    let dropped = ids.len().saturating_sub(FORMER_IDS_MAX);
    ids.drain(..dropped);
    ids.join(",")
}

/// The draft of the cluster info with another next id.
pub fn with_next_member_id(info: &Object, next: u64) -> Bytes {
    let mut draft = editable(info);
    draft["data"]["nextMemberId"] = next.to_string().into();
    encode(&draft)
}

/// Creates what is missing. `me` is the member that leads.
pub async fn ensure<S: Storage>(storage: &S, cluster_id: &str, me: &MemberSpec) -> Result<(), ProposeError> {
    let now = Timestamp::now();
    let missing: Vec<_> = wanted(cluster_id, me)
        .into_iter()
        .filter(|wanted| storage.view().get(&wanted.key).is_none())
        .map(|Wanted { key, api_version, kind, body }| {
            let draft = new_draft(api_version, kind, &key, body, now);
            storage.propose(Transaction::create(key, draft))
        })
        .collect();
    for outcome in futures::future::join_all(missing).await {
        // A refusal means that another leader was faster.
        let _ = outcome?;
    }
    Ok(())
}

/// Whether [`ensure`] has been done, by whatever leader.
pub fn is_done(view: &View) -> bool {
    let namespaces =
        NAMESPACES.iter().all(|name| view.get(&ObjectKey::new("namespaces", "", name)).is_some());
    namespaces && view.get(&CLUSTER_INFO.key()).is_some()
}

struct Wanted {
    key: ObjectKey,
    api_version: &'static str,
    kind: &'static str,
    body: Value,
}

fn wanted(cluster_id: &str, me: &MemberSpec) -> Vec<Wanted> {
    let one = |resource: &str, namespace: &str, name: &str, api_version, kind, body| Wanted {
        key: ObjectKey::new(resource, namespace, name),
        api_version,
        kind,
        body,
    };
    let mut wanted: Vec<_> = NAMESPACES
        .iter()
        .map(|name| {
            let body = json!({
                "metadata": { "labels": { "kubernetes.io/metadata.name": name } },
                "spec": { "finalizers": ["kubernetes"] },
                "status": { "phase": "Active" },
            });
            one("namespaces", "", name, "v1", "Namespace", body)
        })
        .collect();
    let next = (me.id + 1).to_string();
    let info = json!({ "data": { "clusterId": cluster_id, "nextMemberId": next } });
    wanted.push(Wanted { key: cluster_info_key(), api_version: "v1", kind: "ConfigMap", body: info });
    wanted.push(one(MEMBERS, "", &me.id.to_string(), "coracle.dev/v1", "Member", me.to_body()));
    for (address, namespace, name) in
        [(KUBERNETES_SERVICE_IP, "default", "kubernetes"), (DNS_SERVICE_IP, "kube-system", "kube-dns")]
    {
        let body = json!({
            "spec": { "parentRef": { "group": "", "resource": "services", "namespace": namespace, "name": name } },
        });
        wanted.push(one(
            "ipaddresses.networking.k8s.io",
            "",
            address,
            "networking.k8s.io/v1",
            "IPAddress",
            body,
        ));
    }
    wanted.push(one("services", "default", "kubernetes", "v1", "Service", kubernetes_service()));
    let class = json!({
        "metadata": { "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } },
        "spec": { "controller": GATEWAY_CONTROLLER },
    });
    wanted.push(one(INGRESS_CLASSES, "", "coracle", "networking.k8s.io/v1", "IngressClass", class));
    wanted
}

/// The service by which pods reach the API.
pub fn kubernetes_service_key() -> ObjectKey {
    ObjectKey::new("services", "default", "kubernetes")
}

pub fn kubernetes_service() -> Value {
    json!({
        "metadata": { "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": {
            "clusterIP": KUBERNETES_SERVICE_IP,
            "clusterIPs": [KUBERNETES_SERVICE_IP],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443 }],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": { "loadBalancer": {} },
    })
}
