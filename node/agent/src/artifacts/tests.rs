//! Images that come, are used, are damaged and go, with a registry that is served here.

use std::{
    fs::{self, File},
    path::Path,
    sync::atomic::AtomicUsize,
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{room::NoRoom, *};

fn artifacts() -> (tempfile::TempDir, Artifacts) {
    let dir = tempfile::tempdir().unwrap();
    let allowed = vec![dir.path().join("allowed")];
    fs::create_dir(&allowed[0]).unwrap();
    let artifacts = Artifacts::new(dir.path().join("a"), allowed, Registry::without_addresses()).unwrap();
    (dir, artifacts)
}

async fn error(artifacts: &Artifacts, image: &str, policy: PullPolicy) -> (String, &'static str) {
    let error = artifacts.pull(image, "d", policy, || {}).await.unwrap_err();
    (error.to_string(), error.reason())
}

#[tokio::test]
async fn what_cannot_be_pulled_says_why_and_what_to_do() {
    let (_dir, artifacts) = artifacts();
    let always = PullPolicy::Always;
    let (text, reason) = error(&artifacts, "Hello World", always).await;
    assert_eq!(text, "couldn't parse image name \"Hello World\": invalid reference format");
    assert_eq!(reason, "InvalidImageName");
    let (text, _) = error(&artifacts, "ghcr.io/x/hello:1", always).await;
    assert!(text.contains("coracle push FILE.wasm hello:1"), "{text}");
    let (text, _) = error(&artifacts, "file:///x.wasm", always).await;
    assert!(text.contains("--allow-local-artifacts"), "{text}");
    let (text, reason) = error(&artifacts, "hello:1", PullPolicy::Never).await;
    assert_eq!(text, "Container image \"hello:1\" is not present with pull policy of Never");
    assert_eq!(reason, "ErrImageNeverPull");
    let (text, reason) = error(&artifacts, "hello:1", always).await;
    assert!(text.contains("no control node") && reason == "ErrImagePull", "{text}");
}

#[tokio::test]
async fn local_files_are_used_where_they_are_allowed() {
    let (dir, artifacts) = artifacts();
    let path = dir.path().join("allowed/x.wasm");
    fs::write(&path, b"\0asm").unwrap();
    let image = format!("file://{}", path.display());
    let present = artifacts.pull(&image, "d", PullPolicy::IfNotPresent, || {}).await.unwrap();
    assert_eq!(present.image.path, path);
    assert!(present.image.id.contains("@sha256:") && present.fetched.is_none());
    assert_eq!(artifacts.held(), [("names of images", 0), ("images", 0), ("pulls", 0)]);
    let missing = dir.path().join("allowed/none.wasm").display().to_string();
    let (text, _) = error(&artifacts, &format!("file://{missing}"), PullPolicy::Always).await;
    assert!(text.contains(&format!("failed to read {missing}")), "{text}");
    // Elsewhere it is not told whether there is a file, whichever way it is named.
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("allowed/link.wasm")).unwrap();
    std::os::unix::fs::symlink(&path, dir.path().join("allowed/other.wasm")).unwrap();
    for outside in
        ["secret", "none", "allowed-not", "allowed/../secret", "allowed/../none", "allowed/link.wasm"]
    {
        let image = format!("file://{}/{outside}", dir.path().display());
        let (text, _) = error(&artifacts, &image, PullPolicy::Always).await;
        assert!(text.contains("that this node does not run"), "{text}");
    }
    let link = format!("file://{}/allowed/other.wasm", dir.path().display());
    let linked = artifacts.pull(&link, "d", PullPolicy::Always, || {}).await.unwrap();
    assert_eq!(linked.image.path, path);
}

#[test]
fn a_local_file_waits_for_no_blocking_thread_of_the_runtime() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (dir, artifacts) = artifacts();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            let _ = ended.recv();
        });
        let path = dir.path().join("allowed/x.wasm");
        fs::write(&path, b"\0asm").unwrap();
        let image = format!("file://{}", path.display());
        let pulling = artifacts.pull(&image, "d", PullPolicy::Always, || {});
        let pulled = tokio::time::timeout(Duration::from_secs(60), pulling).await;
        drop(end);
        assert_eq!(pulled.expect("in time").unwrap().image.path, path);
    });
}

