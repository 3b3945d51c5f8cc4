//! Ending the sockets of what was revoked.
//!
//! A socket may be on its way into the hub while what it stands on is revoked:
//! its login was good when the store let it in, and it is not a member yet when
//! the members are kicked. So a kick is remembered for longer than a connect
//! takes, and whoever joins is held against it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Ending, Hub, Member};
use crate::model::{ConnectionId, LoginId, Revoked, Timestamp, UserId};

/// Longer than any connect takes between the store and the hub.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// Kicks of the last moments.
#[derive(Default)]
pub struct Kicked(Mutex<Vec<Kick>>);

struct Kick {
    remembered_at: Instant,
    user: UserId,
    revoked: Revoked,
    at: Timestamp,
}

impl Kicked {
    fn remember(&self, user: UserId, revoked: Revoked, at: Timestamp) {
        let mut kicks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kicks.retain(Kick::is_fresh);
        kicks.push(Kick { remembered_at: Instant::now(), user, revoked, at });
    }

    /// The ending of a member that was kicked before it came.
    fn ending(&self, user: UserId, member: &Member) -> Option<Ending> {
        let kicks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = kicks
            .iter()
            .find(|kick| kick.user == user && kick.is_fresh() && concerns(&kick.revoked, kick.at, member))?;
        Some(ending(&hit.revoked))
    }
}

impl Kick {
    fn is_fresh(&self) -> bool {
        self.remembered_at.elapsed() < REMEMBERED_FOR
    }
}

/// `at`: when it was revoked. A token of another issuer that was made later is good again, as for the store.
fn concerns(revoked: &Revoked, at: Timestamp, member: &Member) -> bool {
    let is_older = member.token_issued_at < at;
    match revoked {
        Revoked::User => is_older || !member.login.is_some_and(LoginId::is_external),
        Revoked::Device(device) => *device == member.device,
        Revoked::Login(None) => is_older && member.login.is_none_or(LoginId::is_external),
        Revoked::Login(login) => *login == member.login,
        Revoked::Connection(connection) => *connection == member.connection,
    }
}

fn ending(revoked: &Revoked) -> Ending {
    match revoked {
        Revoked::Device(_) => Ending::DeviceRevoked,
        Revoked::User | Revoked::Login(_) => Ending::LoginEnded,
        Revoked::Connection(_) => Ending::Replaced,
    }
}

impl Hub {
    /// Ends the sockets of what was revoked, for good and on every node; also
    /// those that are just coming in. Kicking again does no harm.
    /// `at`: when it was revoked, as the store has it.
    pub fn kick(&self, user: UserId, revoked: &Revoked, at: Timestamp) {
        self.kick_here(user, revoked, at);
        self.publish_kick(user, revoked, at);
    }

    /// The same on this node.
    pub(super) fn kick_here(&self, user: UserId, revoked: &Revoked, at: Timestamp) {
        self.0.kicked.remember(user, *revoked, at);
        for member in self.members(user) {
            if concerns(revoked, at, &member) {
                member.recipient.end(ending(revoked));
            }
        }
    }

    /// A member's token was replaced by another, made then.
    pub fn move_to_login(
        &self,
        user: UserId,
        connection: ConnectionId,
        login: Option<LoginId>,
        token_issued_at: Timestamp,
    ) {
        let Some(room) = self.room(user) else { return };
        if let Some(member) = room.move_to_login(connection, login, token_issued_at) {
            self.end_if_kicked(user, &member);
        }
    }

    /// For a member that has just come in, or under another login.
    pub(super) fn end_if_kicked(&self, user: UserId, member: &Member) {
        if let Some(ending) = self.0.kicked.ending(user, member) {
            member.recipient.end(ending);
        }
    }
}

#[cfg(test)]
mod tests;
