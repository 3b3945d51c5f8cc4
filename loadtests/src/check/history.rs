//! What happened, as JSON Lines, in the order in which the clients' one process saw it. A line is one of
//!
//! - `{"kind":"write","id","user","device","key","op":"state|patch|inc|delete","value","base","at"}`: sent under this opId;
//! - `{"kind":"ack","id","at","version","seq","state","duplicate"}`: applied; `state` where the answer had one;
//! - `{"kind":"refused","id","at","code"}`: not applied, for good;
//! - `{"kind":"seen","user","device","key","version","seq","state","deleted"}`: a `session-updated`;
//! - `{"kind":"restored","user","device","seq","versions":{key:n},"states":{key:text},"full"}`;
//! - `{"kind":"sent","id","user","from","to"}` and `{"kind":"got","id","user","device"}`: a device message;
//! - `{"kind":"final","user","device","states":{key:text}}`: what a device shows when all is quiet;
//! - `{"kind":"store","user","seq","states","versions","history":[{"key","version","seq","state","deleted"}]}`.
//!
//! States are JSON texts, so that two are the same byte for byte or not at all.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

/// Everything of one run.
#[derive(Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    pub seen: Vec<Seen>,
    pub restores: Vec<Restored>,
    pub messages: Vec<Sent>,
    pub got: Vec<Got>,
    pub finals: Vec<Final>,
    pub stores: BTreeMap<String, StoreDump>,
}

/// A write and what became of it; `place` is its line.
#[derive(Clone, Debug)]
pub struct Write {
    pub place: usize,
    pub id: String,
    pub user: String,
    pub device: String,
    pub key: String,
    pub op: String,
    pub value: Option<String>,
    pub base: Option<u64>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nobody knows.
    Open,
    Acked {
        place: usize,
        version: u64,
        seq: u64,
        state: Option<String>,
    },
    Refused {
        code: String,
    },
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub place: usize,
    pub user: String,
    pub device: String,
    pub key: String,
    pub version: u64,
    pub seq: u64,
    pub state: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Restored {
    pub place: usize,
    pub user: String,
    pub device: String,
    pub seq: u64,
    pub versions: BTreeMap<String, u64>,
    pub states: BTreeMap<String, String>,
    pub full: bool,
}

#[derive(Clone, Debug)]
pub struct Sent {
    pub place: usize,
    pub id: String,
    pub user: String,
    pub from: String,
    pub to: String,
    pub accepted: bool,
}

#[derive(Clone, Debug)]
pub struct Got {
    pub place: usize,
    pub id: String,
    pub user: String,
    pub device: String,
}

#[derive(Clone, Debug)]
pub struct Final {
    pub user: String,
    pub device: String,
    pub states: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct StoreDump {
    pub seq: u64,
    pub states: BTreeMap<String, String>,
    pub versions: BTreeMap<String, u64>,
    #[serde(default)]
    pub history: Vec<Kept>,
}

/// A version that the store keeps.
#[derive(Clone, Debug, Deserialize)]
pub struct Kept {
    pub key: String,
    pub version: u64,
    pub seq: u64,
    pub state: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Write {
        id: String,
        user: String,
        device: String,
        key: String,
        op: String,
        value: Option<String>,
        base: Option<u64>,
    },
    Ack {
        id: String,
        version: Option<u64>,
        seq: Option<u64>,
        state: Option<String>,
    },
    Refused {
        id: String,
        code: String,
    },
    Seen {
        user: String,
        device: String,
        key: String,
        version: u64,
        seq: u64,
        state: Option<String>,
    },
    Restored {
        user: String,
        device: String,
        seq: u64,
        versions: BTreeMap<String, u64>,
        states: BTreeMap<String, String>,
        full: bool,
    },
    Sent {
        id: String,
        user: String,
        from: String,
        to: String,
    },
    Got {
        id: String,
        user: String,
        device: String,
    },
    Final {
        user: String,
        device: String,
        states: BTreeMap<String, String>,
    },
    Store {
        user: String,
        #[serde(flatten)]
        dump: StoreDump,
    },
    #[serde(other)]
    Other,
}

impl History {
    /// Reads the lines.
    ///
    /// # Errors
    /// With the number of the first line that is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut history = Self::default();
        let mut writes: BTreeMap<String, usize> = BTreeMap::new();
        let mut messages: BTreeMap<String, usize> = BTreeMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let place = index + 1;
            match serde_json::from_str(line).with_context(|| format!("line {place}"))? {
                Line::Write { id, user, device, key, op, value, base } => {
                    writes.insert(id.clone(), history.writes.len());
                    let outcome = Outcome::Open;
                    history.writes.push(Write { place, id, user, device, key, op, value, base, outcome });
                }
                Line::Ack { id, version, seq, state } => match (writes.get(&id), messages.get(&id)) {
                    (Some(write), _) => {
                        let (version, seq) = (version.unwrap_or(0), seq.unwrap_or(0));
                        history.writes[*write].outcome = Outcome::Acked { place, version, seq, state };
                    }
                    (None, Some(message)) => history.messages[*message].accepted = true,
                    (None, None) => anyhow::bail!("line {place}: nothing was sent as {id}"),
                },
                Line::Refused { id, code } => {
                    if let Some(write) = writes.get(&id) {
                        history.writes[*write].outcome = Outcome::Refused { code };
                    }
                }
                Line::Seen { user, device, key, version, seq, state } => {
                    history.seen.push(Seen { place, user, device, key, version, seq, state });
                }
                Line::Restored { user, device, seq, versions, states, full } => {
                    history.restores.push(Restored { place, user, device, seq, versions, states, full });
                }
                Line::Sent { id, user, from, to } => {
                    messages.insert(id.clone(), history.messages.len());
                    history.messages.push(Sent { place, id, user, from, to, accepted: false });
                }
                Line::Got { id, user, device } => history.got.push(Got { place, id, user, device }),
                Line::Final { user, device, states } => history.finals.push(Final { user, device, states }),
                Line::Store { user, dump } => {
                    history.stores.insert(user, dump);
                }
                Line::Other => {}
            }
        }
        Ok(history)
    }
}
