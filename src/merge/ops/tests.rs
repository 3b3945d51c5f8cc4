//! One table a rule of the operations.

use super::*;
use crate::merge::Limits;
use crate::merge::parse::DEPTH_SAFE;

fn run(state: &str, list: &str) -> Result<String, Refusal> {
    let limits = Limits::default();
    let operations = read(list, limits.ops_max, limits.depth_max)?;
    let mut document = parse(state, DEPTH_SAFE).unwrap();
    apply(&mut document, operations)?;
    Ok(document.to_text())
}

/// Runs one operation: its name, path (JSON text inside quotes) and value.
fn one(state: &str, op: &str, path: &str, value: &str) -> Result<String, Refusal> {
    let list = format!(r#"[{{"op":"{op}","path":"{path}","value":{value}}}]"#);
    run(state, &list)
}

fn assert_table(cases: &[(&str, &str, &str, &str, &str)]) {
    for (state, op, path, value, result) in cases {
        let outcome = one(state, op, path, value);
        assert_eq!(outcome.as_deref(), Ok(*result), "{state} {op} {path} {value}");
    }
}

fn assert_refused(cases: &[(&str, &str, &str, &str, &str)]) {
    for (state, op, path, value, expected) in cases {
        let outcome = one(state, op, path, value);
        assert!(
            matches!(outcome, Err(Refusal::InvalidOperation { index: 0, field, .. }) if field == *expected),
            "{state} {op} {path} {value}: {outcome:?}"
        );
    }
}

#[test]
fn set_replaces_creates_parents_and_appends() {
    assert_table(&[
        ("{}", "set", "/a", "1", r#"{"a":1}"#),
        (r#"{"a":1}"#, "set", "/a", "null", r#"{"a":null}"#),
        ("{}", "set", "/a/b/c", "[1.0]", r#"{"a":{"b":{"c":[1.0]}}}"#),
        ("{}", "set", "/0", "1", r#"{"0":1}"#),
        ("{}", "set", "/", "1", r#"{"":1}"#),
        ("{}", "set", "", "7", "7"),
        ("3", "set", "", r#"{"a":1}"#, r#"{"a":1}"#),
        ("[1,2]", "set", "/0", "9", "[9,2]"),
        ("[1,2]", "set", "/2", "9", "[1,2,9]"),
        ("[1,2]", "set", "/-", "9", "[1,2,9]"),
        ("[]", "set", "/-", "9", "[9]"),
        ("[[1],[2]]", "set", "/1/0", "9", "[[1],[9]]"),
        ("[1]", "set", "/-/a/b", "9", r#"[1,{"a":{"b":9}}]"#),
        (r#"{"a/b":1,"m~n":2}"#, "set", "/a~1b", "3", r#"{"a/b":3,"m~n":2}"#),
        (r#"{"a/b":1,"m~n":2}"#, "set", "/m~0n", "3", r#"{"a/b":1,"m~n":3}"#),
        ("{}", "set", "/__proto__/x", "1", r#"{"__proto__":{"x":1}}"#),
        (r#"{"\u0061":1}"#, "set", "/a", "2", r#"{"\u0061":2}"#),
        ("{}", "set", r"/\ud800", "1", r#"{"\ud800":1}"#),
        (r#"{"\ud800":1}"#, "set", r"/\ud801", "1", r#"{"\ud800":1,"\ud801":1}"#),
        ("{}", "set", r#"/\"\u0001"#, "1", r#"{"\"\u0001":1}"#),
        ("{}", "set", "/-", "1", r#"{"-":1}"#),
    ]);
    assert_refused(&[
        (r#"{"a":1}"#, "set", "/a/b", "1", "path"),
        (r#"{"a":null}"#, "set", "/a/b", "1", "path"),
        (r#""text""#, "set", "/a", "1", "path"),
        ("[1,2]", "set", "/3", "1", "path"),
        ("[1,2]", "set", "/99999999999999999999999", "1", "path"),
        ("[1,2]", "set", "/01", "1", "path"),
        ("[1,2]", "set", "/a", "1", "path"),
        ("[1,2]", "set", "/-1", "1", "path"),
        ("[1,2]", "set", "/", "1", "path"),
        ("{}", "set", "a", "1", "path"),
        ("{}", "set", "/a~2", "1", "path"),
        ("{}", "set", "/a~", "1", "path"),
    ]);
}

#[test]
fn unset_removes_what_is_there_and_minds_nothing_else() {
    assert_table(&[
        (r#"{"a":1,"b":2}"#, "unset", "/a", "0", r#"{"b":2}"#),
        ("{}", "unset", "/a", "0", "{}"),
        ("{}", "unset", "/a/b/c", "0", "{}"),
        ("[1,2,3]", "unset", "/1", "0", "[1,3]"),
        ("[1]", "unset", "/1", "0", "[1]"),
        ("[1]", "unset", "/7", "0", "[1]"),
        ("[1]", "unset", "/-", "0", "[1]"),
        (r#"{"a":[{"b":1}]}"#, "unset", "/a/0/b", "0", r#"{"a":[{}]}"#),
    ]);
    assert_refused(&[
        ("{}", "unset", "", "0", "path"),
        ("[1]", "unset", "/00", "0", "path"),
        ("[1]", "unset", "/a", "0", "path"),
        (r#"{"a":1}"#, "unset", "/a/b", "0", "path"),
        (r#"{"a":1}"#, "unset", "/a/b/c", "0", "path"),
    ]);
    assert_eq!(run(r#"{"a":1}"#, r#"[{"op":"unset","path":"/a"}]"#), Ok("{}".into()));
}

#[test]
fn inc_counts_exactly_from_zero() {
    assert_table(&[
        ("{}", "inc", "/n", "5", r#"{"n":5}"#),
        ("{}", "inc", "/a/n", "-5", r#"{"a":{"n":-5}}"#),
        (r#"{"n":1}"#, "inc", "/n", "2", r#"{"n":3}"#),
        (r#"{"n":12345678901234567890}"#, "inc", "/n", "1", r#"{"n":12345678901234567891}"#),
        (r#"{"n":0.1}"#, "inc", "/n", "0.2", r#"{"n":0.30000000000000004}"#),
        (r#"{"n":1.0}"#, "inc", "/n", "1", r#"{"n":2}"#),
        ("5", "inc", "", "1", "6"),
        ("[1,2]", "inc", "/1", "1", "[1,3]"),
        ("[1]", "inc", "/-", "4", "[1,4]"),
    ]);
    assert_eq!(run("{}", r#"[{"op":"inc","path":"/n"}]"#), Ok(r#"{"n":1}"#.into()));
    assert_refused(&[
        (r#"{"n":"1"}"#, "inc", "/n", "1", "path"),
        (r#"{"n":null}"#, "inc", "/n", "1", "path"),
        ("{}", "inc", "", "1", "path"),
        ("{}", "inc", "/n", r#""1""#, "value"),
        ("{}", "inc", "/n", "null", "value"),
        ("{}", "inc", "/n", "1e400", "value"),
        (r#"{"n":1e308}"#, "inc", "/n", "1e308", "value"),
        (r#"{"n":170141183460469231731687303715884105727}"#, "inc", "/n", "1", "value"),
    ]);
}

#[test]
fn max_and_min_keep_the_digits_of_the_winner() {
    assert_table(&[
        ("{}", "max", "/n", "1.50", r#"{"n":1.50}"#),
        ("{}", "min", "/n", "1e400", r#"{"n":1e400}"#),
        (r#"{"n":5}"#, "max", "/n", "7.0", r#"{"n":7.0}"#),
        (r#"{"n":5}"#, "max", "/n", "3", r#"{"n":5}"#),
        (r#"{"n":5.0}"#, "max", "/n", "5", r#"{"n":5.0}"#),
        (r#"{"n":5}"#, "min", "/n", "7", r#"{"n":5}"#),
        (r#"{"n":5}"#, "min", "/n", "-1e2", r#"{"n":-1e2}"#),
        (r#"{"n":9007199254740992}"#, "max", "/n", "9007199254740993", r#"{"n":9007199254740993}"#),
    ]);
    assert_refused(&[
        (r#"{"n":"a"}"#, "max", "/n", "1", "path"),
        (r#"{"n":1}"#, "min", "/n", r#""a""#, "value"),
        (r#"{"n":1}"#, "max", "/n", "1e99999999999999999999", "value"),
    ]);
}

#[test]
fn add_and_remove_take_an_array_for_a_set_by_meaning() {
    assert_table(&[
        ("{}", "add", "/t", r#""x""#, r#"{"t":["x"]}"#),
        ("{}", "add", "/a/t", "1", r#"{"a":{"t":[1]}}"#),
        (r#"{"t":[1]}"#, "add", "/t", "2", r#"{"t":[1,2]}"#),
        (r#"{"t":[1.0]}"#, "add", "/t", "1", r#"{"t":[1.0]}"#),
        (r#"{"t":["\u0041"]}"#, "add", "/t", r#""A""#, r#"{"t":["\u0041"]}"#),
        ("[]", "add", "", "null", "[null]"),
        (r#"[{"a":1,"b":[2]}]"#, "add", "", r#"{"b":[2.0],"a":1}"#, r#"[{"a":1,"b":[2]}]"#),
        (r#"{"t":[1,2,1.0,1]}"#, "remove", "/t", "1", r#"{"t":[2]}"#),
        (r#"{"t":[1]}"#, "remove", "/t", "2", r#"{"t":[1]}"#),
        ("{}", "remove", "/t", "2", "{}"),
        ("{}", "remove", "/a/t", "2", "{}"),
    ]);
    assert_refused(&[
        (r#"{"t":{}}"#, "add", "/t", "1", "path"),
        (r#"{"t":null}"#, "add", "/t", "1", "path"),
        (r#"{"t":"x"}"#, "remove", "/t", "1", "path"),
        ("{}", "add", "", "1", "path"),
    ]);
}

#[test]
fn a_malformed_list_is_refused_before_anything_is_done() {
    for list in ["{}", "1", "null", r#""[]""#] {
        assert_eq!(run("{}", list), Err(Refusal::InvalidField { field: "ops" }), "{list}");
    }
    for (list, index, expected) in [
        ("[1]", 0, "op"),
        ("[[]]", 0, "op"),
        (r#"[{"path":"/a","value":1}]"#, 0, "op"),
        (r#"[{"op":"SET","path":"/a","value":1}]"#, 0, "op"),
        (r#"[{"op":7,"path":"/a","value":1}]"#, 0, "op"),
        (r#"[{"op":"set","path":"/a","value":1,"from":"/b"}]"#, 0, "op"),
        (r#"[{"op":"set","value":1}]"#, 0, "path"),
        (r#"[{"op":"set","path":7,"value":1}]"#, 0, "path"),
        (r#"[{"op":"set","path":"/a"}]"#, 0, "value"),
        (r#"[{"op":"max","path":"/a"}]"#, 0, "value"),
        (r#"[{"op":"add","path":"/a"}]"#, 0, "value"),
        (r#"[{"op":"remove","path":"/a"}]"#, 0, "value"),
        (r#"[{"op":"unset","path":"/a/b"},{"op":"set","path":"/a"}]"#, 1, "value"),
    ] {
        // The state would refuse the first operation if it were tried.
        let outcome = run(r#"{"a":1}"#, list);
        assert!(
            matches!(outcome, Err(Refusal::InvalidOperation { index: at, field, .. }) if at == index && field == expected),
            "{list}: {outcome:?}"
        );
    }
}

#[test]
fn operations_are_done_in_order_and_see_each_other() {
    let list = r#"[
        {"op":"set","path":"/a","value":{"n":1}},
        {"op":"inc","path":"/a/n","value":2},
        {"op":"add","path":"/t","value":"x"},
        {"op":"unset","path":"/t/0"},
        {"op":"set","path":"/t/-","value":3},
        {"op":"\u0073et","path":"/b","value":0,"value":1}
    ]"#;

    assert_eq!(run("{}", list), Ok(r#"{"a":{"n":3},"t":[3],"b":1}"#.into()));
    assert_eq!(run("{}", "[]"), Ok("{}".into()));
}

#[test]
fn a_refusal_names_the_operation_at_fault() {
    let list = r#"[{"op":"inc","path":"/n"},{"op":"inc","path":"/s"}]"#;

    let refusal = run(r#"{"s":"x"}"#, list).unwrap_err();

    assert_eq!(refusal.to_string(), "ops[1].path the value there has another type");
}

#[test]
fn the_length_of_a_list_is_bounded() {
    let list = |n: usize| format!("[{}]", vec![r#"{"op":"inc","path":"/n"}"#; n].join(","));

    assert_eq!(run("{}", &list(1_000)), Ok(r#"{"n":1000}"#.into()));
    assert_eq!(run("{}", &list(1_001)), Err(Refusal::TooLarge { limit: "ops" }));
}

#[test]
fn nothing_is_put_deeper_than_allowed() {
    let path = |n: usize| "/a".repeat(n);

    assert!(one("{}", "set", &path(64), "1").is_ok());
    assert_eq!(one("{}", "set", &path(65), "1"), Err(Refusal::TooDeep));
    assert!(one("{}", "set", &path(63), "{}").is_ok());
    assert_eq!(one("{}", "set", &path(64), "{}"), Err(Refusal::TooDeep));
    assert_eq!(one("{}", "add", &path(64), "1"), Err(Refusal::TooDeep));
    assert_eq!(one("{}", "set", &path(100_000), "1"), Err(Refusal::TooDeep));
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    assert_eq!(one("{}", "set", "/a", &deep), Err(Refusal::TooDeep));
}

#[test]
fn searching_large_arrays_over_and_over_is_refused() {
    let state = format!("[{}0]", "0,".repeat(130_000));
    let list = |n: usize| {
        let ops: Vec<String> = (1..=n).map(|n| format!(r#"{{"op":"add","path":"","value":{n}}}"#)).collect();
        format!("[{}]", ops.join(","))
    };

    assert!(run(&state, &list(10)).is_ok());
    assert_eq!(run(&state, &list(1_000)), Err(Refusal::TooLarge { limit: "opsWork" }));
}
