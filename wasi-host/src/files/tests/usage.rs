//! What files take of the disk is counted, whatever a guest does to them.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wasmtime_wasi::filesystem::Descriptor;

use super::*;
use crate::files::usage::{ENTRY_BYTES, Usage};

const NAMES: [&str; 6] = ["a", "b", "c", "d/a", "d/b", "e"];

/// A pod's volume with a guest's view of it.
struct Volume {
    files: Arc<Files>,
    usage: Arc<Usage>,
    dir: tempfile::TempDir,
}

impl Volume {
    fn new(account: Arc<Account>, bytes_max: Option<u64>) -> Volume {
        let dir = tempfile::tempdir().expect("a directory");
        let inodes = (&account.ledger, account.reserve.inode_bytes());
        let usage = Usage::new(&account.ledger, bytes_max, inodes);
        let mut files = Files::new(account);
        files.mount(super::root(dir.path()), "/".to_owned(), false, Some(Arc::clone(&usage)));
        Volume { files: Arc::new(files), usage, dir }
    }

    fn root(&self) -> OpenDescriptor {
        Arc::clone(&self.files.dirs[0].0)
    }

    async fn open(&self, name: &str, how: OpenFlags) -> Result<OpenDescriptor, ErrorCode> {
        let flags = (how, DescriptorFlags::READ | DescriptorFlags::WRITE);
        code(self.files.open_at(self.root(), PathFlags::empty(), name.to_owned(), flags).await)
    }

    async fn write(&self, file: &OpenDescriptor, bytes: usize, offset: u64) -> Result<u64, ErrorCode> {
        code(self.files.write(Arc::clone(file), vec![7; bytes], offset).await)
    }

    /// Waits until everything that was let go of is closed.
    async fn until_open(&self, count: usize) {
        let closed = async {
            while self.usage.open() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), closed).await.expect("closed");
    }

    /// What there is, counted anew: with files that only `open` leads to.
    fn count<'a>(&self, open: impl IntoIterator<Item = &'a OpenDescriptor>) -> u64 {
        let mut lengths = HashMap::new();
        let mut names = 0;
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).expect("there") {
                let entry = entry.expect("an entry");
                let found = entry.metadata().expect("there");
                names += 1;
                if found.is_dir() {
                    dirs.push(entry.path());
                } else if found.is_file() {
                    lengths.insert(found.ino(), found.len());
                }
            }
        }
        for opened in open {
            if let Ok(Descriptor::File(file)) = opened.descriptor() {
                let found = file.file.metadata().expect("open");
                lengths.insert(found.ino(), found.len());
            }
        }
        names * ENTRY_BYTES + lengths.values().sum::<u64>()
    }

    /// Does something, as `choice` says. What comes of it does not matter here.
    async fn act(&self, choice: &mut Choice, open: &mut Vec<OpenDescriptor>) {
        let (files, root) = (&self.files, || self.root());
        let (name, other) = (choice.name(), choice.name());
        let size = choice.below(40_000);
        match choice.below(13) {
            0 => drop(files.create_directory_at(root(), "d".into()).await),
            1 => drop(files.remove_directory_at(root(), "d".into()).await),
            2 => drop(files.symlink_at(root(), other, name).await),
            3 => drop(files.link_at(root(), PathFlags::empty(), name, (root(), other)).await),
            4 => drop(files.rename_at(root(), name, (root(), other)).await),
            5 | 6 => drop(files.unlink_file_at(root(), name).await),
            7 if !open.is_empty() => {
                let at = choice.below(open.len() as u64) as usize;
                drop(open.swap_remove(at));
            }
            8 if !open.is_empty() => {
                let file = &open[choice.below(open.len() as u64) as usize];
                drop(files.set_size(Arc::clone(file), size).await);
            }
            9 if !open.is_empty() => {
                let file = Arc::clone(&open[choice.below(open.len() as u64) as usize]);
                let place =
                    if choice.below(2) == 0 { transfer::Place::End } else { transfer::Place::At(size) };
                let bytes = vec![1; choice.below(20_000) as usize];
                let write = move || transfer::write(&file, bytes.into(), place);
                drop(self.files.account.call(write).await);
            }
            10 if !open.is_empty() => {
                let file = &open[choice.below(open.len() as u64) as usize];
                let _ = self.write(file, choice.below(20_000) as usize, size).await;
            }
            _ => {
                let hows = [
                    OpenFlags::empty(),
                    OpenFlags::CREATE,
                    OpenFlags::CREATE | OpenFlags::EXCLUSIVE,
                    OpenFlags::CREATE | OpenFlags::TRUNCATE,
                    OpenFlags::TRUNCATE,
                ];
                let how = hows[choice.below(hows.len() as u64) as usize];
                let follows =
                    if choice.below(2) == 0 { PathFlags::empty() } else { PathFlags::SYMLINK_FOLLOW };
                let flags = (how, DescriptorFlags::READ | DescriptorFlags::WRITE);
                open.extend(files.open_at(root(), follows, name, flags).await);
            }
        }
    }
}

