//! `coracle run`: a component in the hands of whoever calls it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::harness::{Daemon, coracle, eventually, get, sample};

/// Greets whom its input names, shouts what follows, and does with its arguments what they say.
const TALK: &str = r#"
use std::io::{Read, Write, stdin, stdout};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|first| first == "--forever") {
        loop {
            println!("on and on");
        }
    }
    print!("name? ");
    stdout().flush().unwrap();
    let mut name = String::new();
    stdin().read_line(&mut name).unwrap();
    println!("hello {} from {}", name.trim(), std::env::var("WHERE").unwrap_or_default());
    let mut rest = String::new();
    stdin().read_to_string(&mut rest).unwrap();
    eprint!("{}", rest.to_uppercase());
    let wanted = args.get(1).map(|file| std::fs::read_to_string(file));
    println!("{args:?} {wanted:?}");
    std::fs::write("made", "by the program").unwrap();
    std::process::exit(7);
}
"#;

/// The program above, for a target.
fn talk(folder: &Path, target: &str) -> PathBuf {
    let (source, built) = (folder.join("talk.rs"), folder.join(format!("{target}.wasm")));
    fs::write(&source, TALK).unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--target", target, "-o"]).arg(&built).arg(&source);
    let output = rustc.output().expect("rustc is here, where these tests are built");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    built
}

fn ended(arguments: &[&str]) -> (i32, Output) {
    let output = coracle(arguments).output().unwrap();
    (output.status.code().expect("it has a code"), output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_program_has_the_streams_the_files_and_the_code_of_whoever_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("words"), "some words").unwrap();
    // A component of before WASI 0.2.12 can only say that it failed.
    for (target, code) in [("wasm32-wasip2", 1), ("wasm32-wasip1", 7)] {
        let program = talk(folder.path(), target);
        let mut command = coracle(&["run", "--dir", ".", "--env", "WHERE=here"]);
        command.arg(&program).args(["words", "--a", "-b"]).current_dir(folder.path());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut prompt = [0; 6];
        stdout.read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"name? ", "a prompt is seen before it is answered");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"Ada\nand so\non\n").unwrap();
        drop(stdin);
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        let output = child.wait_with_output().unwrap();
        let wanted = format!(
            "hello Ada from here\n[\"{target}\", \"words\", \"--a\", \"-b\"] Some(Ok(\"some words\"))\n"
        );
        assert_eq!(text, wanted, "{}", said(&output));
        assert_eq!(said(&output), "AND SO\nON\n");
        assert_eq!(output.status.code(), Some(code), "{target}");
        let made = folder.path().join("made");
        assert_eq!(fs::read_to_string(&made).unwrap(), "by the program");
        fs::remove_file(made).unwrap();

        // Without a directory it finds none.
        let (code, output) = ended(&["run", program.to_str().unwrap()]);
        assert_eq!(code, 134, "{}", said(&output));
        assert!(!folder.path().join("made").exists());
    }
}

