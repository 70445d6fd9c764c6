//! Raft, its log, the store, watches and nodes, as they are when somebody scrapes.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use coracle_api::Storage;
use coracle_node_link::Links;
use coracle_objects::View;
use coracle_proto::metrics::Text;
use coracle_raft::{Role, Status};
use coracle_storage::ReplicatedStorage;
use serde::Deserialize;

/// The phases of a pod. What is none of them counts as the last.
const PHASES: &[&str] = &["Pending", "Running", "Succeeded", "Failed", "Unknown"];

pub fn write(text: &mut Text, storage: &ReplicatedStorage, links: &Links) {
    let status = storage.status();
    members(text, &status);
    indices(text, &status);
    counted(text, storage);
    let view = storage.view();
    objects(text, &view);
    watches(text, storage);
    text.gauge("coracle_nodes", "Nodes of the cluster.").is(view.count("nodes"));
    text.gauge("coracle_node_links", "Nodes linked to this member.").is(links.count());
    let mut family = text.gauge("coracle_pods", "Pods of the cluster by phase.");
    for (phase, count) in phases(&view) {
        family.with(&[("phase", phase)], count);
    }
}

fn flag(so: bool) -> u8 {
    so.into()
}

fn members(text: &mut Text, status: &Status) {
    text.gauge("coracle_server_id", "Raft id of this member.").is(status.id);
    text.gauge("coracle_server_has_leader", "1 where this member knows a leader.")
        .is(flag(status.leader.is_some()));
    text.gauge("coracle_server_is_leader", "1 where this member leads.")
        .is(flag(status.role == Role::Leader));
    let learner = status.learners.contains(&status.id);
    text.gauge("coracle_server_is_learner", "1 where this member does not vote.").is(flag(learner));
    text.gauge("coracle_raft_leader_id", "Raft id of the leader, 0 where none is known.")
        .is(status.leader.unwrap_or(0));
    text.gauge("coracle_raft_term", "Raft term of this member.").is(status.term);
    text.gauge("coracle_raft_voters", "Members that vote.").is(status.voters.len());
    text.gauge("coracle_raft_learners", "Members that do not vote.").is(status.learners.len());
    let others = || status.progress.iter().filter(|(id, ..)| *id != status.id);
    let help = "On the leader: entries that a member has not confirmed yet.";
    let mut family = text.gauge("coracle_raft_follower_lag_entries", help);
    for (id, matched, _) in others() {
        family.with(&[("member", &id.to_string())], status.last.saturating_sub(*matched));
    }
    let help = "On the leader: 1 where a member was heard of within an election timeout.";
    let mut family = text.gauge("coracle_raft_follower_active", help);
    for (id, _, active) in others() {
        family.with(&[("member", &id.to_string())], flag(*active));
    }
}

/// As of raft's last tick, all of one moment.
fn indices(text: &mut Text, status: &Status) {
    let help = "1 where the disk is nearly full: writes that grow the state are refused.";
    text.gauge("coracle_disk_low", help).is(flag(status.disk.is_some_and(|disk| disk.low)));
    text.gauge("coracle_raft_snapshot_index", "What the last snapshot reaches to.").is(status.snapshot);
    text.gauge("coracle_raft_last_index", "Last index of the log.").is(status.last);
    text.gauge("coracle_raft_commit_index", "Highest committed index.").is(status.commit);
    text.gauge("coracle_raft_applied_index", "Highest applied index.").is(status.applied);
}

