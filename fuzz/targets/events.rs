//! Fuzzes Socket.IO packets and the events in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tandem::fuzzed::events(bytes));
