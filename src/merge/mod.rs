//! What a write makes of what is there: the rules of PROTOCOL.md, promise 4,
//! as one pure function. No I/O, no clock, no randomness: the same arguments
//! give the same outcome on every node.
//!
//! Texts go in and texts come out, so what nothing touches (the digits of a
//! number, the escapes of a string) leaves as it came. Versions, sequence
//! numbers, history and opIds belong to the store; the words of the wire to
//! whoever answers the client.

mod fields;
mod json;
mod number;
mod object;
mod ops;
mod outline;
mod parse;
mod patch;
mod pointer;
mod string;
mod three_way;

use std::borrow::Cow;

use thiserror::Error;

use json::Json;
use ops::Operation;
use parse::{DEPTH_SAFE, ParseError, parse};

pub use fields::{Field, Text, fields, object, text, value};
pub use number::whole;
pub use outline::depth;

/// Bounds of a stored state and of what is sent to change it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// UTF-8 bytes of a state's text (`LIMIT_STATE_BYTES`).
    pub state_bytes_max: usize,
    /// Containers around a value; a scalar is at depth 0. Past 512 it stays 512.
    pub depth_max: usize,
    /// Operations in one write.
    pub ops_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { state_bytes_max: 256 * 1024, depth_max: 64, ops_max: 1_000 }
    }
}

/// What a write does. Every text is one JSON value, known to be valid (it came
/// through a JSON decoder as raw text).
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Replaces the state.
    State(&'a str),
    /// An RFC 7396 merge patch.
    Patch(&'a str),
    /// A list of operations (see `ops.rs`).
    Ops(&'a str),
    /// Removes the key.
    Delete,
}

/// What becomes of a write whose `base_version` is no longer the current one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The write is refused with what is current.
    #[default]
    Reject,
    /// The write is applied all the same.
    Overwrite,
    /// The write is combined with what it did not see.
    Merge,
}

/// A write and what it assumes.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// What to do.
    pub change: Change<'a>,
    /// The version the write was made on; 0 for "there must be no such key".
    pub base_version: Option<u64>,
    /// What to do when the key has moved on.
    pub on_conflict: OnConflict,
}

/// A key as the store has it.
#[derive(Debug, Clone, Copy)]
pub struct Current<'a> {
    /// Changes so far, deletions included; 0 for a key that never was.
    pub version: u64,
    /// None: never was, or deleted.
    pub state: Option<&'a str>,
}

/// What becomes of a write that is sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// A new version, also if nothing changed.
    Applied {
        /// None: the key is deleted.
        state: Option<Cow<'a, str>>,
        /// The write was combined with versions its sender had not seen.
        merged: bool,
        /// The sender cannot know `state` from what it sent: tell it.
        differs: bool,
    },
    /// Nothing happens; the sender is told what is current.
    Conflict,
}

/// Why a write is not sound.
#[expect(missing_docs, reason = "each field is explained with its variant")]
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Of what was sent or of what it would make. `limit`: `LIMIT_STATE_BYTES`,
    /// `ops` (too many operations) or `opsWork` (they search too much).
    #[error("too large: {limit}")]
    TooLarge { limit: &'static str },
    #[error("nested too deep")]
    TooDeep,
    /// Operation number `index`, from 0. `field` is `op`, `path` or `value`.
    #[error("ops[{index}].{field} {reason}")]
    InvalidOperation { index: usize, field: &'static str, reason: &'static str },
    #[error("{field} is not what it must be")]
    InvalidField { field: &'static str },
    /// The store gave a text that is not JSON. No client can cause it.
    #[error("the stored state is not JSON")]
    StoredStateBroken,
}

/// Decides one write. `base` is the kept state of `write.base_version`: None if
/// it is not kept, was a deletion, or no version was named. It is only read
/// where `needs_base` says so.
///
/// A change that is malformed or too big is refused whatever the versions are.
pub fn resolve<'a>(
    current: Current<'a>,
    base: Option<&'a str>,
    write: &Write<'a>,
    limits: &Limits,
) -> Result<Outcome<'a>, Refusal> {
    let change = Readied::read(write.change, limits)?;
    if !overtaken(current, write) {
        return apply(change, current.state, false, limits);
    }
    match write.on_conflict {
        OnConflict::Reject => Ok(Outcome::Conflict),
        OnConflict::Overwrite => apply(change, current.state, true, limits),
        OnConflict::Merge => match (change, kept(base, write)) {
            (Readied::State(_) | Readied::Delete, None) => Ok(Outcome::Conflict),
            (Readied::State(ours), Some(base)) => merge_state(base, current.state, ours, limits),
            // Whatever they did to the root, we deleted it later.
            (Readied::Delete, Some(_)) => Ok(applied(None, true, false)),
            (change, _) => apply(change, current.state, true, limits),
        },
    }
}

/// Whether `resolve` will look at the base: only then is it worth loading.
pub fn needs_base(current: Current<'_>, write: &Write<'_>) -> bool {
    write.on_conflict == OnConflict::Merge
        && matches!(write.change, Change::State(_) | Change::Delete)
        && write.base_version != Some(0)
        && overtaken(current, write)
}

