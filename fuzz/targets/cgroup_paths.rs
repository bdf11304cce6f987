//! See `siskin_fuzz::cgroup_paths`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| siskin_fuzz::cgroup_paths(data));
