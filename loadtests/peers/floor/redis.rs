//! As much of Redis' protocol (RESP2) as a relay needs: commands out, arrays of bulk strings in.

/// Appends a command.
pub fn push_command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    push_count(out, b'*', parts.len());
    for part in parts {
        push_count(out, b'$', part.len());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

fn push_count(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    out.extend_from_slice(count.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// One reply: the bytes it takes, and channel and payload if it is a published message.
pub struct Reply<'a> {
    pub size: usize,
    pub message: Option<(&'a [u8], &'a [u8])>,
}

/// Reads one reply, or `None` until it is whole. Replies that are no array carry no message.
pub fn reply(buf: &[u8]) -> Option<Reply<'_>> {
    let (head, mut at) = line(buf, 0)?;
    let Some(count) = head.strip_prefix(b"*") else {
        return Some(Reply { size: at, message: None });
    };
    let mut parts: [&[u8]; 3] = [b""; 3];
    let count = number(count)?;
    for index in 0..count {
        let (head, next) = line(buf, at)?;
        at = next;
        if let Some(length) = head.strip_prefix(b"$") {
            let length = number(length)?;
            let part = buf.get(at..at + length)?;
            at += length + 2;
            if buf.len() < at {
                return None;
            }
            if let Some(slot) = parts.get_mut(index) {
                *slot = part;
            }
        }
    }
    let is_message = count == 3 && parts[0] == b"message";
    Some(Reply { size: at, message: is_message.then_some((parts[1], parts[2])) })
}

/// The line that starts at `at`, without its end, and where the next one starts.
fn line(buf: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = buf.get(at..)?;
    let end = memchr::memchr(b'\r', rest)?;
    (rest.len() > end + 1).then(|| (&rest[..end], at + end + 2))
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_written() {
        let mut out = Vec::new();
        push_command(&mut out, &[b"PUBLISH", b"u", b"a\r\nb"]);
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nu\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn a_message_is_read_once_it_is_whole() {
        let bytes = b"*3\r\n$7\r\nmessage\r\n$1\r\nu\r\n$4\r\na\r\nb\r\n";
        for cut in 0..bytes.len() {
            assert!(reply(&bytes[..cut]).is_none(), "cut at {cut}");
        }
        let whole = reply(bytes).unwrap();
        assert_eq!(whole.size, bytes.len());
        assert_eq!(whole.message, Some((&b"u"[..], &b"a\r\nb"[..])));
    }

    #[test]
    fn other_replies_are_stepped_over() {
        let subscribed = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nu\r\n:1\r\n:5\r\n";
        let first = reply(subscribed).unwrap();
        assert!(first.message.is_none());
        assert_eq!(reply(&subscribed[first.size..]).unwrap().size, 4);
    }
}
