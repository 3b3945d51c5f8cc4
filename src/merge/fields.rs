//! The fields of a JSON object, for whoever needs a few of them as they mean and
//! passes the rest on as it came. Unlike serde's values these hold all that JSON
//! allows: numbers of any size, and strings with half of a surrogate pair, as
//! JavaScript makes them where it cuts an emoji in two.

use super::json::Json;
use super::parse::parse;
use super::string;

/// Containers around a value at most: as many as serde takes.
const DEPTH_MAX: usize = 127;

/// One field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name, with U+FFFD for each lone surrogate.
    pub name: String,
    /// Its name as it was written, without the quotes.
    written: String,
    /// Its value as JSON: as it was written, but for spaces.
    pub value: String,
}

/// What a JSON string says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// With U+FFFD for each lone surrogate.
    pub text: String,
    /// It has none.
    pub is_whole: bool,
}

/// The fields of the object that `json` is, in their order, each name once with
/// its last value; nothing when it is no object, or nested too deep.
pub fn fields(json: &str) -> Option<Vec<Field>> {
    let Ok(Json::Object(object)) = parse(json, DEPTH_MAX) else { return None };
    let field = |(key, value): (super::object::Key<'_>, Json<'_>)| Field {
        name: lossy(key.name()).text,
        written: key.body().to_owned(),
        value: value.to_text(),
    };
    Some(object.into_fields().map(field).collect())
}

/// The value of the field of that name, as JSON.
pub fn value<'a>(fields: &'a [Field], name: &str) -> Option<&'a str> {
    fields.iter().find(|field| field.name == name).map(|field| field.value.as_str())
}

/// The object that has these fields.
pub fn object<'a>(fields: impl IntoIterator<Item = &'a Field>) -> String {
    let fields: Vec<_> =
        fields.into_iter().map(|Field { written, value, .. }| format!("\"{written}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// What the string says that `json`, which is known to be JSON, is; nothing when
/// it is no string.
pub fn text(json: &str) -> Option<Text> {
    let body = json.trim().strip_prefix('"')?.strip_suffix('"')?;
    Some(lossy(&string::unescape(body)))
}

fn lossy(meaning: &[u8]) -> Text {
    let (mut text, mut is_whole) = (String::with_capacity(meaning.len()), true);
    for chunk in meaning.utf8_chunks() {
        text.push_str(chunk.valid());
        // A lone surrogate is ED xx yy; each byte comes as a chunk of its own.
        if chunk.invalid() == [0xED] {
            text.push('\u{fffd}');
        }
        is_whole &= chunk.invalid().is_empty();
    }
    Text { text, is_whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stay_what_they_were() {
        let json = r#" { "a" : [1e400, 12345678901234567890.10], "\ud800b":"\ud83d", "a":{"x" : "\u0041"}} "#;
        let fields = fields(json).unwrap();
        let names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["a", "\u{fffd}b"]);
        assert_eq!(object(&fields), r#"{"a":{"x":"\u0041"},"\ud800b":"\ud83d"}"#);
        assert_eq!(object([]), "{}");
    }

    #[test]
    fn what_is_no_object_has_no_fields() {
        for none in ["", "[]", "null", "{", "{}{}", "\"a\"", "{\"a\":01}"] {
            assert_eq!(fields(none), None, "{none}");
        }
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(fields(&nested(126)).is_some() && fields(&nested(127)).is_none());
    }

    #[test]
    fn half_a_surrogate_pair_is_one_replacement_character() {
        for (json, said, is_whole) in [
            (r#""plain""#, "plain", true),
            (r#""\ud83d\ude00\n""#, "\u{1F600}\n", true),
            (r#""a\ud83d""#, "a\u{fffd}", false),
            (r#""\ude00\ud83d!""#, "\u{fffd}\u{fffd}!", false),
        ] {
            assert_eq!(text(json), Some(Text { text: said.to_owned(), is_whole }), "{json}");
        }
        assert_eq!((text("1"), text("null"), text("[\"a\"]")), (None, None, None));
    }
}
