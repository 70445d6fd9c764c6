//! What a kubeconfig says about a cluster: where its control nodes are, and what proves both sides.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// The control nodes' addresses, and the PEM blocks that prove both sides.
pub struct Access {
    /// `host:port`; that of the current context first, then those of all other clusters with the same CA.
    pub addresses: Vec<String>,
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: String,
    /// The context's; `default` where it names none.
    pub namespace: String,
}

impl Access {
    pub fn read(kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig).context("it cannot be read")?;
        Self::parse(&text, kubeconfig.parent().unwrap_or(Path::new("")))
    }

    /// Files are named relative to `folder`.
    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let config: Value = serde_yaml_ng::from_str(text).context("it is not YAML")?;
        let named = |list: &str, name: &Value, part: &str| {
            let entries = config[list].as_array().cloned().unwrap_or_default();
            entries.into_iter().find(|entry| &entry["name"] == name).map(|mut entry| entry[part].take())
        };
        let context =
            named("contexts", &config["current-context"], "context").context("it has no current context")?;
        let cluster =
            named("clusters", &context["cluster"], "cluster").context("its context names no cluster")?;
        let user = named("users", &context["user"], "user").context("its context names no user")?;
        let server = cluster["server"].as_str().context("its cluster names no server")?;
        let ca_pem = pem(&cluster, "certificate-authority", folder)?;
        let mut addresses = vec![address(server)];
        for other in config["clusters"].as_array().into_iter().flatten() {
            let same = pem(&other["cluster"], "certificate-authority", folder).is_ok_and(|pem| pem == ca_pem);
            if let Some(server) = other["cluster"]["server"].as_str().map(address)
                && same
                && !addresses.contains(&server)
            {
                addresses.push(server);
            }
        }
        Ok(Self {
            addresses,
            ca_pem,
            certificate_pem: pem(&user, "client-certificate", folder)?,
            key_pem: pem(&user, "client-key", folder)?,
            namespace: context["namespace"].as_str().unwrap_or("default").to_owned(),
        })
    }
}

fn address(server: &str) -> String {
    server.trim_start_matches("https://").trim_end_matches('/').to_string()
}

/// A PEM that stands in the kubeconfig itself (`FIELD-data`, base64) or in a file that it names (`FIELD`).
fn pem(part: &Value, field: &str, folder: &Path) -> Result<String> {
    use base64::Engine;
    if let Some(text) = part[format!("{field}-data")].as_str() {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text)
            .with_context(|| format!("its {field}-data is not base64"))?;
        return String::from_utf8(bytes).with_context(|| format!("its {field}-data is not PEM"));
    }
    let file = part[field].as_str().with_context(|| format!("it has neither {field}-data nor {field}"))?;
    std::fs::read_to_string(folder.join(file)).with_context(|| format!("reading {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_both_sides_may_lie_in_files_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("ca.pem", "ca"), ("user.pem", "c"), ("user.key", "k")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut config = serde_json::json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "one", "user": "u", "namespace": "mine"}}],
            "clusters": [{"name": "one", "cluster": {"server": "https://a:1", "certificate-authority": "ca.pem"}}],
            "users": [{"name": "u", "user": {"client-certificate": "user.pem", "client-key": "user.key"}}],
        });
        let access = Access::parse(&config.to_string(), folder.path()).unwrap();
        assert_eq!(
            (access.ca_pem, access.key_pem, access.namespace),
            ("ca".into(), "k".into(), "mine".into())
        );
        config["users"][0]["user"] = serde_json::json!({"exec": {"command": "x"}});
        let missing = Access::parse(&config.to_string(), folder.path()).err().unwrap().to_string();
        assert_eq!(missing, "it has neither client-certificate-data nor client-certificate");
    }

    #[test]
    fn all_control_nodes_of_the_same_ca_are_known() {
        let cluster = |name: &str, server: &str, ca: &str| {
            serde_json::json!({
                "name": name, "cluster": {"server": server, "certificate-authority-data": ca},
            })
        };
        let config = serde_json::json!({
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "two", "user": "u"}}],
            "clusters": [
                cluster("one", "https://10.0.0.1:6443", "Y2E="),
                cluster("two", "https://10.0.0.2:6443/", "Y2E="),
                cluster("again", "https://10.0.0.2:6443", "Y2E="),
                cluster("foreign", "https://10.9.9.9:6443", "b3RoZXI="),
            ],
            "users": [{"name": "u", "user": {"client-certificate-data": "Yw==", "client-key-data": "aw=="}}],
        });
        let access = Access::parse(&config.to_string(), Path::new("")).unwrap();
        assert_eq!(access.addresses, ["10.0.0.2:6443", "10.0.0.1:6443"]);
        assert_eq!(access.ca_pem, "ca");
        assert_eq!(access.namespace, "default");
        assert!(Access::parse("{}", Path::new("")).is_err());
    }
}
