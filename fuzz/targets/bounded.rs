//! See `siskin_fuzz::bounded`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| siskin_fuzz::bounded(data));
