//! Chores of the repository: `cargo xtask tidy`, `cargo xtask conformance`, `cargo xtask oci-conformance`,
//! `cargo xtask h2spec`.

mod cluster;
mod conformance;
mod go;
mod h2spec;
mod oci_conformance;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "usage: cargo xtask tidy
       cargo xtask conformance build
       cargo xtask conformance run [--specs FILE] [--focus REGEX] [--binary FILE] [--jobs N] [--limit SECONDS]
       cargo xtask oci-conformance [--version VERSION] [--binary FILE]
       cargo xtask h2spec [--binary FILE]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(),
        ["conformance", rest @ ..] => conformance::main(rest),
        ["oci-conformance", rest @ ..] => oci_conformance::main(rest),
        ["h2spec", rest @ ..] => h2spec::main(rest),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Of a suite: whether all has passed.
fn exit_code(passed: anyhow::Result<bool>) -> ExitCode {
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// The binary that a suite is to run against: the one that is named, or that of the release build.
fn built(named: Option<&str>) -> anyhow::Result<PathBuf> {
    let binary = named.map_or_else(|| root().join("target/release/coracle"), PathBuf::from);
    anyhow::ensure!(
        binary.exists(),
        "{} is missing: run `cargo build --release`, or name it with --binary",
        binary.display()
    );
    Ok(binary)
}

/// The repository's.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