#[test]
fn what_a_program_writes_into_a_pipe_that_ends_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let program = talk(folder.path(), "wasm32-wasip2");
    let mut command = coracle(&["run", program.to_str().unwrap(), "--forever"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "on and on\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
}

#[test]
fn http_is_served_until_it_is_asked_to_end() {
    for (name, answer) in [("hello-http", "hi"), ("hello-http-p3", "hi")] {
        let served = Daemon::start(&["run", "--port", "0", "--env", "GREETING=hi", &sample(name)], "http://");
        let address = served.said("http://");
        let (status, body) = get(address.trim_end_matches('/'), "localhost");
        assert!(status == 200 && body.contains(answer), "{status} {body}");
        served.stop();
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, output) = ended(&["run", "--port", &address, &sample("hello-http")]);
    assert_eq!(code, 1);
    assert!(
        said(&output).contains(&format!("listening at {address}; another port is had by `--port")),
        "{}",
        said(&output)
    );
}

#[test]
fn a_program_is_reached_by_its_ports_and_reaches_out_where_it_may() {
    let server = Daemon::start(&["run", "--port", "0:7", &sample("tcp-echo")], "leads to port 7");
    let output = server.output();
    let address = output.lines().find_map(|line| line.strip_suffix(" leads to port 7")).unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"word\n").unwrap();
    let mut echoed = String::new();
    BufReader::new(&stream).read_line(&mut echoed).unwrap();
    assert_eq!(echoed, "word\n");
    let (echo, port) = (sample("tcp-echo"), address.rsplit_once(':').unwrap().1);
    for host in ["127.0.0.1", "localhost"] {
        // The component's own loopback is its own.
        let (code, output) = ended(&["run", &echo, "--connect", &format!("{host}:{port}"), "out there"]);
        assert_eq!(code, 1, "{}", said(&output));
    }
    let outside = outside().map(|ip| format!("{ip}:{port}"));
    drop((stream, server));
    let Some(outside) = outside else { return };
    let _server = Daemon::start(&["run", "--port", &format!("{outside}:7"), &echo], "leads to port 7");
    let (code, output) = ended(&["run", &echo, "--connect", &outside, "out there"]);
    assert_eq!(code, 1, "nothing is reached by default: {}", said(&output));
    let (code, output) = ended(&["run", "--net", &echo, "--connect", &outside, "out there"]);
    assert_eq!((code, output.stdout.as_slice()), (0, &b"out there\n"[..]), "{}", said(&output));
}

/// An address of this machine that is not its loopback, where it has one.
fn outside() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

#[test]
fn what_ends_badly_and_what_cannot_run_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.wasm");
    fs::write(&script, "#!/bin/sh").unwrap();
    let (hello, crash) = (sample("hello-http"), sample("crash"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (arguments, code, words) in [
        (vec!["run", "/nowhere/a.wasm"], 1, "reading /nowhere/a.wasm: No such file"),
        (vec!["run", "/dev/zero"], 1, "/dev/zero is no component"),
        (vec!["run", &text(folder.path())], 1, "there is no coracle.yaml in"),
        (vec!["run", &text(&script)], 1, "not WebAssembly"),
        (vec!["run", "--env", "1A=x", &hello], 1, "is no name of an environment variable"),
        (vec!["run", "--dir", "/nowhere", &hello], 1, "cannot mount /nowhere"),
        (vec!["run", "--dir", "../x", &hello], 2, "say under which path it is found"),
        (vec!["run", "--port", "1:80", "--port", "2:81", &hello], 1, "names 80 and 81"),
        (vec!["run", "--port", "x", &hello], 2, "is no port"),
        (vec!["run", "--memory", "much", &hello], 2, "is no number of bytes"),
        (vec!["run", &crash], 134, "trapped"),
        (vec!["run", "--memory", "64Mi", &sample("memory-hog")], 137, "exceeded its limit of memory"),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let (ended_with, output) = ended(&arguments);
        assert_eq!(ended_with, code, "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn a_program_that_does_not_end_is_ended_by_a_signal() {
    let child = coracle(&["run", &sample("spin")]).stderr(Stdio::piped()).spawn().unwrap();
    // It may not have begun yet: the signal is heard all the same once it can be.
    std::thread::sleep(std::time::Duration::from_secs(2));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", said(&output));
}

#[test]
fn output_that_nobody_takes_is_told_and_holds_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let program = talk(folder.path(), "wasm32-wasip2");
    let forever = || coracle(&["run", program.to_str().unwrap(), "--forever"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = forever().stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("writing to stdout: No space left"), "{}", said(&output));

    // Its reader stands still: the second signal ends it all the same.
    let mut child = forever().stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let _stdout = child.stdout.take();
    let ended = eventually("the program to end", || {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
    });
    // The first may come before it is heard.
    assert!(ended.code() == Some(143) || ended.code().is_none(), "{ended}");

    // Nobody hears what is wrong: it is no other fault.
    let mut child = coracle(&["run", "/nowhere"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
