//! What the store keeps of accounts and logins, and what can be asked of them.
//!
//! A login is the family of one register or login: its access tokens and the
//! refresh tokens that follow each other. Whatever ends one is noted in the same
//! transaction as a [`Revocation`], so that every node learns of it.

use crate::model::{DeviceId, DeviceInfo, LoginId, Revoked, Timestamp, UserId};

/// An account as the store keeps it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Account {
    pub user: UserId,
    pub email: String,
    pub password_hash: String,
    pub created_at: Timestamp,
}

/// A new account and the login that its maker gets.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct NewAccount {
    pub account: Account,
    pub login: NewLogin,
}

/// An account of the replaced server.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct ImportAccount {
    pub account: Account,
    pub devices: Vec<ImportedDevice>,
}

/// A device of the replaced server.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct ImportedDevice {
    pub id: DeviceId,
    pub info: DeviceInfo,
    pub last_seen: Timestamp,
}

/// A login of an account that exists.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct NewLogin {
    pub user: UserId,
    pub login: LoginId,
    pub at: Timestamp,
    pub expires_at: Timestamp,
    /// SHA-256 of the first refresh token.
    pub refresh_hash: [u8; 32],
}

/// A user whose account somebody else keeps, on first use.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct AdmitUser {
    pub user: UserId,
    /// In the place of the e-mail address; no address looks like it.
    pub name: String,
    /// When the token that names them was made. One from before their removal
    /// does not bring them back.
    pub issued_at: Timestamp,
    pub at: Timestamp,
}

/// What a good signature says of who asks; whether it still holds is the
/// store's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The user.
    pub user: UserId,
    /// The login; nothing for tokens of the replaced server. One from outside
    /// is good unless it was ended.
    pub login: Option<LoginId>,
    /// When the token was made; 0 when it does not say.
    pub issued_at: Timestamp,
}

/// A refresh token that is presented, and those that may follow it.
#[derive(Clone, Debug)]
pub struct RotateRefresh {
    /// The login that the token names.
    pub login: LoginId,
    /// SHA-256 of the token.
    pub presented: [u8; 32],
    /// SHA-256 of its successor: first under the signing secret, then under the
    /// one before.
    pub successors: Vec<[u8; 32]>,
    /// One of our secrets made the token, so it was good once.
    pub genuine: bool,
    /// A token that came later than this is still good.
    pub fresh_since: Timestamp,
    /// A token rotated later than this gets its successor again, unless that
    /// was used.
    pub grace_since: Timestamp,
    /// When.
    pub at: Timestamp,
    /// When the login ends unless it is refreshed again.
    pub expires_at: Timestamp,
}

/// What became of a presented refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It is used up; this successor is good now.
    Rotated {
        /// Whose login it is.
        user: UserId,
        /// Their address.
        email: String,
        /// Which of the proposed successors.
        successor: usize,
    },
    /// It had been used before: its login has ended.
    Reused {
        /// Whose login it was.
        user: UserId,
    },
    /// It means nothing, or no longer.
    Invalid,
}

/// Ends logins of a user.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct EndLogins {
    pub user: UserId,
    pub which: Which,
    pub at: Timestamp,
}

/// Which logins. Without an id: the tokens of the replaced server, which count
/// as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// This one.
    Only(Option<LoginId>),
    /// All but this one.
    AllBut(Option<LoginId>),
}

/// Replaces a password, or its hash, and ends logins.
#[derive(Clone, Debug)]
pub struct ChangePassword {
    /// Whose.
    pub user: UserId,
    /// Only if this is the hash that is there; an operator needs none.
    pub old_hash: Option<String>,
    /// The new one.
    pub new_hash: String,
    /// The logins that end with it; none where the password stays the same.
    pub end: Option<Which>,
    /// When.
    pub at: Timestamp,
}

/// Something that was ended, in the order in which nodes learn of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Revocation {
    pub user: UserId,
    pub revoked: Revoked,
    pub at: Timestamp,
}
