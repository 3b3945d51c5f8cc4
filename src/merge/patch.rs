//! RFC 7396, JSON merge patch: an object patches field by field, `null`
//! removes, anything else replaces.

use super::json::Json;

/// Patches `target` in place. A target that is no object is taken as `{}` by
/// a patch that is one.
pub fn apply<'a>(target: &mut Json<'a>, patch: Json<'a>) {
    let Json::Object(changes) = patch else {
        *target = patch;
        return;
    };
    if !matches!(target, Json::Object(_)) {
        *target = Json::empty_object();
    }
    let Json::Object(fields) = target else {
        return;
    };
    for (key, change) in changes.into_fields() {
        if change.is_null() {
            fields.remove(key.name());
        } else if let Some(field) = fields.get_mut(key.name()) {
            apply(field, change);
        } else {
            // Through `apply` as well: nulls inside a new object go too.
            let mut field = Json::empty_object();
            apply(&mut field, change);
            fields.insert(key, field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::parse::{DEPTH_SAFE, parse};

    #[test]
    fn patches_do_what_the_examples_of_rfc_7396_say() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let mut json = parse(target, DEPTH_SAFE).unwrap();
            apply(&mut json, parse(patch, DEPTH_SAFE).unwrap());
            assert_eq!(json.to_text(), result, "{target} {patch}");
        }
    }
}
