//! Where a join token comes from. The list of processes is for everybody on a machine: a token must not stand there.

use std::{
    ffi::OsString,
    fs::File,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

/// The variable that a token is given by.
pub const VARIABLE: &str = "CORACLE_TOKEN";
/// A file with more than this holds something else than a token.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Permissions of others than the file's owner.
const OTHERS: u32 = 0o077;

/// The join token (`coracle token create`), best from $CORACLE_TOKEN or a file.
#[derive(Clone, Debug, Default, Args)]
pub struct TokenArgs {
    /// Read the join token from this file, which its owner alone should be able to read; `-` is stdin. Without it:
    /// the variable CORACLE_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The join token itself. Prefer the variable or the file: until the process has taken it out of its command line
    /// (where the system allows that) everybody on the machine can read it there, and a shell's history keeps it.
    #[arg(long, value_name = "TOKEN", env = VARIABLE, hide_env_values = true)]
    pub token: Option<String>,
}

impl TokenArgs {
    /// The token, if one is given. The file counts before the variable. `joined`: where the process has joined already,
    /// it needs none, and a file that is gone is no fault.
    pub fn read(&self, joined: bool) -> Result<Option<String>> {
        let text = match (&self.token_file, &self.token) {
            (None, None) => return Ok(None),
            (None, Some(token)) => token.clone(),
            (Some(file), _) => match read_file(file) {
                Err(_) if joined => return Ok(None),
                read => read?,
            },
        };
        match text.trim() {
            "" if joined => Ok(None),
            "" => bail!("the join token is empty: did `coracle token create` fail?"),
            token => Ok(Some(token.to_owned())),
        }
    }
}

fn read_file(file: &Path) -> Result<String> {
    let reading = || format!("reading the join token from {}", file.display());
    let mut source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        let opened = File::open(file).with_context(reading)?;
        let mode = opened.metadata().with_context(reading)?.permissions().mode();
        if mode & OTHERS != 0 {
            eprintln!("warning: others may read the join token in {0}: chmod 600 {0}", file.display());
        }
        Box::new(opened)
    };
    let mut text = String::new();
    source.by_ref().take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text).with_context(reading)?;
    if text.len() as u64 > TOKEN_BYTES_MAX {
        bail!("{} is larger than a join token can be", file.display());
    }
    Ok(text)
}

/// A file for a new token, which its owner alone can read. One that exists is left as it is.
pub fn new_file(file: &Path) -> Result<File> {
    let opened = File::options().write(true).create_new(true).mode(0o600).open(file);
    opened.with_context(|| format!("making the file {} for the token, which must not exist", file.display()))
}

/// Begins anew, as the same process, with a token of the command line in the environment. Comes back only where there
/// is none, or where the system does not allow it.
pub fn leave_command_line() {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "coracle".into());
    let (Some((token, rest)), Ok(program)) = (split(arguments), std::env::current_exe()) else { return };
    let error = std::os::unix::process::CommandExt::exec(
        std::os::unix::process::CommandExt::arg0(&mut std::process::Command::new(program), name)
            .args(rest)
            .env(VARIABLE, token),
    );
    eprintln!("warning: the join token stays in the command line, where others can read it: {error}");
}

/// The value of `--token`, and the command line without it. None where a command that joins is not given one.
fn split(arguments: impl Iterator<Item = OsString>) -> Option<(OsString, Vec<OsString>)> {
    let (mut token, mut rest) = (None, Vec::new());
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        if text == "--token" && arguments.peek().is_some() {
            token = arguments.next();
        } else if let Some(value) = text.strip_prefix("--token=") {
            token = Some(value.into());
        } else {
            rest.push(argument);
        }
    }
    token.filter(|token| !token.is_empty()).map(|token| (token, rest))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_counts_before_the_variable() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "  from-the-file\n").unwrap();
        let args = |file: Option<&Path>, token: Option<&str>| TokenArgs {
            token_file: file.map(Path::to_owned),
            token: token.map(str::to_owned),
        };
        let read = |args: TokenArgs| args.read(false).unwrap();
        assert_eq!(read(args(Some(file.path()), Some("other"))).as_deref(), Some("from-the-file"));
        assert_eq!(read(args(None, Some("given"))).as_deref(), Some("given"));
        assert_eq!(read(args(None, None)), None);
        assert!(args(None, Some(" ")).read(false).is_err(), "an empty one");
        let gone = args(Some(Path::new("/nowhere/token")), None);
        assert!(gone.read(false).unwrap_err().to_string().contains("/nowhere/token"));
        assert_eq!(gone.read(true).unwrap(), None, "who has joined needs none");
        file.write_all(&vec![b'x'; 5000]).unwrap();
        assert!(args(Some(file.path()), None).read(false).is_err(), "no token is so long");
    }

    #[test]
    fn a_new_file_is_for_its_owner_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        writeln!(new_file(&path).unwrap(), "a").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(new_file(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\n");
    }

    #[test]
    fn a_token_is_taken_out_of_the_command_line() {
        let split = |line: &str| {
            let (token, rest) = split(line.split(' ').map(OsString::from))?;
            Some(format!("{} | {}", token.to_str()?, rest.join(" ".as_ref()).to_str()?))
        };
        assert_eq!(split("node --token t --join a").unwrap(), "t | node --join a");
        assert_eq!(split("node --join a --token=t").unwrap(), "t | node --join a");
        for line in ["node --token-file f", "node --token", "node --token=", "token create"] {
            assert_eq!(split(line), None, "{line}");
        }
    }
}
