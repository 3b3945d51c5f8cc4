//! A snapshot as clients get it: in `session-restored`, in the ack of
//! `session-get` and from `GET /api/session`.
//!
//! States are copied verbatim. A full snapshot lists what exists; a delta lists
//! what changed since the client's position, deletions under `removed`.

use std::sync::Arc;

use crate::model::Seq;
use crate::store::{Entry, Snapshot};
use crate::wire::json;

/// A snapshot as text, and what else a restore needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// See [`fields`].
    pub fields: Arc<str>,
    /// Everything up to here is in it.
    pub seq: Seq,
    /// It holds only what changed since the position asked from.
    pub delta: bool,
}

impl Restore {
    /// The snapshot as text.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self { fields: fields(snapshot).into(), seq: snapshot.seq, delta: snapshot.delta }
    }

    /// `full` or `delta`.
    pub fn mode(&self) -> &'static str {
        if self.delta { "delta" } else { "full" }
    }
}

/// The fields every answer shares, without the braces around them:
/// `"sessionData":{...},"versions":{...},"seq":n,"epoch":"...","removed":[...]`.
pub fn fields(snapshot: &Snapshot) -> String {
    let bytes: usize =
        snapshot.entries.iter().map(|entry| entry.state.as_deref().map_or(0, str::len) + 160).sum();
    let mut text = String::with_capacity(bytes + 128);
    text.push_str("\"sessionData\":{");
    join(&mut text, present(snapshot), |text, entry| {
        text.push_str(&json(&entry.key));
        text.push(':');
        text.push_str(entry.state.as_deref().unwrap_or("null"));
    });
    text.push_str("},\"versions\":{");
    join(&mut text, present(snapshot), |text, entry| {
        text.push_str(&json(&entry.key));
        text.push(':');
        text.push_str(&entry.version.to_string());
    });
    text.push_str(&format!("}},\"seq\":{},\"epoch\":{},\"removed\":[", snapshot.seq, json(&snapshot.epoch)));
    let removed = snapshot.entries.iter().filter(|entry| entry.state.is_none());
    join(&mut text, removed, |text, entry| text.push_str(&json(&entry.key)));
    text.push(']');
    text
}

fn present(snapshot: &Snapshot) -> impl Iterator<Item = &Entry> {
    snapshot.entries.iter().filter(|entry| entry.state.is_some())
}

fn join<'a>(
    text: &mut String,
    entries: impl Iterator<Item = &'a Entry>,
    write: impl Fn(&mut String, &'a Entry),
) {
    for (index, entry) in entries.enumerate() {
        if index > 0 {
            text.push(',');
        }
        write(text, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, SessionKey, Timestamp, Version};

    fn entry(key: &str, state: Option<&str>) -> Entry {
        Entry {
            key: SessionKey::parse(key).unwrap(),
            version: Version(3),
            seq: Seq(5),
            state: state.map(Into::into),
            device: None,
            updated_at: Timestamp(0),
        }
    }

    #[test]
    fn states_are_verbatim_and_deletions_are_listed_apart() {
        let entries = vec![entry("a", Some("{\"n\": 1.0}")), entry("b", None), entry("c", Some("null"))];
        let snapshot = Snapshot { epoch: Epoch("e".into()), seq: Seq(5), delta: true, entries };
        assert_eq!(
            fields(&snapshot),
            r#""sessionData":{"a":{"n": 1.0},"c":null},"versions":{"a":3,"c":3},"seq":5,"epoch":"e","removed":["b"]"#
        );
    }
}
