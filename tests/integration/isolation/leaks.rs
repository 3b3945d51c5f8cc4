//! Finds in a text what is not its reader's: canaries and ids.

use std::collections::HashMap;

use super::person::Person;

/// What a canary begins with; 32 hexadecimal digits follow.
pub const CANARY: &str = "canary-";

const CANARY_LENGTH: usize = CANARY.len() + 32;

const UUID_LENGTH: usize = 36;

/// Whose each id is, by canary.
pub struct Owners(HashMap<String, String>);

impl Owners {
    pub fn of(people: &[Person]) -> Self {
        let ids = people
            .iter()
            .flat_map(|person| person.ids().into_iter().map(|id| (id.to_lowercase(), person.canary.clone())));
        let owners = Self(ids.collect());
        assert!(owners.0.len() >= people.len() * 5, "ids of everybody are known");
        owners
    }

    /// Fails if `text` holds a canary or an id of anybody but `owner`.
    #[track_caller]
    pub fn only(&self, owner: &str, text: &str) {
        if let Some(leak) = self.leak(owner, text) {
            panic!("{owner} was told {leak}: {text:.2000}");
        }
    }

    /// Fails if `text` holds a canary or an id of anybody.
    #[track_caller]
    pub fn nobodys(&self, text: &str) {
        self.only("", text);
    }

    fn leak(&self, owner: &str, text: &str) -> Option<String> {
        if let Some(canary) = canaries(text).find(|canary| *canary != owner) {
            return Some(canary.to_owned());
        }
        let foreign = |id: &&str| self.0.get(&id.to_lowercase()).is_some_and(|of| of != owner);
        uuids(text).find(foreign).map(|id| format!("{id} of {}", self.0[&id.to_lowercase()]))
    }
}

/// Fails if `text` holds anybody's canary.
#[track_caller]
pub fn without_canaries(text: &str) {
    assert_eq!(canaries(text).next(), None, "{text:.2000}");
}

fn canaries(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(CANARY).filter_map(|(at, _)| text.get(at..at + CANARY_LENGTH))
}

fn uuids(text: &str) -> impl Iterator<Item = &str> {
    let dashes = text.match_indices('-').map(|(at, _)| at).filter(|at| *at >= 8);
    dashes.filter_map(|at| {
        let id = text.get(at - 8..at - 8 + UUID_LENGTH)?;
        uuid::Uuid::try_parse(id).ok().map(|_| id)
    })
}

#[test]
fn a_planted_leak_is_found_wherever_it_is() {
    let canary = |n: u8| format!("{CANARY}{:032x}", n);
    let (id, foreign) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
    let owners = Owners(HashMap::from([(id.clone(), canary(1)), (foreign.clone(), canary(2))]));
    let own = format!(r#"{{"a-b":"{}-{id}","c":["{id}"],"unknown":"{}"}}"#, canary(1), uuid::Uuid::nil());

    assert_eq!(owners.leak(&canary(1), &own), None);
    for leaking in [
        own.replace("unknown", &canary(2)),
        own.replace("a-b", &foreign),
        own.replace("a-b", &foreign.to_uppercase()),
        format!("{own}{foreign}"),
        canary(2),
    ] {
        assert!(owners.leak(&canary(1), &leaking).is_some(), "{leaking}");
        assert!(owners.leak("", &leaking).is_some(), "{leaking}");
    }
}
