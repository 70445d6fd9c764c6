//! What the objects of a repository are written and deleted with.

use coracle_objects::Write;

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn digest(letter: &str) -> Digest {
    Digest::parse(&format!("sha256:{}", letter.repeat(64))).unwrap()
}

fn artifact(tag: &str, letter: &str) -> Artifact {
    Artifact {
        repository: "team/app".into(),
        tag: tag.into(),
        digest: digest(letter).to_string(),
        media_type: manifest::IMAGE.into(),
        size: 1,
        blobs: vec![],
        subject: None,
        artifact_type: None,
    }
}

fn index(tag: &str, letter: &str, names: &[&str]) -> Artifact {
    let blobs = names.iter().map(|letter| digest(letter).to_string()).collect();
    Artifact { media_type: manifest::INDEX.into(), blobs, ..artifact(tag, letter) }
}

/// The state after these artifacts were pushed one after the other.
fn pushed(artifacts: &[Artifact]) -> View {
    let mut view = View::default();
    for artifact in artifacts {
        let planned = plan(&view, std::slice::from_ref(artifact), NOW).unwrap();
        planned.into_iter().for_each(|transaction| apply(&mut view, &transaction));
    }
    view
}

fn apply(view: &mut View, transaction: &Transaction) {
    transaction.check(view).expect("it was planned in this state");
    for write in &transaction.writes {
        let table = view.tables.entry(write.key().resource.clone()).or_default();
        match write {
            Write::Put { key, draft } => {
                let object = Object::from_draft(key.clone(), draft, 1).unwrap();
                table.insert(key.name.clone(), object.into());
            }
            Write::Delete { key } => _ = table.remove(&key.name),
        }
    }
}

fn names(view: &View) -> BTreeSet<String> {
    all(view).into_iter().map(|found| found.artifact.name().replace(&"a".repeat(64), "a")).collect()
}

#[test]
fn names_are_readable_and_apart() {
    let name = |repository: &str, tag: &str| key(repository, tag).name.name.to_string();
    assert_eq!(name("hello", "1.0"), "hello.1.0");
    assert!(name("team/app", "latest").starts_with("team-app-latest-"));
    assert_ne!(name("team/app", "v1"), name("team", "app.v1"));
    let odd = [name("a_b", "1"), name("a-b", "1"), name("a.b", "1"), name("a/b", "1"), name("a-b", "V1")];
    let distinct: BTreeSet<_> = odd.iter().collect();
    assert_eq!(distinct.len(), odd.len(), "{odd:?}");
    let long = name(&"a".repeat(200), &digest("a").to_string());
    assert!(long.len() <= OBJECT_NAME_LENGTH_MAX, "{long}");
}

#[test]
fn an_object_of_another_tag_is_not_taken_over() {
    let view = pushed(&[artifact("1", "a")]);
    let object = view.get(&artifact("1", "a").key()).unwrap();
    assert_eq!(owned(object, &artifact("1", "b")).unwrap(), artifact("1", "a"));
    for other in [artifact("2", "a"), Artifact { repository: "other".into(), ..artifact("1", "a") }] {
        let error = owned(object, &other).unwrap_err().to_string();
        assert!(error.ends_with("is taken by team/app:1"), "{error}");
    }
}

#[test]
fn a_manifest_that_loses_its_last_tag_stays_without_one() {
    let view = pushed(&[artifact("1", "a"), artifact("1", "b")]);
    assert_eq!(names(&view), ["team/app:1".to_owned(), "team/app@sha256:a".to_owned()].into());
    assert_eq!(find(&view, "team/app", "1"), Some(artifact("1", "b")));
    assert_eq!(find_digest(&view, "team/app", &digest("a")), Some(artifact("", "a")));
    assert_eq!(find_digest(&view, "team/app", &digest("c")), None);
    assert_eq!(find_digest(&view, "other", &digest("a")), None);
    let shared = pushed(&[artifact("1", "a"), artifact("2", "a"), artifact("1", "b")]);
    assert_eq!(names(&shared), ["team/app:1".to_owned(), "team/app:2".to_owned()].into());
    let mut both = pushed(&[artifact("1", "a"), artifact("2", "a")]);
    let moved = plan(&both, &[artifact("1", "b"), artifact("2", "b")], NOW).unwrap().expect("tags move");
    apply(&mut both, &moved);
    assert_eq!(find_digest(&both, "team/app", &digest("a")), Some(artifact("", "a")), "both tags at once");
}

#[test]
fn a_manifest_has_an_artifact_of_its_own_only_without_a_tag() {
    let one = || BTreeSet::from(["team/app:1".to_owned()]);
    assert_eq!(names(&pushed(&[artifact("", "a"), artifact("1", "a")])), one(), "by its digest first");
    assert_eq!(names(&pushed(&[artifact("1", "a"), artifact("", "a")])), one(), "by its tag first");
}

