//! What device commands make of the devices that are there: pure, for databases
//! where a batch of them must not cost a round trip each.
//!
//! A store loads the rows that [`Needs`] names, calls [`Roster::connect`] and
//! [`Roster::leave`] in the order of the batch, and saves what [`Roster::changed`]
//! says. Each command sees what its predecessors made.

use std::collections::{HashMap, HashSet};

use super::{Command, ConnectDevice, ConnectRefusal, Connected, LeaveDevice};
use crate::model::{BootId, ConnectionId, DeviceId, DeviceInfo, LoginId, Timestamp, UserId};

/// A device's row, as far as connecting and leaving looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub user: UserId,
    /// What it said of itself.
    pub fingerprint: u64,
    /// What it says of itself now, if that is new.
    pub info: Option<DeviceInfo>,
    /// Who holds it, or held it last.
    pub connection: Option<ConnectionId>,
    /// Counts its connections.
    pub fence: u64,
    /// On which run of which node.
    pub boot: Option<BootId>,
    /// By which login.
    pub login: Option<LoginId>,
    /// Since when.
    pub connected_at: Option<Timestamp>,
    /// Until when; nothing while connected.
    pub disconnected_at: Option<Timestamp>,
    /// The last moment it is known to have been connected, a dead node's last
    /// beat taken into account.
    pub last_seen: Timestamp,
    /// When that run last said that it is alive.
    pub last_beat: Timestamp,
    /// The user removed it.
    pub is_revoked: bool,
    /// It is new in this batch.
    pub is_fresh: bool,
}

/// What a batch's device commands look at.
#[derive(Default)]
pub struct Needs {
    /// Devices that are named.
    pub devices: HashSet<DeviceId>,
    /// Users with a device that names none, and what it says of itself.
    pub lookalikes: HashSet<(UserId, u64)>,
    /// Logins of connecting devices.
    pub logins: HashSet<LoginId>,
}

impl Needs {
    /// What `batch` needs.
    pub fn of(batch: &[Command]) -> Self {
        let mut needs = Self::default();
        for command in batch {
            match command {
                Command::ConnectDevice(connect) => {
                    needs.logins.extend(connect.login);
                    match connect.claimed {
                        Some(device) => needs.devices.extend([device]),
                        None => needs.lookalikes.extend([(connect.user, connect.info.fingerprint)]),
                    }
                }
                Command::LeaveDevice(leave) => needs.devices.extend([leave.device]),
                _ => {}
            }
        }
        needs
    }
}

/// The devices and logins that were loaded, and what became of them.
#[derive(Default)]
pub struct Roster {
    /// By id.
    pub devices: HashMap<DeviceId, Row>,
    /// Whose each login is and when it ends; ended ones are left out.
    pub logins: HashMap<LoginId, (UserId, Timestamp)>,
    /// Tokens from outside that were ended.
    pub ended_tokens: HashSet<LoginId>,
    /// Since when tokens without a login, or from outside, count, by user.
    pub tokens_since: HashMap<UserId, Timestamp>,
    /// Connections that had not said goodbye when their device connected anew:
    /// nodes are to know.
    pub left_open: Vec<(UserId, ConnectionId, Timestamp)>,
    touched: HashSet<DeviceId>,
}

