//! Tokens that somebody else issues: an app with accounts of its own, or its identity provider, signs them, and we know
//! only the public keys (JWK Set, RFC 7517; JWT, RFC 7519; best practices, RFC 8725).
//!
//! The key decides which algorithms are good for it, never the token; keys that are shared secrets are not taken. A
//! token names issuer and subject, and the user's id is made of the two, so every node knows whose it is without asking.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use super::Identity;
use super::token::{identity, unauthorized};
use crate::drain::Tasks;
use crate::failure::{Code, Failure, Outcome};
use crate::model::{LoginId, Timestamp, UserId};
use crate::store::EXTERNAL_TOKEN_LIFE_MAX;

/// User ids are made in this namespace (UUID version 5, RFC 9562, 5.5).
const NAMESPACE: Uuid = Uuid::from_u128(0x8f5c_21d0_6c1b_4f5e_9a34_7d0f_51f3_8e62);

/// How often keys are fetched again.
const REFRESH_EVERY: Duration = Duration::from_secs(300);

/// An unknown key's name makes us look for new keys, but whoever invents names does not make us look more often.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What fetching keys may take.
const FETCH_WITHIN: Duration = Duration::from_secs(5);

/// Bytes of a key set worth reading.
const KEYS_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a subject.
const SUBJECT_BYTES_MAX: usize = 255;

/// What an RSA key has at least (RFC 7518, 3.3); shorter ones have been factored, or soon will be.
const RSA_BITS_MIN: usize = 2_048;

/// How far an issuer's clock may be ahead of ours, in seconds.
const SKEW_SECONDS: u64 = 60;

/// Whose tokens are taken.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where its public keys are.
    pub keys: Source,
    /// What its tokens say in `iss`.
    pub issuer: String,
    /// What they say in `aud`, one of these; empty: anything.
    pub audiences: Vec<String>,
    /// The claim that names the user.
    pub user_claim: String,
}

/// Where a key set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of JSON.
    File(PathBuf),
    /// An address that answers with one.
    Url(String),
}

/// Checks such tokens.
pub struct ExternalTokens {
    settings: Settings,
    keys: RwLock<Arc<[Key]>>,
    /// When keys were last looked for.
    looked: Mutex<Option<Instant>>,
    /// The last look found nothing that can be used.
    failed: AtomicBool,
    /// One looks at a time; whoever comes meanwhile waits for what is found.
    looking: Semaphore,
    client: reqwest::Client,
}

struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

