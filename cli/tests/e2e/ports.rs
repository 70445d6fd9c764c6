//! `docs/ports.md`: what daemons listen on, and that they listen on nothing else.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use crate::harness::{Daemon, alone, control, run};

#[test]
fn daemons_listen_where_the_page_on_ports_says_and_nowhere_else() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (control, api) = control(&path("c1"));
    assert_eq!(listening(control.id()), BTreeSet::from([api.parse().unwrap()]));

    let token = run(&["token", "create", "--kubeconfig", &path("c1/kubeconfig")]);
    fs::write(path("token"), token).unwrap();
    let node =
        ["node", "--data-dir", &path("n1"), "--name", "n1", "--join", &api, "--token-file", &path("token")];
    let ports = ["--fabric", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let node = Daemon::start(&[&node[..], &ports].concat(), "gateway http");
    let fabric = fs::read_to_string(path("n1/fabric.address")).unwrap();
    let said = |label: &str| node.said(label).trim_end_matches("/metrics").parse().unwrap();
    let expected = [fabric.trim_end().parse().unwrap(), said("gateway http://"), said("metrics https://")];
    assert_eq!(listening(node.id()), BTreeSet::from(expected));
}

#[test]
fn the_page_on_ports_has_the_defaults_of_the_command_line() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ports.md")).unwrap();
    for (command, option) in
        [("control", "--listen"), ("node", "--fabric"), ("up", "--listen"), ("up", "--gateway")]
    {
        // Lines are broken where the terminal's end.
        let help = run(&[command, "--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
        let of_option = help.split_once(&format!("{option} <")).unwrap().1;
        let default = of_option.split_once("[default: ").unwrap().1.split_once(']').unwrap().0;
        let row = format!("| `{command}` | `{option}` | {default} |");
        assert!(page.contains(&row), "docs/ports.md has no row {row}");
    }
}

/// The addresses on which a process listens by TCP over IPv4. It has no other sockets that anybody reaches.
fn listening(process: u32) -> BTreeSet<SocketAddr> {
    let own: BTreeSet<String> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.to_str()?.to_string()))
        .collect();
    let sockets = |protocol: &str| -> Vec<Vec<String>> {
        let table = fs::read_to_string(format!("/proc/{process}/net/{protocol}")).unwrap_or_default();
        let rows =
            table.lines().skip(1).map(|row| row.split_whitespace().map(String::from).collect::<Vec<_>>());
        rows.filter(|row| own.contains(&format!("socket:[{}]", row[9]))).collect()
    };
    let is_listening = |row: &&Vec<String>| row[3] == "0A";
    assert_eq!(sockets("tcp6").iter().filter(is_listening).count(), 0, "it listens over IPv6");
    assert!(sockets("udp").is_empty() && sockets("udp6").is_empty(), "it has sockets for UDP");
    sockets("tcp").iter().filter(is_listening).map(|row| address(&row[1])).collect()
}

/// `0100007F:1F90` is 127.0.0.1:8080.
fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').unwrap();
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).unwrap().to_ne_bytes());
    SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap()))
}
