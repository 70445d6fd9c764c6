//! Reads and writes files: `files read PATH...` prints each file, `files write PATH TEXT...` makes one, `files fill DIR` makes as
//! many as there is room for, and `files input` reads its standard input to the end.

use std::{
    env, fs,
    io::{self, Read},
    process::ExitCode,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> io::Result<()> {
    let failed = |path: &str, error: io::Error| io::Error::other(format!("{path}: {error}"));
    match arguments {
        [verb, paths @ ..] if verb == "read" => {
            for path in paths {
                let text = fs::read_to_string(path).map_err(|error| failed(path, error))?;
                println!("{path}: {}", text.trim_end());
            }
            Ok(())
        }
        [verb, path, words @ ..] if verb == "write" => {
            fs::write(path, words.join(" ")).map_err(|error| failed(path, error))
        }
        [verb, dir] if verb == "fill" => {
            for number in 0.. {
                fs::write(format!("{dir}/{number}"), [0_u8; 1024])?;
            }
            Ok(())
        }
        [verb] if verb == "input" => {
            io::stdin().read_to_end(&mut Vec::new())?;
            println!("the input ends");
            Ok(())
        }
        _ => Err(io::Error::other(
            "usage: files read PATH... | files write PATH TEXT... | files fill DIR | files input",
        )),
    }
}
