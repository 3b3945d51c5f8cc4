//! What may wait, what is replaced, and when a device is cut.

use std::sync::Arc;

use super::*;
use crate::model::{Change, SessionKey, Timestamp, UserId, Version};

fn item(bytes: usize, class: Class) -> Item {
    Item { frame: Frame::new(&"x".repeat(bytes)), class }
}

fn change(key: &str, seq: u64, bytes: usize) -> Item {
    let change = Change {
        user: UserId::fresh(),
        seq: Seq(seq),
        key: SessionKey::parse(key).unwrap(),
        version: Version(seq),
        state: None,
        device: None,
        at: Timestamp(0),
    };
    item(bytes, Class::Change(Arc::new(change)))
}

fn waiting(items: impl IntoIterator<Item = Item>) -> State {
    let metrics = Metrics::new();
    let mut state = State::default();
    items.into_iter().for_each(|item| state.wait(item, &metrics));
    state
}

fn seqs(state: &State) -> Vec<u64> {
    let seq = |item: &Item| match &item.class {
        Class::Change(change) => Some(change.seq.0),
        _ => None,
    };
    state.queue.iter().filter_map(seq).collect()
}

#[test]
fn up_to_256_changes_wait_as_they_came() {
    let mut state = waiting((1..=256).map(|seq| change("same", seq, 10)));
    assert_eq!(seqs(&state).len(), 256);
    assert!(!state.is_overdue());
}

#[test]
fn beyond_that_only_the_newest_change_of_a_key_waits() {
    let state = waiting((1..=257).map(|seq| change(if seq % 2 == 0 { "even" } else { "odd" }, seq, 10)));
    assert_eq!(seqs(&state), [256, 257]);
    assert_eq!(state.bytes, 20);
}

#[test]
fn bytes_make_changes_coalesce_too() {
    let mut state = waiting((1..=5).map(|seq| change("big", seq, 256 * 1024)));
    assert_eq!(seqs(&state), [5]);
    assert!(!state.is_overdue());
}

#[test]
fn more_than_a_mebibyte_that_cannot_be_coalesced_is_too_much() {
    let keys = ["a", "b", "c", "d", "e"];
    let mut state = waiting(keys.iter().zip(1..).map(|(key, seq)| change(key, seq, 256 * 1024)));
    assert!(state.is_overdue());
}

#[test]
fn of_a_coalesce_key_only_the_newest_waits() {
    let cursor = |bytes| item(bytes, Class::Coalesce("phone:cursor".into()));
    let state = waiting([cursor(1), item(2, Class::Plain), cursor(3)]);
    let sizes: Vec<_> = state.queue.iter().map(|item| item.frame.len()).collect();
    assert_eq!((sizes, state.bytes), (vec![2, 3], 5));
}

#[test]
fn events_that_must_be_sent_are_never_dropped_but_end_the_connection() {
    let mut state = waiting((0..EVENTS_HARD_MAX).map(|_| item(1, Class::Plain)));
    assert!(!state.is_overdue());
    state.wait(item(1, Class::Plain), &Metrics::new());
    assert_eq!(state.queue.len(), EVENTS_HARD_MAX + 1);
    assert!(state.is_overdue());
}

#[test]
fn what_a_device_asked_for_does_not_get_it_cut() {
    let mut state = waiting([item(8 * BYTES_MAX, Class::Answer), item(2 * BYTES_MAX, Class::Plain)]);
    assert!(!state.is_overdue(), "behind an answer more may wait");
    state.wait(item(2 * BYTES_MAX + 1, Class::Plain), &Metrics::new());
    assert!(state.is_overdue());
}

#[tokio::test]
async fn an_answer_is_made_when_little_waits_or_nothing_is_sent_any_more() {
    let outbox = Outbox::default();
    outbox.has_room_for_answer().await;
    *outbox.lock() = waiting([item(BYTES_BEFORE_ANSWER_MAX + 1, Class::Answer)]);
    let mut room = std::pin::pin!(outbox.has_room_for_answer());
    assert!(futures_util::poll!(room.as_mut()).is_pending());
    outbox.close();
    room.await;
}
