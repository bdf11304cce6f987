//! See `siskin_fuzz::proc_cgroups`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| siskin_fuzz::proc_cgroups(data));
