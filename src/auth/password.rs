//! Passwords: how strong they must be, and bcrypt off the async threads.
//!
//! A hash of cost 12 takes a core a quarter of a second, so only as many run at
//! a time as there are cores to spare, and a login storm waits in line instead
//! of slowing relayed events down.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use bcrypt::HashParts;
use tokio::sync::Semaphore;

use crate::failure::{Code, Failure, Outcome};

/// bcrypt looks at no more bytes than these.
pub const BYTES_MAX: usize = 72;

/// Characters of a password at least (NIST SP 800-63B, 5.1.1.1).
const CHARS_MIN: usize = 8;

/// Hashes that may wait; beyond it the answer is "try again".
const WAITING_MAX: usize = 256;

/// The least cost that bcrypt has.
const COST_MIN: u32 = 4;

/// Whether `password` may guard the account of `email`.
///
/// # Errors
/// `weak_password` or `password_too_long`.
pub fn check_strength(password: &str, email: &str) -> Outcome<()> {
    let weak =
        |message: &'static str| Err(Failure::new(Code::WeakPassword, message).with("field", "password"));
    if password.len() > BYTES_MAX {
        let failure = Failure::new(Code::PasswordTooLong, "A password has at most 72 bytes.");
        return Err(failure.with("field", "password"));
    }
    if password.chars().count() < CHARS_MIN {
        return weak("A password has at least 8 characters.");
    }
    if password.contains('\0') {
        return weak("A password has no NUL character.");
    }
    if password.eq_ignore_ascii_case(email) {
        return weak("A password is not the e-mail address.");
    }
    Ok(())
}

/// Hashes and checks passwords.
#[derive(Clone)]
pub struct Hasher {
    cost: u32,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// A hash of the same cost that no password matches, for addresses without
    /// an account.
    decoy: Arc<str>,
}

impl Hasher {
    /// A hasher of bcrypt cost `cost` (4 to 15) that uses `threads` cores at most.
    ///
    /// # Errors
    /// When bcrypt refuses the cost.
    pub fn new(cost: u32, threads: usize) -> anyhow::Result<Self> {
        let decoy = bcrypt::hash(uuid::Uuid::new_v4().to_string(), cost)?;
        Ok(Self {
            cost,
            running: Arc::new(Semaphore::new(threads.max(1))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            decoy: decoy.into(),
        })
    }

    /// The bcrypt hash of `password`.
    ///
    /// # Errors
    /// `rate_limited` when too many wait.
    pub async fn hash(&self, password: &str) -> Outcome<String> {
        let (password, cost) = (password.to_owned(), self.cost);
        self.run(move || bcrypt::hash(password, cost)).await?.map_err(|error| {
            tracing::error!(%error, "bcrypt failed");
            Failure::internal()
        })
    }

    /// Whether `password` matches `hash`; without a hash it takes as long and
    /// never does. A hash that is cheaper than configured takes as long as others
    /// where the password is wrong.
    ///
    /// # Errors
    /// `rate_limited` when too many wait.
    pub async fn verify(&self, password: &str, hash: Option<String>) -> Outcome<bool> {
        let password = password.to_owned();
        // Users without a password have an empty one, which must not answer quicker.
        let (hash, real) = match hash.filter(|hash| !hash.is_empty()) {
            Some(hash) => (hash, true),
            None => (self.decoy.to_string(), false),
        };
        let missing = missing_costs(cost_of(&hash), self.cost);
        let check = move || {
            let matches = bcrypt::verify(&password, &hash).unwrap_or(false);
            if !matches {
                missing.for_each(|cost| drop(bcrypt::hash_with_salt(&password, cost, [0; 16])));
            }
            matches
        };
        Ok(self.run(check).await? && real)
    }

    /// Whether a hash costs less than is configured now.
    pub fn is_outdated(&self, hash: &str) -> bool {
        cost_of(hash) < self.cost
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let _in_line = self.waiting.try_acquire().map_err(|_| Failure::rate_limited(2_000))?;
        let _turn = self.running.acquire().await.map_err(|_| Failure::internal())?;
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "the hashing task failed");
            Failure::internal()
        })
    }
}

/// Nothing's where it is no bcrypt hash.
fn cost_of(hash: &str) -> u32 {
    HashParts::from_str(hash).map_or(0, |parts| parts.get_cost())
}

/// The costs of the hashes that take, together with one of cost `done`, as long
/// as one of cost `wanted`: each step of cost doubles the work.
fn missing_costs(done: u32, wanted: u32) -> Range<u32> {
    done.max(COST_MIN)..wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strength_is_8_characters_to_72_bytes_and_not_the_address() {
        let code =
            |password: &str| check_strength(password, "ann@example.com").err().map(|failure| failure.code);
        assert_eq!(code("hunter22"), None);
        assert_eq!(code("1234567"), Some(Code::WeakPassword));
        assert_eq!(code("ключевое"), None);
        assert_eq!(code(&"x".repeat(72)), None);
        assert_eq!(code(&"x".repeat(73)), Some(Code::PasswordTooLong));
        assert_eq!(code("with\0nul-in-it"), Some(Code::WeakPassword));
        assert_eq!(code("Ann@Example.com"), Some(Code::WeakPassword));
    }

    #[test]
    fn a_cheaper_hash_and_those_that_follow_it_are_as_much_work_as_one_of_the_configured_cost() {
        let work = |costs: &mut dyn Iterator<Item = u32>| costs.map(|cost| 1_u64 << cost).sum::<u64>();
        for (stored, configured) in [(4, 12), (10, 12), (11, 12), (12, 12), (4, 15), (4, 4)] {
            let all = work(&mut [stored].into_iter().chain(missing_costs(stored, configured)));
            assert_eq!(all, 1 << configured, "{stored} {configured}");
        }
        assert!(missing_costs(13, 12).is_empty(), "what costs more stays as it is");
    }

    #[tokio::test]
    async fn a_hash_of_a_lower_cost_is_outdated() {
        let hash = Hasher::new(5, 1).unwrap().hash("correct horse").await.unwrap();
        let outdated = |cost| Hasher::new(cost, 1).unwrap().is_outdated(&hash);
        assert_eq!([4, 5, 6].map(outdated), [false, false, true]);
    }

    #[tokio::test]
    async fn only_the_right_password_matches_and_no_account_never_does() {
        let hasher = Hasher::new(4, 1).unwrap();
        let hash = hasher.hash("correct horse").await.unwrap();
        assert!(hasher.verify("correct horse", Some(hash.clone())).await.unwrap());
        assert!(!hasher.verify("wrong horse", Some(hash)).await.unwrap());
        assert!(!hasher.verify("correct horse", None).await.unwrap());
    }
}
