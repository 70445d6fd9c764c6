//! Builds every sample workload for its wasm target, once, into sample-workloads/target.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Package, wasm target, and whether the file is named like a library (underscores).
const GUESTS: &[(&str, &str)] = &[
    ("crash", "wasm32-wasip2"),
    ("files", "wasm32-wasip2"),
    ("guestbook-caller", "wasm32-wasip2"),
    ("guestbook-front", "wasm32-wasip2"),
    ("guestbook-store", "wasm32-wasip2"),
    ("hello-http", "wasm32-wasip2"),
    ("hello-http-p3", "wasm32-wasip2"),
    ("memory-hog", "wasm32-wasip2"),
    ("pi-job", "wasm32-wasip2"),
    ("pi-legacy", "wasm32-wasip1"),
    ("spin", "wasm32-wasip2"),
    ("tcp-echo", "wasm32-wasip2"),
];

/// What only measurements run: built beside the others, but not carried in the binary.
const MEASURED: &[(&str, &str)] =
    &[("churn", "wasm32-wasip2"), ("hostile", "wasm32-wasip2"), ("hostile-http", "wasm32-wasip2")];

fn all() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    GUESTS.iter().chain(MEASURED)
}

fn main() {
    let samples = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).parent().unwrap().to_path_buf();
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    // Relative to this package: of the tree that is built, whichever was before.
    for changed in ["Cargo.toml", "Cargo.lock"].into_iter().chain(all().map(|(package, _)| *package)) {
        println!("cargo:rerun-if-changed=../{changed}");
    }
    for target in ["wasm32-wasip2", "wasm32-wasip1"] {
        ensure_target(target);
        build(&samples, target);
    }
    let mut table = String::from(
        "/// Every sample workload that is carried: its name and its component or module.\npub const ALL: &[(&str, &[u8])] = &[\n",
    );
    for (package, target) in all() {
        let built = built_file(&samples, package, target);
        let copy = out.join(format!("{package}.wasm"));
        fs::copy(&built, &copy).unwrap_or_else(|error| panic!("{} was not built: {error}", built.display()));
    }
    for (package, _) in GUESTS {
        let copy = out.join(format!("{package}.wasm"));
        table.push_str(&format!("    ({package:?}, include_bytes!({:?})),\n", copy.display().to_string()));
    }
    table.push_str("];\n");
    fs::write(out.join("table.rs"), table).expect("OUT_DIR can be written");
}

/// Adds the target to the toolchain where it is missing; says how where that cannot be done.
fn ensure_target(target: &str) {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let libdir = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    let present = libdir.is_ok_and(|output| {
        output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    });
    if present {
        return;
    }
    let added = Command::new("rustup").args(["target", "add", target]).status();
    if !added.is_ok_and(|status| status.success()) {
        panic!("the sample workloads need the target {target}: run `rustup target add {target}`");
    }
}

fn build(samples: &Path, target: &str) {
    let mut cargo = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.current_dir(samples).args(["build", "--release", "--locked", "--target", target]);
    cargo.arg("--target-dir").arg(samples.join("target"));
    for (package, of) in all() {
        if *of == target {
            cargo.args(["--package", package]);
        }
    }
    // What the outer build sets for the host must not reach the guests.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "building the sample workloads for {target} failed: see above");
}

fn built_file(samples: &Path, package: &str, target: &str) -> PathBuf {
    let folder = samples.join("target").join(target).join("release");
    let binary = folder.join(format!("{package}.wasm"));
    if binary.exists() { binary } else { folder.join(format!("{}.wasm", package.replace('-', "_"))) }
}
