//! The mark by which a sent event is recognised wherever it comes back: `<tag>:<number>` inside a JSON string.
//! The tag belongs to one run, so nothing stored by an earlier run is mistaken for this one's; the number is
//! the event's place in the schedule, which alone tells when it should have been sent.

use std::hash::{BuildHasher, Hasher, RandomState};

use memchr::memmem::Finder;

/// One run's tag.
pub struct Marks {
    tag: String,
    finder: Finder<'static>,
}

impl Marks {
    /// A tag no other run has, in all likelihood (40 random bits).
    pub fn random() -> Self {
        let random = RandomState::new().build_hasher().finish();
        Self::with_tag(&format!("tl{:010x}", random & 0xFF_FFFF_FFFF))
    }

    fn with_tag(tag: &str) -> Self {
        let finder = Finder::new(&format!("{tag}:")).into_owned();
        Self { tag: tag.to_owned(), finder }
    }

    /// Also fit for e-mail addresses and device names: letters and digits only.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The number of the event in `body`, if this run sent it.
    pub fn find(&self, body: &[u8]) -> Option<u64> {
        let start = self.finder.find(body)? + self.tag.len() + 1;
        let digits = &body[start..];
        let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_the_server_puts_it() {
        let marks = Marks::with_tag("tlabc");
        assert_eq!(marks.find(br#"["e",{"payload":{"mark":"tlabc:120"},"x":7}]"#), Some(120));
        assert_eq!(marks.find(br#"["e",{"mark":"tlabd:120"}]"#), None);
        assert_eq!(marks.find(b"tlabc:"), None);
    }

    #[test]
    fn tags_are_plain_and_differ() {
        let (one, other) = (Marks::random(), Marks::random());
        assert!(one.tag().bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(one.tag(), other.tag());
    }
}
