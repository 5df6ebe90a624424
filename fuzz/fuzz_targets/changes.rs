#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pitr::engine::mysql::fuzz::changes(data));
