//! See `siskin_fuzz::log_names`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| siskin_fuzz::log_names(data));
