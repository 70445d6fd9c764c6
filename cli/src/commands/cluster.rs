//! `coracle cluster`: the control members and their agreement.

use anyhow::Result;
use coracle_proto::cluster::{Member, StatusRequest, StatusResponse};

use crate::{
    args::{ClusterCommand, Connection},
    commands::{
        get::align,
        security,
        token::{client, refused},
    },
};

pub async fn run(command: &ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Status { connection } => {
            let status = status(connection).await?;
            println!("cluster     {}", status.cluster_id);
            println!("version     {}", status.version);
            println!("leader      member {} in term {}", status.leader_id, status.term);
            println!("committed   {} (applied here {})", status.commit_index, status.applied_index);
            println!("revision    {}", status.revision);
            println!("state hash  {}", status.state_hash);
            print!("\n{}", members(&status.members));
        }
        ClusterCommand::Members { connection } => print!("{}", members(&status(connection).await?.members)),
        ClusterCommand::Security(command) => security::run(command).await?,
    }
    Ok(())
}

async fn status(connection: &Connection) -> Result<StatusResponse> {
    Ok(client(connection).await?.status(StatusRequest {}).await.map_err(refused)?.into_inner())
}

fn members(members: &[Member]) -> String {
    let mut lines = vec![["ID", "NAME", "ADDRESS", "ROLE", "HEALTHY", "MATCHED"].map(String::from).to_vec()];
    for member in members {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        lines.push(vec![
            member.id.to_string(),
            member.name.clone(),
            member.address.clone(),
            role.into(),
            member.healthy.to_string(),
            member.matched_index.to_string(),
        ]);
    }
    align(&lines)
}
