//! What is done without a cluster: `coracle new`, `build`, `run` and `dev`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};

use super::values;
use crate::names;

/// What a project is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    Js,
    Python,
    C,
    Go,
}

#[derive(Clone, Debug, Args)]
pub struct NewArgs {
    /// The name of the project, its folder and its component: letters, digits and `-`.
    #[arg(value_parser = names::project)]
    pub name: String,
    /// The language that it is written in.
    #[arg(long, value_enum, value_name = "LANGUAGE")]
    pub lang: Language,
}

#[derive(Clone, Debug, Args)]
pub struct BuildArgs {
    /// The folder of the project, with its coracle.yaml.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Run its tests too.
    #[arg(long)]
    pub test: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub given: Given,
    /// The component, or module of preview 1, to run; or the folder of a project, which is built before.
    pub file: PathBuf,
    /// Its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    #[command(flatten)]
    pub given: Given,
    /// The folder of the project, with its coracle.yaml.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Arguments of the component.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// What a component is given of this machine.
#[derive(Clone, Debug, Args)]
pub struct Given {
    /// An environment variable, as `KEY=VALUE`. Repeat for more.
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = values::key_value)]
    pub env: Vec<(String, String)>,
    /// A file of environment variables, a KEY=VALUE a line, as `coracle deploy` takes it. Repeat for more.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// A directory that it may use, with the path under which it finds it, and `ro` where it shall only read: `.`,
    /// `data:/data`, `/etc/ssl:/etc/ssl:ro`. Repeat for more.
    #[arg(long = "dir", value_name = "DIR[:PATH][:ro]", value_parser = mapped_dir)]
    pub dirs: Vec<MappedDir>,
    /// Where clients reach it on this machine, and the port that it listens on: `9000:7`, `8080`, `0.0.0.0:80:8080`; 0 is any
    /// that is free. What serves HTTP is at 127.0.0.1:8080 where nothing is said. Repeat for more.
    #[arg(short, long = "port", value_name = "[ADDRESS:]PORT[:ITS-PORT]", value_parser = published)]
    pub ports: Vec<Published>,
    /// Let it open TCP connections to all that this machine reaches, by name or address, but this machine's loopback: 127.0.0.1
    /// is the component's own.
    #[arg(long)]
    pub net: bool,
    /// The most memory that it may have, as 128Mi.
    #[arg(long, value_name = "BYTES", value_parser = memory)]
    pub memory: Option<u64>,
}

/// A directory of this machine, and what a component sees of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedDir {
    pub host: PathBuf,
    /// Absolute, or `.` for where relative paths begin.
    pub guest: String,
    pub read_only: bool,
}

/// A port of this machine that leads to one of the component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub listen: SocketAddr,
    /// Where nothing is said: what the component has for it.
    pub port: Option<u16>,
}

fn mapped_dir(text: &str) -> Result<MappedDir, String> {
    let (paths, read_only) = match text.rsplit_once(':') {
        Some((paths, "ro")) => (paths, true),
        Some((paths, "rw")) => (paths, false),
        _ => (text, false),
    };
    let (host, guest) = paths.split_once(':').map_or((paths, None), |(host, guest)| (host, Some(guest)));
    if host.is_empty() {
        return Err("it names no directory: write DIR, or DIR:PATH".into());
    }
    let guest = match guest {
        Some(guest) if guest == "." => guest.to_owned(),
        Some(guest) if guest.starts_with('/') => plain(guest),
        Some(guest) => {
            return Err(format!("`{guest}` is no path in a component: write an absolute one, or `.`"));
        }
        None => found_at(host)?,
    };
    if guest.split('/').any(|part| part == "..") {
        return Err(format!("`{guest}` has `..` in it: say under which path it is found, as `{host}:/data`"));
    }
    Ok(MappedDir { host: host.into(), guest, read_only })
}

/// The path of a directory for which none was said: its own, so that what is written for this folder finds it.
fn found_at(host: &str) -> Result<String, String> {
    let path = plain(host);
    match (path == "/", host.starts_with('/')) {
        (true, true) => {
            Err(format!("all of this machine, `{host}`, needs a path of its own, as `{host}:/host`"))
        }
        (true, false) => Ok(".".into()),
        (false, _) => Ok(path),
    }
}

/// An absolute path without what means nothing in it.
fn plain(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

fn published(text: &str) -> Result<Published, String> {
    let mend = || format!("`{text}` is no port: write PORT, PORT:ITS-PORT or ADDRESS:PORT:ITS-PORT");
    let number = |text: &str| text.parse::<u16>().map_err(|_| mend());
    let parts: Vec<&str> = text.rsplitn(3, ':').collect();
    let (listen, port) = match parts[..] {
        [port] => (values::listen(&format!("127.0.0.1:{}", number(port)?))?, None),
        [port, outer] if outer.parse::<u16>().is_ok() => {
            (values::listen(&format!("127.0.0.1:{outer}"))?, Some(number(port)?))
        }
        [port, address] => (values::listen(&format!("{address}:{}", number(port)?))?, None),
        [port, outer, address] => {
            (values::listen(&format!("{address}:{}", number(outer)?))?, Some(number(port)?))
        }
        _ => return Err(mend()),
    };
    if port == Some(0) {
        return Err(format!("`{text}`: a component listens on no port 0"));
    }
    Ok(Published { listen, port })
}

fn memory(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no number of bytes: write it as 128Mi or 1Gi");
    let bytes: coracle_objects::quantity::Quantity = text.parse().map_err(|_| wrong())?;
    u64::try_from(bytes.value()).ok().filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_under_its_own_path_where_none_is_said() {
        let seen = |text: &str| {
            let MappedDir { host, guest, read_only } = mapped_dir(text)?;
            Ok::<_, String>((host.display().to_string(), guest, read_only))
        };
        let is = |host: &str, guest: &str, read_only| Ok((host.to_owned(), guest.to_owned(), read_only));
        assert_eq!(seen("."), is(".", ".", false));
        assert_eq!(seen("./"), is("./", ".", false));
        assert_eq!(seen("data/in/"), is("data/in/", "/data/in", false));
        assert_eq!(seen("/etc/ssl:ro"), is("/etc/ssl", "/etc/ssl", true));
        assert_eq!(seen("data:/x:rw"), is("data", "/x", false));
        assert_eq!(seen("data:.:ro"), is("data", ".", true));
        assert_eq!(seen("data:/x//y/./z/"), is("data", "/x/y/z", false));
        for bad in ["", ":/x", "data:x", "../data", "/", "data:/a/../b"] {
            assert!(seen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_leads_to_its_own_or_to_another() {
        let seen = |text: &str| published(text).map(|one| (one.listen.to_string(), one.port));
        assert_eq!(seen("8080"), Ok(("127.0.0.1:8080".into(), None)));
        assert_eq!(seen("9000:7"), Ok(("127.0.0.1:9000".into(), Some(7))));
        assert_eq!(seen("0.0.0.0:80:8080"), Ok(("0.0.0.0:80".into(), Some(8080))));
        assert_eq!(seen("[::1]:80:8080"), Ok(("[::1]:80".into(), Some(8080))));
        assert_eq!(seen("0"), Ok(("127.0.0.1:0".into(), None)));
        for bad in ["", "x", "1:x", "70000", "1:70000", "80:0", "host:1:2:3x"] {
            assert!(seen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_is_a_quantity() {
        assert_eq!(memory("128Mi"), Ok(128 << 20));
        for bad in ["", "x", "0", "-1", "0.0"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }
}
