//! An account of a test, and tokens signed by hand, as the replaced server or an attacker would make them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Node, Rest};

/// The secret that every node of a test signs with.
pub const JWT_SECRET: &str = "tests-only-0f5b2a77c1e94d60b8a3c9d2e7f41856";

#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    pub email: String,
    pub password: String,
    pub token: String,
    pub refresh_token: String,
}

impl Account {
    /// Registers `name@example.test` on the server that `rest` talks to.
    pub async fn register(rest: &Rest, name: &str) -> Self {
        let (email, password) = (format!("{name}@example.test"), format!("{name}'s long password"));
        let body =
            rest.post("/api/auth/register", &json!({"email": email, "password": password})).await.expect(201);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            id: text(&body["user"]["id"]),
            token: text(&body["token"]),
            refresh_token: text(&body["refreshToken"]),
            email,
            password,
        }
    }

    /// The same account over a login of its own.
    pub async fn log_in(&self, node: &Node) -> Self {
        let credentials = json!({"email": self.email, "password": self.password});
        let body = node.rest().post("/api/auth/login", &credentials).await.expect(200);
        let text = |name: &str| body[name].as_str().expect("a token").to_owned();
        Self { token: text("token"), refresh_token: text("refreshToken"), ..self.clone() }
    }

    /// The same account with another token.
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: token.into(), ..self.clone() }
    }
}

/// A token as the replaced Node.js server signed it, valid for `seconds` from now (negative: expired).
pub fn legacy_token(account: &Account, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let claims =
        json!({"userId": account.id, "email": account.email, "iat": now - 3_600, "exp": now + seconds});
    sign_hs256(&json!({"alg": "HS256", "typ": "JWT"}), &claims, JWT_SECRET)
}

/// A JWT with this header and these claims, signed with HMAC-SHA256 whatever the header says.
pub fn sign_hs256(header: &Value, claims: &Value, secret: &str) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}
