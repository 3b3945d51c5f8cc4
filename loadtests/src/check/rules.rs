//! The promises as rules over a history. Each rule names what it found and the lines that show it; a test has a broken
//! history for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::history::{History, Outcome, Write};

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule, in one word or two.
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

type Rule = fn(&History) -> Vec<String>;

/// Every rule by its name.
pub const RULES: &[(&str, Rule)] = &[
    ("acked is stored", acked_is_stored),
    ("versions", versions_are_unique_and_whole),
    ("monotone", devices_go_forward),
    ("read your writes", devices_read_their_writes),
    ("final states", everybody_ends_alike),
    ("applied once", increments_count_once),
    ("one winner", one_winner_a_base),
    ("isolation", nothing_is_foreign),
    ("one content", versions_have_one_content),
    ("messages", messages_arrive),
];

/// Everything that breaks a rule.
pub fn judge(history: &History) -> Vec<Violation> {
    let found = RULES.iter().map(|(rule, judge)| (*rule, judge(history)));
    found.flat_map(|(rule, found)| found.into_iter().map(move |what| Violation { rule, what })).collect()
}

struct Acked<'a> {
    write: &'a Write,
    place: usize,
    version: u64,
    seq: u64,
}

fn acked(history: &History) -> impl Iterator<Item = Acked<'_>> {
    history.writes.iter().filter_map(|write| match &write.outcome {
        Outcome::Acked { place, version, seq, .. } => {
            Some(Acked { write, place: *place, version: *version, seq: *seq })
        }
        _ => None,
    })
}

/// What was acknowledged is in the store: as a version that it keeps, or below those that it keeps.
fn acked_is_stored(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for Acked { write, place, version, seq } in acked(history) {
        let Some(store) = history.stores.get(&write.user) else {
            found.push(format!("line {place}: the store knows nothing of {}", write.user));
            continue;
        };
        if seq > store.seq {
            found.push(format!("line {place}: seq {seq} was acked and the store's head is {}", store.seq));
        }
        let kept: Vec<_> = store.history.iter().filter(|kept| kept.key == write.key).collect();
        let oldest = kept.iter().map(|kept| kept.version).min();
        match kept.iter().find(|kept| kept.version == version) {
            None if oldest.is_none_or(|oldest| version > oldest) => {
                found.push(format!(
                    "line {place}: {} version {version} was acked and is not stored",
                    write.key
                ));
            }
            Some(kept) if kept.seq != seq => {
                found.push(format!(
                    "line {place}: {} version {version} was acked as seq {seq} and is stored as {}",
                    write.key, kept.seq
                ));
            }
            Some(kept) if write.op == "state" && kept.state != write.value => {
                found.push(format!(
                    "lines {} and {place}: {} version {version} is stored with another state",
                    write.place, write.key
                ));
            }
            _ => {}
        }
    }
    found
}

/// No two writes share a version of a key or a seq of a user, and what is kept has no holes.
fn versions_are_unique_and_whole(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let (mut versions, mut seqs) = (BTreeMap::new(), BTreeMap::new());
    for Acked { write, place, version, seq } in acked(history) {
        if let Some(other) = versions.insert((&write.user, &write.key, version), place) {
            found.push(format!("lines {other} and {place}: both are {} version {version}", write.key));
        }
        if let Some(other) = seqs.insert((&write.user, seq), place) {
            found.push(format!("lines {other} and {place}: both are seq {seq} of {}", write.user));
        }
    }
    for (user, store) in &history.stores {
        let mut kept: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        let mut seqs = BTreeSet::new();
        for row in &store.history {
            if !kept.entry(&row.key).or_default().insert(row.version) {
                found.push(format!("store of {user}: {} version {} twice", row.key, row.version));
            }
            if !seqs.insert(row.seq) {
                found.push(format!("store of {user}: seq {} twice", row.seq));
            }
        }
        for (key, versions) in kept {
            let (Some(first), Some(last)) = (versions.first(), versions.last()) else { continue };
            if last - first + 1 != versions.len() as u64 {
                found.push(format!("store of {user}: {key} has holes between versions {first} and {last}"));
            }
            if let Some(current) = store.versions.get(key).filter(|current| *current != last) {
                found.push(format!("store of {user}: {key} is at version {current}, its history at {last}"));
            }
        }
    }
    found
}

