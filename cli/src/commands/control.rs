//! `coracle control`: one control node, in the foreground.

use anyhow::{Result, bail};
use coracle_server::{Control, ControlConfig, Mode};

use crate::{args::ControlArgs, commands::up::StopSignals, service_manager};

pub async fn run(args: &ControlArgs) -> Result<()> {
    let made = args.data_dir.join("cluster.json").exists();
    let token = if args.init { None } else { args.token.read(made)? };
    let mode = match (args.init, args.join.is_empty(), token) {
        (true, _, _) => Mode::Init,
        (false, false, Some(token)) => Mode::Join { addresses: args.join.clone(), token },
        _ if made => Mode::Resume,
        (false, false, None) => {
            bail!(
                "--join needs a token, in $CORACLE_TOKEN or by --token-file: make one on a running control node \
                 with `coracle token create --role control`"
            )
        }
        (false, true, _) => bail!(
            "{} holds no control node yet: say --init to make a cluster, or --join HOST:PORT with a token in \
             $CORACLE_TOKEN or by --token-file",
            args.data_dir.display()
        ),
    };
    let fresh = matches!(mode, Mode::Init) && !made;
    let name = args.name.clone().unwrap_or_else(|| format!("{}-{}", machine_name(), args.listen.port()));
    let mut config = ControlConfig::new(args.data_dir.clone(), name, args.listen, mode);
    config.advertise = args.advertise.clone();
    config.seek = args.join.clone();
    config.snapshot_entries = args.snapshot_entries;
    config.member_dead = args.member_dead;
    config.key_ring = args.key_ring.clone();
    let control = coracle_server::start(config).await?;
    let mut stop = StopSignals::listen();
    println!("control node at {} with its data in {}", control.address(), args.data_dir.display());
    if fresh {
        print_how_to_go_on(&control);
    }
    service_manager::ready();
    let reason = tokio::select! {
        _ = stop.next() => None,
        reason = control.closed() => Some(reason),
    };
    service_manager::stopping();
    control.shutdown().await;
    reason.map_or(Ok(()), Err)
}

/// Without a token: what a daemon prints is kept in a journal, which others read.
fn print_how_to_go_on(control: &Control) {
    println!("  kubeconfig: export KUBECONFIG={}", control.kubeconfig_path().display());
    for (who, role) in [("node", "node"), ("further control node", "control")] {
        println!("  a {who} joins with a token, which `coracle token create --role {role}` makes:");
        println!(
            "    CORACLE_TOKEN=$(coracle token create --role {role}) coracle {role} --data-dir DIR --join {}",
            control.address()
        );
    }
}

/// The machine's name as a DNS label.
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    let label = label.trim_matches('-').to_string();
    if label.is_empty() { "coracle".into() } else { label }
}
