//! The sample workloads, built for their wasm targets by this crate's build script and, but for the hostile ones, carried in
//! the binary.

use std::path::PathBuf;

include!(concat!(env!("OUT_DIR"), "/table.rs"));

/// The bytes of the sample workload of this name (`hello-http`), or `None` where there is none.
pub fn bytes(name: &str) -> Option<&'static [u8]> {
    ALL.iter().find(|(sample, _)| *sample == name).map(|(_, bytes)| *bytes)
}

/// The file of the sample workload of this name, or of one that only measurements run, on the machine that built it: for
/// tests.
///
/// # Panics
/// Where there is no sample workload of that name.
pub fn wasm(name: &str) -> PathBuf {
    let path = PathBuf::from(concat!(env!("OUT_DIR"), "/")).join(format!("{name}.wasm"));
    assert!(path.exists(), "there is no sample workload named {name}");
    path
}
