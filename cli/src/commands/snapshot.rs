//! `coracle snapshot`: backups of a live cluster, what is in them, and a new cluster made of one.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, Result, bail};
use coracle_proto::cluster::SaveSnapshotRequest;
use coracle_server::{Inspection, RestoreOptions};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    args::{Connection, SnapshotCommand},
    client::Cluster,
    commands::{
        cluster::{bytes, print},
        control::machine_name,
        get::align,
    },
};

pub async fn run(command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Save { file, force, connection } => save(file, *force, connection).await,
        SnapshotCommand::Inspect { file, output } => {
            let found = coracle_server::inspect(file)?;
            match output {
                None => print!("{}", text(&found)),
                Some(format) => print(&serde_json::to_value(&found)?, *format)?,
            }
            Ok(())
        }
        SnapshotCommand::Restore { file, data_dir, name, key_ring, drop_secrets } => {
            let options = RestoreOptions {
                name: name.clone().unwrap_or_else(machine_name),
                key_ring: key_ring.clone(),
                drop_secrets: *drop_secrets,
            };
            restore(file, data_dir, &options)
        }
    }
}

async fn save(file: &Path, force: bool, connection: &Connection) -> Result<()> {
    if file.exists() && !force {
        bail!("{} exists already: choose another name, or say --force to replace it", file.display());
    }
    let cluster = Cluster::find(connection).await?;
    let partial = coracle_server::partial(file);
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        // It holds the cluster's Secrets.
        .mode(0o600)
        .open(&partial)
        .with_context(|| format!("creating {}", partial.display()))?;
    let received = receive(&cluster, &mut out).await;
    if let Err(error) = received {
        let _ = std::fs::remove_file(&partial);
        return Err(error.context(format!("the backup was not taken; {} is as it was", file.display())));
    }
    let found = coracle_server::keep(file)?;
    let objects: u64 = found.kinds.iter().map(|kind| kind.objects).sum();
    println!(
        "{}: {objects} objects at revision {}, {}, checksums right",
        file.display(),
        found.revision,
        bytes(found.file_bytes)
    );
    Ok(())
}

async fn receive(cluster: &Cluster, out: &mut impl Write) -> Result<()> {
    let mut chunks = cluster
        .administer(|mut client| async move { client.save_snapshot(SaveSnapshotRequest {}).await })
        .await?;
    let style = ProgressStyle::with_template("receiving {bytes} ({bytes_per_sec})");
    let bar = ProgressBar::no_length().with_style(style.expect("the template is well-formed"));
    loop {
        let next = chunks.message().await;
        let next = next.map_err(|status| anyhow::anyhow!("it broke off: {}; try again", status.message()))?;
        let Some(chunk) = next else { break };
        out.write_all(&chunk.data).context("writing the backup")?;
        bar.inc(chunk.data.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

fn restore(file: &Path, data_dir: &Path, options: &RestoreOptions) -> Result<()> {
    let restored = coracle_server::restore(file, data_dir, options)?;
    let dir = data_dir.display();
    println!(
        "cluster {} made of the backup of cluster {} at revision {}",
        restored.cluster_id, restored.from.cluster_id, restored.from.revision
    );
    println!(
        "  it begins at revision {}: whoever watched the old one reads everything again",
        restored.revision
    );
    println!("  start its first control node, member {}:", restored.member_id);
    println!("    coracle control --data-dir {dir} --listen ADDRESS");
    println!("    export KUBECONFIG={dir}/kubeconfig");
    println!("  further control nodes join with empty data dirs:");
    println!(
        "    coracle control --data-dir DIR --join ADDRESS --token $(coracle token create --role control)"
    );
    println!(
        "  a backup holds neither CAs nor artifacts. All certificates are new: nodes join again, with empty data"
    );
    println!("  dirs and a new token (`coracle token create --role node`), and images are pushed again.");
    Ok(())
}

fn text(found: &Inspection) -> String {
    let objects: u64 = found.kinds.iter().map(|kind| kind.objects).sum();
    let size: u64 = found.kinds.iter().map(|kind| kind.bytes).sum();
    let head = [
        ("cluster", found.cluster_id.clone()),
        ("version", if found.version.is_empty() { "?".into() } else { found.version.clone() }),
        ("revision", found.revision.to_string()),
        ("raft entry", format!("{} of term {}", found.index, found.term)),
        ("state hash", found.state_hash.clone()),
        ("file", bytes(found.file_bytes)),
        ("checksums", "right".into()),
        ("sealed with", if found.keys.is_empty() { "no key".into() } else { found.keys.join(", ") }),
        ("objects", format!("{objects}, {}", bytes(size))),
    ];
    let head: String = head.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    let mut lines = vec![["KIND", "OBJECTS", "SIZE"].map(String::from).to_vec()];
    lines.extend(
        found
            .kinds
            .iter()
            .map(|kind| vec![kind.resource.clone(), kind.objects.to_string(), bytes(kind.bytes)]),
    );
    format!("{head}\n{}", align(&lines))
}
