//! What a room promises about order, holes and restores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::model::Version;

#[derive(Default)]
struct Seen {
    seqs: Mutex<Vec<u64>>,
    /// Other events.
    told: AtomicUsize,
    endings: Mutex<Vec<Ending>>,
}

impl Recipient for Seen {
    fn push(&self, item: Item) {
        match item.class {
            Class::Change(change) => self.seqs.lock().unwrap().push(change.seq.0),
            _ => drop(self.told.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn open(&self, _restored: Frame, _floor: Seq) {}

    fn probe(&self) -> BoxFuture<'static, bool> {
        std::future::ready(true).boxed()
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn has_room(&self) -> bool {
        true
    }

    fn end(&self, why: Ending) {
        self.endings.lock().unwrap().push(why);
    }
}

struct Joiner {
    device: DeviceId,
    connection: ConnectionId,
    seen: Arc<Seen>,
}

fn join_as(room: &Room, device: DeviceId) -> Joiner {
    join_with_fence(room, device, 1).unwrap()
}

fn join_with_fence(room: &Room, device: DeviceId, fence: u64) -> Result<Joiner, NotJoined> {
    let (connection, seen) = (ConnectionId::fresh(), Arc::new(Seen::default()));
    let member = Member {
        device,
        connection,
        fence,
        login: None,
        token_issued_at: Timestamp(0),
        fingerprint: 0,
        info: "{}".into(),
        connected_at: Timestamp(0),
        keys: None,
        recipient: seen.clone(),
    };
    room.join(&mut Some(member), 8).unwrap()?;
    Ok(Joiner { device, connection, seen })
}

fn join(room: &Room) -> Joiner {
    join_as(room, DeviceId::fresh())
}

fn restored(room: &Room, joiner: &Joiner, seq: u64) -> Accepted {
    room.restored(joiner.connection, Frame::new("2[]"), Seq(seq)).expect("not too old")
}

fn change(room: &Room, seq: u64, device: Option<DeviceId>) -> Arc<Change> {
    let key = SessionKey::parse("k").unwrap();
    let state = Some("1".into());
    Arc::new(Change {
        user: room.user,
        seq: Seq(seq),
        key,
        version: Version(seq),
        state,
        device,
        at: Timestamp(0),
    })
}

fn accept(room: &Room, seq: u64) -> Accepted {
    room.accept(change(room, seq, None), None)
}

fn seqs(joiner: &Joiner) -> Vec<u64> {
    joiner.seen.seqs.lock().unwrap().clone()
}

#[test]
fn of_two_restores_at_once_the_older_is_read_again() {
    let room = Room::new(UserId::fresh());
    let (phone, laptop) = (join(&room), join(&room));
    restored(&room, &phone, 5);
    accept(&room, 6);

    let too_old = room.restored(laptop.connection, Frame::new("2[]"), Seq(4));

    assert_eq!(too_old, None, "nobody would tell the laptop of 5");
    restored(&room, &laptop, 5);
    assert_eq!((seqs(&phone), seqs(&laptop)), (vec![6], vec![6]));
}

#[test]
fn changes_are_delivered_in_seq_order_each_once() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    assert_eq!(restored(&room, &phone, 3), Accepted::Settled);
    let accepted: Vec<_> = [4, 6, 3, 7, 5, 5, 8].map(|seq| accept(&room, seq)).into();
    assert_eq!(seqs(&phone), [4, 5, 6, 7, 8]);
    assert_eq!(
        accepted.iter().filter(|accepted| **accepted == Accepted::Hole).count(),
        1,
        "one repair a hole"
    );
}

#[test]
fn only_the_connection_whose_ack_tells_of_a_change_does_not_hear_it() {
    let room = Room::new(UserId::fresh());
    let (phone, laptop) = (join(&room), join(&room));
    restored(&room, &phone, 0);
    restored(&room, &laptop, 0);
    let by_phone = |seq| change(&room, seq, Some(phone.device));
    room.accept(by_phone(1), Some(phone.connection));
    assert_eq!((seqs(&phone), seqs(&laptop)), (vec![], vec![1]));

    // Nobody told it what became of this one.
    room.accept(by_phone(2), None);
    assert_eq!(seqs(&phone), [2]);

    // What its old connection sent is committed after the restore of the new one.
    let phone_again = join_as(&room, phone.device);
    restored(&room, &phone_again, 2);
    room.accept(by_phone(3), Some(phone.connection));
    assert_eq!((seqs(&phone), seqs(&phone_again), seqs(&laptop)), (vec![2], vec![3], vec![1, 2, 3]));
}

#[test]
fn a_repair_does_not_tell_a_connection_of_what_its_ack_does() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    restored(&room, &phone, 0);
    let own = change(&room, 2, Some(phone.device));
    assert_eq!(room.accept(own.clone(), Some(phone.connection)), Accepted::Hole);
    assert_eq!(room.needs_after(), Some(Seq(0)));
    let changes = vec![(*change(&room, 1, None)).clone(), (*own).clone()];
    room.catch_up(CatchUp { changes, up_to: Seq(2), more: false, forgotten: false });
    assert_eq!(seqs(&phone), [1]);
}

#[test]
fn of_two_connections_of_a_device_the_newer_stays_whichever_joins_first() {
    let room = Room::new(UserId::fresh());
    let device = DeviceId::fresh();
    let newer = join_with_fence(&room, device, 2).unwrap();
    assert_eq!(join_with_fence(&room, device, 1).err(), Some(NotJoined::Overtaken));
    assert_eq!(*newer.seen.endings.lock().unwrap(), []);
    let newest = join_with_fence(&room, device, 3).unwrap();
    assert_eq!(*newer.seen.endings.lock().unwrap(), [Ending::Replaced]);
    assert_eq!(*newest.seen.endings.lock().unwrap(), []);

    room.start_anew();
    assert!(join_with_fence(&room, device, 1).is_ok(), "the store went back, and its fences with it");
}

#[test]
fn that_a_connection_came_is_not_told_after_its_going() {
    let room = Room::new(UserId::fresh());
    let (phone, laptop) = (join(&room), join(&room));
    let told = || room.tell_arrival(phone.device, phone.connection, &Frame::new("2[]"), || ());
    told();
    assert_eq!(laptop.seen.told.load(Ordering::Relaxed), 1);
    room.remove(phone.connection, phone.device);
    told();
    assert_eq!(laptop.seen.told.load(Ordering::Relaxed), 2, "its going is still to be told");
    room.is_still_gone(phone.device, phone.connection).unwrap();
    told();
    assert_eq!(laptop.seen.told.load(Ordering::Relaxed), 2);
    assert_eq!(phone.seen.told.load(Ordering::Relaxed), 0);
}

#[test]
fn what_arrives_before_the_first_restore_waits_for_it() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    for seq in [5, 4, 7] {
        assert_eq!(accept(&room, seq), Accepted::Settled);
    }
    assert_eq!(restored(&room, &phone, 4), Accepted::Hole, "6 is missing");
    assert_eq!(seqs(&phone), [5]);
    accept(&room, 6);
    assert_eq!(seqs(&phone), [5, 6, 7]);
}

