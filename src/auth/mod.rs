//! Who is it? Accounts, logins and the tokens that prove them.

pub mod external;
mod logins;
pub mod operator;
pub mod password;
pub mod refresh;
pub mod token;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::backplane::{Backplane, Rate, Taken};
use crate::drain::Tasks;
use crate::failure::{Code, Failure, Outcome};
use crate::hub::Hub;
use crate::model::{Clock, LoginId, Timestamp, UserId};
use crate::store::{
    Account, AdmitUser, Bearer, ChangePassword, Command, NewAccount, NewLogin, Store, Writer,
};
use crate::telemetry::metrics::Metrics;
use external::ExternalTokens;
use password::Hasher;
use refresh::RefreshTokens;
use token::{Claims, Tokens};

/// Characters of an e-mail address (RFC 5321, 4.5.3.1.3, less the brackets).
const EMAIL_BYTES_MAX: usize = 254;

/// Users of an issuer outside that a node remembers.
const WELCOMED_MAX: usize = 100_000;

/// Who a good token belongs to.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The login; nothing for tokens of the replaced server. Of an issuer outside each token is one.
    pub login: Option<LoginId>,
    /// When the token was made; 0 when it does not say.
    pub issued_at: Timestamp,
    /// When the token ends.
    pub expires_at: Timestamp,
}

impl Identity {
    fn bearer(&self) -> Bearer {
        Bearer { user: self.user, login: self.login, issued_at: self.issued_at }
    }
}

/// What a register or login gives.
pub struct Session {
    /// The account.
    pub user: UserId,
    /// Its address.
    pub email: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The access token.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The refresh token.
    pub refresh_token: String,
}

/// Settings of the service.
#[expect(missing_docs, reason = "each is a row of the settings table")]
pub struct Settings {
    pub token_ttl: Duration,
    pub refresh_ttl: Duration,
    pub registration_open: bool,
    pub logins_per_email: u32,
    pub auth_per_address: u32,
}

/// What the service works with.
#[expect(missing_docs, reason = "each is what its type says")]
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub writer: Writer,
    pub hub: Hub,
    pub tokens: Tokens,
    /// Those of an issuer outside.
    pub external: Option<Arc<ExternalTokens>>,
    pub refresh_tokens: RefreshTokens,
    pub hasher: Hasher,
    pub metrics: Arc<Metrics>,
    /// Where all nodes count tries together.
    pub backplane: Arc<dyn Backplane>,
    pub tasks: Tasks,
}

/// See the module's comment.
pub struct AuthService {
    store: Arc<dyn Store>,
    writer: Writer,
    hub: Hub,
    tokens: Tokens,
    external: Option<Arc<ExternalTokens>>,
    /// Users of the issuer outside who were seen to have an account here.
    welcomed: Welcomed,
    refresh_tokens: RefreshTokens,
    hasher: Hasher,
    settings: Settings,
    metrics: Arc<Metrics>,
    backplane: Arc<dyn Backplane>,
    tasks: Tasks,
}

