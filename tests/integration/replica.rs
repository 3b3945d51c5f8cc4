//! What a device holds, computed from what it saw: restores, updates and its own acks, by the rule of promise 2
//! (per key, what has the highest seq among them). Checks promise 1 on the way.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::support::{Device, Received};

/// A device's view: its session, and the seqs it saw as single changes since its last restore.
#[derive(Debug, Default)]
pub struct Replica {
    pub session: BTreeMap<String, Held>,
    /// The seq of the last restore.
    pub restored_at: u64,
    /// The seqs of the updates since then, in the order they came.
    pub seqs: Vec<u64>,
    /// Keys whose newest change is their deletion.
    pub deleted: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub seq: u64,
    pub version: u64,
    pub state: Value,
}

impl Replica {
    /// The view of a device after everything in `seen`.
    pub fn of(seen: &[Received]) -> Self {
        let mut replica = Self::default();
        for received in seen {
            match received.name.as_str() {
                "session-restored" => replica.restore(&received.payload()),
                "session-updated" => replica.update(&received.payload()),
                _ => {}
            }
        }
        replica
    }

    /// Adds what the device's own acknowledged writes made: `{key, state}` sent, and their acks.
    pub fn with_acks<'a>(mut self, acks: impl IntoIterator<Item = (&'a str, &'a Value, &'a Value)>) -> Self {
        for (key, state, ack) in acks {
            let held =
                Held { seq: number(&ack["seq"]), version: number(&ack["version"]), state: state.clone() };
            self.keep(key, held);
        }
        self
    }

    /// Its session as `GET /api/session` would write it.
    pub fn session_data(&self) -> Value {
        let entries = self.present().map(|(key, held)| (key.clone(), held.state.clone()));
        Value::Object(entries.collect::<Map<_, _>>())
    }

    /// The versions likewise.
    pub fn versions(&self) -> Value {
        let entries = self.present().map(|(key, held)| (key.clone(), held.version.into()));
        Value::Object(entries.collect::<Map<_, _>>())
    }

    fn present(&self) -> impl Iterator<Item = (&String, &Held)> {
        self.session.iter().filter(|(key, _)| !self.deleted.contains(*key))
    }

    /// Whether it holds exactly what the store holds; key order aside.
    pub fn equals(&self, session: &Value) -> bool {
        same(&self.session_data(), &session["sessionData"]) && same(&self.versions(), &session["versions"])
    }

    fn restore(&mut self, restored: &Value) {
        assert_eq!(restored["mode"], "full", "no test here asks for less");
        self.restored_at = number(&restored["seq"]);
        self.seqs.clear();
        self.session.clear();
        self.deleted.clear();
        for (key, state) in restored["sessionData"].as_object().expect("an object") {
            let version = number(&restored["versions"][key]);
            // A restore does not say each key's seq; it is not above the restore's own.
            let held = Held { seq: self.restored_at, version, state: state.clone() };
            self.session.insert(key.clone(), held);
        }
    }

    fn update(&mut self, update: &Value) {
        let seq = number(&update["seq"]);
        let last = self.seqs.last().copied().unwrap_or(self.restored_at);
        assert!(seq > last, "a device sees changes in order and never twice: {seq} came after {last}");
        self.seqs.push(seq);
        let held = Held { seq, version: number(&update["version"]), state: update["state"].clone() };
        let key = update["sessionKey"].as_str().expect("a key");
        if update["deleted"] == true {
            self.deleted.insert(key.to_owned());
        } else {
            self.deleted.remove(key);
        }
        self.keep(key, held);
    }

    fn keep(&mut self, key: &str, held: Held) {
        match self.session.get(key) {
            Some(newer) if newer.seq >= held.seq => {}
            _ => drop(self.session.insert(key.to_owned(), held)),
        }
    }
}

/// Everything that a device saw or was told of single changes: seq to content. Panics when one seq has two.
#[derive(Debug, Default)]
pub struct Ledger(pub BTreeMap<u64, (String, u64, Value)>);

impl Ledger {
    pub fn add(&mut self, seq: u64, key: &str, version: u64, state: &Value) {
        let content = (key.to_owned(), version, state.clone());
        let known = self.0.entry(seq).or_insert_with(|| content.clone());
        assert_eq!(*known, content, "seq {seq} has one content");
    }

    pub fn add_updates_of(&mut self, device: &Device) {
        for update in device.events("session-updated") {
            let key = update["sessionKey"].as_str().expect("a key");
            self.add(number(&update["seq"]), key, number(&update["version"]), &update["state"]);
        }
    }

    pub fn seqs(&self) -> BTreeSet<u64> {
        self.0.keys().copied().collect()
    }
}

#[track_caller]
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a whole number expected: {value}"))
}

/// Equal but for the order of an object's keys.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(key, value)| other.get(key) == Some(value))
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    //! A checker that accepts everything proves nothing: each rule rejects its broken history.

    use serde_json::json;

    use super::*;

    fn event(name: &str, payload: Value) -> Received {
        Received { name: name.to_owned(), args: vec![payload] }
    }

    fn restored(seq: u64) -> Received {
        let payload = json!({"mode": "full", "seq": seq, "sessionData": {"k": 1}, "versions": {"k": 1}});
        event("session-restored", payload)
    }

    fn updated(seq: u64, version: u64) -> Received {
        let payload = json!({"sessionKey": "k", "state": seq, "version": version, "seq": seq});
        event("session-updated", payload)
    }

    #[test]
    fn a_replica_holds_the_newest_of_restore_updates_and_acks() {
        let replica = Replica::of(&[restored(3), updated(4, 2), updated(6, 4)]);
        let ack = json!({"ok": true, "seq": 5, "version": 3});
        let replica = replica.with_acks([("k", &json!("overtaken"), &ack)]);
        assert!(replica.equals(&json!({"sessionData": {"k": 6}, "versions": {"k": 4}})));
        assert!(!replica.equals(&json!({"sessionData": {"k": 6}, "versions": {"k": 5}})));
        assert!(!replica.equals(&json!({"sessionData": {"k": 6, "l": 1}, "versions": {"k": 4}})));
        assert_eq!(replica.seqs, [4, 6]);
    }

    #[test]
    #[should_panic(expected = "never twice")]
    fn a_change_that_comes_twice_is_rejected() {
        Replica::of(&[restored(3), updated(4, 2), updated(4, 2)]);
    }

    #[test]
    #[should_panic(expected = "never twice")]
    fn a_change_that_the_restore_already_held_is_rejected() {
        Replica::of(&[restored(3), updated(3, 2)]);
    }

    #[test]
    #[should_panic(expected = "never twice")]
    fn changes_out_of_order_are_rejected() {
        Replica::of(&[restored(3), updated(5, 3), updated(4, 2)]);
    }

    #[test]
    #[should_panic(expected = "one content")]
    fn two_contents_of_one_seq_are_rejected() {
        let mut ledger = Ledger::default();
        ledger.add(1, "k", 1, &json!("a"));
        ledger.add(1, "k", 1, &json!("b"));
    }
}
