//! Socket.IO packets, protocol revision 5, as text after the Engine.IO type:
//! `<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]`.
//!
//! The JSON stays text: only whoever needs a part parses it.

use crate::wire::AckId;

/// A packet, its JSON untouched.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What it is.
    pub kind: Kind,
    /// `/` unless it says otherwise.
    pub namespace: &'a str,
    /// The answer it asks for, or gives.
    pub id: Option<AckId>,
    /// Binary messages that follow and belong to it.
    pub attachments: u32,
    /// The rest.
    pub json: &'a str,
}

/// The types of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Joins a namespace.
    Connect,
    /// Leaves it.
    Disconnect,
    /// An event.
    Event,
    /// An answer to an event.
    Ack,
    /// Only a server says this.
    ConnectError,
    /// An event with binary attachments.
    BinaryEvent,
    /// An answer with binary attachments.
    BinaryAck,
}

/// Attachments that one packet may announce.
pub const ATTACHMENTS_MAX: u32 = 64;

/// Digits of an id: as many as an [`AckId`] holds.
const ACK_ID_DIGITS_MAX: usize = 38;

/// Not a packet of this protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads one packet.
///
/// # Errors
/// When it breaks the form above: no honest client sends that.
pub fn parse(text: &str) -> Result<Packet<'_>, Malformed> {
    let kind = match text.as_bytes().first() {
        Some(b'0') => Kind::Connect,
        Some(b'1') => Kind::Disconnect,
        Some(b'2') => Kind::Event,
        Some(b'3') => Kind::Ack,
        Some(b'4') => Kind::ConnectError,
        Some(b'5') => Kind::BinaryEvent,
        Some(b'6') => Kind::BinaryAck,
        _ => return Err(Malformed),
    };
    let mut rest = &text[1..];
    let mut attachments = 0;
    if matches!(kind, Kind::BinaryEvent | Kind::BinaryAck) {
        let (digits, after) = rest.split_once('-').ok_or(Malformed)?;
        attachments = number(digits).and_then(|n| u32::try_from(n).ok()).ok_or(Malformed)?;
        if attachments > ATTACHMENTS_MAX {
            return Err(Malformed);
        }
        rest = after;
    }
    let mut namespace = "/";
    if rest.starts_with('/') {
        let (name, after) = rest.split_once(',').unwrap_or((rest, ""));
        (namespace, rest) = (name, after);
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let id = match digits {
        0 => None,
        _ => Some(ack_id(&rest[..digits]).ok_or(Malformed)?),
    };
    Ok(Packet { kind, namespace, id, attachments, json: &rest[digits..] })
}

/// An id of at most 38 digits, more than any client can count.
fn ack_id(digits: &str) -> Option<AckId> {
    (digits.len() <= ACK_ID_DIGITS_MAX).then(|| digits.parse().ok()).flatten()
}

/// A number of at most 15 digits.
fn number(digits: &str) -> Option<u64> {
    let plain = (1..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: Option<AckId>, json: &str) -> Packet<'_> {
        Packet { kind: Kind::Event, namespace: "/", id, attachments: 0, json }
    }

    #[test]
    fn packets_are_read_by_their_parts() {
        assert_eq!(parse("2[\"a\",1]"), Ok(event(None, "[\"a\",1]")));
        assert_eq!(parse("212[\"a\"]"), Ok(event(Some(12), "[\"a\"]")));
        assert_eq!(parse("2/adm,3[\"a\"]"), Ok(Packet { namespace: "/adm", ..event(Some(3), "[\"a\"]") }));
        assert_eq!(
            parse("0{\"token\":1}"),
            Ok(Packet { kind: Kind::Connect, ..event(None, "{\"token\":1}") })
        );
        assert_eq!(parse("0/adm"), Ok(Packet { kind: Kind::Connect, namespace: "/adm", ..event(None, "") }));
        assert_eq!(parse("1"), Ok(Packet { kind: Kind::Disconnect, ..event(None, "") }));
        let binary = Packet { kind: Kind::BinaryEvent, attachments: 2, ..event(Some(7), "[\"a\"]") };
        assert_eq!(parse("52-7[\"a\"]"), Ok(binary));
        assert_eq!(parse("2"), Ok(event(None, "")));
    }

    #[test]
    fn what_is_no_packet_is_refused_without_a_panic() {
        for bad in ["", "7", "x", "é", "5[\"a\"]", "5-[]", "5x-[]", "5999999-[]", "5-1-[]", "é[]"] {
            assert_eq!(parse(bad), Err(Malformed), "{bad:?}");
        }
        let long = "12345678901234567890123";
        assert_eq!(parse(&format!("2{long}[\"a\"]")).unwrap().id, long.parse().ok());
        assert_eq!(parse(&format!("2{}[\"a\"]", "1".repeat(39))), Err(Malformed));
        assert_eq!(parse("2é").unwrap().json, "é");
    }
}
