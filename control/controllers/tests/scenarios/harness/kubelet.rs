//! Scheduler and nodes in small: pods get a node, become ready at once, and end at once when deleted.

use coracle_objects::ObjectKey;
use serde_json::{Value, json};

use super::Cluster;

impl Cluster {
    /// One round of all nodes. Answers whether they changed anything. A node that is not ready does nothing.
    pub fn kubelet(&mut self) -> bool {
        let ready: Vec<String> = self
            .view
            .list("nodes", None)
            .filter(|node| node.parse::<Value>().unwrap()["status"]["conditions"][0]["status"] == "True")
            .map(|node| node.name().to_owned())
            .collect();
        let pods: Vec<ObjectKey> = self.view.list("pods", None).map(|pod| pod.key.clone()).collect();
        let mut changed = false;
        for (index, key) in pods.iter().enumerate() {
            changed |= self.run_pod(key, index, &ready);
        }
        changed
    }

    fn run_pod(&mut self, key: &ObjectKey, index: usize, ready_nodes: &[String]) -> bool {
        let mut pod = self.get(key);
        let Some(node) = pod["spec"]["nodeName"].as_str().map(str::to_owned) else {
            if ready_nodes.is_empty() || pod["metadata"]["deletionTimestamp"].is_string() {
                return false;
            }
            pod["spec"]["nodeName"] = ready_nodes[index % ready_nodes.len()].as_str().into();
            self.put(key.clone(), pod);
            return true;
        };
        if !ready_nodes.contains(&node) {
            return false;
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            self.view.revision += 1;
            self.remove(key);
            return true;
        }
        if pod["status"]["phase"] != "Pending" {
            return false;
        }
        self.make_ready(key, &format!("10.128.0.{}", index % 250));
        true
    }

    /// Reports a pod as running and ready, or not ready where its image is called broken.
    pub fn make_ready(&mut self, key: &ObjectKey, ip: &str) {
        let mut pod = self.get(key);
        let broken = pod["spec"]["containers"][0]["image"] == "broken";
        pod["status"]["phase"] = "Running".into();
        pod["status"]["podIP"] = ip.into();
        pod["status"]["podIPs"] = json!([{"ip": ip}]);
        pod["status"]["conditions"] = json!([{
            "type": "Ready", "status": if broken { "False" } else { "True" },
            "lastTransitionTime": format!("{:.0}", self.now),
        }]);
        self.put(key.clone(), pod);
    }
}
