//! Echoes whatever arrives on TCP, a thread-free loop that serves connections one after the other.
//!
//! `tcp-echo [PORT]`, port 7 by default. Prints one line a connection. With a second argument `HOST:PORT` it is a
//! client instead: sends the rest of its arguments as one line, prints the answer and exits.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
};

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "--connect") {
        return call(&args[1], &args[2..].join(" "));
    }
    let port: u16 = args.first().map_or(Ok(7), |port| port.parse()).map_err(io::Error::other)?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on port {port}");
    for connection in listener.incoming() {
        let mut connection = connection?;
        let peer = connection.peer_addr()?;
        match echo(&mut connection) {
            Ok(bytes) => println!("{peer}: {bytes} bytes"),
            Err(error) => println!("{peer}: {error}"),
        }
    }
    Ok(())
}

fn echo(connection: &mut TcpStream) -> io::Result<u64> {
    let mut buffer = [0; 64 * 1024];
    let mut total = 0;
    loop {
        let read = connection.read(&mut buffer)?;
        if read == 0 {
            return Ok(total);
        }
        connection.write_all(&buffer[..read])?;
        total += read as u64;
    }
}

fn call(address: &str, text: &str) -> io::Result<()> {
    let mut connection = TcpStream::connect(address)?;
    writeln!(connection, "{text}")?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}
