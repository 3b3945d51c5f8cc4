//! Finds the messages of users' channels in what Redis sends to a node, and leaves some of them out.
//!
//! RESP3 (and 2, for a connection before its HELLO): a value is whole or waits. What is no message of a user's
//! channel passes untouched, the probe's own messages among it.

use super::chaos_frames::chance;

/// The start of a message on a user's channel: a push of three, `message`, then the channel's name.
const KIND: &[u8] = b"$7\r\nmessage\r\n";
const CHANNEL: &[u8] = b"tandem:{";

#[derive(Default)]
pub struct MessageFilter {
    waiting: Vec<u8>,
    random: Option<u64>,
}

impl MessageFilter {
    /// Takes the next bytes; returns those to pass on and how many messages were dropped.
    pub fn pass(&mut self, bytes: &[u8], loss: f64) -> (Vec<u8>, u64) {
        self.waiting.extend_from_slice(bytes);
        let (mut passed, mut lost, mut at) = (Vec::with_capacity(self.waiting.len()), 0, 0);
        while let Some(length) = value(&self.waiting[at..]) {
            let value = &self.waiting[at..at + length];
            if is_message(value) && loss > 0.0 && chance(&mut self.random) < loss {
                lost += 1;
            } else {
                passed.extend_from_slice(value);
            }
            at += length;
        }
        self.waiting.drain(..at);
        (passed, lost)
    }
}

fn is_message(value: &[u8]) -> bool {
    let Some(rest) = value.strip_prefix(b">3\r\n").or_else(|| value.strip_prefix(b"*3\r\n")) else {
        return false;
    };
    let Some(rest) = rest.strip_prefix(KIND) else { return false };
    line(rest).is_some_and(|end| rest[end..].starts_with(CHANNEL))
}

/// The length of the first value, once all of it is there.
fn value(bytes: &[u8]) -> Option<usize> {
    let head = line(bytes)?;
    let count = || std::str::from_utf8(&bytes[1..head - 2]).ok()?.parse::<i64>().ok();
    let parts = match bytes[0] {
        b'$' | b'=' | b'!' => {
            let payload = usize::try_from(count()?).map_or(0, |count| count + 2);
            return (bytes.len() >= head + payload).then_some(head + payload);
        }
        b'*' | b'~' | b'>' => count()?.max(0),
        b'%' => count()?.max(0) * 2,
        // An attribute comes before the value that it describes.
        b'|' => count()?.max(0) * 2 + 1,
        _ => 0,
    };
    (0..parts).try_fold(head, |at, _| Some(at + value(&bytes[at..])?))
}

/// The length of the first line with its end.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|two| two == b"\r\n").map(|at| at + 2)
}
