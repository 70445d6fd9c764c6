//! Which ports of this machine lead to which of a component.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use coracle_wasi_host::Entry;

use crate::args::Published;

/// The port of what serves HTTP where none is said.
const HTTP_PORT: u16 = 80;
/// Where what serves is reached where nothing is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Ports {
    /// On which HTTP is served, where it is.
    pub http: u16,
    pub serves_http: bool,
    /// Where it is listened, and the component's port for it.
    pub published: Vec<(SocketAddr, u16)>,
}

impl Ports {
    /// As they are asked for; `port` is that of a project's program.
    pub fn of(asked: &[Published], entry: Entry, port: Option<u16>) -> Result<Self> {
        let serves_http = entry != Entry::Command;
        let (http, published) =
            if serves_http { of_http(asked)? } else { (HTTP_PORT, of_program(asked, port)?) };
        Ok(Self { http, serves_http, published })
    }

    /// The component's own, each once.
    pub fn listened(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.published.iter().map(|(_, port)| *port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

fn of_http(asked: &[Published]) -> Result<(u16, Vec<(SocketAddr, u16)>)> {
    let own = asked.iter().find_map(|one| one.port).unwrap_or(HTTP_PORT);
    if let Some(other) = asked.iter().filter_map(|one| one.port).find(|port| *port != own) {
        bail!("what serves HTTP has one port, and --port names {own} and {other}");
    }
    let all: Vec<_> = asked.iter().map(|one| (one.listen, own)).collect();
    Ok((own, if all.is_empty() { vec![(LISTEN, own)] } else { all }))
}

fn of_program(asked: &[Published], port: Option<u16>) -> Result<Vec<(SocketAddr, u16)>> {
    if asked.is_empty() {
        return Ok(port.map(|port| (LISTEN, port)).into_iter().collect());
    }
    let own = |one: &Published| match (one.port.or(port), one.listen.port()) {
        (Some(port), _) => Ok((one.listen, port)),
        (None, 0) => bail!("--port 0 leads to no port of the program: write 0:ITS-PORT"),
        (None, port) => Ok((one.listen, port)),
    };
    asked.iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(listen: &str, port: Option<u16>) -> Published {
        Published { listen: listen.parse().unwrap(), port }
    }

    #[test]
    fn http_has_one_port_and_a_program_those_that_are_named() {
        let http = |asked: &[Published]| Ports::of(asked, Entry::HttpP2, None);
        let program = |asked: &[Published], port| Ports::of(asked, Entry::Command, port).unwrap().published;
        assert_eq!(http(&[]).unwrap().published, [(LISTEN, 80)]);
        assert_eq!(program(&[], None), []);
        assert_eq!(program(&[], Some(7)), [(LISTEN, 7)]);
        let two = [published("127.0.0.1:1", None), published("127.0.0.1:2", Some(8080))];
        let all = |first, second| vec![(two[0].listen, first), (two[1].listen, second)];
        assert_eq!((http(&two).unwrap().http, http(&two).unwrap().published), (8080, all(8080, 8080)));
        assert_eq!(program(&two, None), all(1, 8080));
        assert_eq!(program(&two, Some(7)), all(7, 8080));
        assert_eq!(http(&two).unwrap().listened(), [8080]);
        let other = [two[1], published("127.0.0.1:3", Some(81))];
        assert!(http(&other).unwrap_err().to_string().contains("8080 and 81"));
        assert!(Ports::of(&[published("127.0.0.1:0", None)], Entry::Command, None).is_err());
    }
}
