//! A JSON value as a tree that keeps what it does not understand: scalars stay
//! the text they were (`1.0`, `1e400` and twenty-digit integers included) and
//! objects keep the order of their keys. Reading is in `parse.rs`.
//!
//! Equality is of meaning: objects in any order, numbers by exact value,
//! strings by what their escapes say. Functions here recurse; `parse` bounds
//! the depth of every tree, so the stack is safe.

use std::borrow::Cow;

use super::number;
use super::object::Object;
use super::string;

#[derive(Debug, Clone)]
pub enum Json<'a> {
    /// `null`, `true`, `false`, a number or a string with its quotes.
    Scalar(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    /// Boxed, so that a list of scalars stays small.
    Object(Box<Object<'a>>),
}

impl<'a> Json<'a> {
    pub fn empty_object() -> Self {
        Json::Object(Box::default())
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Json::Scalar(text) if text == "null")
    }

    /// The text of a number.
    pub fn as_number(&self) -> Option<&str> {
        match self {
            Json::Scalar(text) if kind(text) == Kind::Number => Some(text),
            _ => None,
        }
    }

    /// As `as_number`, keeping the text.
    pub fn into_number(self) -> Option<Cow<'a, str>> {
        match self {
            Json::Scalar(text) if kind(&text) == Kind::Number => Some(text),
            _ => None,
        }
    }

    /// The body of a string: its text without the quotes.
    pub fn as_string(&self) -> Option<&str> {
        match self {
            Json::Scalar(text) if kind(text) == Kind::String => Some(body(text)),
            _ => None,
        }
    }

    /// As `outline::depth` of its text.
    pub fn depth(&self) -> usize {
        match self {
            Json::Scalar(_) => 0,
            Json::Array(items) => 1 + items.iter().map(Json::depth).max().unwrap_or(0),
            Json::Object(fields) => {
                let deepest = fields.iter().map(|(_, value)| value.depth()).max();
                1 + deepest.unwrap_or(0)
            }
        }
    }

    /// The shortest text: no space between tokens.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) {
        match self {
            Json::Scalar(scalar) => text.push_str(scalar),
            Json::Array(items) => {
                text.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        text.push(',');
                    }
                    item.write(text);
                }
                text.push(']');
            }
            Json::Object(fields) => {
                text.push('{');
                for (i, (key, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        text.push(',');
                    }
                    text.push('"');
                    text.push_str(key.body());
                    text.push_str("\":");
                    value.write(text);
                }
                text.push('}');
            }
        }
    }

    /// Equality that adds to `steps` what it cost, in units of roughly the
    /// time one small scalar takes, for callers that compare many times.
    pub fn equals(&self, other: &Json<'_>, steps: &mut usize) -> bool {
        *steps += 1;
        match (self, other) {
            (Json::Scalar(a), Json::Scalar(b)) => same_scalar(a, b, steps),
            (Json::Array(a), Json::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b, steps))
            }
            (Json::Object(a), Json::Object(b)) => {
                a.len() == b.len()
                    && a.iter().enumerate().all(|(position, (key, a))| {
                        *steps += 1 + key.name().len() / 16;
                        b.get_near(position, key.name()).is_some_and(|b| a.equals(b, steps))
                    })
            }
            _ => false,
        }
    }
}

impl PartialEq for Json<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other, &mut 0)
    }
}

#[derive(PartialEq)]
enum Kind {
    String,
    Number,
    Word,
}

fn kind(text: &str) -> Kind {
    match text.as_bytes().first() {
        Some(b'"') => Kind::String,
        Some(b'-' | b'0'..=b'9') => Kind::Number,
        _ => Kind::Word,
    }
}

fn same_scalar(a: &str, b: &str, steps: &mut usize) -> bool {
    match (kind(a), kind(b)) {
        (Kind::String, Kind::String) => string::same(body(a), body(b), steps),
        (Kind::Number, Kind::Number) => number::same(a, b, steps),
        _ => a == b,
    }
}

fn body(quoted: &str) -> &str {
    quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(quoted)
}

#[cfg(test)]
mod tests {
    use super::super::parse::{DEPTH_SAFE, parse};

    #[test]
    fn equality_is_of_meaning() {
        for (a, b) in [
            (r#"{"a":1,"b":[2]}"#, r#"{ "b": [2.0], "a": 1e0 }"#),
            (r#""\u0041""#, r#""A""#),
            (r#"{"\u0061":1}"#, r#"{"a":1}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("-0", "0"),
        ] {
            assert_eq!(parse(a, DEPTH_SAFE), parse(b, DEPTH_SAFE), "{a} {b}");
        }
        for (a, b) in [
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            (r#"{"a":1}"#, r#"{"b":1}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":1}"#),
            ("1", r#""1""#),
            ("null", "false"),
            ("null", r#""null""#),
            ("[]", "{}"),
            (r#"{"\ud800":1}"#, r#"{"\ud801":1}"#),
        ] {
            assert_ne!(parse(a, DEPTH_SAFE), parse(b, DEPTH_SAFE), "{a} {b}");
        }
    }

    #[test]
    fn writing_is_compact_and_keeps_order_and_scalars() {
        for (text, compact) in [
            (" [ 1 , 1.0 , 1e400 ] ", "[1,1.0,1e400]"),
            ("12345678901234567890", "12345678901234567890"),
            (r#"{ "b" : "\u0041\/" , "a" : null }"#, r#"{"b":"\u0041\/","a":null}"#),
            (r#"{"\ud800":1,"\udc00":2}"#, r#"{"\ud800":1,"\udc00":2}"#),
            (r#"{"a":1,"b":2,"\u0061":3}"#, r#"{"a":3,"b":2}"#),
            (r#"{"__proto__":{"x":1}}"#, r#"{"__proto__":{"x":1}}"#),
        ] {
            assert_eq!(parse(text, DEPTH_SAFE).unwrap().to_text(), compact);
        }
    }
}
