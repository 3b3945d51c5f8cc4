//! Logins, devices and what ends: refreshed, revoked, told to other nodes; messages that wait.

use std::collections::HashSet;
use std::sync::Arc;

use tandem::model::{BootId, ConnectionId, DeviceId, LoginId, MessageId, Revoked, Timestamp, UserId};
use tandem::store::{
    Bearer, ChangePassword, Command, ConnectDevice, EndLogins, Fate, MoveDevice, PostMessage, PostRefusal,
    Posted, Reply, RevokeDevice, RotateRefresh, Rotation, Store, TakeMessages, UpdateDevice, Which,
};

use crate::bed::{Bed, account, connect, login};

on_every_store!(
    a_refresh_token_makes_way_once_is_repeated_in_its_grace_and_ends_its_login_when_reused,
    what_ends_is_told_in_order_and_tokens_end_with_it,
    a_password_changes_only_from_what_it_was,
    a_revoked_device_may_not_come_back_and_loses_its_mail,
    a_device_that_connects_over_an_open_row_leaves_a_note_about_the_older_connection,
    more_notes_than_one_ask_tells_come_with_the_next,
    a_removed_user_leaves_nothing,
    messages_wait_in_order_are_taken_once_and_are_bounded,
    a_message_id_is_claimed_once_a_device,
    an_id_that_waits_unclaimed_is_neither_doubled_nor_overwritten,
    devices_are_renamed_and_move_between_logins,
);

async fn one(store: &dyn Store, command: Command) -> Reply {
    store.commit(&[command]).await.unwrap().remove(0)
}

async fn login_of(store: &dyn Store, user: UserId, hash: [u8; 32]) -> LoginId {
    let new = tandem::store::NewLogin { refresh_hash: hash, expires_at: Timestamp(10_000), ..login(user) };
    let id = new.login;
    one(store, Command::OpenLogin(new)).await;
    id
}

async fn device_of(store: &dyn Store, user: UserId, login: Option<LoginId>) -> (DeviceId, ConnectionId) {
    let mut connect = connect(user, BootId::fresh(), rand_fingerprint(), 100);
    connect.login = login;
    let connection = connect.connection;
    match one(store, Command::ConnectDevice(connect)).await {
        Reply::Connected(Ok(connected)) => (connected.device, connection),
        other => panic!("{other:?}"),
    }
}

fn rand_fingerprint() -> u64 {
    u64::from(uuid::Uuid::new_v4().as_fields().0)
}

fn rotation(login: LoginId, presented: u8, successor: u8, at: i64) -> RotateRefresh {
    RotateRefresh {
        login,
        presented: [presented; 32],
        successors: vec![[successor; 32]],
        genuine: true,
        fresh_since: Timestamp(0),
        grace_since: Timestamp(at - 20),
        at: Timestamp(at),
        expires_at: Timestamp(20_000),
    }
}

async fn rotate(store: &dyn Store, rotate: RotateRefresh) -> Rotation {
    match one(store, Command::RotateRefresh(rotate)).await {
        Reply::Rotated(rotation) => rotation,
        other => panic!("{other:?}"),
    }
}

async fn a_refresh_token_makes_way_once_is_repeated_in_its_grace_and_ends_its_login_when_reused(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let login = login_of(store, user, [1; 32]).await;
    let bearer = Bearer { user, login: Some(login), issued_at: Timestamp(0) };

    let first = rotate(store, rotation(login, 1, 2, 100)).await;
    assert!(
        matches!(first, Rotation::Rotated { user: owner, successor: 0, .. } if owner == user),
        "{first:?}"
    );
    let repeat = rotate(store, rotation(login, 1, 2, 110)).await;
    assert!(matches!(repeat, Rotation::Rotated { successor: 0, .. }), "within the grace: {repeat:?}");
    assert!(store.is_authorized(&bearer, Timestamp(110)).await.unwrap());
    let reused = rotate(store, rotation(login, 1, 2, 200)).await;
    assert_eq!(reused, Rotation::Reused { user });
    assert!(!store.is_authorized(&bearer, Timestamp(200)).await.unwrap(), "the login has ended");
    assert_eq!(rotate(store, rotation(login, 2, 3, 210)).await, Rotation::Invalid);
    assert_eq!(rotate(store, rotation(LoginId::fresh(), 1, 2, 100)).await, Rotation::Invalid);
}

