//! Says so and crashes: `crash` panics, `crash CODE` exits with that code.

fn main() {
    println!("about to crash");
    if let Some(code) = std::env::args().nth(1) {
        std::process::exit(code.parse().expect("the first argument is an exit code"));
    }
    panic!("this component crashes on purpose");
}
