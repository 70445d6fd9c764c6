//! What a start writes, and that it does not need the disk to take it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use coracle_api::Storage;
use coracle_server::Mode;
use kube::api::PostParams;

use crate::bench::{admin, config, config_map, config_maps, files, send, start, three, until};

/// The kubeconfig and the number of the file that holds it.
fn kubeconfig(dir: &Path, name: &str) -> (String, u64) {
    let path = dir.join(name).join("kubeconfig");
    (fs::read_to_string(&path).unwrap(), fs::metadata(&path).unwrap().ino())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_leaves_the_kubeconfig_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let addresses: Vec<String> = controls.iter().map(|control| control.address()).collect();
    let whole = |text: String| addresses.iter().all(|address| text.contains(address));
    until("all members are written down", || async {
        let peers = fs::read_to_string(dir.path().join("a/peers.json")).unwrap_or_default();
        whole(kubeconfig(dir.path(), "a").0) && whole(peers)
    })
    .await;
    let before = kubeconfig(dir.path(), "a");
    controls.remove(0).shutdown().await;
    let back = start(dir.path(), "a", Mode::Resume).await.unwrap();
    config_maps(&back).await.create(&PostParams::default(), &config_map("later", "1")).await.unwrap();
    let after = kubeconfig(dir.path(), "a");
    assert_eq!(back.address(), addresses[0]);
    assert!(after.0 == before.0, "{}\n----\n{}", before.0, after.0);
    assert!(after.1 == before.1, "written again though nothing has changed");
    for control in controls.into_iter().chain([back]) {
        control.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_starts_where_its_small_files_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let control = crate::bench::init(dir.path()).await;
    until("the version is written down", || async {
        let recorded = fs::read_to_string(dir.path().join("a/cluster.json")).unwrap();
        recorded.contains(env!("CARGO_PKG_VERSION")) && dir.path().join("a/peers.json").exists()
    })
    .await;
    let (old_address, administrator) = (control.address(), admin(&control));
    control.shutdown().await;
    // As on a full disk, also for root: directories are in the way of the temporary files.
    let small = ["cluster.json", "peers.json", "kubeconfig"];
    let in_the_way = small.map(|name| dir.path().join("a").join(format!("{name}.new")));
    in_the_way.iter().for_each(|path| fs::create_dir(path).unwrap());
    let contents = || small.map(|name| fs::read(dir.path().join("a").join(name)).unwrap());
    let before = contents();

    let mut moved = config(dir.path(), "a", Mode::Resume);
    moved.advertise = Some("localhost".into());
    let control = coracle_server::start(moved.clone()).await.expect("it has all that it needs");
    assert_ne!(control.address(), old_address);
    until("it to lead", || async { control.storage().linearizable().await.is_ok() }).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let answer = send(&control.address(), &administrator, http::Method::GET, path, b"").await;
    assert_eq!(answer.status(), 200, "the old kubeconfig serves");
    until("the new address is known", || async {
        let members = control.storage().view();
        members
            .list("members.coracle.dev", None)
            .any(|member| String::from_utf8_lossy(&member.json).contains(&control.address()))
    })
    .await;
    assert!(contents() == before);
    control.shutdown().await;

    in_the_way.iter().for_each(|path| fs::remove_dir(path).unwrap());
    let control = coracle_server::start(moved).await.unwrap();
    for name in small {
        until(name, || async {
            fs::read_to_string(dir.path().join("a").join(name)).unwrap().contains("localhost")
        })
        .await;
    }
    control.shutdown().await;
    assert!(files(dir.path()).keys().all(|path| !path.ends_with(".new")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_have_all_moved_find_each_other_by_one_address() {
    let dir = tempfile::tempdir().unwrap();
    let controls = three(dir.path()).await;
    config_maps(&controls[0]).await.create(&PostParams::default(), &config_map("kept", "1")).await.unwrap();
    let old: Vec<String> = controls.iter().map(|control| control.address()).collect();
    for control in controls {
        control.shutdown().await;
    }
    let free: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let new: Vec<_> = free.iter().map(|listener| listener.local_addr().unwrap()).collect();
    drop(free);
    let mut controls = Vec::new();
    for (name, listen) in ["a", "b", "c"].into_iter().zip(&new) {
        let mut moved = config(dir.path(), name, Mode::Resume);
        moved.listen = *listen;
        // Each is told of the last alone, which is told of nobody.
        moved.seek = if name == "c" { Vec::new() } else { vec![new[2].to_string()] };
        controls.push(coracle_server::start(moved).await.unwrap());
    }
    for control in &controls {
        assert!(!old.contains(&control.address()));
        until("a quorum", || async { control.storage().linearizable().await.is_ok() }).await;
    }
    config_maps(&controls[1]).await.get("kept").await.unwrap();
    until("all new addresses are written down", || async {
        let view = controls[0].storage().view();
        let members: Vec<_> = view.list("members.coracle.dev", None).collect();
        members.len() == 3
            && new.iter().all(|address| {
                let address = address.to_string();
                members.iter().any(|member| String::from_utf8_lossy(&member.json).contains(&address))
            })
    })
    .await;
    for control in controls {
        control.shutdown().await;
    }
}
