//! `coracle token`: join tokens.

use anyhow::{Context, Result};
use coracle_proto::cluster::{
    CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, cluster_client::ClusterClient,
};

use crate::{
    args::{Connection, Role, TokenCommand},
    client::Cluster,
    commands::get::align,
};

pub async fn run(command: &TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { role, ttl, connection } => {
            let role = match role {
                Role::Control => "control",
                Role::Node => "node",
            };
            let request = CreateTokenRequest { role: role.into(), ttl_seconds: ttl.as_secs() };
            println!(
                "{}",
                client(connection).await?.create_token(request).await.map_err(refused)?.into_inner().token
            );
        }
        TokenCommand::List { connection } => {
            let answer =
                client(connection).await?.list_tokens(ListTokensRequest {}).await.map_err(refused)?;
            let mut lines = vec![["ID", "ROLE", "EXPIRES", "USED"].map(String::from).to_vec()];
            for token in answer.into_inner().tokens {
                let expires =
                    jiff::Timestamp::from_second(token.expires_unix).context("the expiry is no time")?;
                lines.push(vec![token.id, token.role, expires.to_string(), token.used.to_string()]);
            }
            print!("{}", align(&lines));
        }
        TokenCommand::Revoke { id, connection } => {
            let request = RevokeTokenRequest { id: id.clone() };
            client(connection).await?.revoke_token(request).await.map_err(refused)?;
            println!("token {id} revoked");
        }
    }
    Ok(())
}

/// The cluster administration service, as the kubeconfig's user.
pub async fn client(connection: &Connection) -> Result<ClusterClient<tonic::transport::Channel>> {
    Ok(ClusterClient::new(Cluster::find(connection).await?.channel()?))
}

/// The server's words, without gRPC's.
pub fn refused(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unavailable => anyhow::anyhow!(
            "the cluster does not answer: {} (is it running? see `coracle doctor`)",
            status.message()
        ),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}