async fn what_ends_is_told_in_order_and_tokens_end_with_it(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let (one_login, other) = (login_of(store, user, [1; 32]).await, login_of(store, user, [2; 32]).await);
    let (from, _) = store.revocations(None).await.unwrap();

    let end = |which, at| Command::EndLogins(EndLogins { user, which, at: Timestamp(at) });
    one(store, end(Which::Only(Some(one_login)), 50)).await;
    one(store, end(Which::Only(None), 60)).await;
    let (next, told) = store.revocations(Some(from)).await.unwrap();
    let told: Vec<_> = told.into_iter().filter(|note| note.user == user).map(|note| note.revoked).collect();
    assert_eq!(told, [Revoked::Login(Some(one_login)), Revoked::Login(None)]);

    let good = async |login, issued_at| {
        let bearer = Bearer { user, login, issued_at: Timestamp(issued_at) };
        store.is_authorized(&bearer, Timestamp(100)).await.unwrap()
    };
    assert!(!good(Some(one_login), 0).await);
    assert!(good(Some(other), 0).await);
    assert!(!good(None, 59).await, "tokens of the replaced server from before");
    assert!(good(None, 60).await);
    one(store, end(Which::All, 70)).await;
    assert!(!good(Some(other), 0).await);
    let (_, told) = store.revocations(Some(next)).await.unwrap();
    assert!(told.iter().any(|note| note.revoked == Revoked::Login(Some(other))));
}

async fn a_password_changes_only_from_what_it_was(bed: &Bed) {
    let user = bed.user().await;
    let change = |old: Option<&str>| {
        Command::ChangePassword(ChangePassword {
            user,
            old_hash: old.map(str::to_owned),
            new_hash: "new".into(),
            end: Some(Which::All),
            at: Timestamp(50),
        })
    };
    assert!(matches!(one(&*bed.store, change(Some("other"))).await, Reply::Revoked(None)));
    assert!(matches!(one(&*bed.store, change(Some("hash"))).await, Reply::Revoked(Some(_))));
    assert_eq!(bed.store.account_of(user).await.unwrap().unwrap().password_hash, "new");
    assert!(matches!(one(&*bed.store, change(None)).await, Reply::Revoked(Some(_))), "an operator's");
}

