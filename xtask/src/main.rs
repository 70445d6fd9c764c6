//! Chores of the repository: `cargo xtask tidy`, `cargo xtask conformance`, `cargo xtask oci-conformance`.

mod cluster;
mod conformance;
mod go;
mod oci_conformance;
mod tidy;

use std::{path::Path, process::ExitCode};

const USAGE: &str = "usage: cargo xtask tidy
       cargo xtask conformance build
       cargo xtask conformance run [--specs FILE] [--focus REGEX] [--binary FILE] [--jobs N] [--limit SECONDS]
       cargo xtask oci-conformance [--version VERSION] [--binary FILE]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(),
        ["conformance", rest @ ..] => conformance::main(rest),
        ["oci-conformance", rest @ ..] => oci_conformance::main(rest),
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

/// The repository's.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
