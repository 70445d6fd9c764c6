//! Never yields: burns its core in an endless loop, counting rounds, and prints one line when it starts.

use std::hint::black_box;

fn main() {
    println!("spinning");
    let mut rounds = 0u64;
    loop {
        rounds = black_box(rounds.wrapping_add(1));
    }
}
