//! What is proposed and what is not, and what a member says that hears no leader.

mod support;

use serde_json::{Value, json};
use support::{Lines, Memory, ask, cluster, member};
use tokio::time::{Duration, timeout};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(data: &str) -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a" }, "data": { "a": data } })
}

/// What another member writes meanwhile.
fn elsewhere(memory: &Memory, name: &str, data: &str) {
    let object = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "default", "uid": "u" }, "data": { "a": data },
    });
    memory.put("configmaps", "default", name, object);
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_answered_by_a_read() {
    let (memory, router) = cluster();
    let path = format!("{MAPS}/a");
    let made = ask("POST", MAPS).json(config_map("1")).ok(&router).await;
    assert_eq!(memory.proposals(), 1);
    assert_eq!(ask("PUT", &path).json(made.clone()).ok(&router).await, made);
    assert_eq!(memory.proposals(), 1);

    // By the local state nothing would change; by the newest it does.
    memory.fall_behind();
    let object = json!({
        "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a", "namespace": "default", "uid": "u" },
        "data": { "a": "2" },
    });
    memory.put("configmaps", "default", "a", object);
    let back = ask("PUT", &path).json(config_map("1")).ok(&router).await;
    assert_eq!((memory.proposals(), &back["data"]["a"]), (2, &"1".into()));
}

#[tokio::test]
async fn a_dry_run_is_of_the_newest_state() {
    let (memory, router) = cluster();
    memory.fall_behind();
    elsewhere(&memory, "a", "1");
    let (code, text) = ask("POST", &format!("{MAPS}?dryRun=All")).json(config_map("1")).fail(&router).await;
    assert_eq!((code, text.as_str()), (409, "configmaps \"a\" already exists"));
    let patch = json!({ "data": { "b": "2" } }).to_string();
    let patched = ask("PATCH", &format!("{MAPS}/a?dryRun=All"))
        .body("application/merge-patch+json", patch)
        .ok(&router)
        .await;
    assert_eq!(patched["data"], json!({ "a": "1", "b": "2" }));
    memory.set_led(false);
    let (code, _) = ask("POST", &format!("{MAPS}?dryRun=All")).json(config_map("1")).fail(&router).await;
    assert_eq!(code, 503);
    assert_eq!(memory.proposals(), 0);
}

#[tokio::test]
async fn what_cannot_succeed_is_not_proposed() {
    let (memory, router) = cluster();
    let containers = json!([{ "name": "main", "image": "a:1", "args": ["x".repeat(1600 * 1024)] }]);
    let large = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": { "containers": containers },
    });
    let pods = "/api/v1/namespaces/default/pods";
    for path in [pods.to_owned(), format!("{pods}?dryRun=All")] {
        let (code, text) = ask("POST", &path).json(large.clone()).fail(&router).await;
        assert_eq!((code, memory.proposals()), (413, 0), "{path}: {text}");
    }
    // A state that is behind costs no proposal either.
    memory.fall_behind();
    elsewhere(&memory, "a", "1");
    let (code, _) = ask("POST", MAPS).json(config_map("1")).fail(&router).await;
    assert_eq!(code, 409);
    assert!(memory.proposals() <= 1);
}

#[tokio::test]
async fn a_member_that_stays_behind_does_not_spin() {
    let (memory, router) = cluster();
    elsewhere(&memory, "a", "1");
    memory.fall_behind();
    elsewhere(&memory, "a", "2");
    let patch = json!({ "data": { "b": "2" } }).to_string();
    let patched =
        ask("PATCH", &format!("{MAPS}/a")).body("application/merge-patch+json", patch).ok(&router).await;
    assert_eq!(patched["data"], json!({ "a": "2", "b": "2" }));
    assert_eq!(memory.proposals(), 2, "the second by the newest state");
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_no_bookmark_is_sent_and_no_watch_begins() {
    let (memory, router) = cluster();
    let path = format!("{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion=1&timeoutSeconds=300");
    let mut lines = Lines::open(ask("GET", &path), &router).await;
    assert_eq!(lines.event().await.0, "BOOKMARK");
    memory.set_led(false);
    assert!(timeout(Duration::from_secs(120), lines.next()).await.is_err(), "no sign of life");
    let (code, _) = ask("GET", &path).fail(&router).await;
    assert_eq!(code, 503);
    memory.set_led(true);
    assert_eq!(lines.event().await.0, "BOOKMARK");
    memory.set_led(false);
    assert_eq!(lines.next().await, None, "it ends in time without a word");
}

#[tokio::test]
async fn a_list_goes_on_at_any_member() {
    let (memory, router) = cluster();
    let name = |number: usize| format!("n{number:03}");
    for number in 0..90 {
        elsewhere(&memory, &name(number), "1");
    }
    let others = [member(&memory), member(&memory), router];
    let (mut seen, mut token, mut at) = (Vec::new(), String::new(), None);
    for turn in 0.. {
        let path = format!("{MAPS}?limit=20&continue={token}");
        let page = ask("GET", &path).ok(&others[turn % others.len()]).await;
        let items = page["items"].as_array().unwrap();
        assert!(items.iter().all(|item| item["data"]["a"] == "1"), "as it was");
        seen.extend(items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()));
        let revision = page["metadata"]["resourceVersion"].clone();
        assert_eq!(at.get_or_insert(revision.clone()), &revision);
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
        // Meanwhile everything that was to come has changed, and more than are kept have begun to list.
        for number in (20 * turn..90).step_by(7) {
            elsewhere(&memory, &name(number), "2");
            ask("GET", &format!("{MAPS}?limit=1")).ok(&others[0]).await;
        }
        elsewhere(&memory, &format!("n{turn:03}-new"), "2");
    }
    assert_eq!(seen, (0..90).map(name).collect::<Vec<_>>());

    let first = ask("GET", &format!("{MAPS}?limit=20")).ok(&others[0]).await;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    elsewhere(&memory, "z", "1");
    memory.compact();
    let (code, gone) = ask("GET", &format!("{MAPS}?limit=20&continue={token}")).value(&others[1]).await;
    assert_eq!(code, 410);
    let token = gone["metadata"]["continue"].as_str().unwrap();
    ask("GET", &format!("{MAPS}?limit=20&continue={token}")).ok(&others[1]).await;
}
