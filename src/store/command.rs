//! What the store is asked to write, and what it answers: one transaction takes a
//! batch of these, whatever they are about.

use std::sync::Arc;

use super::{
    AdmitUser, ChangePassword, ConnectDevice, ConnectRefusal, Connected, EndLogins, ImportAccount,
    LeaveConnection, LeaveDevice, MoveDevice, NewAccount, NewLogin, PostMessage, PostRefusal, Posted,
    RevokeDevice, RotateRefresh, Rotation, SessionWrite, TakeMessages, TakenMessage, UpdateDevice,
    WriteRefusal, Written,
};
use crate::model::{BootId, Revoked, Timestamp, UserId};

/// One thing to write; a batch of them is one transaction.
#[derive(Clone, Debug)]
pub enum Command {
    /// A change of one session key.
    Write(Arc<SessionWrite>),
    /// A new account with its first login.
    CreateAccount(NewAccount),
    /// An account of the replaced server, with its devices.
    ImportAccount(ImportAccount),
    /// A user whose account somebody else keeps; nothing happens when they are
    /// there, or were removed after their token was made.
    AdmitUser(AdmitUser),
    /// A login of an account that exists.
    OpenLogin(NewLogin),
    /// A refresh token makes way for its successor.
    RotateRefresh(RotateRefresh),
    /// Logins end.
    EndLogins(EndLogins),
    /// A password is replaced and logins end.
    ChangePassword(ChangePassword),
    /// An account goes, and everything of its user's.
    RemoveUser {
        /// Whose.
        user: UserId,
        /// When.
        at: Timestamp,
    },
    /// A device that connects: known by id, resumed by its info, or new.
    ConnectDevice(ConnectDevice),
    /// A device whose connection ended.
    LeaveDevice(LeaveDevice),
    /// A connection that may have been made ended, whatever device it holds.
    LeaveConnection(LeaveConnection),
    /// A device's connection goes on under another login.
    MoveDevice(MoveDevice),
    /// A device gets another name or metadata.
    UpdateDevice(UpdateDevice),
    /// A device may not come back.
    RevokeDevice(RevokeDevice),
    /// A message waits for a device.
    PostMessage(Arc<PostMessage>),
    /// Messages wait no longer.
    TakeMessages(TakeMessages),
    /// This run of this node is alive.
    Beat {
        /// The run.
        boot: BootId,
        /// The node's name.
        node: String,
        /// When.
        at: Timestamp,
    },
}

impl Command {
    /// Whose turn in the queue it takes: users are served in turn.
    pub fn queue(&self) -> UserId {
        match self {
            Command::Write(write) => write.user,
            Command::CreateAccount(new) => new.account.user,
            Command::ImportAccount(new) => new.account.user,
            Command::AdmitUser(admit) => admit.user,
            Command::OpenLogin(login) => login.user,
            Command::ConnectDevice(connect) => connect.user,
            Command::LeaveDevice(leave) => leave.user,
            // Whose it is, only the store knows; one login's are in order.
            Command::RotateRefresh(rotate) => UserId(rotate.login.0),
            Command::EndLogins(end) => end.user,
            Command::ChangePassword(change) => change.user,
            Command::RemoveUser { user, .. } => *user,
            Command::LeaveConnection(leave) => leave.user,
            Command::MoveDevice(moved) => moved.user,
            Command::UpdateDevice(update) => update.user,
            Command::RevokeDevice(revoke) => revoke.user,
            Command::PostMessage(post) => post.user,
            Command::TakeMessages(take) => take.user,
            Command::Beat { boot, .. } => UserId(boot.0),
        }
    }

    /// Whether its ack says that something is durable. The others are of
    /// connections, which nobody misses after a loss of the machine, and of
    /// messages that were delivered, which would only come twice.
    pub fn is_kept(&self) -> bool {
        !matches!(
            self,
            Command::ConnectDevice(_)
                | Command::LeaveDevice(_)
                | Command::LeaveConnection(_)
                | Command::MoveDevice(_)
                | Command::TakeMessages(_)
                | Command::Beat { .. }
        )
    }

    /// Bytes it brings along, for the bound on a batch.
    pub fn bytes(&self) -> usize {
        match self {
            Command::Write(write) => write.key.as_str().len() + write.change.text().map_or(0, str::len),
            Command::ConnectDevice(connect) => connect.info.json.len(),
            Command::PostMessage(post) => post.json.len(),
            _ => 0,
        }
    }
}

/// What became of a command, in the same order as the batch.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Of [`Command::Write`].
    Written(Result<Written, WriteRefusal>),
    /// Of [`Command::CreateAccount`] and [`Command::ImportAccount`]: false when
    /// the e-mail is taken.
    AccountCreated(bool),
    /// Of [`Command::ConnectDevice`].
    Connected(Result<Connected, ConnectRefusal>),
    /// Of [`Command::RotateRefresh`].
    Rotated(Rotation),
    /// Of [`Command::UpdateDevice`]: false when there is no such device.
    Updated(bool),
    /// Of [`Command::PostMessage`].
    Posted(Result<Posted, PostRefusal>),
    /// Of [`Command::TakeMessages`]: those that were there.
    Taken(Vec<TakenMessage>),
    /// What ended, of the commands that end something; nothing when there is no
    /// such user, password or device.
    Revoked(Option<Vec<Revoked>>),
    /// Of everything else.
    Done,
    /// Not looked at: another node is at work on this user. Of any command; it
    /// belongs at the front of its lane again, with the others of its user.
    Held,
}
