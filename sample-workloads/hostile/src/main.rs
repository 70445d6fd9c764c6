//! Does harm as far as it is let: `hostile ACT [ARGUMENT...]`. What it got to is its last line; what it got it holds until
//! it is ended.

mod files;
mod network;

use std::{
    env,
    hint::black_box,
    io::{self, Write},
    thread::sleep,
    time::Duration,
};

use wasip2::{
    cli::stdout::get_stdout, clocks::monotonic_clock::subscribe_duration, random::random::get_random_bytes,
};

/// Longer than any act.
const FOR_EVER: Duration = Duration::from_secs(100_000);

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["crash"] => std::process::exit(1),
        ["spin"] => spin(),
        ["fill", mib] => fill(number(mib)),
        ["grow", mib] => grow(number(mib)),
        ["resources", count] => resources(number(count)),
        ["random"] => random(),
        ["log"] => log(&short_lines()),
        ["log", mib] => log_so_much(number(mib)),
        ["lines"] => log(&[b'x'; 64 * 1024]),
        ["nest", folder, count] => files::nest(folder, number(count)),
        ["files", folder, count] => files::make(folder, number(count)),
        ["open", folder, count] => files::open(folder, number(count)),
        ["list", folder, names, listings] => files::list(folder, number(names), number(listings)),
        ["sync", folder] => files::sync(folder),
        ["fill-disk", folder] => files::fill(folder),
        ["permits", folder, streams] => files::permits(folder, number(streams)),
        ["unpermitted", "stdout"] => files::unpermitted(&get_stdout()),
        ["unpermitted", folder] => files::unpermitted(&files::stream(folder)),
        ["connect", address, count] => network::connect(address, number(count)),
        ["silent", address, count] => network::silent(address, number(count)),
        ["flows", address, count] => network::flows(address, number(count)),
        ["datagrams", receivers] => network::datagrams(number(receivers)),
        ["sink", port] => network::sink(number(port) as u16),
        ["deaf", port] => network::deaf(number(port) as u16),
        ["upgrade", port] => network::upgrade(number(port) as u16),
        ["flood", address] => network::flood(address),
        ["echo", port] => network::echo(number(port) as u16),
        ["ping", address, count] => network::ping(address, number(count)),
        ["lookup", zone, count] => network::lookup(zone, number(count)),
        ["names", zone, count] => network::names(zone, number(count)),
        ["claim", from, to] => network::claim(from, to),
        _ => panic!("no such act: {arguments:?}"),
    }
}

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

/// Says what was got to, and keeps it.
fn hold<T>(what: &str, held: T) {
    println!("{what}");
    sleep(FOR_EVER);
    drop(held);
}

fn spin() {
    println!("spinning");
    let mut rounds = 0_u64;
    loop {
        rounds = black_box(rounds.wrapping_add(1));
    }
}

/// One instruction at a time, each over all of it.
fn fill(mib: usize) {
    let mut memory = vec![0_u8; mib << 20];
    println!("filling {mib} MiB");
    for value in (0..=u8::MAX).cycle() {
        black_box(&mut memory).fill(black_box(value));
    }
}

fn grow(mib: usize) {
    let mut held = Vec::new();
    for _ in 0..mib {
        held.push(vec![1_u8; 1 << 20]);
    }
    hold(&format!("holds {mib} MiB"), held);
}

fn resources(count: usize) {
    let held: Vec<_> = (0..count).map(|_| subscribe_duration(FOR_EVER.as_nanos() as u64)).collect();
    hold(&format!("holds {count} resources"), held);
}

fn random() {
    println!("takes random bytes");
    loop {
        black_box(get_random_bytes(1 << 20));
    }
}

/// As fast as it is taken.
fn log(piece: &[u8]) {
    let mut out = io::stdout().lock();
    while out.write_all(piece).is_ok() {}
}

/// Some 64 KB of them.
fn short_lines() -> Vec<u8> {
    [[b'x'; 99].as_slice(), b"\n"].concat().repeat(640)
}

/// The same to an end.
fn log_so_much(mib: usize) {
    let (piece, mut out) = (short_lines(), io::stdout().lock());
    for _ in 0..(mib << 20) / piece.len() {
        out.write_all(&piece).expect("standard output takes it");
    }
    println!("logged {mib} MiB");
}
