//! What is taken from a kubeconfig, and what is said of one that cannot be used.

use serde_json::{Value, json};

use super::*;

fn cluster(name: &str, server: &str, ca: &str) -> Value {
    json!({ "name": name, "cluster": { "server": server, "certificate-authority-data": ca } })
}

/// One cluster and one user, of whom the cases below change something.
fn config() -> Value {
    json!({
        "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "clusters": [cluster("k", "https://10.0.0.1:6443", "Y2E=")],
        "users": [{ "name": "u", "user": { "client-certificate-data": "Yw==", "client-key-data": "aw==" } }],
    })
}

fn parse(config: &Value) -> Result<Access> {
    Access::parse(&config.to_string(), Path::new("/folder"))
}

/// What the user is told about a kubeconfig in which `change` was made.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut config = config();
    change(&mut config);
    match parse(&config) {
        Ok(_) => "it is fine".to_owned(),
        Err(error) => format!("{error:#}"),
    }
}

fn remove(of: &mut Value, field: &str) {
    of.as_object_mut().unwrap().remove(field).unwrap();
}

#[test]
fn all_control_nodes_of_the_same_ca_are_known() {
    let mut config = config();
    config["contexts"][0]["context"]["cluster"] = "two".into();
    config["clusters"] = json!([
        cluster("one", "https://10.0.0.1:6443", "Y2E="),
        cluster("two", "https://10.0.0.2:6443/", "Y2E="),
        cluster("again", "https://10.0.0.2:6443", "Y2E="),
        cluster("foreign", "https://10.9.9.9:6443", "b3RoZXI="),
        cluster("plain", "http://10.0.0.3:6443", "Y2E="),
        cluster("nowhere", "", "Y2E="),
        { "name": "without" },
        { "name": "far", "cluster": {
            "server": "https://10.0.0.4:6443", "certificate-authority-data": "Y2E=", "proxy-url": "http://p:1",
        } },
        cluster("by name", "https://api.example", "Y2E="),
    ]);
    let access = parse(&config).unwrap();
    assert_eq!(access.addresses, ["10.0.0.2:6443", "10.0.0.1:6443", "api.example:443"]);
    assert_eq!((access.ca_pem.as_str(), access.namespace.as_str()), ("ca", "default"));
    let certificate = access.certificate.unwrap();
    assert_eq!((certificate.pem.as_str(), certificate.key_pem.as_str()), ("c", "k"));
    assert_eq!(access.token, None);
}

#[test]
fn what_a_context_says_beyond_is_read() {
    let mut config = config();
    config["contexts"][0]["context"]["namespace"] = "blue".into();
    config["clusters"][0]["cluster"]["server"] = "https://[::1]:6443/below/".into();
    config["clusters"][0]["cluster"]["tls-server-name"] = "api.example".into();
    let access = parse(&config).unwrap();
    assert_eq!((access.namespace.as_str(), access.user.as_str()), ("blue", "u"));
    assert_eq!(access.addresses, ["[::1]:6443/below"]);
    assert_eq!(access.server_name, Some(ServerName::try_from("api.example").unwrap()));
}

#[test]
fn relative_paths_begin_where_the_kubeconfig_lies() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("pki")).unwrap();
    for (name, text) in [("ca.pem", "ca of a file"), ("u.pem", "chain"), ("u.key", "key")] {
        std::fs::write(folder.path().join("pki").join(name), text).unwrap();
    }
    let absolute = folder.path().join("pki/u.key");
    let yaml = format!(
        "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: c\n\
         contexts:\n- name: c\n  context: {{cluster: k, user: u}}\n\
         clusters:\n- name: k\n  cluster:\n    server: https://h:1\n    certificate-authority: pki/ca.pem\n\
         users:\n- name: u\n  user:\n    client-certificate: pki/u.pem\n    client-key: {}\n    tokenFile: pki/token\n",
        absolute.display()
    );
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, yaml).unwrap();
    let access = Access::read(&file).unwrap();
    assert_eq!(access.ca_pem, "ca of a file");
    let certificate = access.certificate.unwrap();
    assert_eq!((certificate.pem.as_str(), certificate.key_pem.as_str()), ("chain", "key"));
    assert_eq!(access.token.unwrap().file, Some(folder.path().join("pki/token")));

    std::fs::remove_file(folder.path().join("pki/ca.pem")).unwrap();
    let said = format!("{:#}", Access::read(&file).err().unwrap());
    assert!(said.starts_with("the cluster \"k\": reading its certificate-authority "), "{said}");
}

