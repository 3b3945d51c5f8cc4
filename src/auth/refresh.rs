//! Refresh tokens: opaque to clients, hashed at rest, each good for one rotation.
//!
//! `r1.` and, in base64url, the login (16 bytes), a value (32) and a seal (16).
//! The first value of a login is random; a successor's is the HMAC of the token
//! before it, so that the same successor can be given again while its hash alone
//! is stored. The seal says that one of our secrets made the token: whoever
//! shows a sealed token that is not the good one shows one that was good once.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::model::{LoginId, Secret};

/// Says what follows, for people and for a format to come.
const PREFIX: &str = "r1.";

const LOGIN_BYTES: usize = 16;
const VALUE_BYTES: usize = 32;
const SEAL_BYTES: usize = 16;

/// Makes refresh tokens and knows its own.
pub struct RefreshTokens {
    /// The signing secret's key, then that of the secret before.
    keys: Vec<[u8; 32]>,
}

/// A refresh token as it was presented.
#[derive(Debug, PartialEq, Eq)]
pub struct Presented {
    /// The login it names.
    pub login: LoginId,
    /// What is stored of it while it is good.
    pub hash: [u8; 32],
    /// One of our secrets made it.
    pub genuine: bool,
    /// What may follow it, a token for each secret.
    pub successors: Vec<String>,
}

impl RefreshTokens {
    /// Makes tokens with `secret`; knows those of `previous` too.
    pub fn new(secret: &Secret, previous: Option<&Secret>) -> Self {
        let derive = |secret: &Secret| mac(secret.expose().as_bytes(), &[b"tandem refresh tokens"]);
        Self { keys: std::iter::once(secret).chain(previous).map(derive).collect() }
    }

    /// The first token of a login.
    pub fn first(&self, login: LoginId) -> String {
        sealed(&self.keys[0], login, rand::random())
    }

    /// Reads a token; nothing when it does not have the form of one.
    pub fn read(&self, token: &str) -> Option<Presented> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        if bytes.len() != LOGIN_BYTES + VALUE_BYTES + SEAL_BYTES {
            return None;
        }
        let (body, seal) = bytes.split_at(LOGIN_BYTES + VALUE_BYTES);
        let login = LoginId(uuid::Uuid::from_slice(&body[..LOGIN_BYTES]).ok()?);
        let successor = |key| sealed(key, login, mac(key, &[b"next", body]));
        Some(Presented {
            login,
            hash: hash(token),
            genuine: self.keys.iter().any(|key| is_seal(key, body, seal)),
            successors: self.keys.iter().map(successor).collect(),
        })
    }
}

/// What is stored of a token. It is random, so it needs no slow hash.
pub fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn sealed(key: &[u8; 32], login: LoginId, value: [u8; VALUE_BYTES]) -> String {
    let mut bytes = [login.0.as_bytes().as_slice(), &value].concat();
    let seal = mac(key, &[b"seal", &bytes]);
    bytes.extend_from_slice(&seal[..SEAL_BYTES]);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

fn is_seal(key: &[u8; 32], body: &[u8], seal: &[u8]) -> bool {
    keyed(key, &[b"seal", body]).verify_truncated_left(seal).is_ok()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    keyed(key, parts).finalize().into_bytes().into()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "another-secret-of-32-bytes-or-so";

    fn tokens(secret: &str, previous: Option<&str>) -> RefreshTokens {
        let previous = previous.map(|text| Secret::new(text.into()));
        RefreshTokens::new(&Secret::new(secret.into()), previous.as_ref())
    }

    #[test]
    fn a_token_names_its_login_and_always_has_the_same_successor() {
        let login = LoginId::fresh();
        let first = tokens(OLD, None).first(login);
        let presented = tokens(OLD, None).read(&first).unwrap();
        assert_eq!((presented.login, presented.genuine), (login, true));
        assert_eq!(presented, tokens(OLD, None).read(&first).unwrap());
        let second = tokens(OLD, None).read(&presented.successors[0]).unwrap();
        assert!(second.genuine && second.login == login && second.hash != presented.hash);
        assert_ne!(tokens(OLD, None).first(login), first, "first tokens are random");
    }

    #[test]
    fn after_a_rotation_of_secrets_the_successor_of_before_is_still_found() {
        let first = tokens(OLD, None).first(LoginId::fresh());
        let before = tokens(OLD, None).read(&first).unwrap().successors;
        let after = tokens(NEW, Some(OLD)).read(&first).unwrap();
        assert!(after.genuine);
        assert_eq!(after.successors[1], before[0]);
        assert_ne!(after.successors[0], before[0]);
    }

    #[test]
    fn a_forged_token_is_read_and_not_genuine() {
        let real = tokens(OLD, None).first(LoginId::fresh());
        let forged = tokens(NEW, None).first(LoginId::fresh());
        assert!(!tokens(OLD, None).read(&forged).unwrap().genuine);
        let at = PREFIX.len() + 30;
        let other = if real.as_bytes()[at] == b'A' { "B" } else { "A" };
        let flipped = format!("{}{other}{}", &real[..at], &real[at + 1..]);
        assert!(!tokens(OLD, None).read(&flipped).unwrap().genuine);
    }

    #[test]
    fn what_has_another_form_is_no_token() {
        let real = tokens(OLD, None).first(LoginId::fresh());
        for bad in ["", "r1.", "r1.AAAA", "x", &real[1..], &real[..real.len() - 1], &format!("{real}AAAA")] {
            assert_eq!(tokens(OLD, None).read(bad), None, "{bad}");
        }
    }
}
