//! See `coracle_fuzz::snapshot_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::snapshot_stream(data));