impl Roster {
    /// Gives a connecting device of an existing user its identity: `fresh` is
    /// the id for a new one. What is kept of a known one that says nothing new is
    /// not loaded: whoever saves it tells.
    pub fn connect(&mut self, connect: &ConnectDevice, fresh: DeviceId) -> Result<Connected, ConnectRefusal> {
        if !connect.still_there.holds() {
            return Err(ConnectRefusal::Gone);
        }
        let is_of_now =
            || self.tokens_since.get(&connect.user).is_none_or(|since| *since <= connect.issued_at);
        let authorized = match connect.login {
            None => is_of_now(),
            Some(login) if login.is_external() => is_of_now() && !self.ended_tokens.contains(&login),
            Some(login) => self
                .logins
                .get(&login)
                .is_some_and(|(user, expires_at)| *user == connect.user && *expires_at > connect.at),
        };
        if !authorized {
            return Err(ConnectRefusal::Unauthorized);
        }
        let known = match connect.claimed {
            // A foreign device answers exactly like one that does not exist.
            Some(claimed) => match self.devices.get(&claimed).filter(|row| row.user == connect.user) {
                Some(row) if row.is_revoked => return Err(ConnectRefusal::DeviceRevoked),
                found => {
                    let open = found.filter(|row| row.disconnected_at.is_none());
                    let older = open.and_then(|row| row.connection);
                    let found = found.map(|_| claimed);
                    self.left_open.extend(older.map(|older| (connect.user, older, connect.at)));
                    found
                }
            },
            None => self.resumable(connect),
        };
        let device = known.unwrap_or(fresh);
        let before = known.and_then(|device| self.devices.remove(&device));
        let described_anew = before.as_ref().is_some_and(|before| says_new(before, connect));
        let row = taken(before, connect);
        let (fence, description) = (row.fence, connect.info.description());
        self.devices.insert(device, row);
        self.touched.insert(device);
        let fresh = known.is_none();
        Ok(Connected { device, fence, fresh, description, described_anew, dropped: Vec::new() })
    }

    /// The device with the same info that went offline most recently.
    fn resumable(&self, connect: &ConnectDevice) -> Option<DeviceId> {
        let gone = |row: &Row| {
            let is_dead =
                |boot: BootId| !connect.live_boots.contains(&boot) && row.last_beat < connect.dead_before;
            row.disconnected_at.is_some()
                || row.connection.is_some_and(|connection| connect.let_go.contains(&connection))
                || row.boot.is_none_or(is_dead)
        };
        self.devices
            .iter()
            .filter(|(device, row)| {
                row.user == connect.user
                    && row.fingerprint == connect.info.fingerprint
                    && !row.is_revoked
                    && !connect.online.contains(device)
                    && gone(row)
                    && row.last_seen >= connect.resumable_since
            })
            .max_by_key(|(device, row)| (row.last_seen, **device))
            .map(|(device, _)| *device)
    }

    /// Fenced: a late goodbye of an older connection changes nothing.
    pub fn leave(&mut self, leave: &LeaveDevice) {
        let row = self.devices.get_mut(&leave.device).filter(|row| {
            row.user == leave.user
                && row.connection == Some(leave.connection)
                && row.disconnected_at.is_none()
        });
        if let Some(row) = row {
            row.disconnected_at = Some(leave.at);
            row.last_seen = leave.at;
            self.touched.insert(leave.device);
        }
    }

    /// The rows to save, in id order.
    pub fn changed(&self) -> Vec<(DeviceId, &Row)> {
        let mut rows: Vec<_> =
            self.touched.iter().filter_map(|id| self.devices.get(id).map(|row| (*id, row))).collect();
        rows.sort_by_key(|(id, _)| *id);
        rows
    }
}

/// A row after its device connected. Its name and metadata change only when it
/// says something new of itself, so that a name given over REST lasts.
fn taken(before: Option<Row>, connect: &ConnectDevice) -> Row {
    let says_new = before.as_ref().is_none_or(|before| says_new(before, connect));
    let info = if says_new {
        Some(connect.info.clone())
    } else {
        before.as_ref().and_then(|before| before.info.clone())
    };
    Row {
        user: connect.user,
        fingerprint: match (&before, says_new) {
            (Some(before), false) => before.fingerprint,
            _ => connect.info.fingerprint,
        },
        info,
        connection: Some(connect.connection),
        fence: before.as_ref().map_or(0, |before| before.fence + 1),
        boot: Some(connect.boot),
        login: connect.login,
        connected_at: Some(connect.at),
        disconnected_at: None,
        last_seen: connect.at,
        last_beat: connect.at,
        is_revoked: false,
        is_fresh: before.is_none_or(|before| before.is_fresh),
    }
}

fn says_new(before: &Row, connect: &ConnectDevice) -> bool {
    connect.info.json.as_ref() != "{}" && before.fingerprint != connect.info.fingerprint
}

#[cfg(test)]
mod tests;
