//! Folders of pods whose disk does not answer.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use rustix::fs::{CWD, FileType, Mode};

use super::*;

/// Pods whose volumes hang: more than are written at once.
const HANGING: usize = 20;

/// Pipes in the place of files. Reading one hangs until this is dropped.
struct Pipes(Vec<PathBuf>);

impl Drop for Pipes {
    fn drop(&mut self) {
        for pipe in &self.0 {
            // One that writes nothing: who reads comes to the end, and who comes later finds nothing.
            let _writer = fs::File::options().read(true).write(true).open(pipe);
            let _ = fs::remove_file(pipe);
        }
    }
}

fn with_volume(namespace: &str, uid: &str) -> Value {
    json!({ "metadata": { "name": uid, "namespace": namespace, "uid": uid }, "spec": {
        "restartPolicy": "Never",
        "containers": [{ "name": "c", "image": image("pi-job"), "args": ["5"],
            "volumeMounts": [{ "name": "cfg", "mountPath": "/cfg" }] }],
        "volumes": [{ "name": "cfg", "configMap": { "name": "cfg" } }],
    } })
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_hang_hold_up_their_namespace_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(dir.path()).await;
    for namespace in ["d", "other"] {
        let config =
            json!({ "metadata": { "name": "cfg", "namespace": namespace }, "data": { "key": "text" } });
        rig.put("configmaps", config).await;
    }
    // What former pods left is looked for before.
    rig.put("pods", with_volume("other", "first")).await;
    rig.give_block("10.128.7.0/24").await;
    rig.status("first", |status| (status["phase"] == "Succeeded").then_some(())).await;
    let mut pipes = Pipes(Vec::new());
    for index in 0..HANGING {
        let uid = format!("hangs-{index}");
        let volume = dir.path().join("pods").join(&uid).join("cfg");
        fs::create_dir_all(volume.join("..1")).unwrap();
        symlink("..1", volume.join("..data")).unwrap();
        let pipe = volume.join("..1/key");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::set_permissions(&pipe, fs::Permissions::from_mode(0o644)).unwrap();
        pipes.0.push(pipe);
        rig.put("pods", with_volume("d", &uid)).await;
    }
    rig.status(&format!("hangs-{}", HANGING - 1), |status| status["podIP"].as_str().map(drop)).await;
    rig.put("pods", with_volume("other", "second")).await;
    rig.status("second", |status| (status["phase"] == "Succeeded").then_some(())).await;
    drop(pipes);
    rig.status("hangs-0", |status| (status["phase"] == "Succeeded").then_some(())).await;
    rig.stop().await;
}
