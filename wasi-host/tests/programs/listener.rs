//! Echoes what comes over the listening socket that it finds open, one connection after the other, until there are no more.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::FromRawFd;

fn main() {
    println!("{:?} sockets", std::env::var("LISTEN_FDS"));
    println!("{} entries of /data", std::fs::read_dir("/data").unwrap().count());
    // SAFETY: it is open, as the variable says, and nobody else's.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    listener.set_nonblocking(false).unwrap();
    while let Ok((mut stream, _)) = listener.accept() {
        let mut piece = vec![0; 4096];
        loop {
            let read = stream.read(&mut piece).unwrap();
            if read == 0 {
                break;
            }
            stream.write_all(&piece[..read]).unwrap();
        }
        stream.shutdown(Shutdown::Both).unwrap();
    }
    println!("no more");
}
