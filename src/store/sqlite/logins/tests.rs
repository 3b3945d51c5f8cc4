//! What ends a login, and what does not. Asked through the seam, so that it can
//! be asked of every store.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::merge;
use crate::model::{BootId, ConnectionId, DeviceId, DeviceInfo, LoginId, Revoked, Timestamp, UserId};
use crate::store::{
    Account, Bearer, Bounds, ChangePassword, Command, ConnectDevice, Connected, Database, EndLogins,
    LeaveDevice, MoveDevice, NewAccount, NewLogin, Reply, Retention, RevokeDevice, RotateRefresh, Rotation,
    StillThere, Store, UpdateDevice, Which, open,
};

const START: Timestamp = Timestamp(1_700_000_000_000);
const DAY_MS: i64 = 86_400_000;

/// Long enough for whatever a test asks.
const FAR: Timestamp = Timestamp(START.0 + 1_000 * DAY_MS);

async fn store() -> (TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open_in(folder.path()).await;
    (folder, store)
}

async fn open_in(folder: &Path) -> Arc<dyn Store> {
    let database = Database::Sqlite { path: folder.join("tandem.db"), full_sync: false };
    let bounds = Bounds {
        merge: merge::Limits::default(),
        keys_per_user: 10,
        bytes_per_user: 1_000,
        devices_per_user: 10,
    };
    open(&database, bounds).await.unwrap()
}

async fn one(store: &dyn Store, command: Command) -> Reply {
    store.commit(&[command]).await.unwrap().remove(0)
}

async fn revoked(store: &dyn Store, command: Command) -> Option<Vec<Revoked>> {
    match one(store, command).await {
        Reply::Revoked(revoked) => revoked,
        other => panic!("{other:?}"),
    }
}

async fn rotation(store: &dyn Store, rotate: &RotateRefresh) -> Rotation {
    match one(store, Command::RotateRefresh(rotate.clone())).await {
        Reply::Rotated(rotation) => rotation,
        other => panic!("{other:?}"),
    }
}

fn login(user: UserId, name: u8) -> NewLogin {
    NewLogin { user, login: LoginId::fresh(), at: START, expires_at: FAR, refresh_hash: [name; 32] }
}

/// A user with one login, whose first refresh token has the hash 1, 1, ...
async fn user(store: &dyn Store, email: &str) -> (UserId, LoginId) {
    let user = UserId::fresh();
    let account = Account { user, email: email.into(), password_hash: "hash".into(), created_at: START };
    let login = login(user, 1);
    let id = login.login;
    let made = one(store, Command::CreateAccount(NewAccount { account, login })).await;
    assert!(matches!(made, Reply::AccountCreated(true)));
    (user, id)
}

async fn second_login(store: &dyn Store, user: UserId) -> LoginId {
    let login = login(user, 9);
    let id = login.login;
    one(store, Command::OpenLogin(login)).await;
    id
}

/// Presents the token `presented`, to be followed by the next number.
fn rotate(login: LoginId, presented: u8, at: Timestamp) -> RotateRefresh {
    RotateRefresh {
        login,
        presented: [presented; 32],
        successors: vec![[presented + 1; 32]],
        genuine: true,
        fresh_since: at.plus_ms(-30 * DAY_MS),
        grace_since: at.plus_ms(-20_000),
        at,
        expires_at: FAR,
    }
}

async fn is_good(store: &dyn Store, user: UserId, login: Option<LoginId>) -> bool {
    let bearer = Bearer { user, login, issued_at: START };
    store.is_authorized(&bearer, START.plus_ms(60_000)).await.unwrap()
}

async fn connect(store: &dyn Store, user: UserId, login: Option<LoginId>, boot: BootId) -> ConnectDevice {
    let connect = ConnectDevice {
        user,
        login,
        issued_at: START,
        claimed: None,
        info: DeviceInfo {
            name: "Desk".into(),
            kind: "desktop".into(),
            json: "{\"name\":\"Desk\",\"type\":\"desktop\"}".into(),
            metadata: "{}".into(),
            fingerprint: 1,
        },
        online: Vec::new(),
        live_boots: vec![boot],
        dead_before: Timestamp(0),
        let_go: Vec::new(),
        resumable_since: FAR,
        connection: ConnectionId::fresh(),
        boot,
        at: START,
        still_there: StillThere::when(|| true),
    };
    one(store, Command::Beat { boot, node: "node".into(), at: START }).await;
    connect
}

