//! WebSocket frames (RFC 6455, section 5) as a server reads them: a pure
//! decoder, from bytes in whatever pieces they arrive to whole messages.
//!
//! What is complete is decoded in the buffer that it was read into; only a frame
//! that is not all there yet is copied, so a socket at rest keeps nothing.
//! Outgoing frames are made once for all receivers (`wire::Frame`); here are
//! only the short ones that the protocol itself needs.

use bytes::Bytes;

/// A ping without payload.
pub const PING: &[u8] = &[0x89, 0x00];

/// The longest payload of a control frame (5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// Whole messages, and what the protocol says between them.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message, all of it, valid UTF-8.
    Text(&'a str),
    /// A binary message; what is in it, nobody wants.
    Binary,
    /// Wants a pong with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping.
    Pong,
    /// The peer closes.
    Close,
}

/// A breach of the protocol: the connection ends with this status (7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// 1002.
    Protocol,
    /// 1007: text that is not UTF-8.
    NotUtf8,
    /// 1009: a message over the limit.
    TooBig,
}

impl Violation {
    /// The status code for the close frame.
    pub fn status(self) -> u16 {
        match self {
            Violation::Protocol => 1002,
            Violation::NotUtf8 => 1007,
            Violation::TooBig => 1009,
        }
    }
}

/// A close frame with a status.
pub fn close(status: u16) -> [u8; 4] {
    let [high, low] = status.to_be_bytes();
    [0x88, 0x02, high, low]
}

/// A short text frame, of less than 64 KiB.
pub fn text(payload: &str) -> Bytes {
    let mut frame = Vec::with_capacity(4 + payload.len());
    frame.push(0x81);
    match u8::try_from(payload.len()) {
        Ok(short @ 0..=125) => frame.push(short),
        _ => {
            frame.push(126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend(payload.as_bytes());
    frame.into()
}

/// A pong for a ping with this payload of at most 125 bytes.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(2 + payload.len());
    frame.extend([0x8a, payload.len() as u8]);
    frame.extend(payload);
    frame
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: usize,
    /// The beginning of a frame whose rest has not arrived.
    partial: Vec<u8>,
    /// A message whose last fragment has not arrived.
    fragments: Option<(Kind, Vec<u8>)>,
}

/// A frame's header.
struct Header {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    bytes: usize,
    payload_bytes: usize,
}

impl Decoder {
    /// Takes messages of at most `message_bytes_max` bytes.
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, partial: Vec::new(), fragments: None }
    }

    /// Hands every message that `bytes` completes to `take`, in order, until it
    /// returns false. The bytes are unmasked in place.
    ///
    /// # Errors
    /// The first breach; what came before it was handed over.
    pub fn feed(
        &mut self,
        bytes: &mut [u8],
        take: &mut impl FnMut(Message<'_>) -> bool,
    ) -> Result<(), Violation> {
        if self.partial.is_empty() {
            let used = self.decode(bytes, take)?;
            self.partial = bytes[used..].to_vec();
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        let used = self.decode(&mut whole, take)?;
        if used < whole.len() {
            whole.drain(..used);
            self.partial = whole;
        }
        Ok(())
    }

    /// Decodes whole frames; how many bytes they were.
    fn decode(
        &mut self,
        bytes: &mut [u8],
        take: &mut impl FnMut(Message<'_>) -> bool,
    ) -> Result<usize, Violation> {
        let mut used = 0;
        while let Some(header) = self.header(&bytes[used..])? {
            let start = used + header.bytes;
            let Some(payload) = bytes.get_mut(start..start + header.payload_bytes) else { break };
            used = start + header.payload_bytes;
            unmask(payload, header.mask);
            if !self.frame(&header, payload, take)? {
                return Ok(bytes.len());
            }
        }
        Ok(used)
    }

    /// Reads a header; nothing while it is not all there.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, Violation> {
        let &[first, second, ..] = bytes else { return Ok(None) };
        let (is_final, opcode) = (first & 0x80 != 0, first & 0x0f);
        let is_control = opcode & 0x08 != 0;
        let is_known = matches!(opcode, 0..=2 | 8..=10);
        let is_masked = second & 0x80 != 0;
        if first & 0x70 != 0 || !is_known || !is_masked || (is_control && !is_final) {
            return Err(Violation::Protocol);
        }
        let (length_bytes, length) = match second & 0x7f {
            126 => (2, read_length(&bytes[2..], 2)),
            127 => (8, read_length(&bytes[2..], 8)),
            short => (0, Some(u64::from(short))),
        };
        let Some(length) = length else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if is_control && length > CONTROL_BYTES_MAX {
            return Err(Violation::Protocol);
        }
        let gathered = self.fragments.as_ref().map_or(0, |(_, gathered)| gathered.len());
        if length > self.message_bytes_max || (!is_control && gathered + length > self.message_bytes_max) {
            return Err(Violation::TooBig);
        }
        let at = 2 + length_bytes;
        let Some(&[a, b, c, d]) = bytes.get(at..at + 4) else { return Ok(None) };
        Ok(Some(Header { is_final, opcode, mask: [a, b, c, d], bytes: at + 4, payload_bytes: length }))
    }

    /// Takes one unmasked frame; false when nothing more is wanted.
    fn frame(
        &mut self,
        header: &Header,
        payload: &[u8],
        take: &mut impl FnMut(Message<'_>) -> bool,
    ) -> Result<bool, Violation> {
        match header.opcode {
            8 => {
                check_close(payload)?;
                Ok(take(Message::Close))
            }
            9 => Ok(take(Message::Ping(payload))),
            10 => Ok(take(Message::Pong)),
            0 => {
                let (kind, mut message) = self.fragments.take().ok_or(Violation::Protocol)?;
                message.extend_from_slice(payload);
                if header.is_final {
                    return whole(kind, &message, take);
                }
                self.fragments = Some((kind, message));
                Ok(true)
            }
            _ if self.fragments.is_some() => Err(Violation::Protocol),
            opcode => {
                let kind = if opcode == 1 { Kind::Text } else { Kind::Binary };
                if header.is_final {
                    return whole(kind, payload, take);
                }
                self.fragments = Some((kind, payload.to_vec()));
                Ok(true)
            }
        }
    }
}

fn whole(kind: Kind, bytes: &[u8], take: &mut impl FnMut(Message<'_>) -> bool) -> Result<bool, Violation> {
    match kind {
        Kind::Binary => Ok(take(Message::Binary)),
        Kind::Text => Ok(take(Message::Text(std::str::from_utf8(bytes).map_err(|_| Violation::NotUtf8)?))),
    }
}

/// The big-endian number in the first `bytes` bytes, if they are there.
fn read_length(from: &[u8], bytes: usize) -> Option<u64> {
    Some(from.get(..bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A close frame is empty, or has a status that may be sent and a UTF-8 reason
/// (5.5.1, 7.4).
fn check_close(payload: &[u8]) -> Result<(), Violation> {
    let &[high, low, ref reason @ ..] = payload else {
        return if payload.is_empty() { Ok(()) } else { Err(Violation::Protocol) };
    };
    let status = u16::from_be_bytes([high, low]);
    if !matches!(status, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol);
    }
    std::str::from_utf8(reason).map(|_| ()).map_err(|_| Violation::NotUtf8)
}

/// Eight bytes at a time: payloads of clients are always masked (5.3).
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests;