fn hex_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// What the registry serves under a repository: its name, so and so often.
fn content(repository: &str) -> Vec<u8> {
    repository.repeat(100 / repository.len()).into_bytes()
}

/// A registry that has all repositories. Counts the files that were fetched.
struct Served {
    address: String,
    fetched: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let fetched = Arc::new(AtomicUsize::new(0));
        let count = fetched.clone();
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(answer(connection, count.clone()));
            }
        });
        Self { address, fetched, task }
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Acquire)
    }

    /// Images on a disk that has so much free whatever is removed.
    fn images(&self, dir: &Path, bytes: u64, bytes_free: u64) -> Artifacts {
        self.images_that_settle(dir, Space { bytes, bytes_free }, Duration::ZERO)
    }

    fn images_that_settle(&self, dir: &Path, space: Space, settled_after: Duration) -> Artifacts {
        let registry = Registry::plain(self.address.clone());
        Artifacts::with(dir.join("a"), Vec::new(), registry, Box::new(move || Some(space)), settled_after)
            .unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn manifest(repository: &str) -> String {
    let (digest, size) = (hex_of(&content(repository)), content(repository).len());
    let layer = format!(r#"{{"mediaType":"application/wasm","digest":"sha256:{digest}","size":{size}}}"#);
    format!(r#"{{"layers":[{layer}]}}"#)
}

/// What each tag of the repository `index` means.
fn index() -> String {
    let image = hex_of(manifest("index").as_bytes());
    let platform = r#"{"os":"wasi","architecture":"wasm"}"#;
    format!(r#"{{"manifests":[{{"digest":"sha256:{image}","platform":{platform}}}]}}"#)
}

async fn answer(mut connection: TcpStream, fetched: Arc<AtomicUsize>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let parts: Vec<&str> = request.split([' ', '/']).collect();
    let (repository, what) = (parts[3], parts[4]);
    let body = if what == "blobs" {
        fetched.fetch_add(1, Ordering::AcqRel);
        content(repository)
    } else if repository == "index" && !parts[5].contains(':') {
        index().into_bytes()
    } else {
        manifest(repository).into_bytes()
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let answered = [head.into_bytes(), body].concat();
    let _ = connection.write_all(&answered).await;
}

async fn pull(images: &Artifacts, namespace: &str, image: &str, policy: PullPolicy) -> Present {
    images.pull(image, namespace, policy, || {}).await.unwrap()
}

fn is_here(images: &Artifacts, repository: &str) -> bool {
    images.store.path(&hex_of(&content(repository))).exists()
}

const IF_NOT_PRESENT: PullPolicy = PullPolicy::IfNotPresent;

#[tokio::test]
async fn what_was_pulled_is_remembered_over_a_restart() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let images = registry.images(dir.path(), 1 << 40, 1 << 39);
    let first = pull(&images, "d", "hello:1", PullPolicy::Always).await;
    assert!(first.fetched.is_some() && first.image.path.exists());
    let again = Artifacts::new(dir.path().join("a"), Vec::new(), Registry::without_addresses()).unwrap();
    for policy in [IF_NOT_PRESENT, PullPolicy::Never] {
        let begun = std::cell::Cell::new(false);
        let present = again.pull("hello:1", "d", policy, || begun.set(true)).await.unwrap();
        assert_eq!((&present.image.id, &present.image.path), (&first.image.id, &first.image.path));
        assert!(!begun.get());
    }
    // Nor is it needed that a registry answers.
    let present = pull(&again, "d", "hello:1", PullPolicy::Always).await;
    assert_eq!(present.image.id, first.image.id);
    assert_eq!(registry.fetched(), 1);
}

#[tokio::test]
async fn an_index_is_pulled_by_the_image_in_it() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let images = registry.images(dir.path(), 1 << 40, 1 << 39);
    let present = pull(&images, "d", "index:1", PullPolicy::Always).await;
    assert_eq!(fs::read(&present.image.path).unwrap(), content("index"));
    let named = hex_of(index().as_bytes());
    assert_eq!(present.image.id, format!("index@sha256:{named}"), "by what its name means");
}

/// Not at the time at which it was written, as far as clocks of file systems can tell.
fn damage(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_fetched_anew_once() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let path = pull(&registry.images(dir.path(), 1 << 40, 1 << 39), "d", "hello", IF_NOT_PRESENT)
        .await
        .image
        .path
        .clone();
    let whole = content("hello");
    let other = vec![b'x'; whole.len()];
    let mut fetched = 1;
    for (policy, damaged) in [
        (IF_NOT_PRESENT, &whole[..50]),
        (PullPolicy::Always, &whole[..50]),
        (IF_NOT_PRESENT, &other[..]),
        (PullPolicy::Always, &other[..]),
        (IF_NOT_PRESENT, b""),
    ] {
        damage(&path, damaged);
        let images = Arc::new(registry.images(dir.path(), 1 << 40, 1 << 39));
        let never = images.pull("hello", "d", PullPolicy::Never, || {}).await.unwrap_err();
        assert_eq!(never.reason(), "ErrImageNeverPull");
        let pulls: Vec<_> = (0..20)
            .map(|_| {
                let images = images.clone();
                tokio::spawn(async move { pull(&images, "d", "hello", policy).await })
            })
            .collect();
        for pulled in pulls {
            assert_eq!(pulled.await.unwrap().image.path, path);
        }
        fetched += 1;
        assert_eq!((fs::read(&path).unwrap(), registry.fetched()), (whole.clone(), fetched));
        // Found out by the process in whose time it happened, too.
        damage(&path, damaged);
        pull(&images, "d", "hello", policy).await;
        fetched += 1;
        assert_eq!((fs::read(&path).unwrap(), registry.fetched()), (whole.clone(), fetched));
    }
    // One that is gone, and one that is no file any more.
    fs::remove_file(&path).unwrap();
    pull(&registry.images(dir.path(), 1 << 40, 1 << 39), "d", "hello", IF_NOT_PRESENT).await;
    assert_eq!((fs::read(&path).unwrap(), registry.fetched()), (whole.clone(), fetched + 1));
}

#[tokio::test]
async fn what_a_crash_cut_short_is_made_anew_and_its_remains_go() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let images = registry.images(dir.path(), 1 << 40, 1 << 39);
    let id = pull(&images, "d", "hello", IF_NOT_PRESENT).await.image.id.clone();
    let root = dir.path().join("a");
    let name = root.join("images").join(name_key("hello"));
    let text = fs::read_to_string(&name).unwrap();
    let remains =
        [root.join("tmp/0011"), root.join("images/x.tmp"), root.join("sha256/half"), root.join("images/00")];
    for cut in [0, 5, id.len(), id.len() + 1, text.len() - 30, text.len() - 1] {
        fs::write(&name, &text[..cut]).unwrap();
        remains.iter().for_each(|path| fs::write(path, "x").unwrap());
        let images = registry.images(dir.path(), 1 << 40, 1 << 39);
        assert!(remains.iter().all(|path| !path.exists()));
        let present = pull(&images, "d", "hello", IF_NOT_PRESENT).await;
        assert_eq!((&present.image.id, fs::read_to_string(&name).unwrap()), (&id, text.clone()), "{cut}");
    }
    assert_eq!(registry.fetched(), 1, "the file was whole");
}

#[tokio::test]
async fn images_that_no_pod_uses_go_those_first_that_were_used_longest_ago() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    // Room for ten images of a hundred bytes.
    let images = registry.images(dir.path(), 4000, 3900);
    let used = pull(&images, "d", "aa", IF_NOT_PRESENT).await;
    let mut names = Vec::new();
    for number in 10..40 {
        let name = format!("{number}");
        drop(pull(&images, "d", &name, IF_NOT_PRESENT).await);
        names.push(name);
        // As a pod that is started again and again.
        drop(pull(&images, "d", "bb", IF_NOT_PRESENT).await);
        assert!(images.held()[1].1 <= 10);
    }
    names.retain(|name| is_here(&images, name));
    assert_eq!(names, (32..40).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(is_here(&images, "aa") && is_here(&images, "bb"));
    assert_eq!(registry.fetched(), 32);
    assert_eq!(images.held(), [("names of images", 10), ("images", 10), ("pulls", 0)]);
    let left = |folder: &str| fs::read_dir(dir.path().join("a").join(folder)).unwrap().count();
    assert_eq!((left("images"), left("sha256"), left("tmp")), (10, 10, 0));
    // What went comes again, and what was used goes in its turn.
    drop(used);
    let again = pull(&images, "d", "10", IF_NOT_PRESENT).await;
    assert!(again.fetched.is_some() && again.image.path.exists());
}

#[tokio::test]
async fn a_disk_that_others_fill_is_left_by_images() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let images = registry.images(dir.path(), 1 << 30, 1 << 29);
    let used = pull(&images, "d", "aa", IF_NOT_PRESENT).await;
    for name in ["bb", "cc"] {
        drop(pull(&images, "d", name, IF_NOT_PRESENT).await);
    }
    images.store.tend();
    assert_eq!(images.held()[1].1, 3);
    drop(images);
    // The last life's pods come for theirs first.
    let full = Space { bytes: 1 << 30, bytes_free: 100 << 20 };
    let unsettled = registry.images_that_settle(dir.path(), full, SETTLED_AFTER);
    drop(pull(&unsettled, "d", "bb", IF_NOT_PRESENT).await);
    unsettled.store.tend();
    let here = |images: &Artifacts| ["aa", "bb", "cc"].map(|name| is_here(images, name));
    assert_eq!(here(&unsettled), [true, false, true]);
    let settled = registry.images_that_settle(dir.path(), full, Duration::ZERO);
    let again = pull(&settled, "d", "aa", IF_NOT_PRESENT).await;
    settled.tend();
    let gone = async {
        while here(&settled) != [true, false, false] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it goes");
    assert_eq!(registry.fetched(), 3);
    drop((used, again));
}

#[tokio::test]
async fn a_namespace_leaves_room_for_images_of_others() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let images = registry.images(dir.path(), 4000, 3900);
    let mut used = Vec::new();
    let refused = loop {
        match images.pull(&format!("a{}", used.len()), "hostile", IF_NOT_PRESENT, || {}).await {
            Ok(present) => used.push(present),
            Err(error) => break error,
        }
    };
    assert_eq!(used.len(), 5);
    assert!(
        matches!(refused, PullError::NoRoom { source: NoRoom::Share { used: 500, free: 500 }, .. }),
        "{refused}"
    );
    used.push(pull(&images, "other", "b", IF_NOT_PRESENT).await);
    // What others have here costs nothing.
    used.push(pull(&images, "hostile", "b", IF_NOT_PRESENT).await);
    used.truncate(4);
    pull(&images, "hostile", "a9", IF_NOT_PRESENT).await;
    // A pull that fails gives back its room.
    let tiny = registry.images(&dir.path().join("tiny"), 300, 300);
    for _ in 0..3 {
        let refused = tiny.pull("c", "d", IF_NOT_PRESENT, || {}).await.unwrap_err();
        assert!(refused.to_string().contains("of the 75 bytes that this node has for images"), "{refused}");
        assert_eq!(refused.reason(), "ErrImagePull");
    }
}

#[tokio::test]
async fn names_are_bounded_as_well_and_uses_are_known_to_the_next_process() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), Served::start().await);
    let names = dir.path().join("a/images");
    fs::create_dir_all(&names).unwrap();
    for number in 0..4096 + 70 {
        fs::write(names.join(name_key(&number.to_string())), "").unwrap();
    }
    let images = registry.images(dir.path(), 1 << 40, 1 << 39);
    let used = pull(&images, "d", "hello", IF_NOT_PRESENT).await;
    images.store.tend();
    images.store.tend();
    assert_eq!((images.held()[0].1, fs::read_dir(&names).unwrap().count()), (4096, 4096));
    assert!(names.join(name_key("hello")).exists());
    // A mark that reading the file does not change.
    let file = File::open(&used.image.path).unwrap();
    let later = SystemTime::now() + Duration::from_secs(36_000);
    file.set_times(fs::FileTimes::new().set_accessed(later)).unwrap();
    let next = registry.images(dir.path(), 1 << 40, 1 << 39);
    pull(&next, "d", "hello", IF_NOT_PRESENT).await;
    next.store.tend();
    assert!(file.metadata().unwrap().accessed().unwrap() < later);
    assert_eq!(registry.fetched(), 1);
}
