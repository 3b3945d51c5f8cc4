//! Fuzzes what travels between nodes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzed::envelope(bytes));
