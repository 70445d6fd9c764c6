//! `coracle control`: one control node, in the foreground.

use anyhow::{Context, Result, bail};
use coracle_proto::cluster::{CreateTokenRequest, cluster_client::ClusterClient};
use coracle_server::{ControlConfig, Mode};

use crate::{
    args::ControlArgs,
    client::Cluster,
    commands::{token::refused, up::stop_asked},
};

/// The lifetime of the token in the join command that `--init` prints.
const PRINTED_TOKEN_TTL_SECONDS: u64 = 24 * 3600;

pub async fn run(args: &ControlArgs) -> Result<()> {
    let mode = match (args.init, args.join.is_empty(), &args.token) {
        (true, _, _) => Mode::Init,
        (false, false, Some(token)) => Mode::Join { addresses: args.join.clone(), token: token.clone() },
        (false, false, None) if !coracle_server::holds_member(&args.data_dir) => {
            bail!(
                "--join needs --token: make one on a running control node with `coracle token create --role control`"
            )
        }
        (false, true, _) if !coracle_server::holds_member(&args.data_dir) => {
            bail!(
                "{} holds no control node yet: say --init to make a cluster, or --join HOST:PORT --token T",
                args.data_dir.display()
            )
        }
        _ => Mode::Resume,
    };
    let fresh = matches!(mode, Mode::Init) && !coracle_server::holds_member(&args.data_dir);
    let name = args.name.clone().unwrap_or_else(|| format!("{}-{}", machine_name(), args.listen.port()));
    let mut config = ControlConfig::new(args.data_dir.clone(), name, args.listen, mode);
    config.advertise = args.advertise.clone();
    let control = coracle_server::start(config).await?;
    println!("control node at {}, data in {}", control.address(), args.data_dir.display());
    if fresh {
        print_how_to_go_on(&control).await?;
    }
    let reason = tokio::select! {
        () = stop_asked() => None,
        reason = control.closed() => Some(reason),
    };
    control.shutdown().await;
    reason.map_or(Ok(()), Err)
}

async fn print_how_to_go_on(control: &coracle_server::Control) -> Result<()> {
    let cluster = Cluster::open(control.kubeconfig_path(), None).await?;
    let mut client = ClusterClient::new(cluster.channel()?);
    let request = CreateTokenRequest { role: "node".into(), ttl_seconds: PRINTED_TOKEN_TTL_SECONDS };
    let token = client
        .create_token(request)
        .await
        .map_err(refused)
        .context("making a join token")?
        .into_inner()
        .token;
    println!("  kubeconfig: export KUBECONFIG={}", control.kubeconfig_path().display());
    println!("  a node joins with:");
    println!("    coracle node --data-dir DIR --join {} --token {token}", control.address());
    println!("  a further control node joins with a token of `coracle token create --role control`:");
    println!("    coracle control --data-dir DIR --join {} --token TOKEN", control.address());
    Ok(())
}

/// The machine's name as a DNS label.
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    let label = label.trim_matches('-').to_string();
    if label.is_empty() { "coracle".into() } else { label }
}
