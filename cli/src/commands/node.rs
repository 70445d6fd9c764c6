//! `coracle node`: one node, in the foreground.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use coracle_agent::{Capacity, JoinWith, NodeConfig};

use crate::{
    args::NodeArgs,
    commands::up::{StopSignals, stopping},
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
    if args.access.access_log.is_some() && args.gateway.is_none() {
        bail!("--access-log is the gateway's, and there is none: say --gateway ADDR");
    }
    let config = NodeConfig {
        name: args.name.clone().unwrap_or_default(),
        join,
        fabric_listen: args.fabric,
        gateway_listen: args.gateway,
        trusted_proxies: args.trusted_proxies.clone(),
        access_log: args.access.open()?,
        metrics_listen: args.metrics,
        capacity: Capacity { pods: args.pods, ..Capacity::default() },
        max_instances: args.max_instances,
        labels: labels(&args.labels)?,
        allow_egress: args.allow_egress,
        local_artifacts: args.local_artifacts.clone(),
        compiler: std::env::current_exe().ok(),
        ..NodeConfig::new(args.data_dir.clone())
    };
    let node = coracle_agent::start(config).await?;
    let mut stop = StopSignals::listen();
    println!("node {} is up, data in {}", node.name(), args.data_dir.display());
    if let Some(metrics) = node.metrics_address() {
        println!("  metrics https://{metrics}/metrics");
    }
    if let Some(gateway) = node.gateway_address() {
        println!("  gateway http://{gateway}");
    }
    service_manager::ready();
    stop.next().await;
    service_manager::stopping();
    stopping(node.shutdown()).await;
    Ok(())
}

/// Each label has one value: of two it would not be plain which the node has.
fn labels(given: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for (key, value) in given {
        if labels.insert(key.clone(), value.clone()).is_some_and(|before| before != *value) {
            bail!("--label {key} is given twice, with different values: leave one out");
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_one_value() {
        let given = |all: &[(&str, &str)]| {
            let all: Vec<_> =
                all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            labels(&all).map(|labels| labels.len()).map_err(|error| error.to_string())
        };
        assert_eq!(given(&[("a", "1"), ("b", "2"), ("a", "1")]), Ok(2));
        let twice = given(&[("a", "1"), ("a", "2")]).unwrap_err();
        assert_eq!(twice, "--label a is given twice, with different values: leave one out");
    }
}
