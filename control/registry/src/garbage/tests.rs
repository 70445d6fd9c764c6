//! What is garbage, and what is not.

use coracle_objects::Object;
use serde_json::{Value, json};

use super::*;
use crate::manifest::{IMAGE, INDEX};

fn digest(letter: &str) -> Digest {
    Digest::parse(&format!("sha256:{}", letter.repeat(64))).unwrap()
}

/// `what` is a tag, or empty; `names` are blobs, or of an index manifests.
fn artifact(tag: &str, letter: &str, media_type: &str, names: &[&str], subject: Option<&str>) -> Value {
    let blobs: Vec<String> = names.iter().map(|name| digest(name).to_string()).collect();
    json!({ "repository": "app", "tag": tag, "digest": digest(letter).to_string(), "mediaType": media_type,
        "size": 1, "blobs": blobs, "subject": subject.map(|subject| digest(subject).to_string()) })
}

fn put(view: &mut View, resource: &str, name: &str, mut draft: Value) {
    draft["metadata"] = json!({ "name": name, "creationTimestamp": "1970-01-01T00:00:00Z" });
    let key = ObjectKey::new(resource, "", name);
    let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), 1).unwrap();
    view.tables.entry(key.resource.clone()).or_default().insert(key.name, object.into());
}

fn view(artifacts: &[Value]) -> View {
    let mut view = View::default();
    for (number, spec) in artifacts.iter().enumerate() {
        put(&mut view, artifacts::ARTIFACTS, &format!("a{number}"), json!({ "spec": spec }));
    }
    view
}

fn names(garbage: Vec<(ObjectKey, Revision)>) -> Vec<String> {
    garbage.into_iter().map(|(key, _)| key.name.name.to_string()).collect()
}

const LATER: Timestamp = Timestamp::MAX;

fn before(end: SystemTime) -> Range<SystemTime> {
    SystemTime::UNIX_EPOCH..end
}

/// Whatever is there is as old as this.
fn ever() -> Range<SystemTime> {
    before(SystemTime::now() + Duration::from_secs(3600))
}

#[test]
fn what_a_tag_reaches_stays() {
    let mut view = view(&[
        artifact("1", "a", INDEX, &["b"], None),
        artifact("", "b", INDEX, &["c"], None),
        artifact("", "c", IMAGE, &["d"], None),
        // A signature of a part, and one of the signature.
        artifact("", "e", IMAGE, &[], Some("c")),
        artifact("", "f", IMAGE, &[], Some("e")),
        artifact("", "0", IMAGE, &["1"], None),
        artifact("", "2", IMAGE, &[], Some("0")),
    ]);
    assert_eq!(names(unreached(&view, LATER)), ["a5", "a6"]);
    assert!(unreached(&view, Timestamp::MIN).is_empty(), "they are young");
    let pod = json!({ "spec": { "containers": [{ "image": format!("app:1@{}", digest("0")) }] } });
    put(&mut view, "pods", "p", pod);
    assert!(unreached(&view, LATER).is_empty(), "a pod names the one, and the other is about it");
}

#[test]
fn files_are_needed_that_artifacts_name() {
    let mut view =
        view(&[artifact("1", "a", IMAGE, &["b"], None), artifact("all", "c", INDEX, &["a", "d"], None)]);
    put(&mut view, "deployments.apps", "x", json!({ "image": format!("app@{}", digest("e")) }));
    let Named { files, unread } = named(&view);
    assert_eq!(files, ["a", "b", "c", "d", "e"].map(digest).into());
    assert_eq!(unread, ["d", "e"].map(digest), "of these no artifact tells what they name");
}

#[tokio::test]
async fn what_nothing_needs_goes_when_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(dir.path(), || true).unwrap());
    let mut kept = vec![];
    for content in [b"layer".as_slice(), b"garbage"] {
        let digest = Digest::of(content);
        blobs.put(&digest, content).await.unwrap();
        kept.push(digest);
    }
    let manifest = json!({ "layers": [{ "digest": kept[0].to_string(), "size": 5 }] }).to_string();
    let manifest_digest = Digest::of(manifest.as_bytes());
    blobs.put(&manifest_digest, manifest.as_bytes()).await.unwrap();
    blobs.hide("app", &kept[1]).await.unwrap();
    let named = Named { files: [manifest_digest.clone()].into(), unread: vec![manifest_digest.clone()] };
    let long_ago = before(SystemTime::now() - Duration::from_secs(3600));
    let young = Search::begin(&blobs, &named, long_ago).await.unwrap();
    assert!(young.unnamed.is_empty(), "it is young");
    let mut search = Search::begin(&blobs, &named, ever()).await.unwrap();
    search.read(&blobs, BUDGET).unwrap();
    let removed = blobs.remove(search.unnamed, ever()).await.unwrap();
    assert_eq!((removed.files, removed.bytes), (1, 7));
    assert_eq!(blobs.size(&kept[0]).await, Some(5), "the manifest names it");
    assert_eq!(blobs.size(&kept[1]).await, None);
    assert!(!blobs.is_hidden("app", &kept[1]).await, "nothing is left of it");
}