fn code<T>(done: FsResult<T>) -> Result<T, ErrorCode> {
    done.map_err(|error| error.downcast().expect("an error of the guest's"))
}

/// Numbers that follow from a seed.
struct Choice(u64);

impl Choice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn name(&mut self) -> String {
        NAMES[self.below(NAMES.len() as u64) as usize].to_owned()
    }
}

#[tokio::test]
async fn whatever_is_done_to_files_they_are_counted_with_what_they_take() {
    for seed in 0..20 {
        let volume = Volume::new(account(&Pools::new()), None);
        let (mut choice, mut open) = (Choice(seed), Vec::new());
        for step in 0..200 {
            volume.act(&mut choice, &mut open).await;
            // What was closed is closed elsewhere.
            let inodes: std::collections::HashSet<_> = open
                .iter()
                .filter_map(|opened: &OpenDescriptor| match opened.descriptor() {
                    Ok(Descriptor::File(file)) => Some(file.file.metadata().expect("open").ino()),
                    _ => None,
                })
                .collect();
            volume.until_open(inodes.len()).await;
            assert_eq!(volume.usage.bytes(), volume.count(&open), "seed {seed}, step {step}");
        }
        open.clear();
        volume.until_open(0).await;
        assert_eq!(volume.usage.bytes(), volume.count([]), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_change_the_same_files_at_once_are_counted_as_well() {
    for seed in 0..5 {
        let volume = Arc::new(Volume::new(account(&Pools::new()), None));
        let guests = (0..8).map(|guest| {
            let volume = Arc::clone(&volume);
            tokio::spawn(async move {
                let (mut choice, mut open) = (Choice(seed * 100 + guest), Vec::new());
                for _ in 0..200 {
                    volume.act(&mut choice, &mut open).await;
                    if open.len() > 4 {
                        open.clear();
                    }
                }
            })
        });
        for guest in guests.collect::<Vec<_>>() {
            guest.await.expect("done");
        }
        volume.until_open(0).await;
        assert_eq!(volume.usage.bytes(), volume.count([]), "seed {seed}");
    }
}

#[tokio::test]
async fn what_an_earlier_life_of_the_node_has_left_in_a_volume_counts() {
    let volume = Volume::new(account(&Pools::new()), Some(64 << 10));
    let mut choice = Choice(7);
    let mut open = Vec::new();
    for _ in 0..100 {
        volume.act(&mut choice, &mut open).await;
    }
    open.clear();
    volume.until_open(0).await;
    assert!(volume.count([]) > 0);
    let again = crate::PodDisk::alone(None);
    let usage = again.usage(&crate::Volume { dir: volume.dir.path().to_owned(), bytes_max: Some(64 << 10) });
    // A file of several names has a part in each, rounded down.
    assert!(usage.bytes().abs_diff(volume.count([])) < 10, "{} and {}", usage.bytes(), volume.count([]));
}

#[tokio::test]
async fn a_volume_takes_what_it_may_and_what_is_freed_may_be_taken_again() {
    let volume = Volume::new(account(&Pools::new()), Some(64 << 10));
    let file = volume.open("a", OpenFlags::CREATE).await.expect("made");
    assert_eq!(volume.write(&file, 50 << 10, 0).await, Ok(50 << 10));
    assert_eq!(volume.write(&file, 50 << 10, 10 << 10).await, Ok(50 << 10), "60 of 64 with the name");
    let full = ErrorCode::InsufficientSpace;
    assert_eq!(volume.write(&file, 1, 60 << 10).await, Err(full));
    assert_eq!(volume.write(&file, 1 << 10, 0).await, Ok(1 << 10), "what is there may be written again");
    assert_eq!(volume.open("b", OpenFlags::CREATE).await.err(), Some(full));
    assert_eq!(code(volume.files.create_directory_at(volume.root(), "d".into()).await), Err(full));
    assert_eq!(code(volume.files.set_size(Arc::clone(&file), 1 << 40).await), Err(full));
    let told = volume.files.account.ledger.refusal().expect("noted").to_string();
    assert!(
        told.starts_with("disk: the volume holds ") && told.contains(" of the 65536 bytes that it may"),
        "{told}"
    );
    // Without its name it is there for as long as it is open.
    code(volume.files.unlink_file_at(volume.root(), "a".into()).await).expect("removed");
    assert_eq!(volume.usage.bytes(), 60 << 10);
    let other = volume.open("b", OpenFlags::CREATE).await.expect("made");
    assert_eq!(volume.write(&other, 1, 0).await, Err(full));
    drop(file);
    volume.until_open(1).await;
    assert_eq!(volume.write(&other, 60 << 10, 0).await, Ok(60 << 10));
}

#[tokio::test]
async fn names_of_one_volume_stand_for_nothing_of_another() {
    let volume = Volume::new(account(&Pools::new()), None);
    let other = Volume::new(Arc::clone(&volume.files.account), None);
    volume.open("a", OpenFlags::CREATE).await.expect("made");
    let (files, at) = (&volume.files, || (other.root(), "b".to_owned()));
    let linked = files.link_at(volume.root(), PathFlags::empty(), "a".into(), at()).await;
    assert_eq!(code(linked), Err(ErrorCode::CrossDevice));
    assert_eq!(code(files.rename_at(volume.root(), "a".into(), at()).await), Err(ErrorCode::CrossDevice));
}

/// A disk with so much free beyond what is left to the node, less what is in these directories.
fn disk(
    ledger: &Ledger,
    bytes: u64,
    inodes: u64,
    dirs: Arc<parking_lot::Mutex<Vec<PathBuf>>>,
) -> Arc<Reserve> {
    let used = |dir: &Path| -> u64 {
        let entries = std::fs::read_dir(dir).expect("there");
        entries.map(|entry| entry.expect("an entry").metadata().expect("there").len() + ENTRY_BYTES).sum()
    };
    let look = move || {
        let used: u64 = dirs.lock().iter().map(|dir| used(dir)).sum();
        let bytes_free = ((256 << 20) + bytes).saturating_sub(used);
        let names = |dir: &PathBuf| std::fs::read_dir(dir).expect("there").count() as u64;
        let inodes_free = inodes.saturating_sub(dirs.lock().iter().map(names).sum());
        Some(reserve::Space { bytes: 1 << 30, bytes_free, inodes, inodes_free })
    };
    Arc::new(Reserve::with(look, ledger.clone()))
}

/// Writes as much as there is room for, a file after the other.
async fn fill(volume: &Volume) -> u64 {
    for number in 0.. {
        let Ok(file) = volume.open(&number.to_string(), OpenFlags::CREATE).await else { break };
        if volume.write(&file, 1 << 20, 0).await.is_err() {
            break;
        }
    }
    volume.usage.bytes()
}

#[tokio::test]
async fn who_fills_the_disk_leaves_a_share_to_other_namespaces() {
    const MIB: u64 = 1 << 20;
    let ledger = ledger();
    let dirs = Arc::<parking_lot::Mutex<Vec<PathBuf>>>::default();
    let reserve = disk(&ledger, 64 * MIB, 0, Arc::clone(&dirs));
    let pools = Pools::new();
    let volume = |namespace: &str, disk: Option<u64>| {
        let namespace: Arc<str> = namespace.into();
        let bounds = crate::ledger::PodBounds { disk, ..Default::default() };
        let pod = ledger.bounded_pod(&namespace, bounds);
        let holder = Holder { namespace, pod: None };
        let volume = Volume::new(Account::new(pools.clone(), holder, pod, Arc::clone(&reserve)), None);
        dirs.lock().push(volume.dir.path().to_owned());
        volume
    };
    // One pod has a third, with its guaranteed part, and its namespace half.
    let greedy = volume("greedy", None);
    let first = fill(&greedy).await;
    assert!((20 * MIB..25 * MIB).contains(&first), "{first}");
    let others = [volume("greedy", None), volume("greedy", None), volume("greedy", None)];
    let mut all = first;
    for other in &others {
        all += fill(other).await;
    }
    assert!((30 * MIB..38 * MIB).contains(&all), "{all}");
    let told = others[2].files.account.ledger.refusal().expect("noted").to_string();
    assert!(told.starts_with("disk: the namespace holds "), "{told}");
    let neighbour = volume("other", None);
    let file = neighbour.open("own", OpenFlags::CREATE).await.expect("made");
    assert_eq!(code(neighbour.files.set_size(file, 8 * MIB).await), Ok(()));
    // A pod that says what it may take has no more.
    let limited = volume("other", Some(MIB));
    assert!(fill(&limited).await <= MIB);
    let told = limited.files.account.ledger.refusal().expect("noted").to_string();
    assert!(
        told.starts_with("disk: the pod holds ") && told.contains(" of the 1048576 bytes that it may"),
        "{told}"
    );
}

#[tokio::test]
async fn who_makes_files_without_end_leaves_inodes_to_other_namespaces() {
    let ledger = ledger();
    let dirs = Arc::<parking_lot::Mutex<Vec<PathBuf>>>::default();
    // Of a disk that is all free: a name is a MiB.
    let reserve = disk(&ledger, 768 << 20, 1024, Arc::clone(&dirs));
    let pools = Pools::new();
    let volume = |namespace: &str| {
        let holder = Holder { namespace: namespace.into(), pod: None };
        let pod = ledger.pod(&holder.namespace, None);
        let volume = Volume::new(Account::new(pools.clone(), holder, pod, Arc::clone(&reserve)), None);
        dirs.lock().push(volume.dir.path().to_owned());
        volume
    };
    let (greedy, modest) = (volume("greedy"), volume("modest"));
    let mut made = 0;
    while greedy.open(&made.to_string(), OpenFlags::CREATE).await.is_ok() {
        made += 1;
    }
    assert!((200..512).contains(&made), "{made} of 1024");
    for number in 0..50 {
        assert!(modest.open(&number.to_string(), OpenFlags::CREATE).await.is_ok(), "{number}");
    }
}
