//! The payload of an event, field by field, with the field's name in every
//! complaint. Values that are passed on stay the text they were.

use std::fmt;

use serde::de::value::MapDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::failure::{Code, Failure, Outcome};
use crate::merge;

/// An event's name and its first argument.
#[derive(Debug)]
pub struct Named<'a> {
    /// The event's name.
    pub name: String,
    /// Its payload; nothing when it came without.
    pub payload: Option<&'a RawValue>,
}

/// Reads `["name", payload, ...]`. More arguments are ignored, as they were by
/// the replaced server.
///
/// # Errors
/// `invalid_json` when it is no JSON array that starts with a name.
pub fn named(json: &str) -> Outcome<Named<'_>> {
    let invalid =
        || Failure::new(Code::InvalidJson, "An event is a JSON array that starts with the event's name.");
    let arguments: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| invalid())?;
    let name = arguments.first().and_then(|name| merge::text(name.get())).ok_or_else(invalid)?;
    Ok(Named { name: name.text, payload: arguments.get(1).copied() })
}

/// Containers around a value that is passed on.
const DEPTH_MAX: usize = 64;

/// Looks that what is passed on is nested no deeper than a state may be.
///
/// # Errors
/// `too_deep`.
pub fn bounded_depth(json: &str) -> Outcome<()> {
    if merge::depth(json) > DEPTH_MAX {
        return Err(Failure::new(Code::TooDeep, "It is nested too deep.").with("limit", "depth"));
    }
    Ok(())
}

/// Reads a payload that must be an object of the shape `T`.
///
/// # Errors
/// `invalid_field` for what is no such object; `invalid_json` for what is no
/// JSON.
pub fn object<'a, T: Deserialize<'a>>(payload: Option<&'a RawValue>) -> Outcome<T> {
    let payload = payload.ok_or_else(|| Failure::field("payload", "The event needs a payload."))?;
    if !payload.get().starts_with('{') {
        return Err(Failure::field("payload", "The payload must be an object."));
    }
    read(payload.get()).map_err(|error| {
        Failure::field("payload", format!("The payload cannot be read: {}.", reason(&error)))
    })
}

/// Reads an object of the shape `T`. Fields that it has no use for may have any
/// name that JSON allows, half of a surrogate pair included.
///
/// # Errors
/// Those of the JSON parser.
pub fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, serde_json::Error> {
    serde_json::from_str(json).or_else(|error| {
        let Ok(Nameable(fields)) = serde_json::from_str(json) else { return Err(error) };
        T::deserialize(MapDeserializer::new(fields.into_iter()))
    })
}

/// The fields of an object that have a name in Unicode.
struct Nameable<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Nameable<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NameableVisitor).map(Self)
    }
}

struct NameableVisitor;

impl<'de> Visitor<'de> for NameableVisitor {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((Name(name), value)) = map.next_entry()? {
            fields.extend(String::from_utf8(name).ok().map(|name| (name, value)));
        }
        Ok(fields)
    }
}

/// A name as bytes: serde_json writes a lone surrogate into them as it would any
/// other code point, which is no UTF-8.
struct Name(Vec<u8>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(NameVisitor).map(Self)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Vec<u8>, E> {
        Ok(name.to_vec())
    }
}

/// What serde says, without the place in a text that the client never saw.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line").next().unwrap_or_default().to_owned()
}

/// For `#[serde(deserialize_with)]`: a field that is there, `null` included.
///
/// # Errors
/// Those of the JSON parser.
pub fn present<'de, D>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error>
where
    D: Deserializer<'de>,
{
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A field that must be there.
///
/// # Errors
/// `invalid_field`.
pub fn required<'a>(value: Option<&'a RawValue>, name: &str) -> Outcome<&'a RawValue> {
    value.ok_or_else(|| Failure::field(name, format!("{name} is missing.")))
}

/// A field of type `T`, if it is there and not null.
///
/// # Errors
/// `invalid_field` naming what it must be.
pub fn optional<'a, T: Deserialize<'a>>(
    value: Option<&'a RawValue>,
    name: &str,
    expected: &str,
) -> Outcome<Option<T>> {
    let Some(value) = value.filter(|value| value.get() != "null") else { return Ok(None) };
    let parsed = serde_json::from_str(value.get());
    parsed.map(Some).map_err(|_| Failure::field(name, format!("{name} must be {expected}.")))
}

/// A whole number from 0, if it is there and not null; it may be written as `3.0`.
///
/// # Errors
/// `invalid_field` naming what it must be.
pub fn whole(value: Option<&RawValue>, name: &str, expected: &str) -> Outcome<Option<u64>> {
    let Some(value) = value.filter(|value| value.get() != "null") else { return Ok(None) };
    let number = merge::whole(value.get());
    number.map(Some).ok_or_else(|| Failure::field(name, format!("{name} must be {expected}.")))
}

/// A string that must be there.
///
/// # Errors
/// `invalid_field`.
pub fn string(value: Option<&RawValue>, name: &str) -> Outcome<String> {
    let value = required(value, name)?;
    serde_json::from_str(value.get()).map_err(|_| Failure::field(name, format!("{name} must be a string.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_name_and_a_payload() {
        let event = named(r#"["session-update",{"a": 1},"more"]"#).unwrap();
        assert_eq!((event.name.as_str(), event.payload.unwrap().get()), ("session-update", r#"{"a": 1}"#));
        assert!(named(r#"["alone"]"#).unwrap().payload.is_none());
        for bad in ["", "{}", "[]", "[1]", "[null]", r#"[{"a":1}]"#, "[\"a\"", "[\"a\",]"] {
            assert_eq!(named(bad).unwrap_err().code, Code::InvalidJson, "{bad}");
        }
    }

    #[test]
    fn null_is_a_value_and_absence_is_not() {
        #[derive(Deserialize)]
        struct Payload<'a> {
            #[serde(borrow, default, deserialize_with = "present")]
            state: Option<&'a RawValue>,
        }
        let read = |text: &str| {
            let raw: Box<RawValue> = RawValue::from_string(text.to_owned()).unwrap();
            object::<Payload<'_>>(Some(&raw)).unwrap().state.map(|state| state.get().to_owned())
        };
        assert_eq!(read(r#"{"state":null}"#).as_deref(), Some("null"));
        assert_eq!(read("{}"), None);
    }
}
