//! `coracle cluster keys`, `rotate-keys`, `drop-key`: the keys that Secrets are encrypted with.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use coracle_proto::security::{
    DropKeyRequest, KeyInfo, KeysRequest, KeysResponse, RotateKeysRequest, security_client::SecurityClient,
};

use crate::{args::Connection, client::Cluster, commands::get::align};

/// Between two looks at how far a change has come.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub enum SecurityCommand {
    /// List the keys that Secrets are encrypted with: who holds them, and how many objects each is used for.
    Keys {
        #[command(flatten)]
        connection: Connection,
    },
    /// Encrypt Secrets with a new key, and wait until all are. The old key stays until `drop-key`.
    RotateKeys {
        /// Begin only: see `coracle cluster keys` for how far it has come.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Forget an old key on all control nodes. Backups that were encrypted with it need a key ring that has it.
    DropKey {
        /// The key, as `coracle cluster keys` lists it.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub async fn run(command: &SecurityCommand) -> Result<()> {
    match command {
        SecurityCommand::Keys { connection } => {
            print!("{}", keys(&state(&Cluster::find(connection).await?).await?)?);
        }
        SecurityCommand::RotateKeys { no_wait, connection } => rotate_keys(*no_wait, connection).await?,
        SecurityCommand::DropKey { id, connection } => {
            let cluster = Cluster::find(connection).await?;
            let dropped = cluster.call(|channel| {
                let request = DropKeyRequest { id: id.clone() };
                async move { SecurityClient::new(channel).drop_key(request).await }
            });
            dropped.await?;
            println!("key {id} dropped");
        }
    }
    Ok(())
}

async fn rotate_keys(no_wait: bool, connection: &Connection) -> Result<()> {
    let cluster = Cluster::find(connection).await?;
    let begun = cluster
        .call(|channel| async move { SecurityClient::new(channel).rotate_keys(RotateKeysRequest {}).await });
    let mut now = begun.await?;
    let mut told = String::new();
    loop {
        let progress = progress(&now);
        let text = progress.clone().unwrap_or_else(|| "all Secrets are encrypted with the new key".into());
        if text != told {
            println!("{text}");
            told = text;
        }
        if no_wait || progress.is_none() {
            return Ok(());
        }
        tokio::time::sleep(PROGRESS_PERIOD).await;
        // A leader that changes meanwhile goes on where the other was.
        now = state(&cluster).await?;
    }
}

/// What is still to be done; `None` where a change of keys is complete.
fn progress(state: &KeysResponse) -> Option<String> {
    if let Some(adding) = state.keys.iter().find(|key| key.adding) {
        let lacking = numbers(&adding.lacking);
        return Some(format!("key {} is on its way to members {lacking}", adding.id));
    }
    let others = state.keys.iter().filter(|key| !key.writing).map(|key| key.objects).sum::<u64>();
    let left = others + state.in_clear;
    (left > 0).then(|| format!("{left} Secrets are left"))
}

fn keys(state: &KeysResponse) -> Result<String> {
    let mut lines = vec![["KEY", "CREATED", "USE", "OBJECTS", "LACKED BY"].map(String::from).to_vec()];
    for key in &state.keys {
        lines.push(vec![
            key.id.clone(),
            created(key)?,
            used(key).into(),
            key.objects.to_string(),
            if key.lacking.is_empty() { "-".into() } else { numbers(&key.lacking) },
        ]);
    }
    if state.in_clear > 0 {
        let none = "-".to_string();
        lines.push(vec!["(in clear)".into(), none.clone(), none.clone(), state.in_clear.to_string(), none]);
    }
    Ok(align(&lines))
}

fn created(key: &KeyInfo) -> Result<String> {
    match key.created_unix {
        0 => Ok("-".into()),
        seconds => Ok(jiff::Timestamp::from_second(seconds).context("the key's age is no time")?.to_string()),
    }
}

fn used(key: &KeyInfo) -> &'static str {
    match (key.writing, key.adding) {
        (true, _) => "read and write",
        (false, true) => "being added",
        (false, false) => "read",
    }
}

fn numbers(members: &[u64]) -> String {
    members.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

async fn state(cluster: &Cluster) -> Result<KeysResponse> {
    cluster.call(|channel| async move { SecurityClient::new(channel).keys(KeysRequest {}).await }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_what_is_left() {
        let key = |id: &str, objects| KeyInfo { id: id.into(), objects, ..KeyInfo::default() };
        let adding = KeyInfo { adding: true, lacking: vec![2, 3], ..key("b", 0) };
        let writing = KeyInfo { writing: true, ..key("a", 4) };
        let mut state = KeysResponse { keys: vec![writing, adding], in_clear: 0 };
        assert_eq!(progress(&state).unwrap(), "key b is on its way to members 2, 3");
        state.keys = vec![key("a", 4), KeyInfo { writing: true, ..key("b", 1) }];
        assert_eq!(progress(&state).unwrap(), "4 Secrets are left");
        state.keys[0].objects = 0;
        assert_eq!(progress(&state), None);
        state.in_clear = 1;
        assert_eq!(progress(&state).unwrap(), "1 Secrets are left");
    }
}
