//! `coracle node`: one node, in the foreground.

use anyhow::{Result, bail};
use coracle_agent::NodeConfig;

use crate::{
    args::NodeArgs,
    commands::{control::machine_name, up::stop_asked},
};

pub async fn run(args: &NodeArgs) -> Result<()> {
    let joined = coracle_agent::holds_node(&args.data_dir);
    if !joined && (args.join.is_empty() || args.token.is_none()) {
        bail!(
            "{} holds no node yet: say --join HOST:PORT --token T (make the token with `coracle token create`)",
            args.data_dir.display()
        );
    }
    let name = args.name.clone().unwrap_or_else(machine_name);
    let config = NodeConfig {
        token: args.token.clone(),
        fabric_listen: args.fabric,
        gateway_listen: args.gateway,
        labels: args.labels.iter().cloned().collect(),
        allow_local_artifacts: args.allow_local_artifacts,
        ..NodeConfig::new(args.data_dir.clone(), name, args.join.clone())
    };
    let node = coracle_agent::start(config).await?;
    println!("node {} is up, data in {}", node.name(), args.data_dir.display());
    if let Some(gateway) = node.gateway_address() {
        println!("  gateway http://{gateway}");
    }
    stop_asked().await;
    node.shutdown().await;
    Ok(())
}
