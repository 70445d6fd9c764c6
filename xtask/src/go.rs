//! Go, in which the suites of others are written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Whether Go 1.`minor` or newer is here.
///
/// # Errors
/// Where it is not: what to install.
pub fn check(minor: u32) -> Result<()> {
    let install =
        format!("install Go 1.{minor} or newer (https://go.dev/doc/install), with a module proxy in reach");
    let output = Command::new("go").arg("version").output();
    let Ok(output) = output else { bail!("go is missing: {install}") };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match minor_of(&text) {
        Some(found) if found >= minor => Ok(()),
        _ => bail!("{:?} is too old: {install}", text.trim()),
    }
}

/// Builds a program into a folder, where it is left: the folder.
///
/// # Errors
/// Where it cannot be fetched or built.
pub fn install(module: &str, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let status = Command::new("go").args(["install", module]).env("GOBIN", folder).status();
    let status = status.context("running go")?;
    if !status.success() {
        bail!("building {module} failed: {status}; is a module proxy in reach (`go env GOPROXY`)?");
    }
    Ok(folder.to_owned())
}

/// 26 of `go version go1.26.8 linux/amd64`.
fn minor_of(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    number.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_go_is_read() {
        assert_eq!(minor_of("go version go1.26.8 linux/amd64"), Some(26));
        assert_eq!(minor_of("go version go1.25 linux/arm64"), Some(25));
        assert_eq!(minor_of("gccgo 12"), None);
    }
}
