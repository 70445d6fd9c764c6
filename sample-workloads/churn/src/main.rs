//! What the pods of `coracle-bench churn` do, a kind each; no sample for people, so it is not in the binary.
//!
//! `tcp-echo PORT`, `udp-echo PORT`: answer for ever. `tcp HOST:PORT TIMES`, `udp HOST:PORT TIMES`: ask so often, each time
//! from a socket of its own. `log BYTES`: lines. `files FOLDER...`: reads all that is there, and writes where it may.
//! `hold`: waits in accept for ever. `exit CODE`.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

/// Between two looks for the answer of a datagram, and how many there are; then it is sent again.
const LOOK: Duration = Duration::from_millis(5);
const LOOKS: usize = 100;
/// Times that a datagram is sent, and a service is called that is not there yet.
const TRIES: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["tcp-echo", port] => tcp_echo(port),
        ["udp-echo", port] => udp_echo(port),
        ["tcp", to, times] => (0..number(times)).try_for_each(|_| tcp(to)),
        ["udp", to, times] => (0..number(times)).try_for_each(|_| udp(to)),
        ["log", bytes] => log(number(bytes)),
        ["files", ref folders @ ..] => folders.iter().try_for_each(|folder| files(folder)),
        ["hold"] => TcpListener::bind("0.0.0.0:9").and_then(|listener| listener.accept()).map(drop),
        ["exit", code] => return ExitCode::from(number(code) as u8),
        _ => Err(io::Error::other(format!("what is {words:?}?"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

fn tcp_echo(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    let mut buffer = [0; 4096];
    for connection in listener.incoming() {
        let mut connection = connection?;
        // A caller that breaks off costs nobody else.
        while let Ok(read @ 1..) = connection.read(&mut buffer) {
            if connection.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
    }
    Ok(())
}

fn udp_echo(port: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    let mut buffer = [0; 2048];
    loop {
        let (read, from) = socket.recv_from(&mut buffer)?;
        // A caller that is gone costs nobody else.
        let _ = socket.send_to(&buffer[..read], from);
    }
}

fn tcp(to: &str) -> io::Result<()> {
    let mut last = io::Error::other("never tried");
    for _ in 0..TRIES {
        match TcpStream::connect(to) {
            Ok(mut connection) => {
                connection.write_all(b"ask\n")?;
                let mut line = String::new();
                BufReader::new(connection).read_line(&mut line)?;
                return if line == "ask\n" { Ok(()) } else { Err(io::Error::other("another answer")) };
            }
            Err(error) => last = error,
        }
        sleep(LOOK * 10);
    }
    Err(last)
}

fn udp(to: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_nonblocking(true)?;
    let mut buffer = [0; 2048];
    for _ in 0..TRIES {
        // What cannot be sent now is lost, as on any network.
        let _ = socket.send_to(b"ask", to);
        for _ in 0..LOOKS {
            match socket.recv_from(&mut buffer) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(LOOK),
                Err(error) => return Err(error),
            }
        }
    }
    Err(io::Error::other("no answer"))
}

fn log(bytes: usize) -> io::Result<()> {
    let line = format!("{}\n", "x".repeat(999));
    let mut out = io::stdout().lock();
    (0..bytes.div_ceil(line.len())).try_for_each(|_| out.write_all(line.as_bytes()))
}

fn files(folder: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            fs::read(path)?;
        }
    }
    let own = format!("{folder}/own");
    if fs::create_dir(&own).is_ok() {
        (0..20).try_for_each(|name| fs::write(format!("{own}/{name}"), [7; 4096]))?;
    }
    Ok(())
}
