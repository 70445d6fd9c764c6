//! `coracle kubeconfig`: prints the admin kubeconfig that `up` or `control --init` wrote.

use anyhow::{Context, Result};

use crate::{args::KubeconfigArgs, client::default_data_dir, output};

pub fn run(args: &KubeconfigArgs) -> Result<()> {
    let path = args.data_dir.clone().unwrap_or_else(default_data_dir).join("kubeconfig");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "{} cannot be read: start a cluster with `coracle up`, or name its data dir with --data-dir",
            path.display()
        )
    })?;
    output::bytes(text.as_bytes())
}
