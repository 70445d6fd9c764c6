//! The guestbook's memory: keeps lines of text and hands them out over the pod's loopback.
//!
//! Protocol, one request a connection: `ADD <text>` answers `OK <count>`; `LIST` answers every entry, a line each.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
};

const PORT: u16 = 6379;
/// The book is full at this many entries: the oldest gives way.
const ENTRIES_MAX: usize = 1000;

fn main() -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", PORT))?;
    println!("keeping the guestbook on 127.0.0.1:{PORT}");
    let mut entries = Vec::new();
    for connection in listener.incoming() {
        if let Err(error) = serve(connection?, &mut entries) {
            eprintln!("a request failed: {error}");
        }
    }
    Ok(())
}

fn serve(mut connection: TcpStream, entries: &mut Vec<String>) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line)?;
    let line = line.trim_end();
    if let Some(text) = line.strip_prefix("ADD ") {
        if entries.len() == ENTRIES_MAX {
            entries.remove(0);
        }
        entries.push(text.to_string());
        println!("added: {text}");
        return writeln!(connection, "OK {}", entries.len());
    }
    if line == "LIST" {
        let text: String = entries.iter().map(|entry| format!("{entry}\n")).collect();
        return connection.write_all(text.as_bytes());
    }
    writeln!(connection, "ERR unknown request")
}
