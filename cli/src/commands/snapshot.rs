//! `coracle snapshot`: backups of a live cluster, what is in them, and a new cluster made of one.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use coracle_proto::cluster::{SaveSnapshotRequest, SnapshotChunk};
use coracle_server::{Inspection, RestoreOptions};
use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use tonic::Status;

use crate::{
    args::{Connection, SnapshotCommand},
    client::Cluster,
    commands::{cluster::bytes, control::machine_name},
    output::{self, align},
};

/// For how long a control node may be silent that sends a backup: one that still writes it says so every few seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn run(command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Save { file, force, connection } => save(file, *force, connection).await,
        SnapshotCommand::Inspect { file, format } => {
            let found = coracle_server::inspect(file)?;
            match format.output {
                None => output::text(&text(&found)),
                Some(format) => output::value(&serde_json::to_value(&found)?, format),
            }
        }
        SnapshotCommand::Restore { file, data_dir, name, key_ring, drop_secrets } => {
            let options = RestoreOptions {
                name: name.clone().unwrap_or_else(machine_name),
                key_ring: key_ring.clone(),
                drop_secrets: *drop_secrets,
                ..RestoreOptions::default()
            };
            restore(file, data_dir, &options)
        }
    }
}

async fn save(file: &Path, force: bool, connection: &Connection) -> Result<()> {
    if file.exists() && !force {
        bail!("{} exists already: choose another name, or say --force to replace it", file.display());
    }
    let cluster = Cluster::find(connection)?;
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
    let chunks = cluster
        .administer(|mut client| async move { client.save_snapshot(SaveSnapshotRequest {}).await })
        .await?;
    let bar = ProgressBar::no_length().with_style(style("{spinner} {msg}"));
    bar.set_message(format!("{} writes its snapshot", cluster.address()));
    take(chunks, out, &bar).await?;
    bar.finish_and_clear();
    Ok(())
}

/// Takes chunks until their end. They may take as long as they want, but not be silent for long.
async fn take(
    mut chunks: impl Stream<Item = Result<SnapshotChunk, Status>> + Unpin,
    out: &mut impl Write,
    bar: &ProgressBar,
) -> Result<()> {
    loop {
        let Ok(next) = tokio::time::timeout(IDLE_TIMEOUT, chunks.next()).await else {
            bail!("nothing came for {} s; try again, or another control node", IDLE_TIMEOUT.as_secs());
        };
        let Some(chunk) =
            next.transpose().map_err(|status| anyhow!("it broke off: {}; try again", status.message()))?
        else {
            return Ok(());
        };
        if !chunk.data.is_empty() && bar.position() == 0 {
            bar.set_style(style("receiving {bytes} ({bytes_per_sec})"));
            bar.reset_elapsed();
        }
        out.write_all(&chunk.data).context("writing the backup")?;
        bar.inc(chunk.data.len() as u64);
        bar.tick();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well-formed")
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
        "    CORACLE_TOKEN=$(coracle token create --role control) coracle control --data-dir DIR --join ADDRESS"
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

#[cfg(test)]
mod tests {
    use futures::stream::{self, once, pending};

    use super::*;

    fn chunk(data: &'static [u8]) -> Result<SnapshotChunk, Status> {
        Ok(SnapshotChunk { data: data.into() })
    }

    async fn taken(chunks: impl Stream<Item = Result<SnapshotChunk, Status>>) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        take(Box::pin(chunks), &mut out, &ProgressBar::hidden()).await.map(|()| out)
    }

    #[tokio::test(start_paused = true)]
    async fn a_backup_may_take_long_but_not_be_silent() {
        let slow = stream::iter([&b""[..], b"", b"", b"ab", b"", b"c"]).then(async |data| {
            tokio::time::sleep(IDLE_TIMEOUT - Duration::from_secs(1)).await;
            chunk(data)
        });
        assert_eq!(taken(slow).await.unwrap(), b"abc");
        let silent = taken(once(async { chunk(b"ab") }).chain(pending())).await.unwrap_err();
        assert!(silent.to_string().contains("nothing came for 30 s"), "{silent}");
        let broken = taken(stream::iter([chunk(b"ab"), Err(Status::unavailable("no room"))])).await;
        assert!(broken.unwrap_err().to_string().contains("broke off: no room"));
    }
}
