#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::rate_limit_answer(data));