impl AuthService {
    /// A service made of `parts`.
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let Parts { store, writer, hub, tokens, external, refresh_tokens, hasher, metrics, backplane, tasks } =
            parts;
        let welcomed = Welcomed::default();
        Self {
            store,
            writer,
            hub,
            tokens,
            external,
            welcomed,
            refresh_tokens,
            hasher,
            settings,
            metrics,
            backplane,
            tasks,
        }
    }

    /// Counts one try of `address` at register, login or refresh.
    ///
    /// # Errors
    /// `rate_limited` with the wait.
    pub async fn admit(&self, address: IpAddr) -> Outcome<()> {
        self.count(&format!("address:{address}"), self.settings.auth_per_address).await
    }

    /// Counts one try against a bucket that all nodes share, or against this
    /// node's own while they cannot. 0 a minute lets everybody through.
    async fn count(&self, bucket: &str, per_minute: u32) -> Outcome<()> {
        if per_minute == 0 {
            return Ok(());
        }
        let rate = Rate { capacity: per_minute, per_second: f64::from(per_minute) / 60.0 };
        match self.backplane.take_token(bucket, rate).await {
            Taken::Allowed => Ok(()),
            Taken::Limited { retry_after } => {
                self.metrics.logins_throttled.increment(1);
                Err(Failure::rate_limited(retry_after.as_millis() as u64))
            }
        }
    }

    /// Makes an account and logs it in.
    ///
    /// # Errors
    /// `registration_closed`, `invalid_email`, `weak_password`,
    /// `password_too_long`, `email_taken`; the store's failures.
    pub async fn register(&self, email: &str, password: &str) -> Outcome<Session> {
        if !self.settings.registration_open {
            return Err(Failure::new(Code::RegistrationClosed, "Accounts cannot be made here."));
        }
        let email = normal_email(email)?;
        password::check_strength(password, &email)?;
        // Saves the hash; the store decides.
        if self.store.account(&email).await?.is_some() {
            return Err(email_taken());
        }
        let password_hash = self.hasher.hash(password).await?;
        let account = Account { user: UserId::fresh(), email, password_hash, created_at: Clock::now() };
        let (login, refresh_token) = self.new_login(account.user, account.created_at);
        let session = self.session(&account, &login, refresh_token);
        if self.writer.create_account(NewAccount { account, login }).await? {
            Ok(session)
        } else {
            Err(email_taken())
        }
    }

    /// Logs an account in. An unknown e-mail and a wrong password get the same
    /// answer in the same time.
    ///
    /// # Errors
    /// `invalid_credentials`, `rate_limited`; the store's failures.
    pub async fn login(&self, email: &str, password: &str) -> Outcome<Session> {
        let email = email.trim().to_lowercase();
        if email.len() > EMAIL_BYTES_MAX || password.len() > password::BYTES_MAX {
            // No account has such an address or password.
            return Err(self.invalid_credentials());
        }
        self.admit_password(&email).await?;
        let account = self.store.account(&email).await?;
        let hash = account.as_ref().map(|account| account.password_hash.clone());
        let matches = self.hasher.verify(password, hash).await?;
        let Some(account) = account.filter(|_| matches) else {
            return Err(self.invalid_credentials());
        };
        if self.hasher.is_outdated(&account.password_hash) {
            self.hash_anew(&account, password).await;
        }
        let (login, refresh_token) = self.new_login(account.user, Clock::now());
        let session = self.session(&account, &login, refresh_token);
        self.writer.open_login(login).await?;
        self.metrics.logins_ok.increment(1);
        Ok(session)
    }

    /// Keeps a hash of the configured cost in the place of a cheaper one, unless
    /// the password has changed meanwhile. No login waits for it to succeed: the
    /// next one tries again.
    async fn hash_anew(&self, account: &Account, password: &str) {
        let Ok(new_hash) = self.hasher.hash(password).await else { return };
        let old_hash = Some(account.password_hash.clone());
        let change = ChangePassword { user: account.user, old_hash, new_hash, end: None, at: Clock::now() };
        if let Err(error) = self.writer.submit(Command::ChangePassword(change)).await {
            tracing::debug!(%error, "a password was not hashed anew");
        }
    }

    /// Counts one try of a password of `email`.
    async fn admit_password(&self, email: &str) -> Outcome<()> {
        // Its hash: addresses are nobody's business in Redis.
        let digest = Sha256::digest(email);
        let bucket =
            digest.iter().take(16).fold("email:".to_owned(), |text, byte| text + &format!("{byte:02x}"));
        self.count(&bucket, self.settings.logins_per_email).await
    }

    fn invalid_credentials(&self) -> Failure {
        self.metrics.logins_failed.increment(1);
        Failure::new(Code::InvalidCredentials, "The e-mail or the password is wrong.")
    }

    /// A login that lasts as long as its longest token, and its refresh token.
    fn new_login(&self, user: UserId, at: Timestamp) -> (NewLogin, String) {
        let login = LoginId::fresh();
        let refresh_token = self.refresh_tokens.first(login);
        let refresh_hash = refresh::hash(&refresh_token);
        (NewLogin { user, login, at, expires_at: self.login_end(at), refresh_hash }, refresh_token)
    }

    /// When a login ends that is refreshed at `at` and never again.
    fn login_end(&self, at: Timestamp) -> Timestamp {
        let life = self.settings.refresh_ttl.max(self.settings.token_ttl);
        at.plus_ms(life.as_millis() as i64)
    }

    fn session(&self, account: &Account, login: &NewLogin, refresh_token: String) -> Session {
        let (token, expires_at) = self.sign(account.user, &account.email, login.login, login.at);
        Session {
            user: account.user,
            email: account.email.clone(),
            created_at: account.created_at,
            token,
            expires_at,
            refresh_token,
        }
    }

    /// An access token of a login, and when it ends.
    fn sign(&self, user: UserId, email: &str, login: LoginId, at: Timestamp) -> (String, Timestamp) {
        let ends = at.plus_ms(self.settings.token_ttl.as_millis() as i64);
        let expires_at = Timestamp(ends.seconds() * 1000);
        (self.tokens.sign(&Claims::new(user, email, login, at, expires_at)), expires_at)
    }

    /// Checks a token's signature and times, not yet whether its login still is. Who comes with a good token from
    /// outside for the first time gets an account.
    ///
    /// # Errors
    /// `unauthorized` or `token_expired`; the store's failures.
    pub async fn identify(&self, token: &str) -> Outcome<Identity> {
        let header = token::header_of(token)?;
        match &self.external {
            Some(external) if ExternalTokens::is_ours(&header) => {
                let identity = external.verify(token, &header, Clock::now()).await?;
                self.welcome(&identity).await?;
                Ok(identity)
            }
            _ => self.tokens.verify_of(token, &header, Clock::now()),
        }
    }

    /// Notes that the store refused whom [`AuthService::identify`] let through.
    pub fn refused(&self, identity: &Identity, failure: &Failure) {
        if failure.code == Code::Unauthorized {
            self.welcomed.forget(identity.user);
        }
    }

    /// Makes sure that a user of the issuer outside has an account, which has no password and no e-mail address.
    async fn welcome(&self, identity: &Identity) -> Outcome<()> {
        let user = identity.user;
        if self.welcomed.knows(user) {
            return Ok(());
        }
        if self.store.account_of(user).await?.is_none() {
            // When another node was quicker, that is as good; a token from before a removal brings nobody back.
            let (name, issued_at, at) = (external::address_of(user), identity.issued_at, Clock::now());
            self.writer.submit(Command::AdmitUser(AdmitUser { user, name, issued_at, at })).await?;
        }
        self.welcomed.note(user);
        Ok(())
    }

    /// Checks a token in full.
    ///
    /// # Errors
    /// `unauthorized` or `token_expired`; the store's failures.
    pub async fn authenticate(&self, token: &str) -> Outcome<Identity> {
        let identity = self.identify(token).await?;
        if self.store.is_authorized(&identity.bearer(), Clock::now()).await? {
            Ok(identity)
        } else {
            self.welcomed.forget(identity.user);
            Err(login_ended())
        }
    }
}