#[tokio::test]
async fn what_is_asked_for_before_a_push_is_young_again() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(dir.path(), || true).unwrap());
    let digest = Digest::of(b"x");
    blobs.put(&digest, b"x").await.unwrap();
    let file = dir.path().join("sha256").join(digest.hex());
    let old = SystemTime::UNIX_EPOCH;
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    assert_eq!(blobs.hold(&digest).await.unwrap(), Some(1));
    let before = before(SystemTime::now() - Duration::from_secs(3600));
    let all = || BTreeSet::from([digest.clone()]);
    assert_eq!(blobs.remove(all(), before.clone()).await.unwrap().files, 0);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    assert_eq!(blobs.remove(all(), before).await.unwrap().files, 1);
    assert_eq!(blobs.hold(&digest).await.unwrap(), None);
}

#[test]
fn parts_of_an_index_of_any_type_stay() {
    let view = view(&[
        artifact("1", "a", "application/json", &["b", "f"], None),
        artifact("", "b", IMAGE, &["c"], None),
        // About a part that no object tells about.
        artifact("", "e", IMAGE, &[], Some("f")),
    ]);
    assert!(unreached(&view, LATER).is_empty());
    assert_eq!(named(&view).unread, [digest("f")], "it may be a manifest");
}

#[test]
fn what_was_there_before_the_process_stays_for_a_day() {
    let began = SystemTime::now() - Duration::from_secs(25 * 3600);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    for patience in [PATIENCE, PATIENCE_WITHOUT_ROOM] {
        let early = old(patience, began, Duration::from_secs(23 * 3600));
        assert!(!early.contains(&long_ago), "a version before may have pushed it");
        assert!(early.contains(&(began + Duration::from_secs(1))), "it came later, and is old");
        assert!(!early.contains(&SystemTime::now()));
        assert!(old(patience, began, SETTLING).contains(&long_ago));
    }
    let first = old(PATIENCE, SystemTime::now(), Duration::from_secs(600));
    assert!(!first.contains(&long_ago) && !first.contains(&SystemTime::now()));
}

#[tokio::test]
async fn a_search_goes_on_where_its_budget_ended() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(dir.path(), || true).unwrap());
    let mut put = vec![];
    let tiny: Vec<Vec<u8>> = (0..10).map(|n| vec![n]).collect();
    let layer = b"layer".to_vec();
    let names = json!({ "layers": [{ "digest": Digest::of(&layer).to_string() }] }).to_string();
    for content in tiny.iter().chain([&layer, &b"garbage".to_vec(), &names.into_bytes()]) {
        let digest = Digest::of(content);
        blobs.put(&digest, content).await.unwrap();
        put.push(digest);
    }
    let (layer, garbage, manifest) = (put[10].clone(), put[11].clone(), put[12].clone());
    // The manifest comes last: what is open last is read first.
    let mut unread = vec![manifest.clone()];
    unread.extend(put[..10].iter().cloned());
    let named = || Named { files: unread.iter().cloned().collect(), unread: unread.clone() };
    let mut search = Search::begin(&blobs, &named(), ever()).await.unwrap();
    let budget = Budget { files: 4, bytes: 1024 };
    for left in [7, 3, 0] {
        search.spare(named());
        search.read(&blobs, budget).unwrap();
        assert_eq!(search.open.len(), left);
    }
    assert_eq!(search.unnamed, [garbage].into(), "the last manifest names the layer");
    assert!(!search.unnamed.contains(&layer));
}

#[tokio::test]
async fn a_search_is_not_lengthened_by_what_comes_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Arc::new(Blobs::open(dir.path(), || true).unwrap());
    let old = Digest::of(b"old");
    blobs.put(&old, b"old").await.unwrap();
    let none = Named { files: BTreeSet::new(), unread: vec![] };
    let mut search = Search::begin(&blobs, &none, ever()).await.unwrap();
    let new = digest("a");
    search.spare(Named { files: [new.clone()].into(), unread: vec![new] });
    assert!(search.open.is_empty(), "it was not there when the search began");
    search.spare(Named { files: [old.clone()].into(), unread: vec![old.clone()] });
    assert_eq!((search.open, search.unnamed), (vec![old], BTreeSet::new()), "it is named again");
}
