//! What holds for all documents, tried on generated ones. The generator makes
//! the awkward ones on purpose: few names (so that sides meet), the same name
//! in several spellings, lone surrogates, numbers no `f64` holds, stray spaces.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { state_bytes_max: 400, depth_max: 5, ops_max: 6 };

fn scalar() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "null",
            "true",
            "false",
            "0",
            "-0",
            "1",
            "1.0",
            "10e-1",
            "1e400",
            "-1e-400",
            "12345678901234567890",
            "9007199254740993",
            "\"\"",
            "\"a\"",
            r#""\u0061""#,
            r#""\ud800""#,
            r#""\ud83d\ude00""#,
            "\"\u{1F600}\"",
            r#""[{\"\\""#,
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|n| n.to_string()),
        "\"[ a-z\u{e9}]{0,6}\"",
    ]
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a",
        r"\u0061",
        "b",
        "c",
        "",
        "0",
        "__proto__",
        r"\ud800",
        r"\ud801",
        "a/b",
        "~",
        "\u{e9}",
    ])
}

fn space() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", "", " ", "\n\t"])
}

fn json() -> impl Strategy<Value = String> {
    scalar().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..5), space())
                .prop_map(|(items, space)| format!("[{space}{}]", items.join(&format!("{space},")))),
            fields(inner),
        ]
    })
}

fn fields(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    // Past eight fields an object finds its names another way.
    (prop::collection::vec((name(), value), 0..12), space()).prop_map(|(fields, space)| {
        let fields: Vec<String> =
            fields.into_iter().map(|(name, value)| format!("\"{name}\"{space}:{space}{value}")).collect();
        format!("{{{}{space}}}", fields.join(","))
    })
}

fn object() -> impl Strategy<Value = String> {
    fields(json())
}

fn ops() -> impl Strategy<Value = String> {
    let op = prop::sample::select(vec!["set", "unset", "inc", "max", "min", "add", "remove", "move"]);
    let step = prop::sample::select(vec!["a", "b", "0", "1", "-", "~1", "~", r"\ud800", ""]);
    let path = prop::collection::vec(step, 0..4)
        .prop_map(|steps| steps.iter().map(|step| format!("/{step}")).collect::<String>());
    let value = prop_oneof![scalar(), json()];
    let operation = (op, path, value)
        .prop_map(|(op, path, value)| format!(r#"{{"op":"{op}","path":"{path}","value":{value}}}"#));
    prop::collection::vec(operation, 0..7).prop_map(|list| format!("[{}]", list.join(",")))
}

#[derive(Debug, Clone)]
enum Sent {
    State(String),
    Patch(String),
    Ops(String),
    Delete,
}

impl Sent {
    fn change(&self) -> Change<'_> {
        match self {
            Sent::State(text) => Change::State(text),
            Sent::Patch(text) => Change::Patch(text),
            Sent::Ops(text) => Change::Ops(text),
            Sent::Delete => Change::Delete,
        }
    }
}

fn sent_change() -> impl Strategy<Value = Sent> {
    prop_oneof![
        json().prop_map(Sent::State),
        json().prop_map(Sent::Patch),
        ops().prop_map(Sent::Ops),
        Just(Sent::Delete),
    ]
}

fn on_conflict() -> impl Strategy<Value = OnConflict> {
    prop::sample::select(vec![OnConflict::Reject, OnConflict::Overwrite, OnConflict::Merge])
}

fn tree(text: &str) -> Json<'_> {
    parse(text, DEPTH_SAFE).unwrap()
}

fn patched(target: &str, patch: &str) -> String {
    let mut document = tree(target);
    patch::apply(&mut document, tree(patch));
    document.to_text()
}

fn merged(base: &str, theirs: &str, ours: &str) -> String {
    let mut document = tree(theirs);
    three_way::merge(&tree(base), &mut document, &tree(ours));
    document.to_text()
}

fn same(a: &str, b: &str) -> Result<(), TestCaseError> {
    prop_assert_eq!(tree(a), tree(b));
    Ok(())
}

/// The scalars of a text, in order, read without the parser under test.
fn scalars(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.bytes().next() {
        let len = match first {
            b'"' => {
                let mut escaped = false;
                let inside = rest[1..].bytes().take_while(|&byte| {
                    let go_on = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                    go_on
                });
                inside.count() + 2
            }
            b'[' | b']' | b'{' | b'}' | b',' | b':' | b' ' | b'\n' | b'\t' => {
                rest = &rest[1..];
                continue;
            }
            _ => rest.find([',', ']', '}', ' ', '\n', '\t']).unwrap_or(rest.len()),
        };
        found.push(&rest[..len]);
        rest = &rest[len..];
    }
    found
}

