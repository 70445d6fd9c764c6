//! See `coracle_fuzz::admitted_workloads`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| coracle_fuzz::admitted_workloads(data));
