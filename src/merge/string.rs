//! JSON strings: what their source text means, and back.
//!
//! The text is always what stands between the quotes. Its meaning is WTF-8:
//! UTF-8, except that a surrogate without its partner (`"\ud800"`, which JSON
//! allows and Rust's `str` does not) takes the three bytes UTF-8 would give it.
//! So every JSON string has exactly one meaning and no two are confused.

use std::borrow::Cow;

/// What `body` means, with its escapes resolved.
pub fn unescape(body: &str) -> Cow<'_, [u8]> {
    if !body.contains('\\') {
        return Cow::Borrowed(body.as_bytes());
    }
    let mut meaning = Vec::with_capacity(body.len());
    for code in code_points(body) {
        push_code_point(&mut meaning, code);
    }
    Cow::Owned(meaning)
}

/// A body that means `meaning`, escaping only what JSON demands.
pub fn escape(meaning: &[u8]) -> String {
    let mut body = String::with_capacity(meaning.len());
    let mut at = 0;
    for chunk in meaning.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => body.push_str("\\\""),
                '\\' => body.push_str("\\\\"),
                c if c < ' ' => push_unit(&mut body, c as u32),
                c => body.push(c),
            }
        }
        at += chunk.valid().len();
        // A lone surrogate is ED xx yy. Its lead byte and the two that follow
        // come as chunks of one byte each; all of it is written at the lead.
        if chunk.invalid() == [0xED]
            && let [_, high, low, ..] = meaning[at..]
        {
            let unit = 0xD000 | u32::from(high & 0x3F) << 6 | u32::from(low & 0x3F);
            push_unit(&mut body, unit);
        }
        at += chunk.invalid().len();
    }
    body
}

/// Whether two bodies mean the same string. It costs as much as they agree,
/// which is added to `steps` (see `Json::equals`).
pub fn same(a: &str, b: &str, steps: &mut usize) -> bool {
    if a == b {
        *steps += a.len() / 32;
        return true;
    }
    let (bytes_a, bytes_b) = (a.as_bytes(), b.as_bytes());
    let Some(fork) = bytes_a.iter().zip(bytes_b).position(|(a, b)| a != b) else {
        return false; // One goes on where the other ends.
    };
    *steps += fork / 8;
    // No escape ends at the fork or goes across it: other bytes, other meaning.
    let escape_near =
        bytes_a[fork.saturating_sub(ESCAPE_BYTES)..=fork].contains(&b'\\') || bytes_b[fork] == b'\\';
    if !escape_near {
        return false;
    }
    *steps += a.len().min(b.len()) / 8;
    code_points(a).eq(code_points(b))
}

/// The longest escape, `\uXXXX`.
const ESCAPE_BYTES: usize = 6;

/// Code points of a body, lone surrogates among them.
fn code_points(body: &str) -> impl Iterator<Item = u32> + '_ {
    let mut rest = body;
    std::iter::from_fn(move || {
        let (code, after) = match rest.strip_prefix('\\') {
            Some(escape) => escaped(escape),
            None => first_char(rest)?,
        };
        rest = after;
        Some(code)
    })
}

fn first_char(text: &str) -> Option<(u32, &str)> {
    let mut chars = text.chars();
    Some((u32::from(chars.next()?), chars.as_str()))
}

/// Reads an escape from after its backslash; a surrogate pair is two of them.
fn escaped(after_backslash: &str) -> (u32, &str) {
    let Some((kind, rest)) = first_char(after_backslash) else {
        return (u32::from('\\'), after_backslash);
    };
    let code = match char::from_u32(kind) {
        Some('b') => 0x08,
        Some('f') => 0x0C,
        Some('n') => 0x0A,
        Some('r') => 0x0D,
        Some('t') => 0x09,
        Some('u') => return unit_or_pair(rest).unwrap_or((kind, rest)),
        _ => kind,
    };
    (code, rest)
}

fn unit_or_pair(digits: &str) -> Option<(u32, &str)> {
    let (high, rest) = unit(digits)?;
    if let 0xD800..=0xDBFF = high
        && let Some(second) = rest.strip_prefix("\\u")
        && let Some((low @ 0xDC00..=0xDFFF, rest)) = unit(second)
    {
        return Some((0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00), rest));
    }
    Some((high, rest))
}

/// Four hexadecimal digits.
fn unit(digits: &str) -> Option<(u32, &str)> {
    let (four, rest) = digits.split_at_checked(4)?;
    let value = four.chars().try_fold(0, |value, digit| Some(value << 4 | digit.to_digit(16)?))?;
    Some((value, rest))
}

fn push_code_point(meaning: &mut Vec<u8>, code: u32) {
    match char::from_u32(code) {
        Some(c) => meaning.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => meaning.extend([
            0xE0 | (code >> 12) as u8,
            0x80 | (code >> 6 & 0x3F) as u8,
            0x80 | (code & 0x3F) as u8,
        ]),
    }
}

fn push_unit(body: &mut String, unit: u32) {
    body.push_str(&format!("\\u{unit:04x}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_mean_what_json_says() {
        for (body, meaning) in [
            ("", &b""[..]),
            ("a\u{e9}", "a\u{e9}".as_bytes()),
            (r#"\"\\\/\b\f\n\r\t"#, b"\"\\/\x08\x0C\n\r\t"),
            (r"\u0041\u00e9", "A\u{e9}".as_bytes()),
            (r"\ud83d\ude00", "\u{1F600}".as_bytes()),
            (r"\uD83D\uDE00x", "\u{1F600}x".as_bytes()),
            (r"\ud800", &[0xED, 0xA0, 0x80]),
            (r"\udc00\ud800", &[0xED, 0xB0, 0x80, 0xED, 0xA0, 0x80]),
            (r"\ud800\u0041", &[0xED, 0xA0, 0x80, b'A']),
        ] {
            assert_eq!(unescape(body), meaning, "{body}");
            assert_eq!(unescape(&escape(meaning)), meaning, "{body}");
        }
    }

    fn same(a: &str, b: &str) -> bool {
        super::same(a, b, &mut 0)
    }

    #[test]
    fn strings_are_the_same_by_meaning_not_by_spelling() {
        assert!(same(r"\u0061", "a"));
        assert!(same(r"\ud83d\ude00", "\u{1F600}"));
        assert!(same(r"\/", "/"));
        assert!(!same(r"\ud800", r"\ud801"));
        assert!(!same(r"\ud800", "\u{FFFD}"));
        assert!(!same("a", "b"));
        assert!(!same("a", "ab"));
        assert!(same(r"x\u00e9y", r"x\u00E9y"));
        assert!(!same(r"\ud83d", r"\ud83d\ude00"));
        assert!(!same(r"\ud83d\ude00", r"\ud83d\ude01"));
        assert!(!same(r"abcdefgh\n", r"abcdefghn"));
        assert!(same(r"abcdefgh\u006e0123456789\/", r"abcdefghn0123456789/"));
    }

    #[test]
    fn broken_escapes_are_no_reason_to_panic() {
        for body in ["\\", "\\u", "\\u12", "\\uzzzz", "\\ud800\\u", "\\q"] {
            unescape(body);
        }
        escape(&[0xED]);
        escape(&[0xED, 0xA0]);
        escape(&[0xFF, 0x80]);
    }
}
