#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pitr::engine::redis::fuzz::commands(data));
