//! Who is ended by a kick, whether it is here, on its way in, or elsewhere.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use super::*;
use crate::backplane::MemoryBus;
use crate::drain::Tasks;
use crate::hub::{Item, Parts, Recipient, listen};
use crate::model::{DeviceId, Seq, Timestamp};
use crate::store::{Bounds, Database, open};
use crate::telemetry::metrics::Metrics;
use crate::wire::Frame;

#[derive(Default)]
struct Seen {
    endings: Mutex<Vec<Ending>>,
    ended: tokio::sync::Notify,
}

impl Seen {
    fn endings(&self) -> Vec<Ending> {
        self.endings.lock().unwrap().clone()
    }
}

impl Recipient for Seen {
    fn push(&self, _item: Item) {}

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
        self.ended.notify_one();
    }
}

/// A node of `bus`.
async fn node(bus: &MemoryBus) -> (TempDir, Hub) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite { path: folder.path().join("tandem.db"), full_sync: false };
    let bounds = Bounds {
        merge: crate::merge::Limits::default(),
        keys_per_user: 1,
        bytes_per_user: 1,
        devices_per_user: 1,
    };
    let (joined, tasks) = (bus.join(), Tasks::default());
    let hub = Hub::new(Parts {
        mail: tokio::sync::mpsc::channel(1).0,
        store: open(&database, bounds).await.unwrap(),
        backplane: joined.backplane,
        clustered: true,
        tasks: tasks.clone(),
        metrics: Arc::new(Metrics::new()),
        grace: Duration::ZERO,
        sockets_per_user: 8,
    });
    tasks.spawn(listen(hub.clone(), joined.inbound));
    (folder, hub)
}

fn member(
    connection: ConnectionId,
    login: Option<LoginId>,
    token_issued_at: Timestamp,
) -> (Member, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let member = Member {
        device: DeviceId::fresh(),
        connection,
        fence: 1,
        login,
        token_issued_at,
        fingerprint: 0,
        info: "{}".into(),
        connected_at: Timestamp(0),
        keys: None,
        recipient: seen.clone(),
    };
    (member, seen)
}

fn join_with(
    hub: &Hub,
    user: UserId,
    login: Option<LoginId>,
    token_issued_at: Timestamp,
) -> (DeviceId, ConnectionId, Arc<Seen>) {
    let connection = ConnectionId::fresh();
    let (member, seen) = member(connection, login, token_issued_at);
    let device = member.device;
    assert!(hub.join(user, member).is_ok());
    (device, connection, seen)
}

fn join(hub: &Hub, user: UserId, login: Option<LoginId>) -> (DeviceId, ConnectionId, Arc<Seen>) {
    join_with(hub, user, login, Timestamp(0))
}

#[tokio::test]
async fn a_kick_ends_what_was_revoked_and_nothing_else() {
    let (_folder, hub) = node(&MemoryBus::default()).await;
    let (user, login) = (UserId::fresh(), LoginId::fresh());
    let (_, _, meant) = join(&hub, user, Some(login));
    let (device, _, other) = join(&hub, user, Some(LoginId::fresh()));
    let (_, _, without) = join(&hub, user, None);
    let (_, _, strange) = join(&hub, UserId::fresh(), Some(login));

    hub.kick(user, &Revoked::Login(Some(login)), Timestamp(1));
    assert_eq!((meant.endings(), other.endings()), (vec![Ending::LoginEnded], vec![]));
    hub.kick(user, &Revoked::Login(None), Timestamp(1));
    assert_eq!((without.endings(), other.endings()), (vec![Ending::LoginEnded], vec![]));
    hub.kick(user, &Revoked::Device(device), Timestamp(1));
    assert_eq!(other.endings(), [Ending::DeviceRevoked]);
    assert_eq!(strange.endings(), []);
}

#[tokio::test]
async fn whoever_was_on_the_way_in_when_it_was_kicked_is_ended_on_joining() {
    let (_folder, hub) = node(&MemoryBus::default()).await;
    let (user, login) = (UserId::fresh(), LoginId::fresh());
    hub.kick(user, &Revoked::Login(Some(login)), Timestamp(1));

    let (_, _, late) = join(&hub, user, Some(login));
    let (_, connection, fresh) = join(&hub, user, Some(LoginId::fresh()));
    assert_eq!((late.endings(), fresh.endings()), (vec![Ending::LoginEnded], vec![]));

    // So is one whose new token stands on what was kicked meanwhile.
    hub.move_to_login(user, connection, Some(login), Timestamp(0));
    assert_eq!(fresh.endings(), [Ending::LoginEnded]);
}

#[tokio::test]
async fn a_token_from_outside_that_was_made_after_the_end_of_the_others_is_good() {
    let (_folder, hub) = node(&MemoryBus::default()).await;
    let user = UserId::fresh();
    let login = Some(LoginId::of_external(user, "of the issuer"));
    hub.kick(user, &Revoked::Login(None), Timestamp(1));
    hub.kick(user, &Revoked::User, Timestamp(1));

    let (_, _, old) = join(&hub, user, login);
    let (_, connection, late) = join_with(&hub, user, login, Timestamp(1));
    assert_eq!((old.endings(), late.endings()), (vec![Ending::LoginEnded], vec![]));
    hub.kick(user, &Revoked::Login(None), Timestamp(1));
    assert_eq!(late.endings(), [], "as the regular ask does, which comes later");

    // Our own users do not come back, whatever a node's clock says.
    hub.move_to_login(user, connection, Some(LoginId::fresh()), Timestamp(2));
    assert_eq!(late.endings(), [Ending::LoginEnded]);
}

#[tokio::test(start_paused = true)]
async fn a_kick_is_remembered_for_a_while_and_no_longer() {
    let (user, connection) = (UserId::fresh(), ConnectionId::fresh());
    let (member, _seen) = member(connection, None, Timestamp(0));
    let kicked = Kicked::default();
    kicked.remember(user, Revoked::Connection(connection), Timestamp(1));
    tokio::time::advance(REMEMBERED_FOR - Duration::from_millis(1)).await;
    assert_eq!(kicked.ending(user, &member), Some(Ending::Replaced));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(kicked.ending(user, &member), None);
}

#[tokio::test]
async fn a_kick_reaches_the_other_nodes() {
    let bus = MemoryBus::default();
    let ((_one, here), (_two, there)) = (node(&bus).await, node(&bus).await);
    let (user, login) = (UserId::fresh(), LoginId::fresh());
    there.subscribe(user).await;
    let (_, _, far) = join(&there, user, Some(login));

    here.kick(user, &Revoked::Login(Some(login)), Timestamp(1));

    tokio::time::timeout(Duration::from_secs(10), far.ended.notified()).await.unwrap();
    assert_eq!(far.endings(), [Ending::LoginEnded]);
}
