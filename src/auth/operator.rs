//! What an operator does to accounts from the command line, on the database
//! itself, whether or not nodes are running. Running nodes learn what ended
//! from the store within seconds.

use std::sync::Arc;
use std::time::Duration;

use super::external;
use super::password::{self, Hasher};
use super::refresh::{self, RefreshTokens};
use super::token::{Claims, Tokens};
use super::{email_taken, normal_email};
use crate::failure::{Code, Failure, Outcome};
use crate::model::{Clock, LoginId, Timestamp, UserId};
use crate::store::{
    Account, ChangePassword, Command, EndLogins, NewAccount, NewLogin, Reply, Store, StoreError, Which,
};

/// Accounts read at a time.
const PAGE: u32 = 500;

/// See the module's comment.
#[expect(missing_docs, reason = "each is what its type says")]
pub struct Operator {
    pub store: Arc<dyn Store>,
    pub tokens: Tokens,
    pub refresh_tokens: RefreshTokens,
    pub hasher: Hasher,
    pub token_ttl: Duration,
}

impl Operator {
    /// Makes an account, also where strangers may not. It has no login yet.
    ///
    /// # Errors
    /// Those of registering, `registration_closed` aside; the store's failures.
    pub async fn add(&self, email: &str, password: &str) -> Outcome<UserId> {
        let email = normal_email(email)?;
        password::check_strength(password, &email)?;
        let password_hash = self.hasher.hash(password).await?;
        let created_at = Clock::now();
        let user = UserId::fresh();
        let login = self.login_that_ends(user, created_at, created_at);
        let account = Account { user, email, password_hash, created_at };
        match self.commit(Command::CreateAccount(NewAccount { account, login })).await? {
            Reply::AccountCreated(true) => Ok(user),
            _ => Err(email_taken()),
        }
    }

    /// All accounts, in the order of their addresses.
    ///
    /// # Errors
    /// The store's failures, and those of `each`.
    pub async fn list(&self, mut each: impl FnMut(&Account) -> std::io::Result<()>) -> anyhow::Result<()> {
        let mut after = String::new();
        loop {
            let accounts = self.store.accounts_after(&after, PAGE).await?;
            let Some(last) = accounts.last() else { return Ok(()) };
            after.clone_from(&last.email);
            accounts.iter().try_for_each(&mut each)?;
        }
    }

    /// Sets a password and ends all logins.
    ///
    /// # Errors
    /// `not_found`, `weak_password`, `password_too_long`; `invalid_operation` for
    /// a user of an issuer outside, who must not get a second way in; the store's
    /// failures.
    pub async fn reset_password(&self, email: &str, password: &str) -> Outcome<()> {
        let account = self.account(email).await?;
        if account.email == external::address_of(account.user) {
            let message = "This user comes from an issuer outside and has no password here.";
            return Err(Failure::new(Code::InvalidOperation, message));
        }
        password::check_strength(password, &account.email)?;
        let change = ChangePassword {
            user: account.user,
            old_hash: None,
            new_hash: self.hasher.hash(password).await?,
            end: Some(Which::All),
            at: Clock::now(),
        };
        self.commit(Command::ChangePassword(change)).await.map(drop)
    }

    /// Ends all logins.
    ///
    /// # Errors
    /// `not_found`; the store's failures.
    pub async fn log_out(&self, email: &str) -> Outcome<()> {
        let user = self.account(email).await?.user;
        self.commit(Command::EndLogins(EndLogins { user, which: Which::All, at: Clock::now() }))
            .await
            .map(drop)
    }

    /// Removes the account and everything of its user's.
    ///
    /// # Errors
    /// `not_found`; the store's failures.
    pub async fn remove(&self, email: &str) -> Outcome<()> {
        let user = self.account(email).await?.user;
        self.commit(Command::RemoveUser { user, at: Clock::now() }).await.map(drop)
    }

    /// An access token of a login of its own, which cannot be refreshed.
    ///
    /// # Errors
    /// `not_found`; the store's failures.
    pub async fn token(&self, email: &str) -> Outcome<String> {
        let account = self.account(email).await?;
        let at = Clock::now();
        let ends = at.plus_ms(self.token_ttl.as_millis() as i64);
        let login = self.login_that_ends(account.user, at, ends);
        let claims = Claims::new(account.user, &account.email, login.login, at, ends);
        self.commit(Command::OpenLogin(login)).await?;
        Ok(self.tokens.sign(&claims))
    }

    /// A login whose refresh token nobody ever sees.
    fn login_that_ends(&self, user: UserId, at: Timestamp, expires_at: Timestamp) -> NewLogin {
        let login = LoginId::fresh();
        let refresh_hash = refresh::hash(&self.refresh_tokens.first(login));
        NewLogin { user, login, at, expires_at, refresh_hash }
    }

    async fn account(&self, email: &str) -> Outcome<Account> {
        let account = self.store.account(&email.trim().to_lowercase()).await?;
        account.ok_or_else(|| Failure::new(Code::NotFound, "There is no account with this address."))
    }

    async fn commit(&self, command: Command) -> Outcome<Reply> {
        let mut replies = self.store.commit(&[command]).await?;
        replies.pop().ok_or_else(|| StoreError::Unavailable { unknown: true }.into())
    }
}
