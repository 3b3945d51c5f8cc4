//! The table of versions: which write meets which key, and what becomes of it.

use super::*;

const LIMITS: Limits = Limits { state_bytes_max: 100, depth_max: 4, ops_max: 3 };

/// Key at version 5; `base` is what the store kept of the named version.
fn at_five<'a>(
    state: Option<&'a str>,
    base: Option<&'a str>,
    change: Change<'a>,
    base_version: Option<u64>,
    on_conflict: OnConflict,
) -> Result<Outcome<'a>, Refusal> {
    let write = Write { change, base_version, on_conflict };
    resolve(Current { version: 5, state }, base, &write, &LIMITS)
}

fn free<'a>(state: Option<&'a str>, change: Change<'a>) -> Result<Outcome<'a>, Refusal> {
    at_five(state, None, change, None, Reject)
}

fn result(state: &str, merged: bool, differs: bool) -> Result<Outcome<'_>, Refusal> {
    Ok(applied(Some(state.into()), merged, differs))
}

const DELETED: Result<Outcome<'static>, Refusal> =
    Ok(Outcome::Applied { state: None, merged: false, differs: false });
const CONFLICT: Result<Outcome<'static>, Refusal> = Ok(Outcome::Conflict);

use Change::{Delete, Ops, Patch, State};
use OnConflict::{Merge, Overwrite, Reject};

