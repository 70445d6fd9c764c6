//! `coracle cluster keys`, `rotate-keys`, `drop-key`, `ca`, `rotate-ca`: the keys that Secrets are encrypted with, and
//! the certificate authorities.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use coracle_proto::security::{
    AuthoritiesRequest, AuthoritiesResponse, DropKeyRequest, KeyInfo, KeysRequest, KeysResponse,
    RotateAuthoritiesRequest, RotateKeysRequest, security_client::SecurityClient,
};
use serde_json::{Value, json};

use crate::{
    args::{Connection, OutputArgs, examples, grace},
    client::Cluster,
    output::{self, align},
};

/// Between two looks at how far a change has come.
const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// Looks in a row that may fail while authorities change.
const FAILURES_MAX: u32 = 20;

/// Nodes that are named at most where many are waited for.
const NODES_SHOWN_MAX: usize = 10;

#[derive(Debug, Subcommand)]
pub enum SecurityCommand {
    /// List the keys that Secrets are encrypted with: who holds them, and how many objects each is used for.
    #[command(after_help = examples::KEYS)]
    Keys {
        #[command(flatten)]
        format: OutputArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Encrypt Secrets with a new key, and wait until all are. The old key stays until `drop-key`.
    #[command(after_help = examples::ROTATE_KEYS)]
    RotateKeys {
        /// Begin only: see `coracle cluster keys` for how far it has come.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show the cluster's certificate authorities: whether they are being changed, and what that waits for.
    #[command(after_help = examples::CA)]
    Ca {
        #[command(flatten)]
        format: OutputArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Change certificate authorities, step by step, and wait until that is done. Nothing restarts; copies of old
    /// kubeconfigs and unused join tokens end with it.
    #[command(after_help = examples::ROTATE_CA)]
    RotateCa {
        /// The one that members know each other by.
        #[arg(long)]
        peer: bool,
        /// The one that everyone knows control nodes by.
        #[arg(long)]
        serving: bool,
        /// The one that administrators and nodes are known by.
        #[arg(long)]
        client: bool,
        /// All three.
        #[arg(long, conflicts_with_all = ["peer", "serving", "client"])]
        all: bool,
        /// How long each step waits for nodes that are away: 30m, 24h. They have to join again after it.
        #[arg(long, default_value = "24h", value_parser = grace, value_name = "TIME")]
        grace: Duration,
        /// Begin only: see `coracle cluster ca` for how far it has come.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Forget an old key on all control nodes. Backups that were encrypted with it need a key ring that has it.
    #[command(after_help = examples::DROP_KEY)]
    DropKey {
        /// The key, as `coracle cluster keys` lists it.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub async fn run(command: &SecurityCommand) -> Result<()> {
    match command {
        SecurityCommand::Keys { format, connection } => {
            let state = state(&Cluster::find(connection)?).await?;
            match format.output {
                None => output::text(&keys(&state)?)?,
                Some(format) => output::value(&keys_as_json(&state)?, format)?,
            }
        }
        SecurityCommand::RotateKeys { no_wait, connection } => rotate_keys(*no_wait, connection).await?,
        SecurityCommand::Ca { format, connection } => {
            let state = ca_state(&Cluster::find(connection)?).await?;
            match format.output {
                None => output::line(ca_progress(&state).unwrap_or_else(|| ca_rest(&state)))?,
                Some(format) => output::value(&ca_as_json(&state), format)?,
            }
        }
        SecurityCommand::RotateCa { peer, serving, client, all, grace, no_wait, connection } => {
            if !(*peer || *serving || *client || *all) {
                bail!("say which authority to change: --peer, --serving, --client or --all");
            }
            let request = RotateAuthoritiesRequest {
                peer: *peer || *all,
                serving: *serving || *all,
                client: *client || *all,
                grace_seconds: grace.as_secs(),
            };
            rotate_ca(request, *no_wait, connection).await?;
        }
        SecurityCommand::DropKey { id, connection } => {
            let cluster = Cluster::find(connection)?;
            let dropped = cluster.call(|channel| {
                let request = DropKeyRequest { id: id.clone() };
                async move { SecurityClient::new(channel).drop_key(request).await }
            });
            dropped.await?;
            output::line(format!("key {id} dropped"))?;
        }
    }
    Ok(())
}

async fn rotate_keys(no_wait: bool, connection: &Connection) -> Result<()> {
    let cluster = Cluster::find(connection)?;
    let begun = cluster
        .call(|channel| async move { SecurityClient::new(channel).rotate_keys(RotateKeysRequest {}).await });
    let mut now = begun.await?;
    let mut told = String::new();
    loop {
        let progress = progress(&now);
        let text = progress.clone().unwrap_or_else(|| "all Secrets are encrypted with the new key".into());
        if text != told {
            output::line(&text)?;
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

async fn rotate_ca(request: RotateAuthoritiesRequest, no_wait: bool, connection: &Connection) -> Result<()> {
    let cluster = Cluster::find(connection)?;
    let begun =
        cluster.call(|channel| async move { SecurityClient::new(channel).rotate_authorities(request).await });
    let (mut state, mut told) = (begun.await?, String::new());
    let mut failed = 0;
    loop {
        let progress = ca_progress(&state);
        let text = progress.clone().unwrap_or_else(|| ca_rest(&state));
        if text != told {
            output::line(&text)?;
            told = text;
        }
        if no_wait || progress.is_none() {
            return Ok(());
        }
        tokio::time::sleep(PROGRESS_PERIOD).await;
        // The kubeconfig is read anew: its certificate and what it trusts change on the way.
        match ca_state(&Cluster::find(connection)?).await {
            Ok(now) => (state, failed) = (now, 0),
            Err(_) if failed < FAILURES_MAX => failed += 1,
            Err(error) => {
                let mend = "the change goes on; where this kubeconfig is a copy, it has ended with the old \
                            authorities: take a new one with `coracle kubeconfig`";
                return Err(error.context(mend));
            }
        }
    }
}

async fn ca_state(cluster: &Cluster) -> Result<AuthoritiesResponse> {
    let state = cluster
        .call(|channel| async move { SecurityClient::new(channel).authorities(AuthoritiesRequest {}).await });
    state.await
}

/// How far a change of authorities is; `None` where there is none.
fn ca_progress(state: &AuthoritiesResponse) -> Option<String> {
    let first = state.changing.first()?;
    let names: Vec<_> = state.changing.iter().map(|change| change.authority.as_str()).collect();
    let step = ca_step(&names.join(", "), &first.stage);
    let mut waiting = Vec::new();
    if !state.waiting_members.is_empty() {
        waiting.push(format!("control nodes {}", numbers(&state.waiting_members)));
    }
    if !state.waiting_nodes.is_empty() {
        let nodes = &state.waiting_nodes[..state.waiting_nodes.len().min(NODES_SHOWN_MAX)];
        let more = state.waiting_nodes.len() - nodes.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        waiting.push(format!("nodes {}{more}", nodes.join(", ")));
    }
    Some(if waiting.is_empty() { step } else { format!("{step}; it waits for {}", waiting.join(" and ")) })
}

/// The step of a change of authorities.
pub fn ca_step(names: &str, stage: &str) -> String {
    match stage {
        "trusting" => format!("step 1 of 2: the new authorities ({names}) become trusted"),
        _ => format!("step 2 of 2: certificates become those of the new authorities ({names})"),
    }
}

fn ca_rest(state: &AuthoritiesResponse) -> String {
    match state.generation {
        0 => "the authorities are those that the cluster was made with".into(),
        generation => format!("no change is under way; the authorities are of generation {generation}"),
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

fn keys_as_json(state: &KeysResponse) -> Result<Value> {
    let one = |key: &KeyInfo| {
        let created = (key.created_unix != 0).then(|| created(key)).transpose()?;
        Ok(json!({
            "id": key.id, "created": created, "writing": key.writing, "adding": key.adding,
            "objects": key.objects, "lackedBy": key.lacking,
        }))
    };
    let keys = state.keys.iter().map(one).collect::<Result<Vec<_>>>()?;
    Ok(json!({ "keys": keys, "objectsInClear": state.in_clear }))
}

fn ca_as_json(state: &AuthoritiesResponse) -> Value {
    let changing =
        state.changing.iter().map(|change| json!({ "authority": change.authority, "stage": change.stage }));
    json!({
        "generation": state.generation,
        "changing": changing.collect::<Vec<_>>(),
        "waitingMembers": state.waiting_members,
        "waitingNodes": state.waiting_nodes,
    })
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
    use coracle_proto::security::AuthorityChange;

    use super::*;

    #[test]
    fn a_change_of_authorities_names_what_it_waits_for() {
        let change = |stage: &str| AuthorityChange { authority: "peer".into(), stage: stage.into() };
        let mut state = AuthoritiesResponse { changing: vec![change("trusting")], ..Default::default() };
        assert_eq!(ca_progress(&state).unwrap(), "step 1 of 2: the new authorities (peer) become trusted");
        state.waiting_members = vec![2, 3];
        state.waiting_nodes = (0..12).map(|at| format!("n{at}")).collect();
        state.changing = vec![change("issuing")];
        let text = ca_progress(&state).unwrap();
        assert!(
            text.starts_with("step 2 of 2") && text.contains("control nodes 2, 3 and nodes n0"),
            "{text}"
        );
        assert!(text.ends_with("n9 and 2 more"), "{text}");
        state.changing.clear();
        assert_eq!(ca_progress(&state), None);
    }

    #[test]
    fn progress_names_what_is_left() {
        let key = |id: &str, objects| KeyInfo { id: id.into(), objects, ..KeyInfo::default() };
        let adding = KeyInfo { adding: true, lacking: vec![2, 3], ..key("b", 0) };
        let writing = KeyInfo { writing: true, ..key("a", 4) };
        let mut state = KeysResponse { keys: vec![writing, adding], in_clear: 0 };
        assert_eq!(progress(&state).unwrap(), "key b is on its way to members 2, 3");
        let listed = keys_as_json(&state).unwrap();
        assert_eq!(
            (&listed["keys"][1]["lackedBy"], &listed["keys"][0]["objects"]),
            (&json!([2, 3]), &json!(4))
        );
        state.keys = vec![key("a", 4), KeyInfo { writing: true, ..key("b", 1) }];
        assert_eq!(progress(&state).unwrap(), "4 Secrets are left");
        state.keys[0].objects = 0;
        assert_eq!(progress(&state), None);
        state.in_clear = 1;
        assert_eq!(progress(&state).unwrap(), "1 Secrets are left");
    }
}
