//! A member whose state is not that of the others.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::cluster::ReplaceRequest;
use coracle_raft::snapshot::{Reader, Writer};
use coracle_server::{Control, Mode};
use coracle_store::{Command, Request, RequestId, Store, StoreConfig};
use kube::api::PostParams;

use crate::bench::{
    PATIENCE, administration, config, config_map, config_maps, join, start, three, until, write_on, written,
};

fn kept() -> ObjectKey {
    ObjectKey::new("configmaps", "default", "kept")
}

fn snapshots(raft: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(raft).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "snap")).collect()
}

/// Whether there are snapshots and all of them have `kept`; not so while one goes.
fn covered(raft: &Path) -> bool {
    let has_it = |path: &PathBuf| {
        let Ok(file) = File::open(path) else { return false };
        let mut reader = Reader::open(BufReader::new(file)).unwrap();
        let store = Store::restore(&mut reader, StoreConfig::default()).unwrap();
        store.view().get(&kept()).is_some()
    };
    let snapshots = snapshots(raft);
    !snapshots.is_empty() && snapshots.iter().all(has_it)
}

/// Has the snapshots of a stopped member hold what no other member has applied: `kept` is deleted.
fn falsify(raft: &Path) {
    for path in snapshots(raft) {
        let mut reader = Reader::open(BufReader::new(File::open(&path).unwrap())).unwrap();
        let mut store = Store::restore(&mut reader, StoreConfig::default()).unwrap();
        let transaction = Transaction { preconditions: vec![], writes: vec![Write::Delete { key: kept() }] };
        let request = Request { id: RequestId { client: 1, sequence: 1 }, transaction };
        let batch = store.apply(&Command { proposer: 3, requests: vec![request] }.encode()).unwrap();
        assert!(batch.results[0].1.is_ok());
        let mut writer = Writer::new(File::create(&path).unwrap(), reader.header()).unwrap();
        store.freeze().write_to(&mut writer).unwrap();
        writer.finish().unwrap();
    }
}

fn has_kept(control: &Control) -> bool {
    control.storage().view().get(&kept()).is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_state_differs_stops_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    config_maps(&controls[0]).await.create(&PostParams::default(), &config_map("kept", "1")).await.unwrap();
    let writer = write_on(&controls[0], "before");
    let raft = dir.path().join("c/raft");
    until("snapshots that have it", || async { covered(&raft) }).await;
    writer.stop().await;
    controls.pop().unwrap().shutdown().await;
    falsify(&raft);

    let odd = start(dir.path(), "c", Mode::Resume).await.unwrap();
    assert!(!has_kept(&odd), "its state really differs");
    let writer = write_on(&controls[0], "after");
    let reason = tokio::time::timeout(PATIENCE, odd.closed()).await;
    let reason = reason.expect("it stops").to_string();
    assert!(reason.contains("the state of this member is not that of the majority at entry"), "{reason}");
    assert!(reason.contains("join it again as a new member with an empty data directory"), "{reason}");
    odd.abort().await;
    let now = written(&controls[1], "after");
    until("the others to go on", || async { written(&controls[1], "after") > now + 50 }).await;

    let spare = join(&controls[0], |mode| config(dir.path(), "d", mode)).await;
    until("the new member to have it all", || async { has_kept(&spare) && written(&spare, "after") > now })
        .await;
    let request = ReplaceRequest { old: "c".into(), new: "d".into() };
    until("its place to be taken", || async {
        administration(&controls[0]).replace(request.clone()).await.is_ok()
    })
    .await;
    let count = writer.stop().await;
    controls.push(spare);
    for control in &controls {
        until("all writes everywhere", || async { written(control, "after") == count }).await;
        until("the new voters", || async { control.storage().status().voters == [1, 2, 4] }).await;
    }
    let hash = |control: &Control| (control.storage().view().revision, control.storage().state_hash());
    until("one state", || async { controls.iter().all(|control| hash(control) == hash(&controls[0])) }).await;
    for control in controls {
        assert!(has_kept(&control));
        control.shutdown().await;
    }
}
