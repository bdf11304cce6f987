//! See `siskin_fuzz::peers`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| siskin_fuzz::peers(data));