/// A device sees changes in the order of their seqs, each once, and no restore takes it back.
fn devices_go_forward(history: &History) -> Vec<String> {
    let mut events: Vec<(usize, &str, u64, bool)> =
        history.seen.iter().map(|seen| (seen.place, seen.device.as_str(), seen.seq, false)).collect();
    events.extend(
        history
            .restores
            .iter()
            .map(|restored| (restored.place, restored.device.as_str(), restored.seq, true)),
    );
    events.sort_unstable();
    let mut found = Vec::new();
    let mut last: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (place, device, seq, is_restore) in events {
        if let Some((before, known)) = last.get(device) {
            if is_restore && seq < *known {
                found.push(format!(
                    "lines {before} and {place}: {device} saw seq {known} and was restored to {seq}"
                ));
            } else if !is_restore && seq <= *known {
                found.push(format!("lines {before} and {place}: {device} saw seq {seq} after {known}"));
            }
        }
        last.insert(device, (place, seq));
    }
    found
}

/// A restore holds what its device was told is durable before.
fn devices_read_their_writes(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut own: BTreeMap<&str, Vec<Acked<'_>>> = BTreeMap::new();
    for write in acked(history) {
        own.entry(&write.write.device).or_default().push(write);
    }
    for restored in history.restores.iter().filter(|restored| restored.full) {
        for Acked { write, place, version, .. } in own.get(restored.device.as_str()).into_iter().flatten() {
            // A key that is not there was deleted later; that it was is for other rules.
            let shown = restored.versions.get(&write.key);
            if *place < restored.place && shown.is_some_and(|shown| shown < version) {
                found.push(format!(
                    "lines {place} and {}: {} wrote {} version {version} and was shown {}",
                    restored.place,
                    restored.device,
                    write.key,
                    shown.copied().unwrap_or(0)
                ));
            }
        }
        if let Some(last) = own.get(restored.device.as_str()).and_then(|own| {
            own.iter().filter(|write| write.place < restored.place).map(|write| write.seq).max()
        }) && restored.seq < last
        {
            found.push(format!(
                "line {}: {} had an ack of seq {last} and was restored to {}",
                restored.place, restored.device, restored.seq
            ));
        }
    }
    found
}

/// When all is quiet, every device shows what the store holds, byte for byte.
fn everybody_ends_alike(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for last in &history.finals {
        let Some(store) = history.stores.get(&last.user) else {
            found.push(format!("{} has no store to compare with", last.user));
            continue;
        };
        let keys: BTreeSet<_> = last.states.keys().chain(store.states.keys()).collect();
        for key in keys {
            let (shown, stored) = (last.states.get(key), store.states.get(key));
            if shown != stored {
                found.push(format!(
                    "{} shows {key} as {} and the store has {}",
                    last.device,
                    text(shown),
                    text(stored)
                ));
            }
        }
    }
    found
}

fn text(state: Option<&String>) -> String {
    state.map_or("nothing".to_owned(), |state| state.chars().take(80).collect())
}

/// A counter that is only ever counted up stands at what was acknowledged, or above by what nobody knows of.
fn increments_count_once(history: &History) -> Vec<String> {
    let mut counted: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for write in history.writes.iter().filter(|write| write.op == "inc") {
        let (sure, open) = counted.entry((&write.user, &write.key)).or_default();
        match write.outcome {
            Outcome::Acked { .. } => *sure += 1,
            Outcome::Open => *open += 1,
            Outcome::Refused { .. } => {}
        }
    }
    let mut found = Vec::new();
    for ((user, key), (sure, open)) in counted {
        let state = history.stores.get(user).and_then(|store| store.states.get(key));
        let stands: Option<serde_json::Value> = state.and_then(|state| serde_json::from_str(state).ok());
        let stands = stands.and_then(|state| state.get("n").and_then(serde_json::Value::as_u64)).unwrap_or(0);
        if stands < sure || stands > sure + open {
            found.push(format!(
                "{key} of {user} stands at {stands}: {sure} increments were acked, {open} are open"
            ));
        }
    }
    found
}

