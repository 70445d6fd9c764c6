//! Who this node is: its data dir, its name, its certificate. Joins once, then resumes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use coracle_proto::{
    join::{self, JoinError, JoinToken, Role},
    tls,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    config::{JoinWith, NodeConfig},
    machine, private,
};

/// What else a data dir may hold before its first use.
const HARMLESS: [&str; 2] = ["lost+found", LOCK];
const LOCK: &str = "lock";
const NODE: &str = "node.json";

/// The key is in the one that `node.json` names.
const KEY_FILES: [&str; 2] = ["node.key", "node-2.key"];

/// Why a node has no identity. Each says what to do.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("the data dir {path} cannot be used: {source}")]
    DataDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the data dir {path} is in use by another process; stop it, or choose another --data-dir")]
    Locked { path: PathBuf },
    #[error("the data dir {path} holds something else than a node's data; choose an empty or new --data-dir")]
    Foreign { path: PathBuf },
    #[error("the data dir {path} is damaged ({reason}); choose another --data-dir and join anew")]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the data dir {path} belongs to a node of another cluster than the join token; choose another --data-dir, or \
         leave the token out to resume"
    )]
    OtherCluster { path: PathBuf },
    #[error(
        "the data dir {path} belongs to the node {there:?}, not {wanted:?}; choose another --data-dir or name"
    )]
    OtherName { path: PathBuf, there: String, wanted: String },
    #[error(
        "this node has not joined a cluster yet; give --join HOST:PORT and --token (`coracle token create`)"
    )]
    NotJoined,
    #[error("the join token is for a control node; make one with `coracle token create --role node`")]
    WrongRole,
    #[error("the name {name:?} is no DNS label (a-z, 0-9 and -, at most 63); choose another --name")]
    BadName { name: String },
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// A node's identity. Holds the data dir's lock as long as it lives.
#[derive(Debug)]
pub struct Identity {
    pub name: String,
    pub cluster_id: String,
    changing: Mutex<Changing>,
    dir: PathBuf,
    ca_pin: String,
    _lock: File,
}

/// What is written anew while the node runs.
#[derive(Clone, Debug)]
struct Changing {
    certificates: Certificates,
    /// `host:port` of control nodes, as known last.
    control_addresses: Vec<String>,
    key_file: String,
}

/// What the node shows, and whom it trusts (PEM).
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// With its CA behind it.
    pub certificate_pem: String,
    pub key_pem: String,
    pub serving_ca_pem: String,
    pub peer_ca_pem: String,
    pub client_ca_pem: String,
    /// Of the cluster's authorities; 0 where they are those of the join.
    pub generation: u64,
}

/// What is kept in `node.json`. The key has a file of its own, readable by its owner alone.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    name: String,
    cluster_id: String,
    /// Hexadecimal SHA-256 of the serving CA's public key, as join tokens carry it.
    ca_pin: String,
    certificate_pem: String,
    serving_ca_pem: String,
    peer_ca_pem: String,
    client_ca_pem: String,
    control_addresses: Vec<String>,
    /// The file with the certificate's key: each key has its own, so that key and certificate change together.
    #[serde(default = "first_key_file")]
    key_file: String,
    #[serde(default)]
    generation: u64,
}

/// Whether a node of this data dir has joined a cluster: it needs no token any more.
pub fn has_joined(data_dir: &Path) -> bool {
    data_dir.join(NODE).exists()
}

impl Identity {
    /// Resumes what the data dir holds, or joins. `advertise` is where the fabric is reached.
    pub async fn obtain(config: &NodeConfig, advertise: &str) -> Result<Self, IdentityError> {
        let dir = config.data_dir.clone();
        let unusable = |source| IdentityError::DataDir { path: config.data_dir.clone(), source };
        private::create_lasting_dir(&dir).map_err(unusable)?;
        let lock = lock(&dir)?;
        let token = config.join.as_ref().and_then(|with| with.token.as_ref());
        let token = token.map(|token| token.parse::<JoinToken>()).transpose()?;
        if has_joined(&dir) {
            return Self::resume(dir, config, token.as_ref(), lock);
        }
        if !is_empty(&dir).map_err(unusable)? {
            return Err(IdentityError::Foreign { path: dir });
        }
        let (Some(with), Some(token)) = (&config.join, token) else { return Err(IdentityError::NotJoined) };
        Self::join(dir, config, with, &token, advertise, lock).await
    }

