//! What becomes of a login after it was opened: refreshed, ended, and with it
//! its sockets; and what a user may do to the account itself.

use super::{AuthService, Identity, login_ended, password, refresh};
use crate::failure::{Code, Failure, Outcome};
use crate::model::{Clock, Revoked, Timestamp, UserId};
use crate::store::{Account, ChangePassword, Command, EndLogins, RotateRefresh, Rotation, Which};

/// How long a refresh token that was used gets the same successor again, so
/// that a lost answer logs nobody out.
const GRACE_MS: i64 = 20_000;

/// What a refresh gives.
pub struct Refreshed {
    /// The access token.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The refresh token that follows the presented one.
    pub refresh_token: String,
}

impl AuthService {
    /// Gives a fresh access token and the next refresh token for a good one. One
    /// that was used before, other than within the grace, ends its login.
    ///
    /// # Errors
    /// `invalid_token`; the store's failures.
    pub async fn refresh(&self, refresh_token: &str) -> Outcome<Refreshed> {
        let presented = self.refresh_tokens.read(refresh_token).ok_or_else(invalid_token)?;
        let at = Clock::now();
        let rotate = RotateRefresh {
            login: presented.login,
            presented: presented.hash,
            successors: presented.successors.iter().map(|token| refresh::hash(token)).collect(),
            genuine: presented.genuine,
            fresh_since: at.plus_ms(-(self.settings.refresh_ttl.as_millis() as i64)),
            grace_since: at.plus_ms(-GRACE_MS),
            at,
            expires_at: self.login_end(at),
        };
        match self.rotate(rotate).await? {
            Rotation::Rotated { user, email, successor } => {
                let (token, expires_at) = self.sign(user, &email, presented.login, at);
                let refresh_token = presented.successors.into_iter().nth(successor);
                let refresh_token = refresh_token.ok_or_else(Failure::internal)?;
                self.metrics.refreshes.increment(1);
                Ok(Refreshed { token, expires_at, refresh_token })
            }
            Rotation::Reused { user } => {
                tracing::warn!(user.id = %user, login.id = %presented.login, "a used refresh token came again: its login has ended");
                self.metrics.refresh_reuses.increment(1);
                Err(invalid_token())
            }
            Rotation::Invalid => {
                self.metrics.refreshes_refused.increment(1);
                Err(invalid_token())
            }
        }
    }

    /// Rotates, and ends the sockets of a login that ends by it.
    async fn rotate(&self, rotate: RotateRefresh) -> Outcome<Rotation> {
        let (writer, hub, login) = (self.writer.clone(), self.hub.clone(), rotate.login);
        let at = rotate.at;
        let rotated = async move {
            let rotation = writer.rotate(rotate).await?;
            if let Rotation::Reused { user } = rotation {
                hub.kick(user, &Revoked::Login(Some(login)), at);
            }
            Ok(rotation)
        };
        self.tasks.finish(rotated).await
    }

    /// Ends the login of `identity` and its sockets. Tokens of the replaced
    /// server belong to none: they all end.
    ///
    /// # Errors
    /// The store's failures.
    pub async fn logout(&self, identity: &Identity) -> Outcome<()> {
        self.end(identity.user, Which::Only(identity.login)).await
    }

    /// Ends all of a user's logins and their sockets.
    ///
    /// # Errors
    /// The store's failures.
    pub async fn logout_all(&self, user: UserId) -> Outcome<()> {
        self.end(user, Which::All).await
    }

    async fn end(&self, user: UserId, which: Which) -> Outcome<()> {
        self.revoke(user, |at| Command::EndLogins(EndLogins { user, which, at })).await.map(drop)
    }

    /// Replaces the password and ends the user's other logins.
    ///
    /// # Errors
    /// `invalid_credentials`, `weak_password`, `password_too_long`,
    /// `rate_limited`; the store's failures.
    pub async fn change_password(&self, identity: &Identity, current: &str, new: &str) -> Outcome<()> {
        let account = self.account_of(identity).await?;
        password::check_strength(new, &account.email).map_err(|failure| failure.with("field", "new"))?;
        self.check_password(&account, current).await?;
        let new_hash = self.hasher.hash(new).await?;
        let (user, old_hash) = (account.user, Some(account.password_hash));
        let end = Some(Which::AllBut(identity.login));
        let change = |at| Command::ChangePassword(ChangePassword { user, old_hash, new_hash, end, at });
        let changed = self.revoke(user, change).await?;
        // Somebody else was quicker, so it is not the password any more.
        if changed { Ok(()) } else { Err(self.invalid_credentials()) }
    }

    /// Removes the account and everything of its user's.
    ///
    /// # Errors
    /// `invalid_credentials`, `rate_limited`; the store's failures.
    pub async fn remove_account(&self, identity: &Identity, password: &str) -> Outcome<()> {
        let account = self.account_of(identity).await?;
        self.check_password(&account, password).await?;
        let user = account.user;
        self.revoke(user, |at| Command::RemoveUser { user, at }).await.map(drop)
    }

    async fn account_of(&self, identity: &Identity) -> Outcome<Account> {
        self.store.account_of(identity.user).await?.ok_or_else(login_ended)
    }

    /// Guarded like a login: a stolen token must not help to guess the password.
    async fn check_password(&self, account: &Account, password: &str) -> Outcome<()> {
        self.admit_password(&account.email).await?;
        let fits = password.len() <= password::BYTES_MAX;
        let hash = Some(account.password_hash.clone()).filter(|_| fits);
        if self.hasher.verify(password, hash).await? { Ok(()) } else { Err(self.invalid_credentials()) }
    }

    /// Ends something durably, then its sockets; false when it was not there.
    async fn revoke(&self, user: UserId, command: impl FnOnce(Timestamp) -> Command) -> Outcome<bool> {
        let at = Clock::now();
        let (command, writer, hub) = (command(at), self.writer.clone(), self.hub.clone());
        let revoked = async move {
            let revoked = writer.revoke(command).await?;
            for revoked in revoked.iter().flatten() {
                hub.kick(user, revoked, at);
            }
            Ok(revoked.is_some())
        };
        self.tasks.finish(revoked).await
    }
}

fn invalid_token() -> Failure {
    Failure::new(Code::InvalidToken, "This refresh token is not good, or no longer.")
}
