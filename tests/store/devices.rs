//! Who connects as which device, and who is gone.

use tandem::model::{BootId, ConnectionId, DeviceId, Timestamp, UserId};
use tandem::store::{
    Command, ConnectDevice, ConnectRefusal, Connected, LeaveConnection, LeaveDevice, Reply, StillThere,
    Store, UpdateDevice,
};

use super::bed::{Bed, connect, info, login};

on_every_store!(
    a_new_device_is_listed_as_it_described_itself,
    a_device_keeps_its_id_by_claim_and_by_resumption,
    a_connect_tells_what_is_kept_of_the_device_and_whether_that_is_new,
    a_foreign_or_unknown_claim_makes_a_new_device,
    a_connect_of_nobody_is_unauthorized,
    a_late_goodbye_changes_nothing,
    a_connection_that_may_have_been_made_is_taken_back_whatever_it_holds,
    a_claim_of_a_client_that_is_gone_changes_nothing,
    what_a_dead_node_left_open_was_seen_at_its_last_beat,
    the_longest_offline_device_makes_room,
    a_storm_of_512_connects_is_one_batch,
);

async fn connected(store: &dyn Store, connect: ConnectDevice) -> Result<Connected, ConnectRefusal> {
    match store.commit(&[Command::ConnectDevice(connect)]).await.unwrap().remove(0) {
        Reply::Connected(outcome) => outcome,
        other => panic!("a connect is answered by {other:?}"),
    }
}

async fn leave(store: &dyn Store, user: UserId, device: DeviceId, connection: ConnectionId, at: i64) {
    let leave = LeaveDevice { user, device, connection, at: Timestamp(at) };
    store.commit(&[Command::LeaveDevice(leave)]).await.unwrap();
}