    /// An identity without certificates, for tests of what needs none.
    #[cfg(test)]
    pub fn for_tests(config: &NodeConfig) -> Self {
        let changing = Changing {
            certificates: Certificates::default(),
            control_addresses: Vec::new(),
            key_file: first_key_file(),
        };
        Self {
            name: config.name.clone(),
            cluster_id: "c".into(),
            changing: Mutex::new(changing),
            dir: config.data_dir.clone(),
            ca_pin: String::new(),
            _lock: lock(&config.data_dir).expect("the data dir is this test's own"),
        }
    }

    fn resume(
        dir: PathBuf,
        config: &NodeConfig,
        token: Option<&JoinToken>,
        lock: File,
    ) -> Result<Self, IdentityError> {
        let damaged = |reason: String| IdentityError::Damaged { path: dir.clone(), reason };
        let text = fs::read(dir.join(NODE)).map_err(|error| damaged(format!("{NODE}: {error}")))?;
        let kept: Kept =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("{NODE}: {error}")))?;
        let key_file = kept.key_file;
        if Path::new(&key_file).file_name() != Some(key_file.as_ref()) {
            return Err(damaged(format!("{NODE}: {key_file} is no file of this directory")));
        }
        for file in [NODE, &key_file] {
            private::close(&dir.join(file)).map_err(|error| damaged(format!("{file}: {error}")))?;
        }
        let key_pem = fs::read_to_string(dir.join(&key_file))
            .map_err(|error| damaged(format!("{key_file}: {error}")))?;
        // The cluster may have another authority than when this node joined.
        let known = |token: &JoinToken| {
            let pins = tls::certificates(&kept.serving_ca_pem, "CA").unwrap_or_default();
            hex::encode(token.ca_pin) == kept.ca_pin
                || pins.iter().any(|ca| tls::public_key_pin(ca).is_ok_and(|pin| pin == token.ca_pin))
        };
        if token.is_some_and(|token| !known(token)) {
            return Err(IdentityError::OtherCluster { path: dir });
        }
        if !config.name.is_empty() && config.name != kept.name {
            let wanted = config.name.clone();
            return Err(IdentityError::OtherName { path: dir, there: kept.name, wanted });
        }
        let mut control_addresses = kept.control_addresses;
        for address in config.join.iter().flat_map(|with| &with.addresses) {
            if !control_addresses.contains(address) {
                control_addresses.push(address.clone());
            }
        }
        let certificates = Certificates {
            certificate_pem: kept.certificate_pem,
            key_pem,
            serving_ca_pem: kept.serving_ca_pem,
            peer_ca_pem: kept.peer_ca_pem,
            client_ca_pem: kept.client_ca_pem,
            generation: kept.generation,
        };
        Ok(Self {
            name: kept.name,
            cluster_id: kept.cluster_id,
            changing: Mutex::new(Changing { certificates, control_addresses, key_file }),
            ca_pin: kept.ca_pin,
            dir,
            _lock: lock,
        })
    }

    async fn join(
        dir: PathBuf,
        config: &NodeConfig,
        with: &JoinWith,
        token: &JoinToken,
        advertise: &str,
        lock: File,
    ) -> Result<Self, IdentityError> {
        if token.role != Role::Node {
            return Err(IdentityError::WrongRole);
        }
        let name = if config.name.is_empty() { machine::host_name() } else { config.name.clone() };
        if !is_label(&name) {
            return Err(IdentityError::BadName { name });
        }
        let joined = join::join(&with.addresses, token, &name, advertise).await?;
        let response = joined.response;
        let mut control_addresses: Vec<String> =
            response.members.into_iter().map(|member| member.address).filter(|at| !at.is_empty()).collect();
        for address in &with.addresses {
            if !control_addresses.contains(address) {
                control_addresses.push(address.clone());
            }
        }
        let certificates = Certificates {
            certificate_pem: response.certificate_pem,
            key_pem: joined.key_pem,
            serving_ca_pem: response.serving_ca_pem,
            peer_ca_pem: response.peer_ca_pem,
            client_ca_pem: response.client_ca_pem,
            generation: 0,
        };
        let changing = Changing { certificates, control_addresses, key_file: first_key_file() };
        let identity = Self {
            name,
            cluster_id: response.cluster_id,
            changing: Mutex::new(changing),
            ca_pin: hex::encode(token.ca_pin),
            dir,
            _lock: lock,
        };
        let unusable = |source| IdentityError::DataDir { path: identity.dir.clone(), source };
        {
            let changing = identity.changing.lock();
            let key_pem = changing.certificates.key_pem.as_bytes();
            write_private(&identity.dir.join(&changing.key_file), key_pem).map_err(unusable)?;
            identity.write(&changing).map_err(unusable)?;
        }
        Ok(identity)
    }

    pub fn certificates(&self) -> Certificates {
        self.changing.lock().certificates.clone()
    }

    /// `host:port` of control nodes, as known last.
    pub fn control_addresses(&self) -> Vec<String> {
        self.changing.lock().control_addresses.clone()
    }

    /// Writes the identity with these control nodes, all or nothing.
    pub fn keep(&self, control_addresses: &[String]) -> io::Result<()> {
        let mut changing = self.changing.lock();
        changing.control_addresses = control_addresses.to_vec();
        self.write(&changing)
    }

    /// Takes another certificate and key, all or nothing.
    pub fn renew(&self, certificates: Certificates) -> io::Result<()> {
        let mut changing = self.changing.lock();
        let key_file = other_key_file(&changing.key_file);
        write_private(&self.dir.join(&key_file), certificates.key_pem.as_bytes())?;
        let renewed =
            Changing { certificates, key_file, control_addresses: changing.control_addresses.clone() };
        self.write(&renewed)?;
        *changing = renewed;
        Ok(())
    }

    fn write(&self, changing: &Changing) -> io::Result<()> {
        let certificates = &changing.certificates;
        let kept = Kept {
            name: self.name.clone(),
            cluster_id: self.cluster_id.clone(),
            ca_pin: self.ca_pin.clone(),
            certificate_pem: certificates.certificate_pem.clone(),
            serving_ca_pem: certificates.serving_ca_pem.clone(),
            peer_ca_pem: certificates.peer_ca_pem.clone(),
            client_ca_pem: certificates.client_ca_pem.clone(),
            control_addresses: changing.control_addresses.clone(),
            key_file: changing.key_file.clone(),
            generation: certificates.generation,
        };
        write_private(&self.dir.join(NODE), &serde_json::to_vec_pretty(&kept)?)
    }
}