async fn connected(store: &dyn Store, connect: &ConnectDevice) -> Connected {
    match one(store, Command::ConnectDevice(connect.clone())).await {
        Reply::Connected(connected) => connected.unwrap(),
        other => panic!("{other:?}"),
    }
}

fn revoke(user: UserId, device: DeviceId) -> Command {
    let (at, beating_since) = (START.plus_ms(1_000), START.plus_ms(-9_000));
    Command::RevokeDevice(RevokeDevice { user, device, online: Vec::new(), beating_since, at })
}

#[tokio::test]
async fn a_refresh_token_gives_way_to_its_successor() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let rotated = Rotation::Rotated { user, email: "ann@example.com".into(), successor: 0 };
    assert_eq!(rotation(&*store, &rotate(login, 1, START)).await, rotated);
    assert_eq!(rotation(&*store, &rotate(login, 2, START)).await, rotated);
}

#[tokio::test]
async fn a_repeat_within_the_grace_gets_the_same_successor_while_that_is_unused() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    rotation(&*store, &rotate(login, 1, START)).await;

    let repeat = rotation(&*store, &rotate(login, 1, START.plus_ms(19_999))).await;
    assert!(matches!(repeat, Rotation::Rotated { successor: 0, .. }), "{repeat:?}");

    // After the secret was rotated too the successor in force is the second one proposed.
    let other_secret = RotateRefresh { successors: vec![[77; 32], [2; 32]], ..rotate(login, 1, START) };
    let repeat = rotation(&*store, &other_secret).await;
    assert!(matches!(repeat, Rotation::Rotated { successor: 1, .. }), "{repeat:?}");

    rotation(&*store, &rotate(login, 2, START.plus_ms(5_000))).await;
    let used = rotation(&*store, &rotate(login, 1, START.plus_ms(6_000))).await;
    assert_eq!(used, Rotation::Reused { user });
    assert!(!is_good(&*store, user, Some(login)).await);
}

#[tokio::test]
async fn a_repeat_after_the_grace_ends_the_login() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let other = second_login(&*store, user).await;
    rotation(&*store, &rotate(login, 1, START)).await;

    let late = RotateRefresh { genuine: false, ..rotate(login, 1, START.plus_ms(20_000)) };
    assert_eq!(rotation(&*store, &late).await, Rotation::Reused { user });

    assert!(!is_good(&*store, user, Some(login)).await);
    assert_eq!(rotation(&*store, &rotate(login, 2, START.plus_ms(20_001))).await, Rotation::Invalid);
    assert!(is_good(&*store, user, Some(other)).await, "another login has nothing to do with it");
}

#[tokio::test]
async fn a_forged_token_ends_nothing() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let forged = RotateRefresh { genuine: false, ..rotate(login, 50, START) };
    assert_eq!(rotation(&*store, &forged).await, Rotation::Invalid);
    assert_eq!(rotation(&*store, &rotate(LoginId::fresh(), 1, START)).await, Rotation::Invalid);
    assert!(is_good(&*store, user, Some(login)).await);
}

#[tokio::test]
async fn a_token_that_was_not_used_in_time_is_not_good_and_ends_nothing() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let late = rotate(login, 1, START.plus_ms(30 * DAY_MS));
    assert_eq!(rotation(&*store, &late).await, Rotation::Invalid);
    assert!(is_good(&*store, user, Some(login)).await);
    let in_time = rotate(login, 1, START.plus_ms(30 * DAY_MS - 1));
    assert!(matches!(rotation(&*store, &in_time).await, Rotation::Rotated { .. }));
}

#[tokio::test]
async fn logins_end_one_all_or_all_but_one() {
    let (_folder, store) = store().await;
    // Which to end; whether this login, the other and tokens without a login are good then.
    let table = [
        (Which::All, [false, false, false]),
        (Which::Only(None), [true, true, false]),
        (Which::AllBut(None), [false, false, true]),
    ];
    for (index, (which, good)) in table.into_iter().enumerate() {
        let (user, first) = user(&*store, &format!("{index}@example.com")).await;
        let second = second_login(&*store, user).await;
        let end = EndLogins { user, which, at: START.plus_ms(1) };
        revoked(&*store, Command::EndLogins(end)).await.unwrap();
        let now = [
            is_good(&*store, user, Some(first)).await,
            is_good(&*store, user, Some(second)).await,
            is_good(&*store, user, None).await,
        ];
        assert_eq!(now, good, "{which:?}");
    }
    let (user, first) = user(&*store, "one@example.com").await;
    let second = second_login(&*store, user).await;
    let only = EndLogins { user, which: Which::Only(Some(first)), at: START };
    assert_eq!(revoked(&*store, Command::EndLogins(only)).await, Some(vec![Revoked::Login(Some(first))]));
    assert!(is_good(&*store, user, Some(second)).await && is_good(&*store, user, None).await);
    let all_but = EndLogins { user, which: Which::AllBut(Some(second)), at: START.plus_ms(1) };
    assert_eq!(revoked(&*store, Command::EndLogins(all_but)).await, Some(vec![Revoked::Login(None)]));
    assert!(is_good(&*store, user, Some(second)).await && !is_good(&*store, user, None).await);
}

