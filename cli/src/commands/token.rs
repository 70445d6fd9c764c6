//! `coracle token`: tokens to join, to read and to push with.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use coracle_proto::cluster::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenInfo};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    args::{Role, TokenCommand},
    client::Cluster,
    join_token,
    output::{self, align},
};

pub async fn run(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { role, ttl, node, token_file, connection } => {
            let role = match role {
                Role::Control => "control",
                Role::Node => "node",
                Role::Reader => "reader",
                Role::Pusher => "pusher",
            };
            let node = node.clone().unwrap_or_default();
            let request = CreateTokenRequest { role: role.into(), ttl_seconds: ttl.as_secs(), node };
            let cluster = Cluster::find(connection)?;
            // Before there is a token that nobody would have.
            let file = token_file.as_deref().map(join_token::new_file).transpose()?;
            let made = cluster
                .administer(|mut client| {
                    let request = request.clone();
                    async move { client.create_token(request).await }
                })
                .await?;
            if let (Some(mut file), Some(path)) = (file, token_file) {
                return writeln!(file, "{}", made.token)
                    .with_context(|| format!("writing {}", path.display()));
            }
            output::line(&made.token)?;
            if std::io::stdout().is_terminal() {
                // A person is told how it is used; a program gets the token alone.
                output::note(usage(role, cluster.address()));
            }
        }
        TokenCommand::List { format, connection } => {
            let cluster = Cluster::find(connection)?;
            let answer = cluster
                .administer(|mut client| async move { client.list_tokens(ListTokensRequest {}).await })
                .await?;
            match format.output {
                None => output::text(&table(&answer.tokens, Timestamp::now())?)?,
                Some(format) => output::value(&as_json(&answer.tokens, Timestamp::now())?, format)?,
            }
        }
        TokenCommand::Revoke { id, connection } => {
            let cluster = Cluster::find(connection)?;
            cluster
                .administer(|mut client| {
                    let request = RevokeTokenRequest { id: id.clone() };
                    async move { client.revoke_token(request).await }
                })
                .await?;
            output::line("token revoked; what has joined with it stays")?;
        }
    }
    Ok(())
}

fn usage(role: &str, address: &str) -> String {
    if role == "reader" {
        return format!(
            "read with: curl --cacert CA -H \"Authorization: Bearer TOKEN\" https://{address}/metrics"
        );
    }
    if role == "pusher" {
        return format!("log in with: oras login {address} --ca-file CA -u token --password-stdin");
    }
    let variable = join_token::VARIABLE;
    format!(
        "join with: {variable}=TOKEN coracle {role} --data-dir DIR --join {address}\n\
         or --token-file FILE; not on the command line, which others can read"
    )
}

fn table(tokens: &[TokenInfo], now: Timestamp) -> Result<String> {
    let mut lines = vec![["ID", "ROLE", "NODE", "EXPIRES", "STATE"].map(String::from).to_vec()];
    for token in tokens {
        let (expires, state) = standing(token, now)?;
        let node = if token.node.is_empty() { "-" } else { &token.node };
        lines.push(vec![
            token.id.clone(),
            token.role.clone(),
            node.into(),
            expires.to_string(),
            state.into(),
        ]);
    }
    Ok(align(&lines))
}

fn as_json(tokens: &[TokenInfo], now: Timestamp) -> Result<Value> {
    let one = |token: &TokenInfo| {
        let (expires, state) = standing(token, now)?;
        let node = (!token.node.is_empty()).then_some(&token.node);
        let expires = expires.to_string();
        Ok(json!({ "id": token.id, "role": token.role, "node": node, "expires": expires, "state": state }))
    };
    tokens.iter().map(one).collect()
}

/// Until when a token is good, and what it is now.
fn standing(token: &TokenInfo, now: Timestamp) -> Result<(Timestamp, &'static str)> {
    let expires = Timestamp::from_second(token.expires_unix).context("the expiry is no time")?;
    // A token for control nodes serves once, one for nodes until it expires.
    let state = match (expires <= now, token.used) {
        (true, _) => "expired",
        (false, true) => "used",
        (false, false) => "good",
    };
    Ok((expires, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_state_is_told() {
        let token = |id: &str, expires_unix, used| TokenInfo {
            id: id.into(),
            role: "control".into(),
            expires_unix,
            used,
            node: String::new(),
        };
        let tokens = [token("a", 10, false), token("b", 10, true), token("c", 5, false)];
        let now = Timestamp::from_second(5).unwrap();
        let text = table(&tokens, now).unwrap();
        let states: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(states, ["STATE", "good", "used", "expired"]);
        let listed = as_json(&tokens, now).unwrap();
        assert_eq!(
            listed[1],
            json!({ "id": "b", "role": "control", "node": null, "expires": "1970-01-01T00:00:10Z", "state": "used" })
        );
    }
}