async fn a_revoked_device_may_not_come_back_and_loses_its_mail(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let login = login_of(store, user, [1; 32]).await;
    let (device, _) = device_of(store, user, Some(login)).await;
    one(store, post(user, device, "m", "1", None)).await;

    let revoke = |device| {
        let beating_since = Timestamp(0);
        Command::RevokeDevice(RevokeDevice {
            user,
            device,
            online: Vec::new(),
            beating_since,
            at: Timestamp(200),
        })
    };
    match one(store, revoke(device)).await {
        Reply::Revoked(Some(revoked)) => {
            assert_eq!(revoked, [Revoked::Device(device), Revoked::Login(Some(login))]);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(one(store, revoke(device)).await, Reply::Revoked(None)), "once");
    let mut again = connect(user, BootId::fresh(), 1, 300);
    again.claimed = Some(device);
    let refused = one(store, Command::ConnectDevice(again)).await;
    assert!(matches!(refused, Reply::Connected(Err(tandem::store::ConnectRefusal::DeviceRevoked))));
    assert_eq!(store.mailbox_size(user, device).await.unwrap(), None);
    assert!(store.mailbox(user, device, 0, Timestamp(0)).await.unwrap().is_empty());
}

async fn a_device_that_connects_over_an_open_row_leaves_a_note_about_the_older_connection(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let (device, older) = device_of(store, user, None).await;
    let (from, _) = store.revocations(None).await.unwrap();

    let mut newer = connect(user, BootId::fresh(), 1, 200);
    newer.claimed = Some(device);
    let connection = newer.connection;
    let connected = one(store, Command::ConnectDevice(newer)).await;
    assert!(matches!(connected, Reply::Connected(Ok(connected)) if connected.device == device));
    let (next, told) = store.revocations(Some(from)).await.unwrap();
    let told: Vec<_> = told.into_iter().filter(|note| note.user == user).map(|note| note.revoked).collect();
    assert_eq!(told, [Revoked::Connection(older)]);

    let leave = tandem::store::LeaveDevice { user, device, connection, at: Timestamp(250) };
    one(store, Command::LeaveDevice(leave)).await;
    let mut back = connect(user, BootId::fresh(), 1, 300);
    back.claimed = Some(device);
    one(store, Command::ConnectDevice(back)).await;
    let (_, told) = store.revocations(Some(next)).await.unwrap();
    let news = told.iter().filter(|note| note.user == user && note.revoked != Revoked::Connection(older));
    assert_eq!(news.count(), 0, "it had said goodbye");
}

async fn more_notes_than_one_ask_tells_come_with_the_next(bed: &Bed) {
    let (store, user) = (&*bed.store, bed.user().await);
    let (device, first) = device_of(store, user, None).await;
    let (mut from, _) = store.revocations(None).await.unwrap();
    // Each connect leaves a note about the one before.
    let mut connections = vec![first];
    while connections.len() <= 10_001 {
        let claim = || ConnectDevice { claimed: Some(device), ..connect(user, BootId::fresh(), 1, 100) };
        let claims: Vec<_> = std::iter::repeat_with(claim).take(500).collect();
        connections.extend(claims.iter().map(|claim| claim.connection));
        let batch: Vec<_> = claims.into_iter().map(Command::ConnectDevice).collect();
        store.commit(&batch).await.unwrap();
    }
    connections.pop();

    let mut told = HashSet::new();
    for _ in 0..20 {
        let (next, notes) = store.revocations(Some(from)).await.unwrap();
        told.extend(notes.into_iter().filter_map(|note| match note.revoked {
            Revoked::Connection(older) => Some(older),
            _ => None,
        }));
        from = next;
    }

    let untold = connections.iter().filter(|older| !told.contains(older));
    assert_eq!(untold.count(), 0, "{} told", told.len());
}

async fn a_removed_user_leaves_nothing(bed: &Bed) {
    let store = &*bed.store;
    let new = account(&format!("{}@example.org", uuid::Uuid::new_v4()));
    let (user, email) = (new.account.user, new.account.email.clone());
    one(store, Command::CreateAccount(new)).await;
    let (device, _) = device_of(store, user, None).await;
    one(store, post(user, device, "m", "1", Some([1; 32]))).await;

    // A write of the same batch finds nobody and harms no neighbour.
    let neighbour = bed.user().await;
    let batch = [
        Command::RemoveUser { user, at: Timestamp(50) },
        Command::Write(Arc::new(crate::bed::write(user, "k", "1"))),
        Command::Write(Arc::new(crate::bed::write(neighbour, "k", "1"))),
    ];
    let replies = store.commit(&batch).await.unwrap();
    assert!(matches!(&replies[0], Reply::Revoked(Some(revoked)) if *revoked == [Revoked::User]));
    assert!(matches!(&replies[1], Reply::Written(Err(_))), "{:?}", replies[1]);
    assert!(matches!(&replies[2], Reply::Written(Ok(_))), "{:?}", replies[2]);
    assert!(store.account(&email).await.unwrap().is_none());
    assert!(store.devices(user).await.unwrap().is_empty());
    assert_eq!(store.mailbox_size(user, device).await.unwrap(), None);
    let again = one(store, Command::RemoveUser { user, at: Timestamp(60) }).await;
    assert!(matches!(again, Reply::Revoked(None)));
}

fn post(user: UserId, target: DeviceId, id: &str, json: &str, content_hash: Option<[u8; 32]>) -> Command {
    Command::PostMessage(Arc::new(PostMessage {
        user,
        target,
        source: DeviceId::fresh(),
        id: MessageId::parse(id).unwrap(),
        json: json.into(),
        sent_at: Timestamp(10),
        expires_at: Timestamp(1_000),
        content_hash,
        at: Timestamp(10),
    }))
}

fn posted(reply: Reply) -> Result<Posted, PostRefusal> {
    match reply {
        Reply::Posted(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

async fn messages_wait_in_order_are_taken_once_and_are_bounded(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let (device, _) = device_of(store, user, None).await;
    let (from, _) = store.mail_since(None).await.unwrap();
    let batch: Vec<_> =
        (0..100).map(|n| post(user, device, &format!("m{n}"), &n.to_string(), None)).collect();
    for (n, reply) in store.commit(&batch).await.unwrap().into_iter().enumerate() {
        assert_eq!(posted(reply), Ok(Posted { ahead: n as u64, duplicate: None }));
    }

    let (_, kept) = store.mail_since(Some(from)).await.unwrap();
    assert!(kept.contains(&(user, device)));
    let mut seen = Vec::new();
    let mut cursor = 0;
    loop {
        let page = store.mailbox(user, device, cursor, Timestamp(20)).await.unwrap();
        let Some(last) = page.last() else { break };
        cursor = last.place;
        seen.extend(page.into_iter().map(|message| message.json.to_string()));
    }
    assert_eq!(seen, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(store.mailbox(user, device, 0, Timestamp(1_000)).await.unwrap().is_empty(), "expired");
    assert!(store.mailbox(UserId::fresh(), device, 0, Timestamp(20)).await.unwrap().is_empty(), "foreign");

    let ids: Vec<_> = ["m0", "m1", "other"].iter().map(|id| MessageId::parse(id).unwrap()).collect();
    let take = || Command::TakeMessages(TakeMessages { user, device, ids: ids.clone(), expired: false });
    assert!(matches!(one(store, take()).await, Reply::Taken(taken) if taken.len() == 2));
    assert!(matches!(one(store, take()).await, Reply::Taken(taken) if taken.is_empty()));
    assert_eq!(store.mailbox_size(user, device).await.unwrap(), Some(98));
    let expired = store.expired_messages(Timestamp(1_000)).await.unwrap();
    assert!(expired.iter().any(|(owner, of, _)| *owner == user && *of == device));

    let big = format!("\"{}\"", "x".repeat(4 << 20));
    assert_eq!(
        posted(one(store, post(user, device, "big", &big, None)).await),
        Err(PostRefusal::Full("bytes"))
    );
    let more: Vec<_> = (0..903).map(|n| post(user, device, &format!("n{n}"), "1", None)).collect();
    let replies: Vec<_> = store.commit(&more).await.unwrap().into_iter().map(posted).collect();
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), 902);
    assert_eq!(replies.last(), Some(&Err(PostRefusal::Full("messages"))));
    let stranger = one(store, post(user, DeviceId::fresh(), "m", "1", None)).await;
    assert_eq!(posted(stranger), Err(PostRefusal::UnknownDevice));
}

async fn a_message_id_is_claimed_once_a_device(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let ((phone, _), (laptop, _)) = (device_of(store, user, None).await, device_of(store, user, None).await);
    let send = async |device, hash| posted(one(store, post(user, device, "id", "1", Some(hash))).await);
    assert_eq!(send(phone, [1; 32]).await, Ok(Posted { ahead: 0, duplicate: None }));
    let again = |fate| Ok(Posted { ahead: 0, duplicate: Some(fate) });
    assert_eq!(send(phone, [1; 32]).await, again(Fate::Waits));
    assert_eq!(send(laptop, [1; 32]).await, Ok(Posted { ahead: 0, duplicate: None }));
    assert_eq!(send(laptop, [2; 32]).await, Err(PostRefusal::IdReused));
    let take = async |device, expired| {
        let ids = vec![MessageId::parse("id").unwrap()];
        one(store, Command::TakeMessages(TakeMessages { user, device, ids, expired })).await
    };
    take(phone, false).await;
    take(laptop, true).await;
    assert_eq!(send(phone, [1; 32]).await, again(Fate::Delivered));
    assert_eq!(send(laptop, [1; 32]).await, again(Fate::Expired));
}

/// Ids of the server's own, and those that are remembered no longer though their message still waits.
async fn an_id_that_waits_unclaimed_is_neither_doubled_nor_overwritten(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let (phone, _) = device_of(store, user, None).await;
    let send = async |json: &str, hash| posted(one(store, post(user, phone, "id", json, hash)).await);
    assert_eq!(send("1", None).await, Ok(Posted { ahead: 0, duplicate: None }));

    assert_eq!(send("2", Some([2; 32])).await, Err(PostRefusal::IdReused));
    let same = Ok(Posted { ahead: 0, duplicate: Some(Fate::Waits) });
    assert_eq!(send("1", Some([1; 32])).await, same);
    assert_eq!(store.mailbox_size(user, phone).await.unwrap(), Some(1));
    let waiting = store.mailbox(user, phone, 0, Timestamp(20)).await.unwrap();
    assert_eq!(&*waiting[0].json, "1");
}

async fn devices_are_renamed_and_move_between_logins(bed: &Bed) {
    let store = &*bed.store;
    let user = bed.user().await;
    let login = login_of(store, user, [1; 32]).await;
    let (device, connection) = device_of(store, user, None).await;
    let update = |user, device| {
        Command::UpdateDevice(UpdateDevice { user, device, name: Some("new".into()), metadata: None })
    };
    assert!(matches!(one(store, update(user, device)).await, Reply::Updated(true)));
    assert!(matches!(one(store, update(UserId::fresh(), device)).await, Reply::Updated(false)));
    assert_eq!(store.devices(user).await.unwrap()[0].description.name, "new");
    one(store, Command::MoveDevice(MoveDevice { user, device, connection, login: Some(login) })).await;
    let revoke =
        RevokeDevice { user, device, online: Vec::new(), beating_since: Timestamp(0), at: Timestamp(9) };
    match one(store, Command::RevokeDevice(revoke)).await {
        Reply::Revoked(Some(revoked)) => assert!(revoked.contains(&Revoked::Login(Some(login)))),
        other => panic!("{other:?}"),
    }
}
