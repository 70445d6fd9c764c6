//! See `coracle_fuzz::raft_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::raft_decode(data));
