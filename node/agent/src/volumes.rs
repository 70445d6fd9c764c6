//! Volumes on disk. Files of config maps, secrets and downward fields are replaced together, by one rename of a link,
//! so that a guest never sees half of a change: `key -> ..data/key`, `..data -> ..<number>`.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use coracle_core::{
    Pod,
    volumes::{MountPlan, VolumeContent, VolumeFile, VolumePlan, is_written_by_node},
};
use coracle_wasi_host::{Mount, PodDisk, Volume};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::{disk, private, removal::remove_dir};

/// The link to the present files.
const DATA: &str = "..data";
/// The link's next value, renamed over it.
const DATA_NEXT: &str = "..data_next";
/// Different subPaths that a container mounts: each is an open directory. And the directories in each other of one of them.
const SUB_PATHS_MAX: usize = 64;
const SUB_PATH_PARTS_MAX: usize = 64;
/// How directories of volumes are opened.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// Counts what an earlier life of the node has written for the pod below `dir`: it is there whether or not it can be planned
/// now. Blocks.
pub fn count(dir: &Path, pod: &Pod, disk: &PodDisk) {
    for volume in pod.spec.volumes.iter().filter(|volume| is_written_by_node(volume)) {
        disk.count_volume(&dir.join(&volume.name));
    }
}

/// Writes all volumes of a pod below `dir`, or changes what differs. What the node writes is on the pod's part of the disk: where
/// that has no room for the new beside the old, the old stays, and the error says whose bound it was.
pub fn write(dir: &Path, volumes: &[VolumePlan], disk: &PodDisk) -> Result<(), String> {
    if !volumes.is_empty() {
        private::create_dir(dir).map_err(|error| format!("MountVolume.SetUp failed: {error}"))?;
    }
    for volume in volumes {
        let path = dir.join(&volume.name);
        let written = match &volume.content {
            VolumeContent::Empty => private::create_dir(&path),
            VolumeContent::Files(files) => write_files(&path, files, disk),
        };
        written
            .map_err(|error| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name))?;
    }
    Ok(())
}

fn write_files(dir: &Path, files: &BTreeMap<String, VolumeFile>, disk: &PodDisk) -> io::Result<()> {
    private::create_dir(dir)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.is_some() && is_current(&dir.join(DATA), files) {
        return Ok(());
    }
    let number = old.as_ref().and_then(|old| old.to_str()?.strip_prefix("..")?.parse::<u64>().ok());
    let name = format!("..{}", number.unwrap_or(0) + 1);
    // What an interrupted write left behind.
    remove_dir(&dir.join(&name))?;
    let bytes = files.values().map(|file| file.bytes.len() as u64).sum();
    disk::admit(File::open(dir)?, bytes)?;
    disk.write_volume(dir, (names(files), bytes), || replace(dir, old.as_deref(), &name, files))
}

/// Names that files take at most: their own, those of their directories and of the links to them, and the two of all.
fn names(files: &BTreeMap<String, VolumeFile>) -> u64 {
    files.keys().map(|path| path.split('/').count() as u64 + 1).sum::<u64>() + 2
}

/// Writes the files to a new directory, and has the link lead there instead of to the old one, which goes.
fn replace(
    dir: &Path,
    old: Option<&Path>,
    name: &str,
    files: &BTreeMap<String, VolumeFile>,
) -> io::Result<()> {
    let fresh = dir.join(name);
    private::create_dir(&fresh)?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            private::create_dir(parent)?;
        }
        let mut written = private::open_options().create_new(true).write(true).open(&target)?;
        // Before the first byte: whatever the process's umask is.
        written.set_permissions(Permissions::from_mode(file.mode))?;
        written.write_all(&file.bytes)?;
    }
    let next = dir.join(DATA_NEXT);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(name, &next)?,
    }
    fs::rename(&next, dir.join(DATA))?;
    link_names(dir, files)?;
    if let Some(old) = old {
        remove_dir(&dir.join(old))?;
    }
    Ok(())
}

/// One link a first path component; links of names that are gone go too.
fn link_names(dir: &Path, files: &BTreeMap<String, VolumeFile>) -> io::Result<()> {
    let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let names: std::collections::BTreeSet<String> = files.keys().map(|path| first(path)).collect();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) {
            fs::remove_file(dir.join(name))?;
        }
    }
    for name in names {
        let link = dir.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), link)?;
        }
    }
    Ok(())
}

