//! What can be told of a JSON text without parsing it: how deep it nests and
//! how many elements it lists. One pass, no recursion, no allocation, so both
//! are safe to ask of anything a client sends before any work is done on it.
//! Expects text that is already known to be JSON; of other text the answers
//! mean nothing, but nothing panics.

/// How many containers enclose the innermost one, itself included: a scalar
/// is 0, `{}` is 1, `[[]]` is 2.
pub fn depth(text: &str) -> usize {
    let mut open = 0_usize;
    let mut deepest = 0;
    for mark in marks(text) {
        match mark {
            b'{' | b'[' => {
                open += 1;
                deepest = deepest.max(open);
            }
            b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether an array lists more than `max` elements; stops reading at the one
/// too many. False for anything but an array.
pub fn lists_more_than(text: &str, max: usize) -> bool {
    let Some(inside) = text.trim_start().strip_prefix('[') else {
        return false;
    };
    if inside.trim_start().starts_with(']') {
        return false;
    }
    let mut open = 1_usize;
    let mut elements = 1_usize;
    for mark in marks(inside) {
        if elements > max {
            return true;
        }
        match mark {
            b'{' | b'[' => open += 1,
            b'}' | b']' => open = open.saturating_sub(1),
            _ if open == 1 => elements += 1,
            _ => {}
        }
    }
    elements > max
}

/// The brackets, braces and commas of `text` that are not inside a string.
fn marks(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut bytes = text.bytes();
    std::iter::from_fn(move || {
        loop {
            match bytes.next()? {
                mark @ (b'{' | b'}' | b'[' | b']' | b',') => return Some(mark),
                b'"' => loop {
                    match bytes.next()? {
                        b'"' => break,
                        b'\\' => _ = bytes.next()?,
                        _ => {}
                    }
                },
                _ => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_nested_containers_and_nothing_inside_strings() {
        for (text, expected) in [
            ("1", 0),
            (r#""[[{""#, 0),
            ("{}", 1),
            ("[[],[[]]]", 3),
            (r#"{"a\"[[[":[{"b":1}],"c":{}}"#, 3),
            (r#"["\\",[]]"#, 2),
        ] {
            assert_eq!(depth(text), expected, "{text}");
        }
    }

    #[test]
    fn depth_of_a_hundred_thousand_levels_needs_no_stack() {
        let text = "[".repeat(100_000) + &"]".repeat(100_000);

        assert_eq!(depth(&text), 100_000);
    }

    #[test]
    fn elements_are_counted_at_the_top_only() {
        for (text, elements) in [("[]", 0), (" [ ] ", 0), ("[1]", 1), (r#"[[1,2,3],{"a":1,"b":2},",,,"]"#, 3)]
        {
            assert!(!lists_more_than(text, elements), "{text}");
            if elements > 0 {
                assert!(lists_more_than(text, elements - 1), "{text}");
            }
        }
        assert!(!lists_more_than(r#"{"a":1,"b":2}"#, 0));
    }

    #[test]
    fn unfinished_text_is_no_reason_to_panic() {
        for text in ["", "[", "\"", "\"\\", "]]]", "[1,", "{\"a"] {
            depth(text);
            lists_more_than(text, 0);
        }
    }
}
