//! See `coracle_fuzz::store_command`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::store_command(data));
