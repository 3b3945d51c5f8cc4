//! WebSocket frames (RFC 6455, section 5.2), both directions.
//! Only whole messages: a fragmented message is reported as broken, because no server measured here sends one
//! for messages of this size and following fragments would cost every frame a copy.

pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// One frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub opcode: u8,
    pub payload: &'a [u8],
    /// Bytes the frame takes in the buffer, header included.
    pub size: usize,
}

/// What the start of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    Whole(Frame<'a>),
    /// More bytes are needed.
    Partial,
    /// The peer broke the protocol, or fragmented a message.
    Broken(&'static str),
}

/// Header fields of a frame whose header is whole.
struct Head {
    opcode: u8,
    masked: bool,
    /// Where the masking key or, without one, the payload starts.
    header_bytes: usize,
    payload_bytes: usize,
}

fn head(buf: &[u8]) -> Result<Option<Head>, &'static str> {
    let &[first, second, ..] = buf else {
        return Ok(None);
    };
    if first & FIN == 0 || first & 0x0F == 0 {
        return Err("fragmented message");
    }
    let (header_bytes, payload_bytes) = match second & 0x7F {
        126 => {
            let Some(&[high, low]) = buf.get(2..4) else {
                return Ok(None);
            };
            (4, usize::from(u16::from_be_bytes([high, low])))
        }
        127 => {
            let Some(length) = buf.get(2..10).and_then(|b| <[u8; 8]>::try_from(b).ok()) else {
                return Ok(None);
            };
            let length = u64::from_be_bytes(length);
            (10, usize::try_from(length).map_err(|_| "frame too large")?)
        }
        short => (2, usize::from(short)),
    };
    // Far above any payload a load may ask for; protects the generator from a length that is garbage.
    if payload_bytes > 16 << 20 {
        return Err("frame too large");
    }
    Ok(Some(Head { opcode: first & 0x0F, masked: second & MASKED != 0, header_bytes, payload_bytes }))
}

/// Reads a server's (unmasked) frame.
pub fn from_server(buf: &[u8]) -> Parsed<'_> {
    let head = match head(buf) {
        Ok(Some(head)) => head,
        Ok(None) => return Parsed::Partial,
        Err(why) => return Parsed::Broken(why),
    };
    if head.masked {
        return Parsed::Broken("masked frame from a server");
    }
    let size = head.header_bytes + head.payload_bytes;
    match buf.get(head.header_bytes..size) {
        Some(payload) => Parsed::Whole(Frame { opcode: head.opcode, payload, size }),
        None => Parsed::Partial,
    }
}

/// Reads a client's (masked) frame, unmasking it in place. Call it once for a whole frame: a second call on
/// the same bytes would mask them again.
pub fn from_client(buf: &mut [u8]) -> Parsed<'_> {
    let head = match head(buf) {
        Ok(Some(head)) => head,
        Ok(None) => return Parsed::Partial,
        Err(why) => return Parsed::Broken(why),
    };
    if !head.masked {
        return Parsed::Broken("unmasked frame from a client");
    }
    let start = head.header_bytes + 4;
    let size = start + head.payload_bytes;
    if buf.len() < size {
        return Parsed::Partial;
    }
    let key = [buf[start - 4], buf[start - 3], buf[start - 2], buf[start - 1]];
    apply_mask(&mut buf[start..size], key);
    Parsed::Whole(Frame { opcode: head.opcode, payload: &buf[start..size], size })
}

/// Appends a frame as a client sends it, masked with `key`.
pub fn push_client(out: &mut Vec<u8>, opcode: u8, payload: &[u8], key: [u8; 4]) {
    push_head(out, opcode, payload.len(), MASKED);
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], key);
}

/// Appends a frame as a server sends it.
pub fn push_server(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    push_server_parts(out, opcode, [payload, b""]);
}

/// Appends a frame as a server sends it, its payload the two parts one after the other.
pub fn push_server_parts(out: &mut Vec<u8>, opcode: u8, [first, second]: [&[u8]; 2]) {
    push_head(out, opcode, first.len() + second.len(), 0);
    out.extend_from_slice(first);
    out.extend_from_slice(second);
}

fn push_head(out: &mut Vec<u8>, opcode: u8, payload_bytes: usize, mask_bit: u8) {
    out.push(FIN | opcode);
    match (u8::try_from(payload_bytes), u16::try_from(payload_bytes)) {
        (Ok(short), _) if short < 126 => out.push(mask_bit | short),
        (_, Ok(medium)) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    // Eight bytes at a time: unmasking is most of what the floor does to a frame.
    let mut wide = [0; 8];
    wide[..4].copy_from_slice(&key);
    wide[4..].copy_from_slice(&key);
    let wide = u64::from_ne_bytes(wide);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_frame_survives_the_way_to_the_server_at_every_length_form() {
        for length in [0, 1, 7, 8, 125, 126, 127, 65_535, 65_536, 100_001] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = Vec::new();
            push_client(&mut bytes, TEXT, &payload, [1, 2, 3, 250]);
            let size = bytes.len();
            bytes.extend_from_slice(b"next");
            let expected = Parsed::Whole(Frame { opcode: TEXT, payload: &payload, size });
            assert_eq!(from_client(&mut bytes), expected, "length {length}");
        }
    }

    #[test]
    fn a_server_frame_is_partial_until_its_last_byte() {
        let mut bytes = Vec::new();
        push_server(&mut bytes, TEXT, &[7; 300]);
        for cut in 0..bytes.len() {
            assert_eq!(from_server(&bytes[..cut]), Parsed::Partial, "cut at {cut}");
        }
        assert!(matches!(from_server(&bytes), Parsed::Whole(Frame { size: 304, .. })));
    }

    #[test]
    fn broken_frames_are_named() {
        assert_eq!(from_server(&[0x01, 0x00]), Parsed::Broken("fragmented message"));
        assert_eq!(from_server(&[0x81, 0x80]), Parsed::Broken("masked frame from a server"));
        assert_eq!(from_client(&mut [0x81, 0x00]), Parsed::Broken("unmasked frame from a client"));
        let huge = [0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(from_server(&huge), Parsed::Broken("frame too large"));
    }
}
