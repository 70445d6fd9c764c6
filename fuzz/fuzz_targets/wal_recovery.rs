//! See `coracle_fuzz::wal_recovery`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::wal_recovery(data));