async fn a_new_device_is_listed_as_it_described_itself(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let mut odd = connect(user, boot, u64::MAX, 1_000);
    odd.info.name = "nul\0name".into();

    let new = connected(&*bed.store, odd).await.unwrap();

    assert!(new.fresh && new.dropped.is_empty());
    let listed = bed.store.devices(user).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, &*listed[0].description.kind), (new.device, "desktop"));
    assert!(listed[0].description.name.starts_with("nul"));
    assert_eq!((&*listed[0].description.metadata, listed[0].fingerprint), (r#"{"os":"linux"}"#, u64::MAX));
    assert_eq!(listed[0].connected_at, Some(Timestamp(1_000)));
    assert_eq!(listed[0].created_at, Timestamp(1_000));
}

async fn a_device_keeps_its_id_by_claim_and_by_resumption(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let first = connect(user, boot, 1, 1_000);
    let connection = first.connection;
    let device = connected(&*bed.store, first).await.unwrap().device;

    let claim = ConnectDevice { claimed: Some(device), info: info(2), ..connect(user, boot, 2, 1_010) };
    let second = claim.connection;
    let again = connected(&*bed.store, claim).await.unwrap();
    assert_eq!((again.device, again.fresh, again.fence), (device, false, 1));
    assert_eq!(bed.store.devices(user).await.unwrap()[0].description.name, "device 2");

    leave(&*bed.store, user, device, connection, 1_020).await;
    assert!(connected(&*bed.store, connect(user, boot, 2, 1_030)).await.unwrap().fresh, "it is connected");
    leave(&*bed.store, user, device, second, 1_040).await;
    let resumed = connected(&*bed.store, connect(user, boot, 2, 1_130)).await.unwrap();
    assert_eq!((resumed.device, resumed.fresh, resumed.fence), (device, false, 2));
}

async fn a_connect_tells_what_is_kept_of_the_device_and_whether_that_is_new(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let told = |connected: &Connected| (connected.description.name.clone(), connected.described_anew);
    let new = connected(&*bed.store, connect(user, boot, 1, 1_000)).await.unwrap();
    assert_eq!(told(&new), ("device 1".to_owned(), false));
    let device = new.device;
    let rename = UpdateDevice { user, device, name: Some("Desk".into()), metadata: Some("{}".into()) };
    bed.store.commit(&[Command::UpdateDevice(rename)]).await.unwrap();
    let claim = |says, at| ConnectDevice { claimed: Some(device), ..connect(user, boot, says, at) };

    let same = connected(&*bed.store, claim(1, 1_010)).await.unwrap();
    assert_eq!((told(&same), &*same.description.metadata), (("Desk".to_owned(), false), "{}"));
    let mut silent = claim(2, 1_020);
    silent.info.json = "{}".into();
    assert_eq!(told(&connected(&*bed.store, silent).await.unwrap()), ("Desk".to_owned(), false));
    let other = connected(&*bed.store, claim(2, 1_030)).await.unwrap();
    assert_eq!(told(&other), ("device 2".to_owned(), true));
    assert_eq!((&*other.description.kind, &*other.description.metadata), ("desktop", r#"{"os":"linux"}"#));
}

async fn a_foreign_or_unknown_claim_makes_a_new_device(bed: &Bed) {
    let (owner, stranger, boot) = (bed.user().await, bed.user().await, BootId::fresh());
    let device = connected(&*bed.store, connect(owner, boot, 1, 1_000)).await.unwrap().device;

    for claimed in [device, DeviceId::fresh()] {
        let claim = ConnectDevice { claimed: Some(claimed), ..connect(stranger, boot, 1, 1_010) };
        let new = connected(&*bed.store, claim).await.unwrap();
        assert!(new.fresh && new.device != claimed);
    }
    assert_eq!(bed.store.devices(owner).await.unwrap().len(), 1);
}

async fn a_connect_of_nobody_is_unauthorized(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let nobody = connected(&*bed.store, connect(UserId::fresh(), boot, 1, 10)).await;
    assert_eq!(nobody.unwrap_err(), ConnectRefusal::Unauthorized);

    let open = login(user);
    let id = Some(open.login);
    bed.store.commit(&[Command::OpenLogin(open)]).await.unwrap();
    let late = ConnectDevice { login: id, ..connect(user, boot, 1, 1_000) };
    assert_eq!(connected(&*bed.store, late).await.unwrap_err(), ConnectRefusal::Unauthorized);
    let in_time = ConnectDevice { login: id, ..connect(user, boot, 1, 999) };
    assert!(connected(&*bed.store, in_time).await.is_ok());
}

async fn a_late_goodbye_changes_nothing(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let first = connect(user, boot, 1, 1_000);
    let old = first.connection;
    let device = connected(&*bed.store, first).await.unwrap().device;
    let takeover = ConnectDevice { claimed: Some(device), ..connect(user, boot, 1, 1_010) };
    connected(&*bed.store, takeover).await.unwrap();

    leave(&*bed.store, user, device, old, 5_000).await;

    assert_eq!(bed.store.devices(user).await.unwrap()[0].last_seen, Timestamp(1_010));
    let twin = connected(&*bed.store, connect(user, boot, 1, 1_020)).await.unwrap();
    assert!(twin.fresh, "the row is still held");
}

async fn a_connection_that_may_have_been_made_is_taken_back_whatever_it_holds(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let take_back = async |connection, at| {
        let left = LeaveConnection { user, connection, at: Timestamp(at) };
        bed.store.commit(&[Command::LeaveConnection(left)]).await.unwrap();
    };
    take_back(ConnectionId::fresh(), 1_000).await;
    let first = connect(user, boot, 1, 1_000);
    let unknown = first.connection;
    let device = connected(&*bed.store, first).await.unwrap().device;

    take_back(unknown, 1_010).await;

    let again = connected(&*bed.store, connect(user, boot, 1, 1_020)).await.unwrap();
    assert_eq!((again.device, again.fresh), (device, false));
    take_back(unknown, 1_030).await;
    assert!(connected(&*bed.store, connect(user, boot, 1, 1_040)).await.unwrap().fresh, "another holds it");
}

async fn a_claim_of_a_client_that_is_gone_changes_nothing(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let first = connect(user, boot, 1, 1_000);
    let holds = first.connection;
    let device = connected(&*bed.store, first).await.unwrap().device;
    let (since, _) = bed.store.revocations(None).await.unwrap();

    for claimed in [Some(device), None] {
        let gone = StillThere::when(|| false);
        let claim = ConnectDevice { claimed, still_there: gone, ..connect(user, boot, 2, 1_010) };
        assert_eq!(connected(&*bed.store, claim).await.unwrap_err(), ConnectRefusal::Gone);
    }

    let (_, ended) = bed.store.revocations(Some(since)).await.unwrap();
    assert!(ended.is_empty(), "nobody is sent away: {ended:?}");
    assert_eq!(bed.store.devices(user).await.unwrap().len(), 1);
    leave(&*bed.store, user, device, holds, 1_020).await;
    let resumed = connected(&*bed.store, connect(user, boot, 1, 1_030)).await.unwrap();
    assert_eq!((resumed.device, resumed.fence), (device, 1), "it was held as before");
}

async fn what_a_dead_node_left_open_was_seen_at_its_last_beat(bed: &Bed) {
    let (user, dead, boot) = (bed.user().await, BootId::fresh(), BootId::fresh());
    let device = connected(&*bed.store, connect(user, dead, 1, 1_000)).await.unwrap().device;
    let beat = Command::Beat { boot: dead, node: "n".into(), at: Timestamp(1_500) };
    bed.store.commit(&[beat.clone(), beat]).await.unwrap();

    assert_eq!(bed.store.devices(user).await.unwrap()[0].last_seen, Timestamp(1_500));
    let back = connected(&*bed.store, connect(user, boot, 1, 1_590)).await.unwrap();
    assert_eq!((back.device, back.fresh), (device, false));
}

async fn the_longest_offline_device_makes_room(bed: &Bed) {
    let (user, boot) = (bed.user().await, BootId::fresh());
    let mut devices = Vec::new();
    for i in 0..3 {
        let connect = connect(user, boot, i, 1_000 + i as i64);
        let connection = connect.connection;
        let device = connected(&*bed.store, connect).await.unwrap().device;
        devices.push(device);
        if i < 2 {
            leave(&*bed.store, user, device, connection, 1_100 - i as i64).await;
        }
    }

    let fourth = connected(&*bed.store, connect(user, boot, 7, 2_000)).await.unwrap();
    assert_eq!(fourth.dropped, [devices[1]], "it left before the other");
    let fifth = connected(&*bed.store, connect(user, boot, 8, 2_000)).await.unwrap();
    assert_eq!(fifth.dropped, [devices[0]]);
    let sixth = connected(&*bed.store, connect(user, boot, 9, 2_000)).await.unwrap();
    assert!(sixth.dropped.is_empty(), "nobody connected is dropped");
}

async fn a_storm_of_512_connects_is_one_batch(bed: &Bed) {
    let boot = BootId::fresh();
    let mut users = Vec::new();
    for _ in 0..256 {
        users.push(bed.user().await);
    }
    let mut batch: Vec<_> = users
        .iter()
        .flat_map(|user| [1, 2].map(|look| Command::ConnectDevice(connect(*user, boot, look, 1_000))))
        .collect();
    batch[0] = Command::ConnectDevice(connect(UserId::fresh(), boot, 1, 1_000));

    let replies = bed.store.commit(&batch).await.unwrap();

    assert!(matches!(replies[0], Reply::Connected(Err(ConnectRefusal::Unauthorized))));
    let fresh = replies.iter().filter(|reply| matches!(reply, Reply::Connected(Ok(new)) if new.fresh));
    assert_eq!(fresh.count(), 511);
    assert_eq!(bed.store.devices(users[255]).await.unwrap().len(), 2);
}
