//! Access tokens: JWTs signed with HS256 (RFC 7519, RFC 7518 3.2).
//!
//! Ours carry the type `tandem+jwt`, an audience and the login they belong to.
//! Tokens of the replaced server (type `JWT`, claims userId, email, exp) are
//! taken too, until they expire, unless that is switched off. The algorithm is
//! fixed; what a header says of keys is never followed.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::failure::{Code, Failure, Outcome};
use crate::model::{LoginId, Secret, Timestamp, UserId};

/// The type of our access tokens, so that no other token of ours passes for one.
const TYPE: &str = "tandem+jwt";

/// Whom our tokens are for.
const AUDIENCE: &str = "tandem";

/// 9999-12-31T23:59:59Z: RFC 3339 has no later moment.
const LAST_SECOND: i64 = 253_402_300_799;

/// Bytes of the longest token worth looking at.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// What our tokens say. `userId` and `email` are where clients of the replaced
/// server look for them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    user_id: UserId,
    email: String,
    sid: LoginId,
    aud: String,
    iat: i64,
    exp: i64,
}

impl Claims {
    /// Claims of one login from `now` to `expires_at`.
    pub fn new(user: UserId, email: &str, login: LoginId, now: Timestamp, expires_at: Timestamp) -> Self {
        Self {
            user_id: user,
            email: email.to_owned(),
            sid: login,
            aud: AUDIENCE.to_owned(),
            iat: now.seconds(),
            exp: expires_at.seconds(),
        }
    }
}

/// What a token of the replaced server says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LegacyClaims {
    user_id: UserId,
    #[serde(default)]
    iat: i64,
    exp: i64,
}

/// What a token says of its form.
///
/// # Errors
/// `unauthorized` when it is none.
pub fn header_of(token: &str) -> Outcome<Header> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(unauthorized());
    }
    decode_header(token).map_err(|_| unauthorized())
}

/// Signs and checks tokens.
pub struct Tokens {
    signing: EncodingKey,
    accepted: Vec<DecodingKey>,
    legacy: bool,
}

impl Tokens {
    /// Signs with `secret`; accepts `previous` too, which never signs.
    pub fn new(secret: &Secret, previous: Option<&Secret>, legacy: bool) -> Self {
        let accepted = std::iter::once(secret).chain(previous);
        Self {
            signing: EncodingKey::from_secret(secret.expose().as_bytes()),
            accepted: accepted.map(|secret| DecodingKey::from_secret(secret.expose().as_bytes())).collect(),
            legacy,
        }
    }

