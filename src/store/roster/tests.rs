//! Who a connecting device is, case by case.

use super::*;
use crate::store::StillThere;

fn info(fingerprint: u64) -> DeviceInfo {
    DeviceInfo {
        name: format!("device {fingerprint}"),
        kind: "desktop".into(),
        json: format!(r#"{{"name":"device {fingerprint}"}}"#).into(),
        metadata: "{}".into(),
        fingerprint,
    }
}

struct Case {
    user: UserId,
    boot: BootId,
    roster: Roster,
}

impl Case {
    fn new() -> Self {
        Self { user: UserId::fresh(), boot: BootId::fresh(), roster: Roster::default() }
    }

    fn connect(&self, fingerprint: u64, at: i64) -> ConnectDevice {
        ConnectDevice {
            user: self.user,
            login: None,
            issued_at: Timestamp(0),
            let_go: Vec::new(),
            dead_before: Timestamp(i64::MAX),
            claimed: None,
            info: info(fingerprint),
            online: Vec::new(),
            live_boots: vec![self.boot],
            resumable_since: Timestamp(at - 100),
            connection: ConnectionId::fresh(),
            boot: self.boot,
            at: Timestamp(at),
            still_there: StillThere::when(|| true),
        }
    }

    fn connected(&mut self, connect: &ConnectDevice) -> (DeviceId, bool) {
        let connected = self.roster.connect(connect, DeviceId::fresh()).unwrap();
        (connected.device, connected.fresh)
    }

    fn leave(&mut self, device: DeviceId, connection: ConnectionId, at: i64) {
        self.roster.leave(&LeaveDevice { user: self.user, device, connection, at: Timestamp(at) });
    }
}

#[test]
fn a_device_that_left_within_the_window_comes_back_as_itself() {
    let mut case = Case::new();
    let first = case.connect(1, 1_000);
    let (device, _) = case.connected(&first);
    case.leave(device, first.connection, 1_050);

    assert_eq!(case.connected(&case.connect(1, 1_140)), (device, false));
}

#[test]
fn one_that_is_connected_looks_otherwise_or_left_long_ago_is_not_resumed() {
    let mut case = Case::new();
    let first = case.connect(1, 1_000);
    let (device, _) = case.connected(&first);
    assert!(case.connected(&case.connect(1, 1_010)).1, "the twin is connected");
    case.leave(device, first.connection, 1_020);
    assert!(case.connected(&case.connect(2, 1_030)).1, "it looks otherwise");
    assert!(case.connected(&case.connect(1, 1_200)).1, "it left too long ago");
}

#[test]
fn what_a_dead_node_left_open_is_resumed() {
    let mut case = Case::new();
    let (device, _) = case.connected(&case.connect(1, 1_000));
    case.boot = BootId::fresh();

    assert_eq!(case.connected(&case.connect(1, 1_050)), (device, false));
}

#[test]
fn a_goodbye_of_an_older_connection_changes_nothing() {
    let mut case = Case::new();
    let first = case.connect(1, 1_000);
    let (device, _) = case.connected(&first);
    let second = ConnectDevice { claimed: Some(device), ..case.connect(1, 1_010) };
    assert_eq!(case.connected(&second), (device, false));
    assert_eq!(case.roster.devices[&device].fence, 1, "it is the later of two");

    case.leave(device, first.connection, 1_020);

    assert_eq!(case.roster.devices[&device].disconnected_at, None);
}

#[test]
fn a_foreign_device_is_unknown_and_a_revoked_one_refused() {
    let mut case = Case::new();
    let (device, _) = case.connected(&case.connect(1, 1_000));
    case.roster.devices.get_mut(&device).unwrap().is_revoked = true;
    let claim = ConnectDevice { claimed: Some(device), ..case.connect(1, 1_010) };
    let refusal = case.roster.connect(&claim, DeviceId::fresh()).unwrap_err();
    assert_eq!(refusal, ConnectRefusal::DeviceRevoked);

    case.user = UserId::fresh();
    let (other, fresh) = case.connected(&ConnectDevice { user: case.user, ..claim });
    assert!(fresh && other != device);
}

#[test]
fn a_login_must_be_the_users_and_not_be_over() {
    let mut case = Case::new();
    let login = LoginId::fresh();
    let connect = ConnectDevice { login: Some(login), ..case.connect(1, 1_000) };
    let user = case.user;
    let mut outcome = |ends: Option<(UserId, i64)>| {
        case.roster.logins.extend(ends.map(|(user, at)| (login, (user, Timestamp(at)))));
        case.roster.connect(&connect, DeviceId::fresh()).map(|connected| connected.fresh)
    };
    let refused = Err(ConnectRefusal::Unauthorized);
    assert_eq!(outcome(None), refused);
    assert_eq!(outcome(Some((user, 1_000))), refused);
    assert_eq!(outcome(Some((UserId::fresh(), 2_000))), refused);
    assert_eq!(outcome(Some((user, 2_000))), Ok(true));
}

#[test]
fn its_words_of_itself_are_kept_until_it_says_something_new() {
    let mut case = Case::new();
    let (device, _) = case.connected(&case.connect(1, 1_000));
    let row = case.roster.devices.get_mut(&device).unwrap();
    (row.info, row.is_fresh) = (None, false);
    let mut again = ConnectDevice { claimed: Some(device), ..case.connect(1, 1_010) };
    case.connected(&again);
    assert_eq!(case.roster.changed()[0].1.info, None);

    again.info = info(7);
    case.connected(&again);

    assert_eq!(case.roster.changed()[0].1.info, Some(info(7)));
}