/// What raft has counted since the process started.
fn counted(text: &mut Text, storage: &ReplicatedStorage) {
    let counted = storage.raft().metrics();
    let help = "How often this member saw another leader.";
    text.counter("coracle_server_leader_changes_seen_total", help).is(counted.leader_changes.get());
    text.counter("coracle_server_proposals_total", "Entries proposed by this member.")
        .is(counted.proposals.get());
    let help = "Proposals of this member that were applied.";
    text.counter("coracle_server_proposals_applied_total", help).is(counted.proposals_applied.get());
    let help = "Proposals of this member that were refused, dropped, or whose outcome is unknown.";
    text.counter("coracle_server_proposals_failed_total", help).is(counted.proposals_failed.get());
    let help = "Proposals of this member without an outcome yet.";
    text.gauge("coracle_server_proposals_pending", help).is(counted.proposals_pending());
    text.counter("coracle_server_read_indexes_total", "Read indices asked of this member.")
        .is(counted.reads.get());
    let help = "Read indices that this member could not give.";
    text.counter("coracle_server_read_indexes_failed_total", help).is(counted.reads_failed.get());
    let help = "Raft messages that came in.";
    text.counter("coracle_network_peer_received_messages_total", help).is(counted.messages_received.get());
    let help = "Raft messages that were refused or of no use.";
    text.counter("coracle_network_peer_refused_messages_total", help).is(counted.messages_refused.get());
    let help = "One write to the log with its fdatasync.";
    text.histogram("coracle_disk_wal_fsync_duration_seconds", help).counts(&[], &counted.wal_fsync);
    text.counter("coracle_disk_wal_write_bytes_total", "Written to the log.").is(counted.wal_bytes.get());
    let segments = counted.wal_segments.load(Ordering::Relaxed);
    text.gauge("coracle_disk_wal_segments", "Segment files of the log, spares aside.").is(segments);
    let help = "Writing one snapshot, fsync included.";
    text.histogram("coracle_disk_snapshot_save_duration_seconds", help).counts(&[], &counted.snapshot_save);
    let bytes = counted.snapshot_bytes.load(Ordering::Relaxed);
    text.gauge("coracle_disk_snapshot_size_bytes", "Size of the last snapshot made, 0 before it.").is(bytes);
    text.counter("coracle_disk_snapshot_failed_total", "Snapshots that failed.")
        .is(counted.snapshots_failed.get());
    let help = "Snapshots of a leader that this member took over.";
    text.counter("coracle_server_snapshots_restored_total", help).is(counted.snapshots_restored.get());
    let help = "Entries that this member has applied, raft's own among them.";
    text.counter("coracle_server_entries_applied_total", help).is(counted.entries_applied.get());
    let help = "Applying the entries that are published together.";
    text.histogram("coracle_server_apply_duration_seconds", help).counts(&[], &counted.apply);
}

fn objects(text: &mut Text, view: &View) {
    text.gauge("coracle_store_revision", "Revision of the store.").is(view.revision);
    let mut family = text.gauge("apiserver_storage_objects", "Objects in the store.");
    for (resource, table) in &view.tables {
        family.with(&[("resource", resource.as_str())], table.len());
    }
    let mut family = text.gauge("apiserver_storage_size_bytes", "Bytes of the objects' JSON in the store.");
    for (resource, table) in &view.tables {
        let bytes: usize = table.values().map(|object| object.json.len()).sum();
        family.with(&[("resource", resource.as_str())], bytes);
    }
}

fn watches(text: &mut Text, storage: &ReplicatedStorage) {
    let help =
        "Watches of the store that ended with 410: too slow a reader, or a state replaced by a snapshot.";
    text.counter("coracle_store_watches_overflowed_total", help).is(storage.hub().overflowed());
    let help = "Watches of the store under way: by REST, by gRPC and of this process itself.";
    let mut family = text.gauge("coracle_store_watchers", help);
    for (resource, count) in storage.hub().watchers() {
        family.with(&[("resource", resource.as_str())], count);
    }
    let window = storage.hub().window();
    let mut family =
        text.gauge("coracle_store_watch_window_events", "Events that a watch can be resumed from.");
    for (resource, events, _) in &window {
        family.with(&[("resource", resource.as_str())], events);
    }
    let help = "The oldest revision that a watch can be resumed from.";
    let mut family = text.gauge("coracle_store_watch_window_oldest_revision", help);
    for (resource, _, oldest) in &window {
        family.with(&[("resource", resource.as_str())], oldest);
    }
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
struct PodStatus {
    #[serde(default)]
    phase: String,
}

fn phases(view: &View) -> BTreeMap<&'static str, u64> {
    let mut counts: BTreeMap<&'static str, u64> = PHASES.iter().map(|phase| (*phase, 0)).collect();
    for pod in view.list("pods", None) {
        let found = pod.parse::<Pod>().map(|pod| pod.status.phase).unwrap_or_default();
        let phase = PHASES.iter().find(|phase| **phase == found).unwrap_or(&PHASES[PHASES.len() - 1]);
        *counts.entry(phase).or_default() += 1;
    }
    counts
}