/// Of the writes that name one base version at most one is applied; on 0, which says that the key is not there, one until
/// the key is deleted again.
fn one_winner_a_base(history: &History) -> Vec<String> {
    let mut winners = BTreeMap::new();
    let mut makers: BTreeMap<(&str, &str), Vec<(u64, usize)>> = BTreeMap::new();
    let mut found = Vec::new();
    for Acked { write, place, version, .. } in acked(history) {
        let Some(base) = write.base else { continue };
        if base == 0 {
            makers.entry((&write.user, &write.key)).or_default().push((version, place));
            continue;
        }
        if let Some(other) = winners.insert((&write.user, &write.key, base), place) {
            found.push(format!("lines {other} and {place}: both won on {} version {base}", write.key));
        }
        if version != base + 1 {
            found.push(format!(
                "line {place}: a write on version {base} of {} became version {version}",
                write.key
            ));
        }
    }
    for ((user, key), mut made) in makers {
        made.sort_unstable();
        let kept = history.stores.get(user).map(|store| store.history.as_slice()).unwrap_or_default();
        for pair in made.windows(2) {
            let ((first, one), (second, other)) = (pair[0], pair[1]);
            let between: Vec<_> = kept
                .iter()
                .filter(|row| row.key == key && first < row.version && row.version < second)
                .collect();
            let is_known = between.len() as u64 == second - first - 1;
            if is_known && between.iter().all(|row| row.state.is_some()) {
                found
                    .push(format!("lines {one} and {other}: both made {key}, and nobody deleted it between"));
            }
        }
    }
    found
}

/// States carry their owner's name: no device sees another's.
fn nothing_is_foreign(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |place: usize, user: &str, state: &str| {
        let state: Option<serde_json::Value> = serde_json::from_str(state).ok();
        if let Some(owner) = state.as_ref().and_then(|state| state.get("u")).and_then(|owner| owner.as_str())
            && owner != user
        {
            found.push(format!("line {place}: {user} was shown a state of {owner}"));
        }
    };
    for seen in &history.seen {
        if let Some(state) = &seen.state {
            look(seen.place, &seen.user, state);
        }
    }
    for restored in &history.restores {
        restored.states.values().for_each(|state| look(restored.place, &restored.user, state));
    }
    let owners: BTreeMap<_, _> = history.messages.iter().map(|sent| (&sent.id, sent)).collect();
    for got in &history.got {
        match owners.get(&got.id) {
            Some(sent) if sent.user == got.user && sent.to == got.device => {}
            Some(sent) => {
                found.push(format!("line {}: {} got a message for {}", got.place, got.device, sent.to))
            }
            None => found.push(format!("line {}: {} got a message that nobody sent", got.place, got.device)),
        }
    }
    found
}

/// Whoever sees a version of a key sees the same state.
fn versions_have_one_content(history: &History) -> Vec<String> {
    let mut contents: BTreeMap<(&str, &str, u64), (String, Option<&str>)> = BTreeMap::new();
    let mut found = Vec::new();
    let mut look = |place: String, user, key, version, state| {
        let (other, known) = contents.entry((user, key, version)).or_insert((place.clone(), state));
        if *known != state {
            found.push(format!("{other} and {place}: {key} version {version} has two contents"));
        }
    };
    for (user, store) in &history.stores {
        for kept in &store.history {
            look(
                format!("store of {user}"),
                user.as_str(),
                kept.key.as_str(),
                kept.version,
                kept.state.as_deref(),
            );
        }
    }
    for seen in &history.seen {
        look(format!("line {}", seen.place), &seen.user, &seen.key, seen.version, seen.state.as_deref());
    }
    for restored in &history.restores {
        for (key, state) in &restored.states {
            if let Some(version) = restored.versions.get(key) {
                look(format!("line {}", restored.place), &restored.user, key, *version, Some(state));
            }
        }
    }
    found
}

