//! `coracle node`: one node, in the foreground.

use anyhow::{Result, bail};
use coracle_agent::{Capacity, JoinWith, NodeConfig};

use crate::{
    args::NodeArgs,
    commands::up::{stop_asked, stopping},
    service_manager,
};

pub async fn run(args: &NodeArgs) -> Result<()> {
    let made = coracle_agent::has_joined(&args.data_dir);
    let join = match (args.token.read(made)?, args.join.is_empty()) {
        (Some(token), false) => Some(JoinWith { addresses: args.join.clone(), token: Some(token) }),
        _ if made => None,
        _ => bail!(
            "{} holds no node yet: say --join HOST:PORT with a token in $CORACLE_TOKEN or by --token-file (make it \
             with `coracle token create`)",
            args.data_dir.display()
        ),
    };
    let config = NodeConfig {
        name: args.name.clone().unwrap_or_default(),
        join,
        fabric_listen: args.fabric,
        gateway_listen: args.gateway,
        trusted_proxies: args.trusted_proxies.clone(),
        metrics_listen: args.metrics,
        capacity: Capacity { pods: args.pods, ..Capacity::default() },
        max_instances: args.max_instances,
        labels: args.labels.iter().cloned().collect(),
        allow_egress: args.allow_egress,
        local_artifacts: args.local_artifacts.clone(),
        compiler: std::env::current_exe().ok(),
        ..NodeConfig::new(args.data_dir.clone())
    };
    let node = coracle_agent::start(config).await?;
    println!("node {} is up, data in {}", node.name(), args.data_dir.display());
    if let Some(metrics) = node.metrics_address() {
        println!("  metrics http://{metrics}/metrics");
    }
    if let Some(gateway) = node.gateway_address() {
        println!("  gateway http://{gateway}");
    }
    service_manager::ready();
    stop_asked().await;
    service_manager::stopping();
    stopping(node.shutdown()).await;
    Ok(())
}