#[tokio::test]
async fn what_ended_is_noted_once_for_every_node() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let (position, nothing) = store.revocations(None).await.unwrap();
    assert!(nothing.is_empty());
    let end = EndLogins { user, which: Which::All, at: START };
    revoked(&*store, Command::EndLogins(end)).await;
    revoked(&*store, Command::RemoveUser { user, at: START }).await;

    let (next, noted) = store.revocations(Some(position)).await.unwrap();

    let noted: Vec<_> = noted.into_iter().map(|noted| (noted.user, noted.revoked)).collect();
    let expected = [Revoked::Login(Some(login)), Revoked::Login(None), Revoked::User];
    assert_eq!(noted, expected.map(|revoked| (user, revoked)));
    assert!(store.revocations(Some(next)).await.unwrap().1.is_empty());
}

#[tokio::test]
async fn a_password_changes_only_from_what_it_was() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let change = |old: Option<&str>, new: &str| {
        Command::ChangePassword(ChangePassword {
            user,
            old_hash: old.map(str::to_owned),
            new_hash: new.into(),
            end: Some(Which::AllBut(Some(login))),
            at: START,
        })
    };
    assert!(revoked(&*store, change(Some("other"), "new")).await.is_none());
    assert!(revoked(&*store, change(Some("hash"), "new")).await.is_some());
    assert!(revoked(&*store, change(None, "newer")).await.is_some());
    assert_eq!(store.account_of(user).await.unwrap().unwrap().password_hash, "newer");
    assert!(is_good(&*store, user, Some(login)).await);
}

#[tokio::test]
async fn a_removed_user_leaves_nothing_and_is_removed_once() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    connected(&*store, &connect(&*store, user, Some(login), BootId::fresh()).await).await;
    let remove = Command::RemoveUser { user, at: START };
    assert_eq!(revoked(&*store, remove.clone()).await, Some(vec![Revoked::User]));
    assert_eq!(revoked(&*store, remove).await, None);
    assert!(!is_good(&*store, user, Some(login)).await && !is_good(&*store, user, None).await);
    assert!(store.devices(user).await.unwrap().is_empty());
    assert!(store.account("ann@example.com").await.unwrap().is_none());
    // A login that was on its way fails nobody's batch.
    one(&*store, Command::OpenLogin(self::login(user, 3))).await;
}

#[tokio::test]
async fn revoking_a_device_ends_its_login_unless_another_is_online_with_it() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let asked = connect(&*store, user, Some(login), BootId::fresh()).await;
    let first = connected(&*store, &asked).await.device;
    let other = ConnectDevice { connection: ConnectionId::fresh(), ..asked.clone() };
    let second = connected(&*store, &other).await.device;

    assert_eq!(revoked(&*store, revoke(user, first)).await, Some(vec![Revoked::Device(first)]));
    assert!(is_good(&*store, user, Some(login)).await, "the second is online with it");
    assert_eq!(revoked(&*store, revoke(user, first)).await, None, "it is gone already");

    let connection = other.connection;
    one(&*store, Command::LeaveDevice(LeaveDevice { user, device: second, connection, at: START })).await;
    let both = Some(vec![Revoked::Device(second), Revoked::Login(Some(login))]);
    assert_eq!(revoked(&*store, revoke(user, second)).await, both);
    assert!(!is_good(&*store, user, Some(login)).await);
    assert!(store.devices(user).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_row_that_a_dead_node_left_open_keeps_no_login() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let asked = connect(&*store, user, Some(login), BootId::fresh()).await;
    let first = connected(&*store, &asked).await.device;
    let second = ConnectDevice { connection: ConnectionId::fresh(), ..asked.clone() };
    let second = connected(&*store, &second).await.device;
    let late = |device, online| {
        let (at, beating_since) = (START.plus_ms(60_000), START.plus_ms(50_000));
        Command::RevokeDevice(RevokeDevice { user, device, online, beating_since, at })
    };
    let known = revoked(&*store, late(first, vec![second])).await.unwrap();
    assert_eq!(known, [Revoked::Device(first)], "somebody knows the second to be online");
    let third = ConnectDevice { connection: ConnectionId::fresh(), ..asked.clone() };
    let third = connected(&*store, &third).await.device;
    let ended = revoked(&*store, late(third, Vec::new())).await.unwrap();
    assert_eq!(ended, [Revoked::Device(third), Revoked::Login(Some(login))]);
}

