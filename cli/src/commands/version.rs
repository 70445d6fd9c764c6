//! `coracle version`: of this program, and of the control node that answers.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{args::VersionArgs, client::Cluster, output};

pub async fn run(args: &VersionArgs) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let server = if args.client { Ok(None) } else { server(args).await.map(Some) };
    let known = server.as_ref().ok().and_then(Option::as_ref);
    match args.format.output {
        Some(format) => {
            let mut versions = json!({ "clientVersion": { "gitVersion": format!("v{own}") } });
            if let Some(server) = known {
                versions["serverVersion"] = server.clone();
            }
            output::value(&versions, format)?;
        }
        None => {
            output::line(format!("Client Version: v{own}"))?;
            if let Some(server) = known {
                output::line(format!("Server Version: {}", server["gitVersion"].as_str().unwrap_or("?")))?;
            }
        }
    }
    server.map(|_| ())
}

async fn server(args: &VersionArgs) -> Result<Value> {
    let cluster = Cluster::find(&args.connection)?;
    cluster.get("/version").await?.context("the cluster has no version")
}
