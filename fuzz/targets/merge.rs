//! Fuzzes merging a change into a state.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzed::merged(bytes));
