//! `docs/systemd`: units that systemd takes without a word, with options that the binary has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::run;

/// Where the units have the binary.
const INSTALLED: &str = "/usr/local/bin/coracle";

#[test]
fn systemd_takes_the_units_as_they_are() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: systemd-analyze is not installed (for example: apt-get install systemd)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for path in units() {
        let text = fs::read_to_string(&path).unwrap();
        let copy = folder.path().join(path.file_name().unwrap());
        fs::write(&copy, text.replace(INSTALLED, env!("CARGO_BIN_EXE_coracle"))).unwrap();
        files.push(copy);
    }
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let own: Vec<&str> = said.lines().filter(|line| line.contains("coracle-")).collect();
    assert!(own.is_empty(), "{said}");
}

#[test]
fn the_units_use_options_that_there_are() {
    for path in units() {
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some(INSTALLED));
        let help = run(&[words.next().unwrap(), "--help"]);
        for option in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{option} <")), "{}: {option}", path.display());
        }
    }
}

fn units() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/systemd");
    let units: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(units.len(), 2);
    units
}