/// Checks the bounds of a state, or of any other text that has the same.
pub fn check(text: &str, limits: &Limits) -> Result<(), Refusal> {
    check_bounds(text.len(), depth(text), limits)
}

fn check_bounds(bytes: usize, depth: usize, limits: &Limits) -> Result<(), Refusal> {
    if bytes > limits.state_bytes_max {
        return Err(Refusal::TooLarge { limit: "LIMIT_STATE_BYTES" });
    }
    if depth > limits.depth() {
        return Err(Refusal::TooDeep);
    }
    Ok(())
}

impl Limits {
    fn depth(&self) -> usize {
        self.depth_max.min(DEPTH_SAFE)
    }
}

/// A change that has been read and found sound.
enum Readied<'a> {
    State(&'a str),
    Patch(Json<'a>),
    /// A patch that is no object: like a state, but on whatever is there.
    Replacement(&'a str),
    Ops(Vec<Operation<'a>>),
    Delete,
}

impl<'a> Readied<'a> {
    fn read(change: Change<'a>, limits: &Limits) -> Result<Self, Refusal> {
        match change {
            Change::State(text) => {
                check(text, limits)?;
                Ok(Readied::State(text))
            }
            // A patch may be longer than a state (it can remove more than
            // fits): the frame bounds it, and the result is checked.
            Change::Patch(text) => match sent(text, "patch", limits)? {
                patch @ Json::Object(_) => Ok(Readied::Patch(patch)),
                _ => {
                    check(text, limits)?;
                    Ok(Readied::Replacement(text))
                }
            },
            Change::Ops(text) => ops::read(text, limits.ops_max, limits.depth()).map(Readied::Ops),
            Change::Delete => Ok(Readied::Delete),
        }
    }
}

fn overtaken(current: Current<'_>, write: &Write<'_>) -> bool {
    match write.base_version {
        None => false,
        Some(0) => current.state.is_some(),
        Some(version) => version != current.version,
    }
}

/// The base to merge from. Version 0 has none, whatever the store may say.
fn kept<'a>(base: Option<&'a str>, write: &Write<'_>) -> Option<&'a str> {
    base.filter(|_| write.base_version != Some(0))
}

/// Does `change` to whatever is there.
fn apply<'a>(
    change: Readied<'a>,
    state: Option<&'a str>,
    overtaken: bool,
    limits: &Limits,
) -> Result<Outcome<'a>, Refusal> {
    match change {
        Readied::Delete => Ok(applied(None, false, false)),
        Readied::State(text) | Readied::Replacement(text) => Ok(applied(Some(text.into()), false, false)),
        Readied::Patch(patch) => {
            let mut document = document(state)?;
            patch::apply(&mut document, patch);
            Ok(applied(Some(bounded(&document, limits)?), overtaken, true))
        }
        Readied::Ops(operations) => {
            let mut document = document(state)?;
            ops::apply(&mut document, operations)?;
            Ok(applied(Some(bounded(&document, limits)?), overtaken, true))
        }
    }
}

/// Three-way, against what may be a deletion by them.
fn merge_state<'a>(
    base: &'a str,
    theirs: Option<&'a str>,
    ours: &'a str,
    limits: &Limits,
) -> Result<Outcome<'a>, Refusal> {
    let base = stored(base)?;
    let our_document = sent(ours, "state", limits)?;
    let Some(theirs) = theirs else {
        // They deleted the root: it stays deleted unless we changed it.
        let untouched = our_document == base;
        let state = (!untouched).then_some(Cow::Borrowed(ours));
        return Ok(applied(state, true, untouched));
    };
    let mut merged = stored(theirs)?;
    three_way::merge(&base, &mut merged, &our_document);
    // What was sent, if it comes to that: its text is what the sender has.
    if merged == our_document {
        return Ok(applied(Some(ours.into()), true, false));
    }
    Ok(applied(Some(bounded(&merged, limits)?), true, true))
}

fn applied(state: Option<Cow<'_, str>>, merged: bool, differs: bool) -> Outcome<'_> {
    Outcome::Applied { state, merged, differs }
}

/// The state to work on: a missing one is `{}`.
fn document(state: Option<&str>) -> Result<Json<'_>, Refusal> {
    state.map_or(Ok(Json::empty_object()), stored)
}

/// A text of the store's. Its depth was checked under the limits of its day.
fn stored(text: &str) -> Result<Json<'_>, Refusal> {
    parse(text, DEPTH_SAFE).map_err(|error| match error {
        ParseError::TooDeep => Refusal::TooDeep,
        ParseError::NotJson => Refusal::StoredStateBroken,
    })
}

/// A text of the client's.
fn sent<'a>(text: &'a str, field: &'static str, limits: &Limits) -> Result<Json<'a>, Refusal> {
    parse(text, limits.depth()).map_err(|error| match error {
        ParseError::TooDeep => Refusal::TooDeep,
        ParseError::NotJson => Refusal::InvalidField { field },
    })
}

/// The text of a result, which has the bounds of a state.
fn bounded(document: &Json<'_>, limits: &Limits) -> Result<Cow<'static, str>, Refusal> {
    let text = document.to_text();
    check_bounds(text.len(), document.depth(), limits)?;
    Ok(Cow::Owned(text))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