impl ExternalTokens {
    /// Loads the keys; an address that does not answer yet is asked again later.
    ///
    /// # Errors
    /// When a file cannot be read or holds no key that can be used.
    pub async fn open(settings: Settings) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(FETCH_WITHIN)
            // Not to where nobody configured, and never from https to http.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        let (keys, looked) = (RwLock::new(Arc::from([])), Mutex::new(None));
        let tokens = Self {
            settings,
            keys,
            looked,
            failed: AtomicBool::new(false),
            looking: Semaphore::new(1),
            client,
        };
        match (&tokens.settings.keys, tokens.look().await) {
            (Source::File(_), Err(error)) => return Err(error.context("JWKS cannot be used")),
            (Source::Url(_), Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "JWKS cannot be fetched yet");
            }
            (_, Ok(())) => {}
        }
        Ok(tokens)
    }

    /// Keeps the keys up to date until the process ends. Where they cannot be had, the known ones stay.
    pub async fn keep_fresh(self: Arc<Self>, tasks: Tasks) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(REFRESH_EVERY) => {}
                () = tasks.ending() => return,
            }
            if let Err(error) = self.look().await {
                tracing::warn!(error = format!("{error:#}"), "JWKS cannot be had; the known keys stay");
            }
        }
    }

    /// Whether a token with this header is for us to judge.
    pub fn is_ours(header: &Header) -> bool {
        ![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512].contains(&header.alg)
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// `token_expired` for a good token past its time; `store_unavailable` while no keys could be had at all;
    /// else `unauthorized`.
    pub async fn verify(&self, token: &str, header: &Header, now: Timestamp) -> Outcome<Identity> {
        // Extensions that must be understood (RFC 7515, 4.1.11); we understand none.
        if header.crit.is_some() {
            return Err(unauthorized());
        }
        if self.find(header).is_empty() {
            self.look_again().await;
        }
        let keys = self.find(header);
        // A key that is unknown may be a new one that could not be fetched.
        if keys.is_empty() && (self.keys().is_empty() || self.failed.load(Ordering::Acquire)) {
            return Err(Failure::new(
                Code::StoreUnavailable,
                "The issuer's keys cannot be fetched; try again.",
            ));
        }
        let claims = keys.iter().find_map(|key| self.claims(token, header, key)).ok_or_else(unauthorized)?;
        let seconds = |name: &str| claims.get(name).and_then(Value::as_f64).map(|seconds| seconds as i64);
        let (issued, expires) =
            (seconds("iat").ok_or_else(unauthorized)?, seconds("exp").ok_or_else(unauthorized)?);
        // From the future, it would outlive whatever ends those of now.
        if issued > now.seconds().saturating_add(SKEW_SECONDS.cast_signed()) {
            return Err(unauthorized());
        }
        let subject = self.subject(&claims).ok_or_else(unauthorized)?;
        let user = user_of(&self.settings.issuer, &subject);
        // Whoever names a token anew makes another one, so a name that is missing is the signed text.
        let name = claims.get("jti").and_then(Value::as_str).filter(|name| !name.is_empty());
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        let login = LoginId::of_external(user, name.unwrap_or(signed));
        let expires = expires.min(issued.saturating_add(EXTERNAL_TOKEN_LIFE_MAX.as_secs().cast_signed()));
        if expires <= now.seconds() {
            return Err(Failure::new(Code::TokenExpired, "The token has expired."));
        }
        Ok(identity(user, Some(login), issued.min(now.seconds()), expires))
    }

    fn claims(&self, token: &str, header: &Header, key: &Key) -> Option<Map<String, Value>> {
        let mut validation = Validation::new(header.alg);
        validation.algorithms = vec![header.alg];
        validation.leeway = SKEW_SECONDS;
        // Expiry is judged apart, so that an expired token can be told from a bad one.
        validation.validate_exp = false;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.settings.issuer]);
        if self.settings.audiences.is_empty() {
            validation.validate_aud = false;
            validation.set_required_spec_claims(&["exp", "iss"]);
        } else {
            validation.set_audience(&self.settings.audiences);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        }
        decode(token, &key.key, &validation).ok().map(|token| token.claims)
    }

    fn subject(&self, claims: &Map<String, Value>) -> Option<String> {
        let subject = match claims.get(&self.settings.user_claim)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        let is_name = (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.contains(char::is_control);
        is_name.then_some(subject)
    }

    fn keys(&self) -> Arc<[Key]> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys that may have signed: the one that is named, or without a name all that are for the algorithm.
    fn find(&self, header: &Header) -> Vec<KeyRef> {
        let keys = self.keys();
        (0..keys.len())
            .filter(|at| keys[*at].algorithms.contains(&header.alg))
            .filter(|at| header.kid.is_none() || keys[*at].id == header.kid)
            .map(|at| KeyRef { keys: keys.clone(), at })
            .collect()
    }

    /// Looks for new keys, unless that was done a moment ago.
    async fn look_again(&self) {
        let Ok(_turn) = self.looking.acquire().await else { return };
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN_AFTER) {
            return;
        }
        if let Err(error) = self.load().await {
            tracing::warn!(error = format!("{error:#}"), "JWKS cannot be had; the known keys stay");
        }
    }

    async fn look(&self) -> anyhow::Result<()> {
        let _turn = self.looking.acquire().await?;
        self.load().await
    }

    async fn load(&self) -> anyhow::Result<()> {
        let loaded = self.try_load().await;
        self.failed.store(loaded.is_err(), Ordering::Release);
        loaded
    }

    async fn try_load(&self) -> anyhow::Result<()> {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let text = match &self.settings.keys {
            Source::File(path) => tokio::fs::read(path).await?,
            Source::Url(url) => self.fetch(url).await?,
        };
        anyhow::ensure!(text.len() <= KEYS_BYTES_MAX, "the key set is longer than {KEYS_BYTES_MAX} bytes");
        let keys = keys_of(&text)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
        Ok(())
    }

    async fn fetch(&self, url: &str) -> anyhow::Result<Vec<u8>> {
        let mut answer = self.client.get(url).send().await?.error_for_status()?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            text.extend_from_slice(&chunk);
            anyhow::ensure!(
                text.len() <= KEYS_BYTES_MAX,
                "the key set is longer than {KEYS_BYTES_MAX} bytes"
            );
        }
        Ok(text)
    }
}

