//! `coracle token`: tokens to join, to read and to push with.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use coracle_proto::cluster::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, TokenInfo};
use jiff::Timestamp;

use crate::{
    args::{Role, TokenCommand},
    client::Cluster,
    commands::get::align,
    join_token,
};

pub async fn run(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { role, ttl, node, connection } => {
            let role = match role {
                Role::Control => "control",
                Role::Node => "node",
                Role::Reader => "reader",
                Role::Pusher => "pusher",
            };
            let node = node.clone().unwrap_or_default();
            let request = CreateTokenRequest { role: role.into(), ttl_seconds: ttl.as_secs(), node };
            let cluster = Cluster::find(connection)?;
            let made = cluster
                .administer(|mut client| {
                    let request = request.clone();
                    async move { client.create_token(request).await }
                })
                .await?;
            println!("{}", made.token);
            // A person is told how it is used; a program gets the token alone.
            if std::io::stdout().is_terminal() && role == "reader" {
                let address = cluster.address();
                eprintln!(
                    "read with: curl --cacert CA -H \"Authorization: Bearer TOKEN\" https://{address}/metrics"
                );
            } else if std::io::stdout().is_terminal() && role == "pusher" {
                let address = cluster.address();
                eprintln!("log in with: oras login {address} --ca-file CA -u token --password-stdin");
            } else if std::io::stdout().is_terminal() {
                let address = cluster.address();
                let variable = join_token::VARIABLE;
                eprintln!("join with: {variable}=TOKEN coracle {role} --data-dir DIR --join {address}");
                eprintln!("or --token-file FILE; not on the command line, which others can read");
            }
        }
        TokenCommand::List { connection } => {
            let cluster = Cluster::find(connection)?;
            let answer = cluster
                .administer(|mut client| async move { client.list_tokens(ListTokensRequest {}).await })
                .await?;
            print!("{}", table(&answer.tokens, Timestamp::now())?);
        }
        TokenCommand::Revoke { id, connection } => {
            let cluster = Cluster::find(connection)?;
            cluster
                .administer(|mut client| {
                    let request = RevokeTokenRequest { id: id.clone() };
                    async move { client.revoke_token(request).await }
                })
                .await?;
            println!("token revoked; what has joined with it stays");
        }
    }
    Ok(())
}

fn table(tokens: &[TokenInfo], now: Timestamp) -> Result<String> {
    let mut lines = vec![["ID", "ROLE", "EXPIRES", "STATE"].map(String::from).to_vec()];
    for token in tokens {
        let expires = Timestamp::from_second(token.expires_unix).context("the expiry is no time")?;
        // A token for control nodes serves once, one for nodes until it expires.
        let state = match (expires <= now, token.used) {
            (true, _) => "expired",
            (false, true) => "used",
            (false, false) => "good",
        };
        lines.push(vec![token.id.clone(), token.role.clone(), expires.to_string(), state.into()]);
    }
    Ok(align(&lines))
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
        let text = table(
            &[token("a", 10, false), token("b", 10, true), token("c", 5, false)],
            Timestamp::from_second(5).unwrap(),
        );
        let text = text.unwrap();
        let states: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(states, ["STATE", "good", "used", "expired"]);
    }
}