#[tokio::test]
async fn tokens_of_the_replaced_server_count_as_one_login() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let asked = connect(&*store, user, None, BootId::fresh()).await;
    let first = connected(&*store, &asked).await.device;
    let other = ConnectDevice { connection: ConnectionId::fresh(), ..asked.clone() };
    let second = connected(&*store, &other).await.device;
    revoked(&*store, revoke(user, first)).await;
    assert!(is_good(&*store, user, None).await);
    revoked(&*store, revoke(user, second)).await;
    assert!(!is_good(&*store, user, None).await && is_good(&*store, user, Some(login)).await);
}

#[tokio::test]
async fn a_connection_that_moved_to_another_login_holds_that_one() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let next = second_login(&*store, user).await;
    let asked = connect(&*store, user, Some(login), BootId::fresh()).await;
    let device = connected(&*store, &asked).await.device;
    let moved = |connection| MoveDevice { user, device, connection, login: Some(next) };
    one(&*store, Command::MoveDevice(moved(asked.connection))).await;
    one(&*store, Command::MoveDevice(MoveDevice { login: None, ..moved(ConnectionId::fresh()) })).await;
    let ended = revoked(&*store, revoke(user, device)).await.unwrap();
    assert_eq!(ended, [Revoked::Device(device), Revoked::Login(Some(next))]);
}

#[tokio::test]
async fn a_foreign_device_is_like_one_that_does_not_exist() {
    let (_folder, store) = store().await;
    let (ann, login) = user(&*store, "ann@example.com").await;
    let (bob, _) = user(&*store, "bob@example.com").await;
    let device = connected(&*store, &connect(&*store, ann, Some(login), BootId::fresh()).await).await.device;
    let name = |user| UpdateDevice { user, device, name: Some("Bob's".into()), metadata: None };
    assert!(revoked(&*store, revoke(bob, device)).await.is_none());
    assert!(matches!(one(&*store, Command::UpdateDevice(name(bob))).await, Reply::Updated(false)));
    assert_eq!(store.devices(ann).await.unwrap()[0].description.name, "Desk");
    assert!(matches!(one(&*store, Command::UpdateDevice(name(ann))).await, Reply::Updated(true)));
    let devices = store.devices(ann).await.unwrap();
    assert_eq!((devices[0].description.name.as_str(), &*devices[0].description.metadata), ("Bob's", "{}"));
}

#[tokio::test]
async fn accounts_are_listed_by_address_page_by_page() {
    let (_folder, store) = store().await;
    for email in ["c@example.com", "a@example.com", "b@example.com"] {
        user(&*store, email).await;
    }
    let emails = async |after: &str| {
        let accounts = store.accounts_after(after, 2).await.unwrap();
        accounts.into_iter().map(|account| account.email).collect::<Vec<_>>()
    };
    assert_eq!(emails("").await, ["a@example.com", "b@example.com"]);
    assert_eq!(emails("b@example.com").await, ["c@example.com"]);
}

#[tokio::test]
async fn logins_notes_and_revoked_devices_are_pruned_in_time() {
    let (_folder, store) = store().await;
    let (user, login) = user(&*store, "ann@example.com").await;
    let kept = second_login(&*store, user).await;
    let device = connected(&*store, &connect(&*store, user, Some(login), BootId::fresh()).await).await.device;
    revoked(&*store, revoke(user, device)).await;
    let retention = Retention::default();
    assert_eq!(store.prune(&retention, START.plus_ms(DAY_MS / 2)).await.unwrap(), 0);
    // Two notes and a login; the device only after 90 days.
    assert_eq!(store.prune(&retention, START.plus_ms(8 * DAY_MS)).await.unwrap(), 3);
    assert_eq!(store.prune(&retention, START.plus_ms(91 * DAY_MS)).await.unwrap(), 1);
    assert!(is_good(&*store, user, Some(kept)).await);
}