/// A key of a set that may be replaced meanwhile.
struct KeyRef {
    keys: Arc<[Key]>,
    at: usize,
}

impl std::ops::Deref for KeyRef {
    type Target = Key;

    fn deref(&self) -> &Key {
        &self.keys[self.at]
    }
}

/// The id of an issuer's user. The line break cannot be part of either name.
pub fn user_of(issuer: &str, subject: &str) -> UserId {
    UserId(Uuid::new_v5(&NAMESPACE, format!("{issuer}\n{subject}").as_bytes()))
}

/// What stands where accounts have an e-mail address: nothing that anybody could register.
pub fn address_of(user: UserId) -> String {
    format!("external:{user}")
}

/// The keys that can be used; one key that is beyond us does not spoil the others.
fn keys_of(text: &[u8]) -> anyhow::Result<Vec<Key>> {
    let set: JwkSetText = serde_json::from_slice(text).map_err(|_| anyhow::anyhow!("it is no JWK Set"))?;
    let keys: Vec<_> =
        set.keys.into_iter().filter_map(|key| key_of(serde_json::from_value(key).ok()?)).collect();
    anyhow::ensure!(!keys.is_empty(), "it holds no public key that signs");
    Ok(keys)
}

#[derive(serde::Deserialize)]
struct JwkSetText {
    keys: Vec<Value>,
}

fn key_of(jwk: Jwk) -> Option<Key> {
    let is_for_signing = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let algorithms = algorithms_of(&jwk).filter(|_| is_for_signing)?;
    if let AlgorithmParameters::RSA(key) = &jwk.algorithm {
        let bits = bits_of(&key.n)?;
        if bits < RSA_BITS_MIN {
            let kid = jwk.common.key_id.as_deref().unwrap_or_default();
            tracing::warn!(kid, bits, "an RSA key of the JWKS is refused: it has less than 2048 bits");
            return None;
        }
    }
    Some(Key { id: jwk.common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(&jwk).ok()? })
}

/// The length of a number in base64url (RFC 7518, 2), leading zeros left out.
fn bits_of(number: &str) -> Option<usize> {
    let bytes = URL_SAFE_NO_PAD.decode(number).ok()?;
    let significant = bytes.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &bytes[first..]);
    Some(significant.first().map_or(0, |first| 8 * significant.len() - first.leading_zeros() as usize))
}

/// Which algorithms a key is good for. What it says of itself may only narrow that.
fn algorithms_of(jwk: &Jwk) -> Option<&'static [Algorithm]> {
    let able: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
        _ => return None,
    };
    let Some(said) = jwk.common.key_algorithm else { return Some(able) };
    let said = said.to_string();
    able.iter().position(|algorithm| format!("{algorithm:?}") == said).map(|at| &able[at..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_number_leaves_leading_zeros_out() {
        let bits = |bytes: &[u8]| bits_of(&URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(bits(&[0xff; 256]), Some(2_048));
        assert_eq!(bits(&[&[0], [0x80; 256].as_slice()].concat()), Some(2_048));
        assert_eq!(bits(&[&[0x7f], [0xff; 255].as_slice()].concat()), Some(2_047));
        assert_eq!((bits(&[]), bits(&[0, 0]), bits_of("=")), (Some(0), Some(0), None));
    }
}
