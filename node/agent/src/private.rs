//! Directories and files that only the node's own user may look into: secrets, keys and logs lie there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// What directories allow.
const DIR_MODE: u32 = 0o700;
/// What files allow that no other mode is wished for.
const FILE_MODE: u32 = 0o600;

/// Makes a directory, and what is missing above it, for its owner alone; also one that was there already.
pub fn create_dir(path: &Path) -> io::Result<()> {
    make(path)?;
    if fs::metadata(path)?.permissions().mode() & 0o7777 != DIR_MODE {
        fs::set_permissions(path, Permissions::from_mode(DIR_MODE))?;
    }
    Ok(())
}

/// Makes a directory and what is missing above it, from the top down: how deep it lies may be a user's choice, and
/// costs no stack.
fn make(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.mode(DIR_MODE);
    let create = |path: &Path| match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    };
    match create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        made => return made,
    }
    let missing: Vec<&Path> =
        path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.is_dir()).collect();
    missing.into_iter().rev().try_for_each(create)
}

/// The same for a directory whose name must outlast a crash, as a promise rests on what is in it.
pub fn create_lasting_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.is_dir()).collect();
    create_dir(path)?;
    // Also one that is there may be of a start that was cut short before its sync.
    for made in missing.iter().rev().copied().chain([path]) {
        let parent = match made.parent() {
            None => continue,
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
        };
        match File::open(parent) {
            // What this user may not read it has made no name in.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            opened => opened?.sync_all()?,
        }
    }
    Ok(())
}

/// Closes a file of an earlier life to others.
pub fn close(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(FILE_MODE))?;
    }
    Ok(())
}

/// Opens a file for writing such that it is its owner's alone from its first moment on.
pub fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(FILE_MODE);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn nobody_else_looks_in() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        create_dir(&made).unwrap();
        assert_eq!((mode(&made), mode(&dir.path().join("a"))), (0o700, 0o700));
        fs::set_permissions(&made, Permissions::from_mode(0o755)).unwrap();
        create_dir(&made).unwrap();
        assert_eq!(mode(&made), 0o700, "an older directory is closed as well");
        create_lasting_dir(&made.join("c/d")).unwrap();
        create_lasting_dir(&made.join("c/d")).unwrap();
        assert_eq!(mode(&made.join("c")), 0o700);
        let file = made.join("f");
        open_options().append(true).open(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
    }
}
