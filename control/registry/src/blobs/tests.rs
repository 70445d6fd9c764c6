//! Blobs as they come, are kept, and are not there.

use std::os::unix::fs::PermissionsExt;

use futures::TryStreamExt;

use super::*;

async fn put(blobs: &Blobs, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    blobs.put(&digest, content).await.unwrap();
    digest
}

async fn part(blobs: &Blobs, digest: &Digest, part: Range<u64>) -> Vec<u8> {
    let pieces: Vec<Bytes> = blobs.stream(digest, part).await.unwrap().try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn content_is_kept_by_its_digest_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), || true).unwrap();
    let digest = put(&blobs, b"hello").await;
    assert_eq!(blobs.read(&digest).await.unwrap(), b"hello");
    assert_eq!(part(&blobs, &digest, WHOLE).await, b"hello");
    assert_eq!(part(&blobs, &digest, 1..3).await, b"el");
    let mut wrong = blobs.begin().await.unwrap();
    wrong.append(b"other").await.unwrap();
    assert!(matches!(blobs.keep(wrong, &digest).await, Err(BlobError::WrongDigest { .. })));
    assert_eq!(fs::read_dir(&blobs.unfinished).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn content_has_a_name_by_each_algorithm() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), || true).unwrap();
    let long = Digest::by(Algorithm::Sha512, b"hello");
    blobs.put(&long, b"hello").await.unwrap();
    assert_eq!(blobs.read(&long).await.unwrap(), b"hello");
    assert_eq!(blobs.size(&Digest::of(b"hello")).await, None, "it was pushed by the other name");
    let mut wrong = blobs.begin().await.unwrap();
    wrong.append(b"other").await.unwrap();
    assert!(matches!(blobs.keep(wrong, &long).await, Err(BlobError::WrongDigest { .. })));
}

#[tokio::test]
async fn a_disk_without_room_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let room = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = room.clone();
    let blobs = Blobs::open(dir.path(), move || seen.load(std::sync::atomic::Ordering::Relaxed)).unwrap();
    let digest = put(&blobs, b"hello").await;
    let mut begun = blobs.begin().await.unwrap();
    begun.append(b"first").await.unwrap();
    room.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(begun.append(b"more").await, Err(BlobError::NoSpace)));
    assert!(matches!(blobs.put(&Digest::of(b"other"), b"other").await, Err(BlobError::NoSpace)));
    assert_eq!(blobs.read(&digest).await.unwrap(), b"hello", "what is here is given");
}

#[tokio::test]
async fn what_a_broken_request_left_half_written_is_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), || true).unwrap();
    let mut begun = blobs.begin().await.unwrap();
    begun.append(b"hel").await.unwrap();
    // As a piece is whose request ended before it was counted.
    begun.file.write_all(b"XX").await.unwrap();
    begun.file.flush().await.unwrap();
    begun.is_torn = true;
    begun.append(b"lo").await.unwrap();
    assert_eq!(blobs.keep(begun, &Digest::of(b"hello")).await.unwrap(), 5);
}

#[tokio::test]
async fn blobs_are_fetched_beside_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), || true).unwrap();
    let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
    let lock = blobs.fetch_lock(&one);
    let _held = lock.lock().await;
    assert!(blobs.fetch_lock(&one).try_lock().is_err());
    assert!(blobs.fetch_lock(&other).try_lock().is_ok());
    blobs.fetch_lock(&other);
    assert!(blobs.fetching.lock().len() <= 2);
}

#[tokio::test]
async fn a_blob_is_hidden_in_one_repository_until_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), || true).unwrap();
    let digest = put(&blobs, b"hello").await;
    blobs.hide("team/app", &digest).await.unwrap();
    let again = Blobs::open(dir.path(), || true).unwrap();
    assert!(again.is_hidden("team/app", &digest).await, "also after a restart");
    assert!(!again.is_hidden("team", &digest).await);
    assert_eq!(again.read(&digest).await.unwrap(), b"hello", "others still have it");
    again.show("team/app", &digest).await.unwrap();
    again.show("team/app", &digest).await.unwrap();
    assert!(!again.is_hidden("team/app", &digest).await);
}

#[tokio::test]
async fn what_hides_a_blob_is_bounded_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), || true).unwrap();
    let digest = Digest::of(b"content");
    for number in 0..=hidden::MARKS_MAX {
        blobs.hide(&format!("team/app{number}"), &digest).await.unwrap();
    }
    let folder = blobs.marks(&digest);
    let marks: Vec<_> = fs::read_dir(&folder).unwrap().map(|mark| mark.unwrap()).collect();
    assert_eq!(marks.len(), hidden::MARKS_MAX);
    assert!(blobs.is_hidden(&format!("team/app{}", hidden::MARKS_MAX), &digest).await, "the newest");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(folder.parent().unwrap())), (0o700, 0o700));
    assert_eq!(mode(&marks[0].path()), 0o600);
}
