//! From JSON text (RFC 8259) to a tree, in one pass. Accepts exactly what the
//! wire's JSON decoder accepts, and two things more of what JSON allows: lone
//! surrogates and numbers of any size, which stay text.
//!
//! Recursion is bounded here and nowhere else: a tree that exists is shallow
//! enough to be walked, compared and dropped by recursion.

use std::borrow::Cow;

use thiserror::Error;

use super::json::Json;
use super::object::{Key, Object};

/// The deepest tree there is, whatever the settings allow: recursion over it
/// fits the stack of a worker thread (2 MiB) many times over, also unoptimised.
pub const DEPTH_SAFE: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseError {
    #[error("nested too deep")]
    TooDeep,
    #[error("not JSON")]
    NotJson,
}

/// Reads one value, spaces around it allowed. A scalar has depth 0.
pub fn parse(text: &str, depth_max: usize) -> Result<Json<'_>, ParseError> {
    let mut reader = Reader { text, at: 0, depth_left: depth_max.min(DEPTH_SAFE) };
    let value = reader.value()?;
    match reader.next_token() {
        None => Ok(value),
        Some(_) => Err(ParseError::NotJson),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth_left: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self) -> Result<Json<'a>, ParseError> {
        match self.next_token() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => {
                let start = self.at;
                self.string()?;
                Ok(self.scalar_from(start))
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => self.word(),
            None => Err(ParseError::NotJson),
        }
    }

    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<Json<'a>, ParseError>,
    ) -> Result<Json<'a>, ParseError> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or(ParseError::TooDeep)?;
        self.at += 1;
        let value = read(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    fn array(&mut self) -> Result<Json<'a>, ParseError> {
        let mut items = Vec::new();
        if self.next_token() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.ends_with(b']')? {
                return Ok(Json::Array(items));
            }
        }
    }

    fn object(&mut self) -> Result<Json<'a>, ParseError> {
        let mut fields = Vec::new();
        if self.next_token() == Some(b'}') {
            self.at += 1;
            return Ok(Json::empty_object());
        }
        loop {
            if self.next_token() != Some(b'"') {
                return Err(ParseError::NotJson);
            }
            let key = Key::written(self.string()?);
            if self.next_token() != Some(b':') {
                return Err(ParseError::NotJson);
            }
            self.at += 1;
            fields.push((key, Some(self.value()?)));
            if self.ends_with(b'}')? {
                return Ok(Json::Object(Box::new(Object::from_fields(fields))));
            }
        }
    }

    /// After an element: true at the end of its container, false at a comma.
    fn ends_with(&mut self, close: u8) -> Result<bool, ParseError> {
        let token = self.next_token().ok_or(ParseError::NotJson)?;
        self.at += 1;
        match token {
            b',' => Ok(false),
            token if token == close => Ok(true),
            _ => Err(ParseError::NotJson),
        }
    }

    /// From the opening quote past the closing one; returns what is between.
    fn string(&mut self) -> Result<&'a str, ParseError> {
        let start = self.at + 1;
        self.at = start;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            self.at += rest
                .iter()
                .position(|byte| matches!(byte, b'"' | b'\\' | 0..b' '))
                .ok_or(ParseError::NotJson)?;
            let found = self.byte();
            self.at += 1;
            match found {
                Some(b'"') => return Ok(&self.text[start..self.at - 1]),
                Some(b'\\') => self.escape()?,
                _ => return Err(ParseError::NotJson),
            }
        }
    }

    fn escape(&mut self) -> Result<(), ParseError> {
        let kind = self.byte().ok_or(ParseError::NotJson)?;
        self.at += 1;
        match kind {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => {
                let digits = self.text.as_bytes().get(self.at..self.at + 4);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(ParseError::NotJson);
                }
                self.at += 4;
                Ok(())
            }
            _ => Err(ParseError::NotJson),
        }
    }

    fn number(&mut self) -> Result<Json<'a>, ParseError> {
        let start = self.at;
        self.pass(b'-');
        if !self.pass(b'0') {
            self.digits()?;
        }
        if self.pass(b'.') {
            self.digits()?;
        }
        if self.pass(b'e') || self.pass(b'E') {
            let _sign = self.pass(b'+') || self.pass(b'-');
            self.digits()?;
        }
        Ok(self.scalar_from(start))
    }

    /// At least one.
    fn digits(&mut self) -> Result<(), ParseError> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        match self.at > start {
            true => Ok(()),
            false => Err(ParseError::NotJson),
        }
    }

    fn word(&mut self) -> Result<Json<'a>, ParseError> {
        let rest = &self.text.as_bytes()[self.at..];
        let word = ["null", "true", "false"]
            .into_iter()
            .find(|word| rest.starts_with(word.as_bytes()))
            .ok_or(ParseError::NotJson)?;
        self.at += word.len();
        Ok(Json::Scalar(Cow::Borrowed(word)))
    }

    fn scalar_from(&self, start: usize) -> Json<'a> {
        Json::Scalar(Cow::Borrowed(&self.text[start..self.at]))
    }

    /// The next byte that is not a space, not consumed.
    fn next_token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.byte() {
            self.at += 1;
        }
        self.byte()
    }

    /// Consumes the next byte if it is `wanted`.
    fn pass(&mut self, wanted: u8) -> bool {
        let there = self.byte() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            " ",
            "[",
            "]",
            "{",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "1e+",
            "+1",
            "nul",
            "nulls",
            "True",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u12",
            "\"\n\"",
            "1 2",
            "[1}",
            "{\"a\":1]",
            "\u{feff}1",
            "\u{a0}1",
            "-01",
            "NaN",
            "'a'",
        ] {
            assert_eq!(parse(text, DEPTH_SAFE), Err(ParseError::NotJson), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded_whatever_is_asked() {
        assert!(parse("[[1]]", 2).is_ok());
        assert_eq!(parse("[[[]]]", 2), Err(ParseError::TooDeep));
        assert_eq!(parse("[1]", 0), Err(ParseError::TooDeep));
        assert!(parse("[[],[],{}]", 2).is_ok());

        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(parse(&deep, usize::MAX), Err(ParseError::TooDeep));

        let deepest = "[".repeat(DEPTH_SAFE) + &"]".repeat(DEPTH_SAFE);
        let tree = parse(&deepest, usize::MAX).unwrap();
        assert_eq!(tree.clone(), tree);
        assert_eq!(tree.depth(), DEPTH_SAFE);
        assert_eq!(tree.to_text(), deepest);
    }
}
