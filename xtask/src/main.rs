//! Chores of the repository: `cargo xtask tidy`, `cargo xtask conformance`.

mod conformance;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask tidy
       cargo xtask conformance build
       cargo xtask conformance run [--specs FILE] [--focus REGEX] [--binary FILE] [--jobs N] [--limit SECONDS]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(),
        ["conformance", rest @ ..] => conformance::main(rest),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