#[test]
fn two_tags_that_go_at_once_do_not_rely_on_each_other() {
    let mut view = pushed(&[artifact("1", "a"), artifact("2", "a")]);
    let planned = ["1", "2"].map(|tag| plan(&view, &[artifact(tag, "b")], NOW).unwrap().unwrap());
    let [first, second] = planned;
    apply(&mut view, &first);
    // Each object has revision 1 here; the store would have given the first a newer one.
    assert!(second.preconditions.len() > 1, "it expects the other tag as it was: {second:?}");
    assert!(names(&view).contains("team/app:2"));
}

#[test]
fn what_is_there_already_changes_nothing() {
    let view = pushed(&[artifact("1", "a"), artifact("", "a")]);
    for known in [artifact("1", "a"), artifact("", "a")] {
        assert_eq!(plan(&view, &[known], NOW).unwrap(), None);
    }
}

#[test]
fn tags_are_those_of_the_repository_in_order() {
    let view = pushed(&[artifact("b", "a"), artifact("a", "a"), artifact("A", "a"), artifact("", "b")]);
    assert_eq!(tags(&view, "team/app").unwrap(), ["A", "a", "b"]);
    assert_eq!(tags(&view, "team"), None);
    assert_eq!(tags(&pushed(&[artifact("", "a")]), "team/app").unwrap(), [""; 0]);
}

#[test]
fn what_a_tagged_index_is_made_of_is_found_at_any_depth() {
    let (inner, outer) = (index("", "b", &["a"]), index("all", "c", &["b"]));
    let view = pushed(&[artifact("", "a"), inner.clone(), outer]);
    for part in ["a", "b"] {
        let found = tagged_index_of(&view, "team/app", &digest(part).to_string());
        assert_eq!(found.as_deref(), Some("team/app:all"), "{part}");
    }
    assert_eq!(tagged_index_of(&view, "team/app", &digest("c").to_string()), None);
    let untagged = pushed(&[artifact("", "a"), inner]);
    assert_eq!(tagged_index_of(&untagged, "team/app", &digest("a").to_string()), None);
}

#[test]
fn a_deletion_looks_at_each_name_once() {
    // Each index names all that are before it. Looked through for each other, they would be 10 million names.
    let number = |n: usize| Digest::of(&n.to_le_bytes()).to_string();
    let mut view = View::default();
    for n in 0..100 {
        let blobs = (0..1000).map(|part| if part < n { number(part) } else { number(part + 100) }).collect();
        let index = Artifact { digest: number(n), blobs, ..index("", "a", &[]) };
        apply(&mut view, &create(&index, NOW));
    }
    let top = Artifact { blobs: vec![number(99)], ..index("top", "b", &[]) };
    apply(&mut view, &create(&top, NOW));
    let begun = std::time::Instant::now();
    let found = plan_deletion(&view, "team/app", &number(0)).unwrap_err();
    assert_eq!(found, Deleted::PartOf("team/app:top".into()));
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_deletion_takes_a_manifest_with_its_tags() {
    let mut view = pushed(&[artifact("1", "a"), artifact("2", "a"), artifact("3", "b")]);
    let planned = plan_deletion(&view, "team/app", &digest("a").to_string()).unwrap();
    apply(&mut view, &planned);
    assert_eq!(tags(&view, "team/app").unwrap(), ["3"]);
    let again = plan_deletion(&view, "team/app", &digest("a").to_string());
    assert_eq!(again.unwrap_err(), Deleted::Nothing);
}

#[test]
fn an_index_of_another_type_keeps_its_parts() {
    let odd = Artifact { media_type: "application/json".into(), ..index("all", "b", &["a"]) };
    let view = pushed(&[artifact("", "a"), odd]);
    let found = plan_deletion(&view, "team/app", &digest("a").to_string());
    assert_eq!(found.unwrap_err(), Deleted::PartOf("team/app:all".into()));
    assert!(is_anywhere(&view, &digest("a")) && !is_anywhere(&view, &digest("c")));
}

#[test]
fn referrers_are_told_by_their_subject() {
    let about = |tag: &str, letter: &str, subject: &str| {
        let subject = Some(digest(subject).to_string());
        Artifact { subject, ..artifact(tag, letter) }
    };
    let view =
        pushed(&[artifact("1", "a"), about("", "b", "a"), about("sig", "b", "a"), about("", "c", "d")]);
    let found: Vec<Digest> = referring(&view, "team/app", &digest("a")).into_keys().collect();
    assert_eq!(found, [digest("b")]);
    assert!(referring(&view, "other", &digest("a")).is_empty());
}