#[test]
fn a_repair_fills_the_hole_and_ends_when_nothing_waits() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    restored(&room, &phone, 1);
    assert_eq!(accept(&room, 4), Accepted::Hole);
    assert_eq!(room.needs_after(), Some(Seq(1)));
    let changes = vec![(*change(&room, 2, None)).clone(), (*change(&room, 3, None)).clone()];
    room.catch_up(CatchUp { changes, up_to: Seq(3), more: false, forgotten: false });
    assert_eq!(seqs(&phone), [2, 3, 4]);
    assert_eq!(room.needs_after(), None);
    assert_eq!(accept(&room, 6), Accepted::Hole, "the next hole is a new one");
}

#[test]
fn a_pruned_past_is_skipped_to_what_is_there() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    restored(&room, &phone, 1);
    accept(&room, 9);
    room.catch_up(CatchUp {
        changes: vec![(*change(&room, 7, None)).clone()],
        up_to: Seq(8),
        more: false,
        forgotten: false,
    });
    assert_eq!(seqs(&phone), [7, 9]);
}

#[test]
fn a_newer_connection_of_a_device_ends_the_older() {
    let room = Room::new(UserId::fresh());
    let older = join(&room);
    let newer = join_as(&room, older.device);
    assert_eq!(*older.seen.endings.lock().unwrap(), [Ending::Replaced]);
    assert!(!room.remove(older.connection, older.device), "a late goodbye changes nothing");
    assert!(room.remove(newer.connection, newer.device));
}