#[test]
fn what_is_missing_is_named() {
    type Case = (&'static str, fn(&mut Value));
    let cases: [Case; 13] = [
        ("it has no current-context", |all| remove(all, "current-context")),
        ("its current-context \"c\" is not among its contexts", |all| all["contexts"] = Value::Null),
        ("its current context has no cluster", |all| remove(&mut all["contexts"][0]["context"], "cluster")),
        ("its current context has no user", |all| all["contexts"][0]["context"]["user"] = "".into()),
        ("the cluster \"k\" of its current context is not among its clusters", |all| remove(all, "clusters")),
        ("the user \"u\" of its current context is not among its users", |all| all["users"] = json!([])),
        ("the cluster \"k\" has no server", |all| remove(&mut all["clusters"][0]["cluster"], "server")),
        ("the server \"http://h:1\" of the cluster \"k\" does not begin with https://", |all| {
            all["clusters"][0]["cluster"]["server"] = "http://h:1".into();
        }),
        ("the cluster \"k\" has neither certificate-authority-data nor certificate-authority", |all| {
            remove(&mut all["clusters"][0]["cluster"], "certificate-authority-data")
        }),
        ("the user \"u\" has neither client-key-data nor client-key", |all| {
            remove(&mut all["users"][0]["user"], "client-key-data");
        }),
        ("the user \"u\" has neither client-certificate-data nor client-certificate", |all| {
            remove(&mut all["users"][0]["user"], "client-certificate-data");
        }),
        ("the user \"u\": its client-key-data is not base64", |all| {
            all["users"][0]["user"]["client-key-data"] = "?".into();
        }),
        ("it is not the YAML of a kubeconfig: users[0].user.token", |all| {
            all["users"][0]["user"]["token"] = json!(["t"]);
        }),
    ];
    for (expected, change) in cases {
        let said = refusal(change);
        assert!(said.starts_with(expected), "{expected:?}, but it said {said:?}");
    }
    let said = refusal(|all| all["users"][0]["user"] = json!({}));
    assert_eq!(
        said,
        format!(
            "the user \"u\" has neither client-certificate-data nor client-certificate, and no token: {}",
            kubeconfig::SUPPORTED
        )
    );
}

#[test]
fn what_is_not_supported_is_refused_and_not_passed_over() {
    for field in ["exec", "auth-provider"] {
        let said = refusal(|all| all["users"][0]["user"][field] = json!({ "command": "aws" }));
        let expected =
            format!("the user \"u\" has {field}, which coracle does not run: {}", kubeconfig::SUPPORTED);
        assert_eq!(said, expected);
    }
    let cases = [("insecure-skip-tls-verify", json!(true)), ("proxy-url", json!("http://proxy:3128"))];
    for (field, value) in cases {
        let said = refusal(|all| all["clusters"][0]["cluster"][field] = value);
        assert!(said.starts_with(&format!("the cluster \"k\" has {field}, but coracle ")), "{said}");
    }
    let fine = refusal(|all| {
        all["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = false.into();
        all["clusters"][0]["cluster"]["proxy-url"] = "".into();
        all["users"][0]["user"]["exec"] = Value::Null;
    });
    assert_eq!(fine, "it is fine");
}

#[tokio::test]
async fn requests_say_who_makes_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config["users"][0]["user"] = json!({
        "tokenFile": "token",
        "as": "joe", "as-uid": "7", "as-groups": ["devs", "ops"], "as-user-extra": { "a/b": ["blue"] },
    });
    let access = Access::parse(&config.to_string(), folder.path()).unwrap();
    let mut headers = HeaderMap::new();
    let said = format!("{:#}", access.introduce(&mut headers).await.unwrap_err());
    assert!(said.starts_with("reading the tokenFile ") && said.contains(" of the user \"u\""), "{said}");
    for token in ["first", "second\n"] {
        std::fs::write(folder.path().join("token"), token).unwrap();
        let mut headers = HeaderMap::new();
        access.introduce(&mut headers).await.unwrap();
        assert_eq!(headers["authorization"], format!("Bearer {}", token.trim()));
        assert_eq!(
            (&headers["impersonate-user"], &headers["impersonate-uid"]),
            (&"joe".parse().unwrap(), &"7".parse().unwrap())
        );
        assert_eq!(headers.get_all("impersonate-group").iter().collect::<Vec<_>>(), ["devs", "ops"]);
        assert_eq!(headers["impersonate-extra-a%2fb"], "blue");
    }
    config["users"][0]["user"]["token"] = "written".into();
    for (there, token) in [(true, "Bearer second"), (false, "Bearer written")] {
        if !there {
            std::fs::remove_file(folder.path().join("token")).unwrap();
        }
        let access = Access::parse(&config.to_string(), folder.path()).unwrap();
        let mut headers = HeaderMap::new();
        access.introduce(&mut headers).await.unwrap();
        assert_eq!(headers["authorization"], token, "what the file has goes before");
    }
    let access = parse(&config).unwrap();
    assert!(access.certificate.is_none());
}
