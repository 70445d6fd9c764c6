//! Whether a data dir is its owner's alone: the log, the keys and what pods have written lie there.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::Finding::{self, Better, Fine, Wrong};
use crate::{client::default_data_dir, local_cluster::SHAPE};

/// Permissions of others than the owner.
const OTHERS: u32 = 0o077;

/// What is found of the data dir that is named; else of the one of `coracle up`, where there is one.
pub fn finding(named: Option<&Path>) -> Option<Finding> {
    match named {
        Some(dir) if !is_one(dir) => Some(Better(format!(
            "{} is no data dir of a control node, a node or `coracle up` that this user can look into",
            dir.display()
        ))),
        Some(dir) => Some(of(dir)),
        None => Some(default_data_dir()).filter(|dir| is_one(dir)).map(|dir| of(&dir)),
    }
}

/// Anything else is not for us to have closed.
fn is_one(dir: &Path) -> bool {
    dir.join(SHAPE).exists() || coracle_server::holds_member(dir) || coracle_agent::has_joined(dir)
}

fn of(dir: &Path) -> Finding {
    let at = dir.display();
    match fs::metadata(dir).map(|found| found.permissions().mode()) {
        Ok(mode) if mode & OTHERS == 0 => Fine(format!("the data dir {at} is its owner's alone")),
        Ok(mode) => Wrong(format!(
            "the data dir {at} is open to other users of this machine (mode {:04o}), and keys and Secrets lie there: close \
             it with `chmod -R go= {at}`",
            mode & 0o7777
        )),
        Err(error) => Better(format!("the permissions of the data dir {at} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_dir_that_others_may_look_into_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let allow = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        allow(0o755);
        assert!(matches!(finding(Some(dir.path())), Some(Better(_))), "a stranger's is not for us to close");
        fs::write(dir.path().join(SHAPE), "").unwrap();
        for mode in [0o755, 0o750, 0o710, 0o701, 0o702] {
            allow(mode);
            let Some(Wrong(text)) = finding(Some(dir.path())) else { panic!("{mode:o} is open") };
            let mend = format!("`chmod -R go= {}`", dir.path().display());
            assert!(text.contains(&format!("(mode {mode:04o})")) && text.ends_with(&mend), "{text}");
        }
        allow(0o700);
        assert!(matches!(finding(Some(dir.path())), Some(Fine(_))));
    }
}