    /// The token that says `claims`.
    pub fn sign(&self, claims: &Claims) -> String {
        let header = Header { typ: Some(TYPE.to_owned()), ..Header::new(Algorithm::HS256) };
        encode(&header, claims, &self.signing).expect("HMAC accepts every key and our claims are JSON")
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// `token_expired` for a good token past its time, else `unauthorized`.
    pub fn verify(&self, token: &str, now: Timestamp) -> Outcome<Identity> {
        self.verify_of(token, &header_of(token)?, now)
    }

    /// The same of a token whose header is known.
    ///
    /// # Errors
    /// As [`Tokens::verify`].
    pub fn verify_of(&self, token: &str, header: &Header, now: Timestamp) -> Outcome<Identity> {
        let (identity, expires) = match header.typ.as_deref() {
            _ if header.alg != Algorithm::HS256 => return Err(unauthorized()),
            Some(TYPE) => self.ours(token)?,
            None | Some("JWT") if self.legacy => self.legacy(token)?,
            _ => return Err(unauthorized()),
        };
        if expires <= now.seconds() {
            return Err(Failure::new(Code::TokenExpired, "The token has expired."));
        }
        Ok(identity)
    }

    fn ours(&self, token: &str) -> Outcome<(Identity, i64)> {
        let mut validation = validation(&["exp", "aud"]);
        validation.set_audience(&[AUDIENCE]);
        let claims: Claims = self.decode(token, &validation)?;
        Ok((identity(claims.user_id, Some(claims.sid), claims.iat, claims.exp), claims.exp))
    }

    fn legacy(&self, token: &str) -> Outcome<(Identity, i64)> {
        let mut validation = validation(&["exp"]);
        validation.validate_aud = false;
        let claims: LegacyClaims = self.decode(token, &validation)?;
        Ok((identity(claims.user_id, None, claims.iat, claims.exp), claims.exp))
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, token: &str, validation: &Validation) -> Outcome<T> {
        let good = self.accepted.iter().find_map(|key| decode::<T>(token, key, validation).ok());
        good.map(|token| token.claims).ok_or_else(unauthorized)
    }
}

/// Expiry is judged apart, so that an expired token can be told from a bad one.
fn validation(required: &[&str]) -> Validation {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = 0;
    validation.validate_exp = false;
    validation.validate_nbf = true;
    validation.set_required_spec_claims(required);
    validation
}

/// What a good token says.
pub fn identity(user: UserId, login: Option<LoginId>, issued: i64, expires: i64) -> Identity {
    let ms = |seconds: i64| Timestamp(seconds.clamp(0, LAST_SECOND) * 1000);
    Identity { user, login, issued_at: ms(issued), expires_at: ms(expires) }
}

/// The answer to any token that is not good.
pub fn unauthorized() -> Failure {
    Failure::new(Code::Unauthorized, "There is no valid token.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn tokens() -> Tokens {
        Tokens::new(&Secret::new(SECRET.into()), None, true)
    }

    fn own() -> String {
        tokens().sign(&Claims::new(UserId::fresh(), "a@b.c", LoginId::fresh(), NOW, NOW.plus_ms(60_000)))
    }

    fn hand_made(header: Header, claims: &Value, secret: &str) -> String {
        encode(&header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn legacy_claims() -> Value {
        json!({"userId": UserId::fresh(), "email": "a@b.c", "exp": NOW.seconds() + 60})
    }

    #[test]
    fn our_tokens_are_good_until_they_expire() {
        let token = own();
        assert!(tokens().verify(&token, NOW).is_ok());
        let expired = tokens().verify(&token, NOW.plus_ms(60_000)).unwrap_err();
        assert_eq!(expired.code, Code::TokenExpired);
    }

    #[test]
    fn tokens_of_the_replaced_server_are_good_unless_switched_off() {
        let token = hand_made(Header::new(Algorithm::HS256), &legacy_claims(), SECRET);
        assert!(tokens().verify(&token, NOW).unwrap().login.is_none());
        let strict = Tokens::new(&Secret::new(SECRET.into()), None, false);
        assert!(strict.verify(&token, NOW).is_err());
    }

    #[test]
    fn the_previous_secret_is_accepted_and_never_signs() {
        let other = Secret::new("another-secret-of-32-bytes-or-so".into());
        let rotated = Tokens::new(&other, Some(&Secret::new(SECRET.into())), true);
        assert!(rotated.verify(&own(), NOW).is_ok());
        let new =
            rotated.sign(&Claims::new(UserId::fresh(), "a@b.c", LoginId::fresh(), NOW, NOW.plus_ms(60_000)));
        assert!(tokens().verify(&new, NOW).is_err());
    }

    #[test]
    fn everything_else_is_unauthorized() {
        let typed = |typ: &str| Header { typ: Some(typ.into()), ..Header::new(Algorithm::HS256) };
        let without = |name: &str| {
            let mut claims = legacy_claims();
            claims.as_object_mut().unwrap().remove(name);
            claims
        };
        let mut text_exp = legacy_claims();
        text_exp["exp"] = json!("9999999999");
        let mut flipped = own();
        let last = flipped.pop().unwrap();
        flipped.push(if last == 'A' { 'B' } else { 'A' });
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJ1c2VySWQiOiIwIn0.";
        let bad = [
            String::new(),
            "a.b.c".into(),
            none.into(),
            flipped.replace('.', ".x"),
            "x".repeat(20_000),
            hand_made(Header::new(Algorithm::HS512), &legacy_claims(), SECRET),
            hand_made(Header::new(Algorithm::HS256), &legacy_claims(), "another-secret-of-32-bytes-or-so"),
            hand_made(Header::new(Algorithm::HS256), &without("exp"), SECRET),
            hand_made(Header::new(Algorithm::HS256), &without("userId"), SECRET),
            hand_made(Header::new(Algorithm::HS256), &text_exp, SECRET),
            hand_made(typed("refresh+jwt"), &legacy_claims(), SECRET),
            hand_made(typed(TYPE), &legacy_claims(), SECRET),
        ];
        for token in bad {
            let failure = tokens().verify(&token, NOW).unwrap_err();
            assert_eq!(failure.code, Code::Unauthorized, "{token}");
        }
    }
}
