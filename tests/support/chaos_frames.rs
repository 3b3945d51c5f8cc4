//! Finds the Socket.IO acks in a server's byte stream and leaves some of them out.
//!
//! Anything that is not an upgraded WebSocket stream passes untouched. RFC 6455, section 5.2: a server's frames are
//! unmasked.

/// A text frame with FIN set.
const WHOLE_TEXT: u8 = 0x81;

/// Engine.IO message, Socket.IO ACK.
const ACK: &[u8] = b"43";

#[derive(Default)]
pub struct AckFilter {
    state: State,
    waiting: Vec<u8>,
    random: Option<u64>,
}

#[derive(Default, PartialEq)]
enum State {
    /// The response head is not complete.
    #[default]
    Head,
    Frames,
    /// Not a WebSocket.
    Other,
}

impl AckFilter {
    /// Takes the next bytes; returns those to pass on and how many acks were dropped.
    pub fn pass(&mut self, bytes: &[u8], loss: f64) -> (Vec<u8>, u64) {
        self.waiting.extend_from_slice(bytes);
        let mut passed = Vec::with_capacity(self.waiting.len());
        if self.state == State::Head {
            self.read_head(&mut passed);
        }
        match self.state {
            State::Head => (passed, 0),
            State::Other => {
                passed.append(&mut self.waiting);
                (passed, 0)
            }
            State::Frames => {
                let lost = self.read_frames(&mut passed, loss);
                (passed, lost)
            }
        }
    }

    fn read_head(&mut self, passed: &mut Vec<u8>) {
        const UPGRADED: &[u8] = b"HTTP/1.1 101";
        let known = self.waiting.len().min(UPGRADED.len());
        if self.waiting[..known] != UPGRADED[..known] {
            self.state = State::Other;
        } else if let Some(end) = self.waiting.windows(4).position(|four| four == b"\r\n\r\n") {
            passed.extend(self.waiting.drain(..end + 4));
            self.state = State::Frames;
        }
    }

    fn read_frames(&mut self, passed: &mut Vec<u8>, loss: f64) -> u64 {
        let mut lost = 0;
        while let Some((head, length)) = frame(&self.waiting) {
            let is_ack = self.waiting[0] == WHOLE_TEXT && self.waiting[head..length].starts_with(ACK);
            let frame = self.waiting.drain(..length);
            if is_ack && loss > 0.0 && chance(&mut self.random) < loss {
                drop(frame);
                lost += 1;
            } else {
                passed.extend(frame);
            }
        }
        lost
    }
}

/// The lengths of the first frame's head and of the whole frame, once all of it is there.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let (head, payload) = match *bytes.get(1)? & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    let length = head + usize::try_from(payload).ok()?;
    (bytes.len() >= length).then_some((head, length))
}

/// A number from 0 to 1 (xorshift64; only evenness matters here).
pub fn chance(random: &mut Option<u64>) -> f64 {
    let state = random.get_or_insert_with(|| uuid::Uuid::new_v4().as_u64_pair().0 | 1);
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1_u64 << 53) as f64
}
