//! Three-way merge of documents that both come from one base.
//!
//! Object field by object field, recursively; arrays and scalars are atomic.
//! What only one side changed is taken from that side. Where both changed the
//! same path, edits and deletions alike, `ours` (the later commit) wins it.
//! Both sides making an object where the base had none merge field by field
//! too, so nothing that either of them put there is lost.

use super::json::Json;
use super::object::Object;

/// Turns `theirs` into the merge. It takes time linear in the three sizes.
pub fn merge<'a>(base: &Json<'_>, theirs: &mut Json<'a>, ours: &Json<'a>) {
    merge_value(Some(base), theirs, ours);
}

fn merge_value<'a>(base: Option<&Json<'_>>, theirs: &mut Json<'a>, ours: &Json<'a>) {
    match (theirs, ours) {
        // Never compared as wholes: equal fields merge to themselves, and
        // comparing at every level would cost depth times size.
        (Json::Object(theirs), Json::Object(ours)) => match base {
            Some(Json::Object(base)) => merge_fields(base, theirs, ours),
            _ => merge_fields(&Object::default(), theirs, ours),
        },
        (theirs, ours) => {
            if base != Some(ours) {
                *theirs = ours.clone();
            }
        }
    }
}

fn merge_fields<'a>(base: &Object<'_>, theirs: &mut Object<'a>, ours: &Object<'a>) {
    for (position, (key, _)) in base.iter().enumerate() {
        if ours.get_near(position, key.name()).is_none() {
            theirs.remove(key.name());
        }
    }
    for (position, (key, our_value)) in ours.iter().enumerate() {
        let base_value = base.get_near(position, key.name());
        match theirs.get_near_mut(position, key.name()) {
            Some(their_value) => merge_value(base_value, their_value, our_value),
            // Deleted by them: stays so unless we changed it.
            None if base_value == Some(our_value) => {}
            None => theirs.insert(key.clone(), our_value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::parse::{DEPTH_SAFE, parse};

    fn merged(base: &str, theirs: &str, ours: &str) -> String {
        let [base, mut theirs, ours] = [base, theirs, ours].map(|t| parse(t, DEPTH_SAFE).unwrap());
        merge(&base, &mut theirs, &ours);
        theirs.to_text()
    }

    #[test]
    fn each_path_goes_to_who_changed_it_and_else_to_the_later() {
        let cases = [
            // (rule, base, theirs, ours, merged)
            ("nothing changed", r#"{"a":1}"#, r#"{"a":1}"#, r#"{"a":1}"#, r#"{"a":1}"#),
            ("both add", "{}", r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":1,"b":2}"#),
            (
                "both edit, apart",
                r#"{"a":1,"b":1}"#,
                r#"{"a":2,"b":1}"#,
                r#"{"a":1,"b":3}"#,
                r#"{"a":2,"b":3}"#,
            ),
            ("both edit the same", r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#, r#"{"a":3}"#),
            ("we edit what they deleted", r#"{"a":1}"#, "{}", r#"{"a":2}"#, r#"{"a":2}"#),
            (
                "we delete what they edited",
                r#"{"a":1,"b":1}"#,
                r#"{"a":2,"b":1}"#,
                r#"{"b":1}"#,
                r#"{"b":1}"#,
            ),
            (
                "they delete, we do not touch",
                r#"{"a":1,"b":1}"#,
                r#"{"b":1}"#,
                r#"{"a":1,"b":2}"#,
                r#"{"b":2}"#,
            ),
            ("both delete", r#"{"a":1,"b":1}"#, r#"{"b":1}"#, r#"{"b":1}"#, r#"{"b":1}"#),
            (
                "nested, apart",
                r#"{"a":{"x":1,"y":1}}"#,
                r#"{"a":{"x":2,"y":1}}"#,
                r#"{"a":{"x":1,"y":2}}"#,
                r#"{"a":{"x":2,"y":2}}"#,
            ),
            (
                "arrays are atomic",
                r#"{"a":[1,2]}"#,
                r#"{"a":[1,2,3]}"#,
                r#"{"a":[0,1,2]}"#,
                r#"{"a":[0,1,2]}"#,
            ),
            (
                "an untouched array is theirs",
                r#"{"a":[1]}"#,
                r#"{"a":[1,2]}"#,
                r#"{"a":[1]}"#,
                r#"{"a":[1,2]}"#,
            ),
            (
                "we edit inside what they deleted: all of ours",
                r#"{"a":{"x":1,"y":1}}"#,
                "{}",
                r#"{"a":{"x":2,"y":1}}"#,
                r#"{"a":{"x":2,"y":1}}"#,
            ),
            (
                "we edit inside what they replaced: all of ours",
                r#"{"a":{"x":1,"y":1}}"#,
                r#"{"a":7}"#,
                r#"{"a":{"x":2,"y":1}}"#,
                r#"{"a":{"x":2,"y":1}}"#,
            ),
            (
                "we replace what they edited inside",
                r#"{"a":{"x":1}}"#,
                r#"{"a":{"x":2}}"#,
                r#"{"a":7}"#,
                r#"{"a":7}"#,
            ),
            ("they replace what we left", r#"{"a":{"x":1}}"#, r#"{"a":7}"#, r#"{"a":{"x":1}}"#, r#"{"a":7}"#),
            (
                "both make an object from nothing",
                "{}",
                r#"{"a":{"x":1}}"#,
                r#"{"a":{"y":2}}"#,
                r#"{"a":{"x":1,"y":2}}"#,
            ),
            (
                "both make an object from null",
                r#"{"a":null}"#,
                r#"{"a":{"x":1,"z":1}}"#,
                r#"{"a":{"y":2,"z":2}}"#,
                r#"{"a":{"x":1,"z":2,"y":2}}"#,
            ),
            (
                "null is a value, not a deletion",
                r#"{"a":1}"#,
                r#"{"a":1,"b":1}"#,
                r#"{"a":null}"#,
                r#"{"a":null,"b":1}"#,
            ),
            ("scalars at the root", "1", "2", "3", "3"),
            ("an untouched root is theirs", "1", "2", "1.0", "2"),
            ("kinds at the root", "{}", "[1]", r#"{"a":1}"#, r#"{"a":1}"#),
            (
                "the same number otherwise written is no edit",
                r#"{"a":10}"#,
                r#"{"a":11}"#,
                r#"{"a":1e1}"#,
                r#"{"a":11}"#,
            ),
            (
                "names are compared unescaped",
                r#"{"a":1}"#,
                r#"{"\u0061":2}"#,
                r#"{"a":1,"b":1}"#,
                r#"{"\u0061":2,"b":1}"#,
            ),
            (
                "lone surrogates stay apart",
                r#"{"\ud800":1}"#,
                r#"{"\ud800":1,"\ud801":2}"#,
                r#"{"\ud800":3}"#,
                r#"{"\ud800":3,"\ud801":2}"#,
            ),
            (
                "__proto__ is a name",
                "{}",
                r#"{"__proto__":{"a":1}}"#,
                r#"{"__proto__":{"b":1}}"#,
                r#"{"__proto__":{"a":1,"b":1}}"#,
            ),
        ];
        for (rule, base, theirs, ours, expected) in cases {
            assert_eq!(merged(base, theirs, ours), expected, "{rule}");
        }
    }
}