/// The files on disk are exactly these.
fn is_current(data: &Path, files: &BTreeMap<String, VolumeFile>) -> bool {
    count_files(data).is_ok_and(|count| count == files.len())
        && files.iter().all(|(path, file)| {
            let path = data.join(path);
            let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o7777);
            mode.is_ok_and(|mode| mode == file.mode)
                && fs::read(&path).is_ok_and(|bytes| *bytes == *file.bytes)
        })
}

/// How many files there are, however deep: how deep is up to whoever named them.
fn count_files(data: &Path) -> io::Result<usize> {
    let mut count = 0;
    let mut dirs = vec![data.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The directories that a container sees, or why it cannot see one of them. What is made of them is on the pod's part of the
/// disk.
pub fn mounts(dir: &Path, plans: &[MountPlan], disk: &PodDisk) -> Result<Vec<Mount>, String> {
    // A directory is opened once, however often the container mounts it.
    let mut opened: BTreeMap<PathBuf, Arc<OwnedFd>> = BTreeMap::new();
    plans.iter().map(|plan| mount(dir, plan, disk, &mut opened)).collect()
}

fn mount(
    dir: &Path,
    plan: &MountPlan,
    disk: &PodDisk,
    opened: &mut BTreeMap<PathBuf, Arc<OwnedFd>>,
) -> Result<Mount, String> {
    let path = dir.join(&plan.volume);
    if plan.is_made_at_start() {
        private::create_dir(&path).map_err(|error| format!("failed to make {:?}: {error}", plan.volume))?;
    }
    let volume =
        plan.written.map(|written| Volume { dir: path.clone(), bytes_max: written.size_limit_bytes });
    let mount = |host, pin| Mount {
        host,
        guest: plan.guest_path.clone(),
        read_only: plan.read_only,
        pin,
        volume: volume.clone(),
    };
    if plan.sub_path.is_empty() {
        return Ok(mount(path, None));
    }
    let host = path.join(&plan.sub_path);
    if let Some(pin) = opened.get(&host) {
        return Ok(mount(host, Some(pin.clone())));
    }
    if opened.len() >= SUB_PATHS_MAX {
        return Err(format!(
            "a container can mount at most {SUB_PATHS_MAX} different subPaths; mount the volume as a whole"
        ));
    }
    let pin = Arc::new(sub_path(&path, plan, volume.as_ref().map(|volume| (volume, disk)))?);
    opened.insert(host.clone(), pin.clone());
    Ok(mount(host, Some(pin)))
}

/// Opens a directory within a volume, and makes it where it is missing. Who shares the volume may put links into it at
/// any moment, so that a path says nothing: what is opened here, without following any link, is what is mounted.
fn sub_path(
    volume: &Path,
    plan: &MountPlan,
    written: Option<(&Volume, &PodDisk)>,
) -> Result<OwnedFd, String> {
    if plan.sub_path.split('/').filter(|part| !part.is_empty()).count() > SUB_PATH_PARTS_MAX {
        return Err(format!(
            "a subPath can have at most {SUB_PATH_PARTS_MAX} parts; mount a directory further up"
        ));
    }
    let failed = |error: Errno| format!("failed to prepare subPath {:?}: {error}", plan.sub_path);
    let root = rustix::fs::open(volume, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?;
    let mut opened = open_beneath(&root, &plan.sub_path);
    if plan.read_only && matches!(opened, Err(Errno::LOOP)) {
        // A name in a volume of files is the node's own link to the present files.
        if let Ok(data) = rustix::fs::readlinkat(&root, DATA, Vec::new()) {
            opened = open_beneath(&root, Path::new(OsStr::from_bytes(data.as_bytes())).join(&plan.sub_path));
        }
    } else if let (false, Err(Errno::NOENT), Some((of, disk))) = (plan.read_only, &opened, written) {
        opened = make_beneath(&root, &plan.sub_path, |make| disk.add_dir(of, make));
    }
    opened.map_err(|error| match error {
        Errno::NOTDIR => format!(
            "subPath {:?} is a file, and WASI mounts only directories; mount the whole volume and read the file in it",
            plan.sub_path
        ),
        Errno::NOSPC => format!("there is no room for subPath {:?}: its volume, the pod or the disk is full", plan.sub_path),
        Errno::LOOP | Errno::XDEV => {
            format!("subPath {:?} leads over a link, which may lead out of its volume", plan.sub_path)
        }
        other => failed(other),
    })
}

fn open_beneath(root: &OwnedFd, path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(root, path.as_ref(), DIRECTORY, Mode::empty(), beneath())
}

/// Nothing above a directory, and no link, is on the way.
pub fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Makes something, where there is room for it.
type Make<'a> = &'a mut dyn FnMut() -> io::Result<()>;

/// Opens a directory part by part, and makes the parts that are missing: by way of `counted`, which counts what is made.
fn make_beneath(
    root: &OwnedFd,
    path: &str,
    counted: impl Fn(Make<'_>) -> io::Result<()>,
) -> rustix::io::Result<OwnedFd> {
    let mut dir = open_beneath(root, ".")?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        dir = match open_beneath(&dir, part) {
            Err(Errno::NOENT) => {
                let made = counted(&mut || Ok(rustix::fs::mkdirat(&dir, part, Mode::RWXU)?));
                match made.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
                    // Another container of the pod was first.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                open_beneath(&dir, part)?
            }
            opened => opened?,
        };
    }
    Ok(dir)
}

/// The directories below `root` whose names `keep` does not know.
pub fn left_over(root: &Path, keep: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut left = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| !keep(name)) {
            left.push(entry.path());
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use coracle_core::volumes::WrittenVolume;

    use super::*;

    /// For a pod that has all of the disk.
    fn write(dir: &Path, volumes: &[VolumePlan]) -> Result<(), String> {
        super::write(dir, volumes, &PodDisk::alone(None))
    }

    /// A volume of so many files of 1 MiB.
    fn large(volume: &str, count: usize, text: &str) -> Vec<VolumePlan> {
        let file = VolumeFile { bytes: text.repeat(1 << 20).into(), mode: 0o644 };
        let files = (0..count).map(|at| (format!("f{at}"), file.clone())).collect();
        vec![VolumePlan { name: volume.into(), content: VolumeContent::Files(files) }]
    }

    /// What is mounted, whatever its path leads to by now.
    fn pinned(mount: &Mount) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", mount.pin.as_ref().unwrap().as_raw_fd()))
    }

    fn files(entries: &[(&str, &str, u32)]) -> BTreeMap<String, VolumeFile> {
        let file = |text: &str, mode| VolumeFile { bytes: text.to_owned().into(), mode };
        entries.iter().map(|(path, text, mode)| ((*path).to_owned(), file(text, *mode))).collect()
    }

    fn plan(entries: &[(&str, &str, u32)]) -> Vec<VolumePlan> {
        vec![VolumePlan { name: "v".into(), content: VolumeContent::Files(files(entries)) }]
    }

    #[test]
    fn files_change_together_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        write(dir.path(), &plan(&[("a", "1", 0o644), ("sub/b", "2", 0o400), ("gone", "x", 0o644)])).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("sub/b")).unwrap().permissions().mode() & 0o777, 0o400);
        let before = fs::read_link(volume.join(DATA)).unwrap();
        write(dir.path(), &plan(&[("a", "1", 0o644), ("sub/b", "2", 0o400), ("gone", "x", 0o644)])).unwrap();
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), before, "nothing changed");
        write(dir.path(), &plan(&[("a", "1!", 0o644), ("sub/b", "2", 0o400)])).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1!");
        let mut names: Vec<_> = fs::read_dir(&volume)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["..2", "..data", "a", "sub"]);
    }

    #[test]
    fn what_is_left_of_the_disk_to_the_node_no_volume_takes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v/a");
        write(dir.path(), &plan(&[("a", "1", 0o644)])).unwrap();
        disk::tests::IS_FULL.set(true);
        let refused = write(dir.path(), &plan(&[("a", "2", 0o644)])).unwrap_err();
        assert!(refused.contains("the disk has no room for pods"), "{refused}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
        disk::tests::IS_FULL.set(false);
        write(dir.path(), &plan(&[("a", "2", 0o644)])).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");
    }

    #[test]
    fn what_the_node_writes_is_on_the_pods_part_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = PodDisk::alone(Some(4 << 20));
        // What was replaced counts no more.
        for text in ["a", "b", "c", "d", "e"] {
            super::write(dir.path(), &large("v", 1, text), &disk).unwrap();
        }
        let refused = super::write(dir.path(), &large("v", 3, "f"), &disk).unwrap_err();
        assert_eq!(
            refused,
            "MountVolume.SetUp failed for volume \"v\" : disk: the pod holds 1064960 of the 4194304 bytes that it may, and \
             3178496 more were asked for; remove files, or raise resources.limits.ephemeral-storage"
        );
        assert!(fs::read_to_string(dir.path().join("v/f0")).unwrap().starts_with('e'), "the old stays");
        super::write(dir.path(), &large("v", 2, "g"), &disk).unwrap();
        // One that fails on its way, at a file in a directory's place, counts with what it leaves, and once.
        let mut broken = files(&[("z", "", 0o644), ("z/z", "", 0o644)]);
        let VolumeContent::Files(more) = large("w", 1, "h").remove(0).content else { unreachable!() };
        broken.extend(more);
        let broken = [VolumePlan { name: "w".into(), content: VolumeContent::Files(broken) }];
        for _ in 0..5 {
            let failed = super::write(dir.path(), &broken, &disk).unwrap_err();
            assert!(!failed.contains("disk: "), "{failed}");
        }
        assert!(super::write(dir.path(), &large("x", 1, "i"), &disk).is_err());
        super::write(dir.path(), &plan(&[("f0", "little", 0o644)]), &disk).unwrap();
        super::write(dir.path(), &large("x", 1, "i"), &disk).unwrap();
    }

    #[test]
    fn what_an_earlier_life_of_the_node_has_written_counts() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &large("v", 2, "a")).unwrap();
        let pod = br#"{"metadata":{"name":"p","namespace":"d","uid":"u"},"spec":{"containers":
            [{"name":"c","image":"i"}],"volumes":[{"name":"v","configMap":{"name":"cfg"}}]}}"#;
        let pod = Pod::parse(pod).unwrap();
        let disk = PodDisk::alone(Some(4 << 20));
        count(dir.path(), &pod, &disk);
        let refused = super::write(dir.path(), &large("w", 2, "b"), &disk).unwrap_err();
        assert!(
            refused.contains("disk: the pod holds 2121728 of the 4194304 bytes that it may"),
            "{refused}"
        );
        super::write(dir.path(), &large("w", 1, "b"), &disk).unwrap();
    }

    #[test]
    fn a_namespace_whose_volumes_take_the_disk_leaves_others_a_share() {
        let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let mut disks = PodDisk::sharing(32 << 20, &["greedy", "greedy", "greedy", "other"]);
        let write = |at: usize, disk: &PodDisk| super::write(dirs[at].path(), &large("v", 8, "a"), disk);
        write(0, &disks[0]).unwrap();
        write(1, &disks[1]).unwrap();
        let refused = write(2, &disks[2]).unwrap_err();
        assert!(refused.contains("disk: the namespace holds "), "{refused}");
        assert!(!dirs[2].path().join("v/..1").exists());
        write(3, &disks[3]).unwrap();
        // What was a pod's goes with it.
        drop(disks.remove(0));
        write(2, &disks[1]).unwrap();
    }

    #[test]
    fn the_depth_of_a_path_costs_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        let path = format!("{}file", "d/".repeat(1900));
        let written = dir.path().to_owned();
        let work = move || {
            for text in ["1", "1", "2"] {
                write(&written, &plan(&[(&path, text, 0o644)])).unwrap();
                assert_eq!(fs::read_to_string(written.join("v").join(&path)).unwrap(), text);
            }
            remove_dir(&written.join("v")).unwrap();
        };
        std::thread::Builder::new().stack_size(128 * 1024).spawn(work).unwrap().join().unwrap();
        assert!(!dir.path().join("v").exists());
    }

    #[test]
    fn sub_paths_stay_within_and_are_directories() {
        let dir = tempfile::tempdir().unwrap();
        let disk = PodDisk::alone(None);
        let empty = VolumePlan { name: "e".into(), content: VolumeContent::Empty };
        write(dir.path(), &[empty]).unwrap();
        write(dir.path(), &plan(&[("a", "1", 0o644), ("sub/b", "2", 0o644)])).unwrap();
        let mount = |volume: &str, sub_path: &str, read_only| {
            let plan = MountPlan {
                volume: volume.into(),
                sub_path: sub_path.into(),
                guest_path: "/data".into(),
                read_only,
                written: (!read_only).then_some(WrittenVolume { size_limit_bytes: None }),
            };
            super::mount(dir.path(), &plan, &disk, &mut BTreeMap::new())
        };
        let made = mount("e", "made/here", false).unwrap();
        fs::write(pinned(&made).join("file"), "x").unwrap();
        assert!(dir.path().join("e/made/here/file").exists());
        assert!(mount("v", "a", true).unwrap_err().contains("is a file"));
        assert_eq!(fs::read_to_string(pinned(&mount("v", "sub", true).unwrap()).join("b")).unwrap(), "2");
        assert_eq!(mount("e", "", false).unwrap().host, dir.path().join("e"));
        // A link in the place of what was checked: the mount is what was opened, and a link is never followed.
        fs::remove_dir_all(dir.path().join("e/made")).unwrap();
        symlink("/", dir.path().join("e/made")).unwrap();
        assert!(!pinned(&made).join("etc").exists(), "a link that came later changes nothing");
        for (path, read_only) in [("made", true), ("made/etc", false), ("made/new", false), ("../v", false)] {
            let refused = mount("e", path, read_only).unwrap_err();
            assert!(refused.contains("leads over a link"), "{path}: {refused}");
        }
        assert!(!Path::new("/new").exists());
    }

    #[test]
    fn directories_that_a_mount_makes_are_on_the_pods_part_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let empty = VolumePlan { name: "e".into(), content: VolumeContent::Empty };
        write(dir.path(), &[empty]).unwrap();
        let disk = PodDisk::alone(None);
        let plan = |sub_path: String| MountPlan {
            volume: "e".into(),
            sub_path,
            guest_path: "/data".into(),
            read_only: false,
            written: Some(WrittenVolume { size_limit_bytes: Some(1 << 20) }),
        };
        let deep = mounts(dir.path(), &[plan("a/".repeat(65))], &disk).unwrap_err();
        assert!(deep.starts_with("a subPath can have at most 64 parts; "), "{deep}");
        let wide: Vec<_> = (0..65).map(|at| plan(format!("{at}"))).collect();
        assert!(mounts(dir.path(), &wide, &disk).unwrap_err().contains("at most 64 different subPaths"));
        // Each container of a pod makes its own, until the volume has what it may hold.
        let mut refused = None;
        for container in 0..40 {
            let plans: Vec<_> = (0..20).map(|at| plan(format!("{container}/{at}"))).collect();
            refused = mounts(dir.path(), &plans, &disk).err();
            if refused.is_some() {
                break;
            }
        }
        let refused = refused.expect("there is a bound");
        assert!(refused.contains("its volume, the pod or the disk is full"), "{refused}");
        let mut made = 0;
        let mut left = vec![dir.path().join("e")];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                made += 1;
                left.push(entry.unwrap().path());
            }
        }
        assert!((100..=256).contains(&made), "{made} directories");
    }

    #[test]
    fn directories_are_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pods/u");
        fs::create_dir_all(&pod).unwrap();
        fs::set_permissions(&pod, Permissions::from_mode(0o755)).unwrap();
        write(&pod, &plan(&[("sub/secret", "1", 0o666)])).unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        for path in ["pods/u", "pods/u/v", "pods/u/v/..1", "pods/u/v/..1/sub"] {
            assert_eq!(mode(path), 0o700, "{path}");
        }
        assert_eq!(mode("pods/u/v/sub/secret"), 0o666);
    }

    #[test]
    fn what_former_pods_left_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for uid in ["old", "wanted"] {
            fs::create_dir(dir.path().join(uid)).unwrap();
        }
        let left = left_over(dir.path(), |uid| uid == "wanted").unwrap();
        assert_eq!(left, [dir.path().join("old")]);
        assert!(left_over(&dir.path().join("nowhere"), |_| false).unwrap().is_empty());
    }
}
