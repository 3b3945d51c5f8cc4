//! What fuzzers feed: one function for each place where bytes from outside become something, with what has to hold
//! whatever the bytes are. `fuzz/` gives them to libFuzzer; the tests below, to every run of the unit tests.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::backplane::envelope::{CHANGE_PAYLOAD_BYTES_MAX, Codec, Kind};
use crate::config::{Config, Sources, parse_env_file};
use crate::merge::{self, Change, Current, Limits, OnConflict, Outcome, Write};
use crate::socket::engine::frame::{Decoder, Violation};
use crate::socket::{fields, packet};

const MESSAGE_BYTES_MAX: usize = 4_096;

/// WebSocket frames: however the bytes are cut, the same messages come out, and the same breach. The first byte
/// says where they are cut.
pub fn frames(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let cut = usize::from(*cut) * bytes.len() / 256;
    let (whole, parts) = (decoded(&[bytes]), decoded(&[&bytes[..cut], &bytes[cut..]]));
    assert_eq!(whole, parts, "cut at {cut}");
}

fn decoded(parts: &[&[u8]]) -> (Vec<String>, Result<(), Violation>) {
    let (mut decoder, mut messages) = (Decoder::new(MESSAGE_BYTES_MAX), Vec::new());
    for part in parts {
        let fed = decoder.feed(&mut part.to_vec(), &mut |message| {
            messages.push(format!("{message:?}"));
            true
        });
        if fed.is_err() {
            return (messages, fed);
        }
    }
    (messages, Ok(()))
}

/// Socket.IO packets and the events in them: what is passed on is a part of what came, byte for byte.
pub fn events(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(packet) = packet::parse(text) else { return };
    assert!(text.ends_with(packet.json));
    assert!(packet.attachments <= packet::ATTACHMENTS_MAX);
    let Ok(named) = fields::named(packet.json) else { return };
    let Some(payload) = named.payload else { return };
    assert!(packet.json.contains(payload.get()));
    if fields::bounded_depth(payload.get()).is_ok() {
        // A depth that we bear, serde bears too.
        serde_json::from_str::<serde_json::Value>(payload.get()).err().iter().for_each(|error| {
            assert!(!error.to_string().contains("recursion"), "{error}");
        });
    }
    drop(fields::object::<HashMap<String, &RawValue>>(Some(payload)));
}

/// Merging: lines of base, current state, change, and how. What is applied is JSON within the limits.
pub fn merged(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let mut next = || lines.next().filter(|line| serde_json::from_str::<&RawValue>(line).is_ok());
    let (base, current, Some(change)) = (next(), next(), next()) else { return };
    let limits = Limits { state_bytes_max: 4_096, depth_max: 16, ops_max: 50 };
    let how = lines.next().unwrap_or_default();
    let on_conflict = match how.len() % 3 {
        0 => OnConflict::Reject,
        1 => OnConflict::Overwrite,
        _ => OnConflict::Merge,
    };
    for change in [Change::State(change), Change::Patch(change), Change::Ops(change), Change::Delete] {
        let write = Write { change, base_version: Some(1), on_conflict };
        for version in [1, 2] {
            let current = Current { version, state: current };
            let resolved = merge::resolve(current, base, &write, &limits);
            assert_eq!(resolved, merge::resolve(current, base, &write, &limits));
            let Ok(Outcome::Applied { state: Some(state), .. }) = resolved else { continue };
            assert!(serde_json::from_str::<&RawValue>(&state).is_ok(), "{state}");
            assert!(state.len() <= limits.state_bytes_max, "{} bytes", state.len());
            assert!(merge::depth(&state) <= limits.depth_max, "{state}");
        }
    }
}

