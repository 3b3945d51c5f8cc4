//! Fuzzes WebSocket frames, cut anywhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzed::frames(bytes));
