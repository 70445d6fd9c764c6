//! Volumes on disk. Files of config maps, secrets and downward fields are replaced together, by one rename of a link,
//! so that a guest never sees half of a change: `key -> ..data/key`, `..data -> ..<number>`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use coracle_core::volumes::{MountPlan, VolumeContent, VolumeFile, VolumePlan};
use coracle_wasi_host::Mount;

/// The link to the present files.
const DATA: &str = "..data";
/// The link's next value, renamed over it.
const DATA_NEXT: &str = "..data_next";

/// Writes all volumes of a pod below `dir`, or changes what differs.
pub fn write(dir: &Path, volumes: &[VolumePlan]) -> Result<(), String> {
    for volume in volumes {
        let path = dir.join(&volume.name);
        let written = match &volume.content {
            VolumeContent::Empty { .. } => fs::create_dir_all(&path),
            VolumeContent::Files(files) => write_files(&path, files),
        };
        written
            .map_err(|error| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name))?;
    }
    Ok(())
}

fn write_files(dir: &Path, files: &BTreeMap<String, VolumeFile>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.is_some() && is_current(&dir.join(DATA), files) {
        return Ok(());
    }
    let number = old.as_ref().and_then(|old| old.to_str()?.strip_prefix("..")?.parse::<u64>().ok());
    let name = format!("..{}", number.unwrap_or(0) + 1);
    let fresh = dir.join(&name);
    // What an interrupted write left behind.
    remove_dir(&fresh)?;
    fs::create_dir(&fresh)?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.bytes)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    let next = dir.join(DATA_NEXT);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(&name, &next)?,
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
    count_files(data) == Some(files.len())
        && files.iter().all(|(path, file)| {
            let path = data.join(path);
            let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o7777);
            mode.is_ok_and(|mode| mode == file.mode)
                && fs::read(&path).is_ok_and(|bytes| *bytes == *file.bytes)
        })
}

fn count_files(dir: &Path) -> Option<usize> {
    fs::read_dir(dir).ok()?.try_fold(0, |count, entry| {
        let entry = entry.ok()?;
        let files = if entry.file_type().ok()?.is_dir() { count_files(&entry.path())? } else { 1 };
        Some(count + files)
    })
}

/// Removes a directory with all in it; one that is not there is fine.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The directories that a container sees, or why it cannot see one of them.
pub fn mounts(dir: &Path, plans: &[MountPlan]) -> Result<Vec<Mount>, String> {
    plans.iter().map(|plan| mount(dir, plan)).collect()
}

fn mount(dir: &Path, plan: &MountPlan) -> Result<Mount, String> {
    let volume = dir.join(&plan.volume);
    let host = if plan.sub_path.is_empty() { volume } else { sub_path(&volume, plan)? };
    Ok(Mount { host, guest: plan.guest_path.clone(), read_only: plan.read_only })
}

fn sub_path(volume: &Path, plan: &MountPlan) -> Result<PathBuf, String> {
    let failed = |error: io::Error| format!("failed to prepare subPath {:?}: {error}", plan.sub_path);
    let volume = volume.canonicalize().map_err(failed)?;
    let path = volume.join(&plan.sub_path);
    if !path.exists() && !plan.read_only {
        fs::create_dir_all(&path).map_err(failed)?;
    }
    // A guest may have put links into its volume: what counts is where they lead.
    let real = path.canonicalize().map_err(failed)?;
    if !real.starts_with(&volume) {
        return Err(format!("subPath {:?} leads out of its volume", plan.sub_path));
    }
    if !real.is_dir() {
        return Err(format!(
            "subPath {:?} is a file, and WASI mounts only directories; mount the whole volume and read the file in it",
            plan.sub_path
        ));
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str, u32)]) -> BTreeMap<String, VolumeFile> {
        let file = |text: &str, mode| VolumeFile { bytes: text.as_bytes().into(), mode };
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
    fn sub_paths_stay_within_and_are_directories() {
        let dir = tempfile::tempdir().unwrap();
        let empty = VolumePlan { name: "e".into(), content: VolumeContent::Empty { size_limit_bytes: None } };
        write(dir.path(), &[empty]).unwrap();
        write(dir.path(), &plan(&[("a", "1", 0o644)])).unwrap();
        let mount = |volume: &str, sub_path: &str, read_only| {
            let plan = MountPlan {
                volume: volume.into(),
                sub_path: sub_path.into(),
                guest_path: "/data".into(),
                read_only,
            };
            super::mount(dir.path(), &plan)
        };
        assert!(mount("e", "made/here", false).unwrap().host.is_dir());
        assert!(mount("v", "a", true).unwrap_err().contains("is a file"));
        symlink("/", dir.path().join("e/out")).unwrap();
        assert!(mount("e", "out/etc", false).unwrap_err().contains("leads out"));
        assert_eq!(mount("e", "", false).unwrap().host, dir.path().join("e"));
    }
}