fn ops_write(list: &str) -> Write<'_> {
    Write { change: Change::Ops(list), base_version: None, on_conflict: OnConflict::Reject }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_parser_accepts_what_the_wire_accepts(text in prop_oneof![
        json(),
        "[\\[\\]{},:\"a\\\\u0-9.eE+\\- tn]{0,12}",
    ]) {
        let raw: Result<&serde_json::value::RawValue, _> = serde_json::from_str(&text);
        prop_assert_eq!(parse(&text, DEPTH_SAFE).is_ok(), raw.is_ok());
    }

    #[test]
    fn reading_and_writing_keeps_every_scalar(text in prop::collection::vec(json(), 0..4)) {
        // Arrays only at the top; objects may repeat names, so write once first.
        let once = tree(&format!("[{}]", text.join(" , "))).to_text();
        prop_assert_eq!(&tree(&once).to_text(), &once);
        prop_assert_eq!(tree(&once).depth(), depth(&once));
        for (text, written) in text.iter().zip(text.iter().map(|t| tree(t).to_text())) {
            if !text.contains('{') {
                prop_assert_eq!(scalars(text), scalars(&written));
            }
            same(text, &written)?;
        }
    }

    #[test]
    fn equality_is_symmetric_and_follows_any_spelling(a in json(), b in json()) {
        prop_assert_eq!(tree(&a) == tree(&b), tree(&b) == tree(&a));
        same(&a, &tree(&a).to_text())?;
    }

    #[test]
    fn what_one_side_left_alone_is_the_other_sides(base in json(), x in json()) {
        same(&merged(&base, &base, &x), &x)?;
        same(&merged(&base, &x, &base), &x)?;
    }

    #[test]
    fn equal_edits_merge_to_that_edit(base in json(), x in json()) {
        same(&merged(&base, &x, &x), &x)?;
    }

    #[test]
    fn a_merge_is_settled(base in json(), theirs in json(), ours in json()) {
        // Merging ours once more into the result changes nothing.
        let once = merged(&base, &theirs, &ours);
        same(&merged(&base, &once, &ours), &once)?;
    }

    #[test]
    fn edits_of_different_fields_all_survive_in_either_order(
        base in object(), left in json(), right in json(),
    ) {
        let edit = |name: &str, value: &str| {
            let patch = format!(r#"[{{"op":"set","path":"/{name}","value":{value}}}]"#);
            let mut document = tree(&base);
            ops::apply(&mut document, ops::read(&patch, 1, DEPTH_SAFE).unwrap()).unwrap();
            document.to_text()
        };
        let theirs = edit("left", &left);
        let ours = edit("right", &right);

        let result = merged(&base, &theirs, &ours);

        same(&result, &merged(&base, &ours, &theirs))?;
        let Json::Object(fields) = tree(&result) else { panic!("an object") };
        prop_assert_eq!(fields.get(b"left"), Some(&tree(&left)));
        prop_assert_eq!(fields.get(b"right"), Some(&tree(&right)));
    }

    #[test]
    fn patches_of_different_fields_commute(target in json(), a in json(), b in json()) {
        let a = format!(r#"{{"left":{a},"both":{{"a":{a}}}}}"#);
        let b = format!(r#"{{"right":{b},"both":{{"b":{b}}}}}"#);

        let forth = patched(&patched(&target, &a), &b);
        let back = patched(&patched(&target, &b), &a);

        same(&forth, &back)?;
    }

    #[test]
    fn a_patch_done_twice_is_done_once(target in json(), patch in json()) {
        let once = patched(&target, &patch);
        same(&patched(&once, &patch), &once)?;
    }

    #[test]
    fn a_list_is_done_as_a_whole_or_refused(state in json(), list in ops()) {
        let current = Current { version: 1, state: Some(&state) };

        let whole = resolve(current, None, &ops_write(&list), &Limits::default());

        let items: Vec<&serde_json::value::RawValue> = serde_json::from_str(&list).unwrap();
        let mut state = Ok(state.clone());
        for item in items {
            let Ok(text) = &state else { break };
            let current = Current { version: 1, state: Some(text) };
            let single = format!("[{item}]");
            state = match resolve(current, None, &ops_write(&single), &Limits::default()) {
                Ok(Outcome::Applied { state: Some(state), .. }) => Ok(state.into_owned()),
                refused => Err(format!("{refused:?}")),
            };
        }

        match (&whole, &state) {
            (Ok(Outcome::Applied { state: Some(text), .. }), Ok(expected)) => {
                same(text, expected)?;
            }
            (Err(_), Err(_)) => {}
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn every_write_has_an_outcome_within_the_limits(
        state in prop::option::of(json()),
        base in prop::option::of(json()),
        sent in sent_change(),
        version in 0_u64..3,
        base_version in prop::option::of(0_u64..3),
        on_conflict in on_conflict(),
    ) {
        let current = Current { version, state: state.as_deref() };
        let write = Write { change: sent.change(), base_version, on_conflict };

        let outcome = resolve(current, base.as_deref(), &write, &LIMITS);

        if let Ok(Outcome::Applied { state: Some(text), differs, .. }) = &outcome {
            prop_assert!(text.len() <= LIMITS.state_bytes_max);
            prop_assert!(depth(text) <= LIMITS.depth_max);
            prop_assert!(parse(text, DEPTH_SAFE).is_ok());
            if let (Sent::State(text_sent), false) = (&sent, differs) {
                prop_assert_eq!(text_sent, text);
            }
        }
        prop_assert_ne!(outcome, Err(Refusal::StoredStateBroken));
        if !needs_base(current, &write) {
            prop_assert_eq!(
                resolve(current, None, &write, &LIMITS),
                resolve(current, base.as_deref(), &write, &LIMITS)
            );
        }
    }

    #[test]
    fn text_that_is_not_json_is_refused_without_panic(text in any::<String>(), op in sent_change()) {
        let write = |change| Write { change, base_version: Some(1), on_conflict: OnConflict::Merge };
        let current = |state| Current { version: 2, state: Some(state) };
        for change in [Change::Patch(&text), Change::Ops(&text), Change::State(&text)] {
            drop(resolve(current("{}"), Some("{}"), &write(change), &LIMITS));
        }
        drop(resolve(current(&text), Some(&text), &write(op.change()), &LIMITS));
    }
}
