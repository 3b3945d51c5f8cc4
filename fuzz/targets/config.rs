//! Fuzzes a `.env` file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzed::config(bytes));