#[test]
fn a_device_that_is_back_in_time_was_never_gone() {
    let room = Room::new(UserId::fresh());
    let first = join(&room);
    room.remove(first.connection, first.device);
    join_as(&room, first.device);
    assert_eq!(room.is_still_gone(first.device, first.connection), None);
    assert!(!room.close_if_empty());
}

#[test]
fn who_goes_before_its_row_is_written_takes_the_rows_before_along() {
    let room = Room::new(UserId::fresh());
    let first = join(&room);
    let second = join_as(&room, first.device);
    let third = join_as(&room, first.device);
    room.placed(second.device, second.connection);

    room.remove(third.connection, third.device);

    let earlier = room.is_still_gone(third.device, third.connection);
    assert_eq!(earlier, Some(vec![second.connection]));
}

#[test]
fn a_closed_room_takes_nobody_in() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    room.remove(phone.connection, phone.device);
    assert!(room.is_still_gone(phone.device, phone.connection).is_some());
    assert!(room.close_if_empty());
    let member = Member {
        device: phone.device,
        connection: ConnectionId::fresh(),
        fence: 1,
        login: None,
        token_issued_at: Timestamp(0),
        fingerprint: 0,
        info: "{}".into(),
        connected_at: Timestamp(0),
        keys: None,
        recipient: phone.seen,
    };
    assert!(room.join(&mut Some(member), 8).is_none());
}

#[test]
fn what_is_said_of_the_store_while_a_repair_reads_is_not_forgotten() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    restored(&room, &phone, 9);
    assert_eq!(room.look_up_to(Seq(10)), Accepted::Hole);
    assert_eq!(room.needs_after(), Some(Seq(9)));
    // The read has seen 10; 11 is committed elsewhere and its publish lost; the ask says so.
    assert_eq!(room.look_up_to(Seq(11)), Accepted::Settled, "a repair is on its way");
    room.catch_up(CatchUp {
        changes: vec![(*change(&room, 10, None)).clone()],
        up_to: Seq(10),
        more: false,
        forgotten: false,
    });
    assert_eq!(room.needs_after(), Some(Seq(10)), "it reads again");
    room.catch_up(CatchUp {
        changes: vec![(*change(&room, 11, None)).clone()],
        up_to: Seq(11),
        more: false,
        forgotten: false,
    });
    assert_eq!((room.needs_after(), seqs(&phone)), (None, vec![10, 11]));
}

#[test]
fn what_the_store_does_not_know_is_not_asked_for_for_ever() {
    let room = Room::new(UserId::fresh());
    let phone = join(&room);
    restored(&room, &phone, 1);
    assert_eq!(accept(&room, 500), Accepted::Hole, "of a past that is no more");
    assert_eq!(room.needs_after(), Some(Seq(1)));
    accept(&room, 501);
    room.catch_up(CatchUp { up_to: Seq(1), ..CatchUp::default() });
    assert_eq!(room.needs_after(), Some(Seq(1)), "501 came while the store was read");
    room.catch_up(CatchUp { up_to: Seq(1), ..CatchUp::default() });
    assert_eq!(room.needs_after(), None);
    accept(&room, 2);
    assert_eq!(seqs(&phone), [2]);
}

#[test]
fn a_room_that_starts_anew_goes_on_from_the_next_restore() {
    let room = Room::new(UserId::fresh());
    let (phone, laptop) = (join(&room), join(&room));
    restored(&room, &phone, 70);
    accept(&room, 72);
    assert_eq!(room.needs_after(), Some(Seq(70)));

    assert_eq!(room.start_anew().len(), 2);
    room.catch_up(CatchUp { up_to: Seq(72), ..CatchUp::default() });

    restored(&room, &laptop, 5);
    accept(&room, 6);
    assert_eq!(seqs(&laptop), [6]);
    assert_eq!(room.needs_after(), None);
}
