//! See `siskin_fuzz::cgroup_notes`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| siskin_fuzz::cgroup_notes(data));
