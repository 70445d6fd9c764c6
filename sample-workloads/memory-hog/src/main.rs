//! Allocates and touches memory until something stops it. Prints every 16 MiB.

const STEP: usize = 16 * 1024 * 1024;

fn main() {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![1; STEP]);
        println!("holding {} MiB", held.len() * STEP / (1024 * 1024));
    }
}
