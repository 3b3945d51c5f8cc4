//! RFC 6901 JSON pointers: where in a document an operation works.

use super::string;

/// The steps from the root to a place; none of them for the root itself.
/// A step is a field's name in WTF-8 (see `string.rs`), escapes resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    steps: Vec<Vec<u8>>,
}

/// What a step means to an array of some length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// One that is there.
    Existing(usize),
    /// The one after the last, written as `-` or as the length.
    AfterLast,
    /// One beyond that.
    Beyond,
}

impl Pointer {
    /// From the body of a JSON string. None for a pointer that RFC 6901 does
    /// not know: no leading slash, or `~` without `0` or `1`.
    pub fn read(body: &str) -> Option<Self> {
        let text = string::unescape(body);
        if text.is_empty() {
            return Some(Self { steps: Vec::new() });
        }
        let steps = text.strip_prefix(b"/")?.split(|&byte| byte == b'/');
        let steps = steps.map(unescape_step).collect::<Option<_>>()?;
        Some(Self { steps })
    }

    /// How many containers enclose the place.
    pub fn depth(&self) -> usize {
        self.steps.len()
    }

    pub fn steps(&self) -> &[Vec<u8>] {
        &self.steps
    }

    /// The steps to the container, and the one inside it. None for the root.
    pub fn split_last(&self) -> Option<(&[u8], &[Vec<u8>])> {
        let (last, parents) = self.steps.split_last()?;
        Some((last, parents))
    }
}

/// Reads a step as an index into an array of `len` elements. None if it is no
/// index: RFC 6901 wants decimal digits without leading zeros, or `-`.
pub fn element(step: &[u8], len: usize) -> Option<Element> {
    if step == b"-" {
        return Some(Element::AfterLast);
    }
    let leading_zero = step.len() > 1 && step[0] == b'0';
    if step.is_empty() || leading_zero || !step.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let index = step
        .iter()
        .try_fold(0_usize, |index, digit| index.checked_mul(10)?.checked_add(usize::from(digit - b'0')));
    Some(match index {
        Some(index) if index < len => Element::Existing(index),
        Some(index) if index == len => Element::AfterLast,
        _ => Element::Beyond,
    })
}

fn unescape_step(step: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(step.len());
    let mut bytes = step.iter();
    while let Some(&byte) = bytes.next() {
        name.push(match byte {
            b'~' => match bytes.next()? {
                b'0' => b'~',
                b'1' => b'/',
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_read_as_rfc_6901_says() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("/", &[""]),
            ("/a/b", &["a", "b"]),
            ("/a//b/", &["a", "", "b", ""]),
            ("/a~1b/m~0n/~01", &["a/b", "m~n", "~1"]),
            ("/ /%25", &[" ", "%25"]),
            (r#"/\"/\\"#, &["\"", "\\"]),
            (r"\u002fa\/b", &["a", "b"]),
            ("/__proto__", &["__proto__"]),
        ];
        for (body, steps) in cases {
            let pointer = Pointer::read(body).unwrap();
            let expected: Vec<Vec<u8>> = steps.iter().map(|s| s.as_bytes().to_vec()).collect();
            assert_eq!(pointer.steps(), expected, "{body}");
        }
        for body in ["a", "a/b", " /a", "/~", "/~2", "/a~", "#/a", "~1a"] {
            assert_eq!(Pointer::read(body), None, "{body}");
        }
    }

    #[test]
    fn array_steps_are_digits_without_leading_zeros() {
        for (step, expected) in [
            ("0", Some(Element::Existing(0))),
            ("2", Some(Element::Existing(2))),
            ("3", Some(Element::AfterLast)),
            ("-", Some(Element::AfterLast)),
            ("4", Some(Element::Beyond)),
            ("99999999999999999999999", Some(Element::Beyond)),
            ("", None),
            ("00", None),
            ("01", None),
            ("-1", None),
            ("+1", None),
            ("1.0", None),
            ("a", None),
        ] {
            assert_eq!(element(step.as_bytes(), 3), expected, "{step}");
        }
    }
}
