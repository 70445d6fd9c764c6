//! See `coracle_fuzz::join_token`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::join_token(data));