/// Users who need not be looked up again, up to a bound.
#[derive(Default)]
struct Welcomed(Mutex<HashSet<UserId>>);

impl Welcomed {
    fn users(&self) -> MutexGuard<'_, HashSet<UserId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, user: UserId) -> bool {
        self.users().contains(&user)
    }

    fn note(&self, user: UserId) {
        let mut users = self.users();
        if users.len() >= WELCOMED_MAX {
            users.clear();
        }
        users.insert(user);
    }

    /// Whoever was removed meanwhile is looked up the next time.
    fn forget(&self, user: UserId) {
        self.users().remove(&user);
    }
}

fn email_taken() -> Failure {
    Failure::new(Code::EmailTaken, "This e-mail address has an account.")
}

/// An e-mail address as it is kept and found: trimmed and in lower case.
///
/// # Errors
/// `invalid_email`.
pub fn normal_email(email: &str) -> Outcome<String> {
    let invalid =
        || Failure::new(Code::InvalidEmail, "This is not an e-mail address.").with("field", "email");
    // Letters may be longer in lower case, and a login is looked up by that.
    let email = email.trim().to_lowercase();
    let (local, domain) = email.rsplit_once('@').ok_or_else(invalid)?;
    let plain = !email.chars().any(|c| c.is_control() || c.is_whitespace() || "<>,;\"\\".contains(c));
    let sized = email.len() <= EMAIL_BYTES_MAX && (1..=64).contains(&local.len()) && !domain.is_empty();
    let dotted = !domain.starts_with('.') && !domain.ends_with('.') && !domain.contains("..");
    if plain && sized && dotted && !local.contains('@') { Ok(email) } else { Err(invalid()) }
}

fn login_ended() -> Failure {
    Failure::new(Code::Unauthorized, "This login has ended.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_trimmed_and_in_lower_case() {
        assert_eq!(normal_email(" Ann@Example.COM ").unwrap(), "ann@example.com");
        assert!(normal_email("a@localhost").is_ok());
        let long = format!("{}@example.com", "a".repeat(64));
        assert!(normal_email(&long).is_ok());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let too_long = format!("a@{}.com", "d".repeat(250));
        for bad in [
            "",
            "ann",
            "@x.org",
            "ann@",
            "a b@x.org",
            "a@x.org\r\nBcc: b",
            "a\0@x.org",
            "a@@x.org",
            "a@.x",
            &too_long,
        ] {
            assert_eq!(normal_email(bad).unwrap_err().code, Code::InvalidEmail, "{bad:?}");
        }
    }
}