fn first_key_file() -> String {
    KEY_FILES[0].into()
}

/// The one of the two files that is not in use: what an interrupted renewal left there is written over.
fn other_key_file(present: &str) -> String {
    KEY_FILES[usize::from(present == KEY_FILES[0])].into()
}

/// A DNS label. Source: RFC 1123.
fn is_label(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// The data dir's lock, held until the file is closed.
fn lock(dir: &Path) -> Result<File, IdentityError> {
    let unusable = |source| IdentityError::DataDir { path: dir.to_owned(), source };
    let file = private::open_options().truncate(false).write(true).open(dir.join(LOCK)).map_err(unusable)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::Locked { path: dir.to_owned() }),
        Err(error) => Err(unusable(error.into())),
    }
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        // A key without its node.json is a join that was interrupted: it is simply done again.
        if !HARMLESS.iter().chain(&KEY_FILES).any(|harmless| name == *harmless) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Replaces a file whole, on disk, for its owner's eyes.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // What an interrupted write left behind may have been made with another mode.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private::open_options().create_new(true).write(true).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn token(pin: u8, role: Role) -> String {
        JoinToken { ca_pin: [pin; 32], role, id: "abc".into(), secret: "s".into() }.to_string()
    }

    fn config(dir: &Path, token: Option<String>) -> NodeConfig {
        let join = token.map(|token| JoinWith { addresses: vec!["127.0.0.1:1".into()], token: Some(token) });
        NodeConfig { join, name: "n1".into(), ..NodeConfig::new(dir) }
    }

    fn kept(dir: &Path) {
        let text = |text: &str| text.to_owned();
        let kept = Kept {
            name: text("n1"),
            cluster_id: text("c"),
            ca_pin: hex::encode([7; 32]),
            certificate_pem: text("cert"),
            serving_ca_pem: text("s"),
            peer_ca_pem: text("p"),
            client_ca_pem: text("c"),
            control_addresses: vec![text("10.0.0.1:6443")],
            key_file: first_key_file(),
            generation: 0,
        };
        fs::write(dir.join(NODE), serde_json::to_vec(&kept).unwrap()).unwrap();
        fs::write(dir.join("node.key"), "key").unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    async fn error(config: &NodeConfig) -> String {
        Identity::obtain(config, "127.0.0.1:7443").await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_data_dir_is_resumed_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(error(&config(dir.path(), None)).await.contains("not joined"));
        let control = config(dir.path(), Some(token(7, Role::Control)));
        assert!(error(&control).await.contains("--role node"));
        kept(dir.path());
        let resumed = Identity::obtain(&config(dir.path(), Some(token(7, Role::Node))), "").await.unwrap();
        assert_eq!(resumed.control_addresses(), ["10.0.0.1:6443", "127.0.0.1:1"]);
        assert!(error(&config(dir.path(), None)).await.contains("in use by another process"));
        resumed.keep(&["10.0.0.2:6443".to_owned()]).unwrap();
        assert_eq!(mode(dir.path()), 0o700, "set although it existed");
        assert_eq!(mode(&dir.path().join(NODE)), 0o600);
        drop(resumed);
        let again = Identity::obtain(&config(dir.path(), None), "").await.unwrap();
        assert_eq!(again.control_addresses(), ["10.0.0.2:6443"]);
        drop(again);
        assert!(error(&config(dir.path(), Some(token(8, Role::Node)))).await.contains("another cluster"));
        let other = NodeConfig { name: "n2".into(), ..config(dir.path(), None) };
        assert!(error(&other).await.contains("belongs to the node \"n1\""));
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_kept_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        kept(dir.path());
        let resume = async || Identity::obtain(&config(dir.path(), None), "").await.unwrap();
        for round in ["1", "2", "3"] {
            let identity = resume().await;
            let renewed = Certificates {
                certificate_pem: format!("cert {round}"),
                key_pem: format!("key {round}"),
                ..identity.certificates()
            };
            identity.renew(renewed).unwrap();
            drop(identity);
            let again = resume().await;
            let certificates = again.certificates();
            assert_eq!(certificates.certificate_pem, format!("cert {round}"));
            assert_eq!(certificates.key_pem, format!("key {round}"));
            assert_eq!(again.control_addresses(), ["10.0.0.1:6443"]);
        }
        assert_eq!(mode(&dir.path().join(KEY_FILES[1])), 0o600);
    }

    #[tokio::test]
    async fn a_foreign_data_dir_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("photos"), "").unwrap();
        assert!(error(&config(dir.path(), Some(token(7, Role::Node)))).await.contains("something else"));
    }

    #[test]
    fn names_are_labels() {
        assert!(is_label("n-1"));
        for name in ["", "-a", "a-", "A", "a.b", "a_b"] {
            assert!(!is_label(name), "{name}");
        }
    }
}
