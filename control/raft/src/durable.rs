//! Names that outlast a crash: a directory's entries are on the disk only once the directory itself is synced.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Others may not look in, nor read: keys lie there, and what users have written.
pub const PRIVATE_DIR: u32 = 0o700;
pub const PRIVATE_FILE: u32 = 0o600;

/// Closes a directory to others. Whether it was open to them.
pub fn close(path: &Path) -> io::Result<bool> {
    let open = fs::metadata(path)?.permissions().mode() & 0o077 != 0;
    if open {
        fs::set_permissions(path, Permissions::from_mode(PRIVATE_DIR))?;
    }
    Ok(open)
}

/// Makes a directory and what is missing above it for this user alone, so that they outlast a crash: whatever is synced in
/// it later would go with it otherwise. Also where an earlier call was cut short before its sync.
pub fn create_dirs(path: &Path) -> io::Result<()> {
    create_dirs_with(path, sync_directory)
}

fn create_dirs_with(path: &Path, mut sync: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    // Of those that are there already only the last may be of a call that was cut short: each is made once the one
    // above it is synced.
    let mut missing: Vec<&Path> = path.ancestors().take_while(|path| !is_there(path)).collect();
    if missing.is_empty() {
        missing.push(path);
    }
    for path in missing.into_iter().rev() {
        match DirBuilder::new().mode(PRIVATE_DIR).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
                return Err(error);
            }
            _ => {}
        }
        sync_parent_with(path, &mut sync)?;
    }
    Ok(())
}

/// Makes the names in the directory last that the path's last part is in: after it was made, renamed or removed.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_parent_with(path, &mut sync_directory)
}

fn sync_parent_with(path: &Path, sync: &mut impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    match path.parent() {
        // The root has no name, and is made by nobody.
        None => Ok(()),
        Some(parent) if parent.as_os_str().is_empty() => sync(Path::new(".")),
        Some(parent) => sync(parent),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path) {
        // What this user may not read, like the folder of all users' homes, it has made no name in.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// There is the old file or the new one after a crash; only its owner may read it.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    create_dirs(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = folder.join(name);
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(PRIVATE_FILE);
    let mut file = options.open(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // What was written of it takes room that the disk may not have.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_parent(path)
}

fn is_there(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.is_dir()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn each_directory_is_named_on_the_disk_before_the_next_is_made_in_it() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("a/b/c");
        let make = |path: &Path| {
            let mut synced: Vec<PathBuf> = Vec::new();
            let made = create_dirs_with(path, |parent| {
                assert!(parent.is_dir());
                synced.push(parent.strip_prefix(root.path()).expect("below").to_owned());
                Ok(())
            });
            made.expect("it is made");
            synced.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(make(&path), ["", "a", "a/b"]);
        assert!(path.is_dir());
        assert_eq!(make(&path), ["a/b"], "the last call may have been cut short");
        assert_eq!(make(&path.join("d")), ["a/b/c"]);
        fs::write(path.join("file"), "").expect("it writes");
        assert!(create_dirs(&path.join("file")).is_err());
        assert!(create_dirs(&path.join("file/below")).is_err());
        create_dirs(&path.join("e/f")).expect("it is made");
        sync_parent(&path.join("e/f")).expect("it is there");
    }
}
