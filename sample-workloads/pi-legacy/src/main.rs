//! A WASI preview 1 module: an old-style command that still has to run. Prints its arguments and environment, and
//! exits with the number that `EXIT` names.

fn main() {
    println!("arguments: {}", std::env::args().collect::<Vec<_>>().join(" "));
    for (name, value) in std::env::vars() {
        println!("{name}={value}");
    }
    let code = std::env::var("EXIT").ok().and_then(|code| code.parse().ok()).unwrap_or(0);
    std::process::exit(code);
}