/// A message that was accepted reaches its device, and those from one device to another first arrive in their order.
fn messages_arrive(history: &History) -> Vec<String> {
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for got in &history.got {
        first.entry(&got.id).or_insert(got.place);
    }
    let mut found = Vec::new();
    let mut last: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for sent in history.messages.iter().filter(|sent| sent.accepted) {
        let Some(place) = first.get(sent.id.as_str()) else {
            found.push(format!(
                "line {}: a message to {} was accepted and never arrived",
                sent.place, sent.to
            ));
            continue;
        };
        if let Some((other, before)) = last.insert((&sent.from, &sent.to), (sent.place, *place))
            && before > *place
        {
            found.push(format!(
                "lines {other} and {}: messages to {} arrived in another order",
                sent.place, sent.to
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two devices of one user, a counter, a compare-and-set and a message, all as it should be.
    const GOOD: &str = r#"
{"kind":"restored","user":"ann","device":"phone","seq":0,"versions":{},"states":{},"full":true}
{"kind":"restored","user":"ann","device":"laptop","seq":0,"versions":{},"states":{},"full":true}
{"kind":"write","id":"w1","user":"ann","device":"phone","key":"k","op":"state","value":"{\"u\":\"ann\",\"n\":1}","base":null}
{"kind":"seen","user":"ann","device":"laptop","key":"k","version":1,"seq":1,"state":"{\"u\":\"ann\",\"n\":1}"}
{"kind":"ack","id":"w1","version":1,"seq":1}
{"kind":"write","id":"w2","user":"ann","device":"laptop","key":"c","op":"inc","value":null,"base":null}
{"kind":"ack","id":"w2","version":1,"seq":2}
{"kind":"seen","user":"ann","device":"phone","key":"c","version":1,"seq":2,"state":"{\"n\":1}"}
{"kind":"write","id":"w3","user":"ann","device":"phone","key":"k","op":"state","value":"{\"u\":\"ann\",\"n\":2}","base":1}
{"kind":"write","id":"w4","user":"ann","device":"laptop","key":"k","op":"state","value":"{\"u\":\"ann\",\"n\":3}","base":1}
{"kind":"ack","id":"w3","version":2,"seq":3}
{"kind":"refused","id":"w4","code":"conflict"}
{"kind":"seen","user":"ann","device":"laptop","key":"k","version":2,"seq":3,"state":"{\"u\":\"ann\",\"n\":2}"}
{"kind":"sent","id":"m1","user":"ann","from":"phone","to":"laptop"}
{"kind":"ack","id":"m1"}
{"kind":"sent","id":"m2","user":"ann","from":"phone","to":"laptop"}
{"kind":"ack","id":"m2"}
{"kind":"got","id":"m1","user":"ann","device":"laptop"}
{"kind":"got","id":"m2","user":"ann","device":"laptop"}
{"kind":"restored","user":"ann","device":"phone","seq":3,"versions":{"k":2,"c":1},"states":{"k":"{\"u\":\"ann\",\"n\":2}","c":"{\"n\":1}"},"full":true}
{"kind":"final","user":"ann","device":"phone","states":{"k":"{\"u\":\"ann\",\"n\":2}","c":"{\"n\":1}"}}
{"kind":"final","user":"ann","device":"laptop","states":{"k":"{\"u\":\"ann\",\"n\":2}","c":"{\"n\":1}"}}
{"kind":"store","user":"ann","seq":3,"states":{"k":"{\"u\":\"ann\",\"n\":2}","c":"{\"n\":1}"},"versions":{"k":2,"c":1},"history":[{"key":"k","version":1,"seq":1,"state":"{\"u\":\"ann\",\"n\":1}"},{"key":"k","version":2,"seq":3,"state":"{\"u\":\"ann\",\"n\":2}"},{"key":"c","version":1,"seq":2,"state":"{\"n\":1}"}]}
"#;

    fn broken_rules(text: &str) -> BTreeSet<&'static str> {
        judge(&History::parse(text.trim()).unwrap()).into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn a_good_history_breaks_no_rule() {
        assert_eq!(judge(&History::parse(GOOD.trim()).unwrap()), []);
    }

    #[test]
    fn each_rule_rejects_its_broken_history() {
        let store_k2 = r#"{"key":"k","version":2,"seq":3,"state":"{\"u\":\"ann\",\"n\":2}"},"#;
        let rows: &[(&str, &str, &str)] = &[
            // An acked version that the store never had: lost.
            ("acked is stored", store_k2, ""),
            (
                "acked is stored",
                r#""ack","id":"w3","version":2,"seq":3"#,
                r#""ack","id":"w3","version":2,"seq":9"#,
            ),
            // Two acks of one version.
            (
                "versions",
                r#""refused","id":"w4","code":"conflict""#,
                r#""ack","id":"w4","version":2,"seq":4"#,
            ),
            // A change that comes twice.
            (
                "monotone",
                r#"{"kind":"sent","id":"m1""#,
                "{\"kind\":\"seen\",\"user\":\"ann\",\"device\":\"laptop\",\"key\":\"k\",\"version\":2,\"seq\":3,\"state\":\"{\\\"u\\\":\\\"ann\\\",\\\"n\\\":2}\"}\n{\"kind\":\"sent\",\"id\":\"m1\"",
            ),
            // A restore that goes back.
            ("monotone", r#""device":"phone","seq":3,"versions""#, r#""device":"phone","seq":1,"versions""#),
            // A restore without one's own acked write.
            (
                "read your writes",
                r#""versions":{"k":2,"c":1},"states":{"k":"{\"u\":\"ann\",\"n\":2}""#,
                r#""versions":{"k":1,"c":1},"states":{"k":"{\"u\":\"ann\",\"n\":1}""#,
            ),
            // A device that ends elsewhere.
            (
                "final states",
                r#""final","user":"ann","device":"laptop","states":{"k":"{\"u\":\"ann\",\"n\":2}""#,
                r#""final","user":"ann","device":"laptop","states":{"k":"{\"u\":\"ann\",\"n\":3}""#,
            ),
            // An increment that counted twice, or not at all.
            (
                "applied once",
                r#""c":"{\"n\":1}"},"versions":{"k":2,"c":1},"history""#,
                r#""c":"{\"n\":2}"},"versions":{"k":2,"c":1},"history""#,
            ),
            (
                "applied once",
                r#""c":"{\"n\":1}"},"versions":{"k":2,"c":1},"history""#,
                r#""c":"{\"n\":0}"},"versions":{"k":2,"c":1},"history""#,
            ),
            // Two winners on one base.
            (
                "one winner",
                r#""refused","id":"w4","code":"conflict""#,
                r#""ack","id":"w4","version":3,"seq":4"#,
            ),
            (
                "one winner",
                r#""value":"{\"u\":\"ann\",\"n\":1}","base":null}"#,
                r#""value":"{\"u\":\"ann\",\"n\":1}","base":0}
{"kind":"write","id":"w0","user":"ann","device":"laptop","key":"k","op":"state","value":"{\"u\":\"ann\",\"n\":2}","base":0}
{"kind":"ack","id":"w0","version":2,"seq":4}"#,
            ),
            // Another's state.
            (
                "isolation",
                r#""seq":3,"state":"{\"u\":\"ann\",\"n\":2}"}
{"kind":"sent","id":"m1"#,
                r#""seq":3,"state":"{\"u\":\"bob\",\"n\":2}"}
{"kind":"sent","id":"m1"#,
            ),
            (
                "isolation",
                r#""got","id":"m2","user":"ann","device":"laptop""#,
                r#""got","id":"m2","user":"ann","device":"phone""#,
            ),
            // A version with two contents.
            (
                "one content",
                r#""version":1,"seq":1,"state":"{\"u\":\"ann\",\"n\":1}"}
{"kind":"ack""#,
                r#""version":1,"seq":1,"state":"{\"u\":\"ann\",\"n\":7}"}
{"kind":"ack""#,
            ),
            // A message that is lost, and two in another order.
            ("messages", r#"{"kind":"got","id":"m1","user":"ann","device":"laptop"}"#, ""),
            (
                "messages",
                "{\"kind\":\"got\",\"id\":\"m1\",\"user\":\"ann\",\"device\":\"laptop\"}\n{\"kind\":\"got\",\"id\":\"m2\",\"user\":\"ann\",\"device\":\"laptop\"}",
                "{\"kind\":\"got\",\"id\":\"m2\",\"user\":\"ann\",\"device\":\"laptop\"}\n{\"kind\":\"got\",\"id\":\"m1\",\"user\":\"ann\",\"device\":\"laptop\"}",
            ),
        ];
        for (rule, good, bad) in rows {
            assert_eq!(GOOD.matches(good).count(), 1, "{rule}: {good}");
            assert!(broken_rules(&GOOD.replace(good, bad)).contains(rule), "{rule}: {bad}");
        }
        let judged: BTreeSet<_> = rows.iter().map(|(rule, ..)| *rule).collect();
        assert_eq!(judged, RULES.iter().map(|(rule, _)| *rule).collect(), "a rule without a broken history");
    }

    #[test]
    fn a_write_that_nobody_knows_of_may_count_or_not() {
        let open = GOOD.replace(r#"{"kind":"ack","id":"w2","version":1,"seq":2}"#, "");
        assert_eq!(broken_rules(&open), BTreeSet::new());
    }

    #[test]
    fn what_is_no_history_is_refused_with_its_line() {
        let error =
            History::parse("{\"kind\":\"got\",\"id\":\"m\",\"user\":\"a\",\"device\":\"d\"}\nnonsense")
                .unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