/// What travels between nodes: what can be read says the same when it is sent on.
pub fn envelope(bytes: &[u8]) {
    let codec = Codec::new("somebody else");
    let Ok(read) = codec.decode(&Bytes::copy_from_slice(bytes)) else { return };
    let is_left_out = matches!(read.kind, Kind::Change(_))
        && read.payload.as_ref().is_some_and(|payload| payload.len() > CHANGE_PAYLOAD_BYTES_MAX);
    let Some(sent) = read.encode(&Codec::new("us")) else { return };
    if !is_left_out {
        assert_eq!(codec.decode(&sent), Ok(read));
    }
}

/// A `.env` file: read, or refused with mistakes that tell no value.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(file) = parse_env_file(text) else { return };
    let secret = file.get("JWT_SECRET").filter(|secret| secret.len() > 16).cloned();
    let sources = Sources { file, ..Sources::default() };
    if let (Err(mistakes), Some(secret)) = (Config::load(&sources), secret) {
        assert!(!mistakes.to_string().contains(&secret), "{mistakes}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sound inputs, from which the others are made by changing, doubling and cutting out bytes.
    const FRAMES: &[&[u8]] = &[
        b"\x40\x81\x85\x01\x02\x03\x04\x69\x67\x6f\x68\x6e\x89\x80\x00\x00\x00\x00",
        b"\x80\x01\x83\0\0\0\0abc\x80\x81\0\0\0\0d",
    ];
    const EVENTS: &[&[u8]] = &[
        br#"42["session-update",{"sessionKey":"k","state":{"a":[1,2.50,"\u00e9"]}}]"#,
        br#"251-/,7["realtime-event",{"type":"t","payload":{"_placeholder":true,"num":0}}]"#,
        br#"0{"token":"t","deviceInfo":{"name":"n"}}"#,
    ];
    const MERGES: &[&[u8]] = &[
        b"{\"a\":1,\"b\":[1,2]}\n{\"a\":2,\"b\":[1,2]}\n{\"a\":1,\"b\":[1,2,3]}\n..",
        b"{\"a\":{\"n\":1e3}}\n{\"a\":{\"n\":2}}\n[{\"op\":\"inc\",\"path\":\"/a/n\",\"value\":0.1}]\n.",
        b"[1]\n[]\n[{\"op\":\"add\",\"path\":\"\",\"value\":7}]\n",
    ];
    const ENVELOPES: &[&[u8]] = &[
        b"{\"v\":1,\"n\":\"a\",\"k\":\"ping\",\"b\":{}}\n",
        b"{\"v\":1,\"n\":\"a\",\"k\":\"heads-moved\",\"b\":{\"heads\":[]}}\n{}",
    ];
    const CONFIGS: &[&[u8]] = &[
        b"PORT=3001\nJWT_SECRET='a secret that is long enough'\n# no\nexport HOST=0.0.0.0 # all\n",
        b"DATABASE_URL=postgres://u:p@h/d\nREDIS_URL=redis://:p@h:1\nLIMIT_STATE_BYTES=1\nCONSOLE=maybe",
    ];

    fn varied(seeds: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
        let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8, 1..9_usize);
        (prop::sample::select(seeds), prop::collection::vec(change, 0..6)).prop_map(|(seed, changes)| {
            let mut bytes = seed.to_vec();
            for (place, byte, how, length) in changes {
                if bytes.is_empty() {
                    bytes.push(byte);
                }
                let at = place.index(bytes.len());
                let end = (at + length).min(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => drop(bytes.drain(at..end)),
                    2 => bytes.insert(at, byte),
                    _ => {
                        let part = bytes[at..end].repeat(length);
                        bytes.splice(at..at, part);
                    }
                }
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn frames_hold(bytes in varied(FRAMES)) { frames(&bytes); }

        #[test]
        fn events_hold(bytes in varied(EVENTS)) { events(&bytes); }

        #[test]
        fn merges_hold(bytes in varied(MERGES)) { merged(&bytes); }

        #[test]
        fn envelopes_hold(bytes in varied(ENVELOPES)) { envelope(&bytes); }

        #[test]
        fn configurations_hold(bytes in varied(CONFIGS)) { config(&bytes); }
    }
}