#[test]
fn a_state_without_base_version_wins_and_keeps_its_text() {
    for text in
        ["null", "1.0", "1e400", "12345678901234567890", r#"{ "b" : "\u0041\ud800", "a" : 1, "a" : 2 }"#]
    {
        for current in [None, Some("7"), Some("{}")] {
            for on_conflict in [Reject, Overwrite, Merge] {
                let outcome = at_five(current, None, State(text), None, on_conflict);
                assert_eq!(outcome, result(text, false, false), "{text}");
            }
        }
    }
}

#[test]
fn the_named_version_must_be_current() {
    let here = Some("1");
    let cases = [
        // (current, base version, applied?)
        (here, Some(5), true),
        (here, Some(4), false),
        (here, Some(6), false),
        (here, Some(u64::MAX), false),
        (here, Some(0), false),
        // Deleted at version 5: a client may know of that, or of nothing.
        (None, Some(5), true),
        (None, Some(0), true),
        (None, Some(4), false),
    ];
    for (state, base_version, expected) in cases {
        for change in [State("2"), Patch(r#"{"a":1}"#), Ops(r#"[{"op":"set","path":"","value":2}]"#), Delete]
        {
            let rejecting = at_five(state, None, change, base_version, Reject).unwrap();
            assert_eq!(rejecting != Outcome::Conflict, expected, "{state:?} {base_version:?} {change:?}");
            let overwriting = at_five(state, None, change, base_version, Overwrite).unwrap();
            assert_ne!(overwriting, Outcome::Conflict);
        }
    }
}

#[test]
fn a_key_that_never_was_is_at_version_zero() {
    let current = Current { version: 0, state: None };
    for (base_version, expected) in [(Some(0), result("1", false, false)), (Some(1), CONFLICT)] {
        let write = Write { change: State("1"), base_version, on_conflict: Reject };
        assert_eq!(resolve(current, None, &write, &LIMITS), expected);
    }
}

#[test]
fn an_overtaken_state_is_merged_if_the_base_is_kept() {
    let base = Some(r#"{"a":1,"b":1}"#);
    let theirs = Some(r#"{"a":2,"b":1}"#);
    let ours = State(r#"{"a":1,"b":3}"#);

    let merged = at_five(theirs, base, ours, Some(4), Merge);
    assert_eq!(merged, result(r#"{"a":2,"b":3}"#, true, true));

    assert_eq!(at_five(theirs, None, ours, Some(4), Merge), CONFLICT);
    assert_eq!(at_five(theirs, None, ours, Some(0), Merge), CONFLICT);
    assert_eq!(at_five(theirs, base, ours, Some(0), Merge), CONFLICT);
    assert_eq!(at_five(theirs, base, ours, Some(4), Reject), CONFLICT);
    let overwritten = at_five(theirs, base, ours, Some(4), Overwrite);
    assert_eq!(overwritten, result(r#"{"a":1,"b":3}"#, false, false));
    let current = at_five(theirs, base, ours, Some(5), Merge);
    assert_eq!(current, result(r#"{"a":1,"b":3}"#, false, false));
}

#[test]
fn a_merge_that_comes_to_what_was_sent_keeps_its_text() {
    let ours = r#"{ "b": 1.0, "a": 3 }"#;

    let outcome = at_five(Some(r#"{"a":2,"b":1}"#), Some(r#"{"a":1,"b":1}"#), State(ours), Some(4), Merge);

    assert_eq!(outcome, result(ours, true, false));
}

#[test]
fn a_merge_with_a_deletion_is_decided_at_the_root() {
    let base = Some(r#"{"a":1,"b":1}"#);

    let edited = at_five(None, base, State(r#"{"a":2,"b":1}"#), Some(4), Merge);
    assert_eq!(edited, result(r#"{"a":2,"b":1}"#, true, false));

    let untouched = at_five(None, base, State(r#"{"b":1,"a":1}"#), Some(4), Merge);
    assert_eq!(untouched, Ok(applied(None, true, true)));

    let ours = at_five(Some(r#"{"a":2,"b":1}"#), base, Delete, Some(4), Merge);
    assert_eq!(ours, Ok(applied(None, true, false)));
}

#[test]
fn a_deletion_is_guarded_like_any_write() {
    for (state, base_version, on_conflict, expected) in [
        (Some("1"), None, Reject, DELETED),
        (None, None, Reject, DELETED),
        (Some("1"), Some(5), Reject, DELETED),
        (Some("1"), Some(4), Reject, CONFLICT),
        (Some("1"), Some(4), Overwrite, DELETED),
        (Some("1"), Some(4), Merge, CONFLICT),
        (None, Some(4), Reject, CONFLICT),
    ] {
        assert_eq!(at_five(state, None, Delete, base_version, on_conflict), expected);
    }
}

#[test]
fn patches_and_operations_work_on_whatever_is_there() {
    let patch = Patch(r#"{"a":2,"n":null}"#);
    let ops = Ops(r#"[{"op":"inc","path":"/a","value":1}]"#);
    for (state, change, expected) in [
        (None, patch, r#"{"a":2}"#),
        (Some(r#"{"n":1,"z":1.0}"#), patch, r#"{"z":1.0,"a":2}"#),
        (Some("[1]"), patch, r#"{"a":2}"#),
        (Some("null"), patch, r#"{"a":2}"#),
        (None, ops, r#"{"a":1}"#),
        (Some(r#"{"a":1,"z":1e400}"#), ops, r#"{"a":2,"z":1e400}"#),
    ] {
        assert_eq!(free(state, change), result(expected, false, true));
        for on_conflict in [Merge, Overwrite] {
            let overtaken = at_five(state, None, change, Some(3), on_conflict);
            assert_eq!(overtaken, result(expected, true, true));
        }
        assert_eq!(at_five(state, None, change, Some(3), Reject), CONFLICT);
    }
}

#[test]
fn a_patch_that_is_no_object_replaces_whatever_is_there() {
    for text in ["null", "[1, 2]", "1.0", r#""x""#] {
        assert_eq!(free(Some(r#"{"a":1}"#), Patch(text)), result(text, false, false));
    }
}

#[test]
fn bounds_hold_for_what_is_sent_and_for_what_comes_of_it() {
    const TOO_LARGE: Result<Outcome<'static>, Refusal> =
        Err(Refusal::TooLarge { limit: "LIMIT_STATE_BYTES" });
    let most = format!("\"{}\"", "x".repeat(98));
    let more = format!("\"{}\"", "x".repeat(99));
    assert!(free(None, State(&most)).is_ok());
    assert_eq!(free(None, State(&more)), TOO_LARGE);
    assert_eq!(free(None, Patch(&more)), TOO_LARGE);

    assert!(free(None, State("[[[[1]]]]")).is_ok());
    for deep in ["[[[[[]]]]]", r#"{"a":{"a":{"a":{"a":{}}}}}"#] {
        assert_eq!(free(None, State(deep)), Err(Refusal::TooDeep));
        assert_eq!(free(None, Patch(deep)), Err(Refusal::TooDeep));
    }

    let half = format!(r#"{{"a":"{}"}}"#, "x".repeat(60));
    let other_half = format!(r#"{{"b":"{}"}}"#, "x".repeat(60));
    assert_eq!(free(Some(&half), Patch(&other_half)), TOO_LARGE);
    let ops = format!(r#"[{{"op":"set","path":"/b","value":{most}}}]"#);
    assert_eq!(free(Some(&half), Ops(&ops)), TOO_LARGE);
    let merging = at_five(Some(&half), Some("{}"), State(&other_half), Some(4), Merge);
    assert_eq!(merging, TOO_LARGE);

    let shrinking = format!(r#"{{"a":null,"{}":null}}"#, "x".repeat(200));
    assert_eq!(free(Some(&half), Patch(&shrinking)), result("{}", false, true));
}

#[test]
fn a_malformed_change_is_refused_also_where_versions_conflict() {
    for (change, refusal) in [
        (State("[[[[[]]]]]"), Refusal::TooDeep),
        (Patch("{"), Refusal::InvalidField { field: "patch" }),
        (Ops("{}"), Refusal::InvalidField { field: "ops" }),
    ] {
        assert_eq!(at_five(Some("1"), None, change, Some(1), Reject), Err(refusal));
    }
}

#[test]
fn hundred_thousand_levels_are_refused_wherever_they_come_from() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let limits = Limits { state_bytes_max: usize::MAX, depth_max: usize::MAX, ops_max: usize::MAX };
    for change in [State(&deep), Patch(&deep), Ops(&deep)] {
        let write = Write { change, base_version: None, on_conflict: Reject };
        let current = Current { version: 1, state: Some("1") };
        assert_eq!(resolve(current, None, &write, &limits), Err(Refusal::TooDeep));
    }
    assert_eq!(free(Some(&deep), Patch("{}")), Err(Refusal::TooDeep));
}

#[test]
fn a_broken_stored_state_is_told_apart_from_a_broken_request() {
    assert_eq!(free(Some("{"), Patch("{}")), Err(Refusal::StoredStateBroken));
    assert_eq!(free(Some("{"), State("{}")), result("{}", false, false));
}

#[test]
fn the_base_is_asked_for_only_where_it_decides() {
    let current = Current { version: 5, state: Some("1") };
    for (change, base_version, on_conflict, expected) in [
        (State("2"), Some(4), Merge, true),
        (Delete, Some(4), Merge, true),
        (State("2"), Some(5), Merge, false),
        (State("2"), Some(0), Merge, false),
        (State("2"), None, Merge, false),
        (State("2"), Some(4), Overwrite, false),
        (Patch("{}"), Some(4), Merge, false),
        (Ops("[]"), Some(4), Merge, false),
    ] {
        let write = Write { change, base_version, on_conflict };
        assert_eq!(needs_base(current, &write), expected, "{write:?}");
    }
}
