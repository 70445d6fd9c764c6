//! Programs of `tests/programs`, compiled by the tests that run them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the program of this name for a target, natively where there is none.
pub fn compile(name: &str, target: Option<&str>, into: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.rs"));
    let output = into.join(target.unwrap_or("native"));
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.arg("--edition=2024").arg(source).arg("-o").arg(&output);
    if let Some(target) = target {
        rustc.args(["--target", target]);
    }
    let compiled = rustc.output().expect("rustc runs");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    output
}

/// Builds the program of this name, which is a crate of its own, for wasm32-wasip2.
pub fn build(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target_dir = here.join("../target/guest-programs");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(here.join("tests/programs").join(name));
    cargo
        .args(["build", "--release", "--locked", "--target", "wasm32-wasip2", "--target-dir"])
        .arg(&target_dir);
    // What is set for the host must not reach the guest.
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR"] {
        cargo.env_remove(variable);
    }
    let built = cargo.output().expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target_dir.join("wasm32-wasip2/release").join(format!("{}.wasm", name.replace('-', "_")))
}
