//! Tokens of an issuer outside: an app with accounts of its own needs no register and no login here.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use base64::Engine;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::operator::{done, tandem};
use crate::support::{Account, Cluster, Device, Env, JWT_SECRET, Node, eventually, run_to_exit, sign_hs256};

const ISSUER: &str = "https://id.example.test/";
const AUDIENCE: &str = "the-app";

/// A key of the issuer's, by its name.
struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    public: Value,
}

impl Signer {
    fn ed25519(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public =
            json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key_raw()), "kid": id});
        Self { id, algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(&pair.serialize_der()), public }
    }

    fn p256(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        // Uncompressed (SEC 1, 2.3.3): a byte that says so, and two numbers of 32.
        let (x, y) = pair.public_key_raw()[1..].split_at(32);
        let public = json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y), "kid": id, "use": "sig"});
        Self { id, algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(&pair.serialize_der()), public }
    }

    fn rsa(id: &'static str) -> Self {
        let key = EncodingKey::from_rsa_der(include_bytes!("external_rsa.der"));
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        Self { id, algorithm: Algorithm::RS256, key, public: serde_json::to_value(jwk).unwrap() }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

fn base64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn set_of(signers: &[&Signer]) -> Value {
    json!({"keys": signers.iter().map(|signer| signer.public.clone()).collect::<Vec<_>>()})
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn claims(subject: &str) -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now(), "exp": now() + 600})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// An issuer's address of keys.
struct Keys {
    url: String,
    set: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Keys {
    async fn serve(signers: &[&Signer]) -> Self {
        let (set, asked) = (Arc::new(Mutex::new(set_of(signers))), Arc::new(AtomicUsize::new(0)));
        let answer = |State((set, asked)): State<(Arc<Mutex<Value>>, Arc<AtomicUsize>)>| async move {
            asked.fetch_add(1, Ordering::SeqCst);
            set.lock().unwrap().to_string()
        };
        let routes = Router::new().route("/keys", get(answer)).with_state((set.clone(), asked.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, set, asked, serving }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn taking(keys: &str) -> Env {
    Env::new().set("JWKS", keys).set("JWT_ISSUER", ISSUER).set("JWT_AUDIENCE", AUDIENCE)
}

/// Who comes with `token`, as the tests' parts know accounts.
fn bearer(token: String) -> Account {
    let nobody = String::new();
    Account {
        id: nobody.clone(),
        token,
        refresh_token: nobody.clone(),
        email: nobody.clone(),
        password: nobody,
    }
}

#[tokio::test]
async fn an_apps_own_tokens_connect_its_users_devices_without_register_or_login() {
    let (ed, ec, rsa) = (Signer::ed25519("ed"), Signer::p256("ec"), Signer::rsa("rsa"));
    let keys = Keys::serve(&[&ed, &ec, &rsa]).await;
    let node = Node::start(&taking(&keys.url)).await;

    let phone = Device::named(&node, &bearer(ed.sign(&claims("ann"))), "Phone").await;
    let laptop = Device::named(&node, &bearer(ec.sign(&claims("ann"))), "Laptop").await;
    let other = Device::named(&node, &bearer(rsa.sign(&claims("bob"))), "Phone").await;
    phone.update("k", json!(1)).await;
    assert_eq!(laptop.next("session-updated").await["state"], 1);
    assert_eq!(other.restored()["sessionData"], json!({}));
    let read = node.rest_of(&bearer(rsa.sign(&claims("ann")))).get("/api/session").await.expect(200);
    assert_eq!(read["sessionData"], json!({"k": 1}));

    // Its own accounts go on beside them.
    let carl = node.register("carl").await;
    node.rest_of(&carl).get("/api/session").await.expect(200);
}

#[tokio::test]
async fn a_user_of_the_issuer_is_the_same_on_every_node_and_after_a_restart() {
    let signer = Signer::ed25519("ed");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, set_of(&[&signer]).to_string()).unwrap();
    let mut cluster = Cluster::start_with(2, &taking(file.to_str().unwrap())).await;
    let ann = bearer(signer.sign(&claims("ann")));

    // At once on both, for the first time.
    let (phone, laptop) = tokio::join!(cluster.named(0, &ann, "Phone"), cluster.named(1, &ann, "Laptop"));
    phone.update("k", json!(1)).await;
    assert_eq!(laptop.next("session-updated").await["state"], 1);
    cluster.nodes[0].kill_9();
    cluster.nodes[0].restart().await;

    assert_eq!(
        cluster.rest_of(0, &ann).get("/api/session").await.expect(200)["sessionData"],
        json!({"k": 1})
    );
}

#[tokio::test]
async fn every_other_token_is_unauthorized_and_a_good_client_is_served_after_it() {
    let (signer, stranger) = (Signer::ed25519("ed"), Signer::ed25519("ed"));
    let rsa = Signer::rsa("rsa");
    let keys = Keys::serve(&[&signer, &rsa]).await;
    let node = Node::start(&taking(&keys.url)).await;
    let good = bearer(signer.sign(&claims("ann")));
    let kid = |kid: Option<&str>, algorithm: Algorithm, key: &EncodingKey| {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
        encode(&header, &claims("ann"), key).unwrap()
    };
    let none = format!(
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIiwia2lkIjoiZWQifQ.{}.",
        signer.sign(&claims("ann")).split('.').nth(1).unwrap()
    );
    // The public key as a shared secret, which is the oldest trick (RFC 8725, 2.1).
    let public = signer.public["x"].as_str().unwrap().to_owned();
    let confused = sign_hs256(&json!({"alg": "HS256", "typ": "JWT", "kid": "ed"}), &claims("ann"), &public);
    let rows = [
        ("another's key", stranger.sign(&claims("ann"))),
        ("an unknown key", kid(Some("unknown"), Algorithm::EdDSA, &signer.key)),
        ("another key's name", kid(Some("rsa"), Algorithm::EdDSA, &signer.key)),
        ("an algorithm that is not the key's", kid(Some("rsa"), Algorithm::RS512, &rsa.key)),
        ("no signature", none),
        ("the public key as a secret", confused),
        (
            "our secret with its claims",
            sign_hs256(&json!({"alg": "HS256", "typ": "JWT"}), &claims("ann"), JWT_SECRET),
        ),
        ("another issuer", signer.sign(&with(claims("ann"), "iss", json!("https://evil.example.test/")))),
        ("no issuer", signer.sign(&without(claims("ann"), "iss"))),
        ("another audience", signer.sign(&with(claims("ann"), "aud", json!("another-app")))),
        ("no audience", signer.sign(&without(claims("ann"), "aud"))),
        ("no end", signer.sign(&without(claims("ann"), "exp"))),
        ("an end in words", signer.sign(&with(claims("ann"), "exp", json!("tomorrow")))),
        ("no beginning", signer.sign(&without(claims("ann"), "iat"))),
        ("not yet", signer.sign(&with(claims("ann"), "nbf", json!(now() + 300)))),
        ("no user", signer.sign(&without(claims("ann"), "sub"))),
        ("an empty user", signer.sign(&with(claims("ann"), "sub", json!("")))),
        ("a user with a line break", signer.sign(&with(claims("ann"), "sub", json!("a\nb")))),
        ("a list of users", signer.sign(&with(claims("ann"), "sub", json!(["ann"])))),
    ];
    for (what, token) in rows {
        let refused = node.rest_of(&bearer(token.clone())).get("/api/session").await;
        assert_eq!((refused.status, &refused.body["error"]["code"]), (401, &json!("unauthorized")), "{what}");
        let device = Device::options(&node, &bearer(token)).open().await;
        assert_eq!(device.refused().await, "unauthorized", "{what}");
        node.rest_of(&good).get("/api/session").await.expect(200);
    }
    let expired = bearer(signer.sign(&with(claims("ann"), "exp", json!(now() - 1))));
    node.rest_of(&expired).get("/api/session").await.expect_error(401, "token_expired");
}

#[tokio::test]
async fn new_keys_are_fetched_when_they_are_first_named_and_not_for_every_invented_name() {
    let (old, new) = (Signer::ed25519("old"), Signer::p256("new"));
    let keys = Keys::serve(&[&old]).await;
    let mut node = Node::start(&taking(&keys.url)).await;
    node.rest_of(&bearer(old.sign(&claims("ann")))).get("/api/session").await.expect(200);
    assert_eq!(keys.asked.load(Ordering::SeqCst), 1);

    // A moment after the start a new name is looked for once, and then no more for a minute.
    let invented = Signer::ed25519("invented");
    for _ in 0..20 {
        node.rest_of(&bearer(invented.sign(&claims("ann"))))
            .get("/api/session")
            .await
            .expect_error(401, "unauthorized");
    }
    assert!(keys.asked.load(Ordering::SeqCst) <= 2, "{:?}", keys.asked);
    *keys.set.lock().unwrap() = set_of(&[&old, &new]);
    node.kill_9();
    node.restart().await;
    node.rest_of(&bearer(new.sign(&claims("ann")))).get("/api/session").await.expect(200);
}

#[tokio::test]
async fn while_an_issuer_is_away_its_clients_are_told_to_come_back_and_others_are_served() {
    let signer = Signer::ed25519("ed");
    let port = crate::support::free_port();
    let node = Node::start(&taking(&format!("http://127.0.0.1:{port}/keys"))).await;
    let ann = bearer(signer.sign(&claims("ann")));

    let refused = node.rest_of(&ann).get("/api/session").await;

    assert_eq!((refused.status, &refused.body["error"]["code"]), (503, &json!("store_unavailable")));
    let bob = node.register("bob").await;
    node.rest_of(&bob).get("/api/session").await.expect(200);
}

#[tokio::test]
async fn a_fresh_token_keeps_the_socket_and_logging_out_ends_all_that_were_issued() {
    let signer = Signer::ed25519("ed");
    let keys = Keys::serve(&[&signer]).await;
    let node = Node::start(&taking(&keys.url)).await;
    let issued_before = with(claims("ann"), "iat", json!(now() - 5));
    let ann = bearer(signer.sign(&issued_before));
    let device = Device::named(&node, &ann, "Phone").await;

    let longer = with(issued_before.clone(), "exp", json!(now() + 6_000));
    let fresh = device.emit_ack("auth-refresh", json!({"token": signer.sign(&longer)})).await;
    assert_eq!(fresh["ok"], true, "{fresh}");
    let foreign = device.emit_ack("auth-refresh", json!({"token": signer.sign(&claims("bob"))})).await;
    assert_eq!(foreign["error"]["code"], "unauthorized");

    node.rest_of(&ann).post("/api/auth/logout-all", &json!(null)).await.expect(204);
    device.disconnected().await;
    node.rest_of(&ann).get("/api/session").await.expect_error(401, "unauthorized");
    // Tokens say whole seconds: one of the next second is surely later.
    eventually("a later token is good", || async {
        let again = bearer(signer.sign(&claims("ann")));
        (node.rest_of(&again).get("/api/session").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn logging_out_ends_one_token_and_its_sockets_only() {
    let signer = Signer::ed25519("ed");
    let keys = Keys::serve(&[&signer]).await;
    let node = Node::start(&taking(&keys.url)).await;
    let named = |name: &str| bearer(signer.sign(&with(claims("ann"), "jti", json!(name))));
    let (one, other) = (named("one"), named("other"));
    let phone = Device::named(&node, &one, "Phone").await;
    let laptop = Device::named(&node, &other, "Laptop").await;

    node.rest_of(&one).post("/api/auth/logout", &json!(null)).await.expect(204);

    phone.disconnected().await;
    node.rest_of(&one).get("/api/session").await.expect_error(401, "unauthorized");
    assert_eq!(Device::options(&node, &one).open().await.refused().await, "unauthorized");
    laptop.update("k", json!("still here")).await;
    node.rest_of(&other).post("/api/auth/logout-all", &json!(null)).await.expect(204);
    laptop.disconnected().await;
}

#[tokio::test]
async fn a_token_from_before_a_removal_does_not_bring_its_user_back() {
    let signer = Signer::ed25519("ed");
    let keys = Keys::serve(&[&signer]).await;
    let node = Node::start(&taking(&keys.url)).await;
    let before = bearer(signer.sign(&with(claims("ann"), "iat", json!(now() - 5))));
    let device = Device::named(&node, &before, "Phone").await;
    device.update("k", json!("private")).await;
    let listed = done(&node, &["user", "list"]).await;
    let name =
        listed.split_whitespace().find(|word| word.starts_with("external:")).expect("the user").to_owned();

    done(&node, &["user", "remove", &name, "--yes"]).await;

    device.disconnected().await;
    for _ in 0..2 {
        node.rest_of(&before).get("/api/session").await.expect_error(401, "unauthorized");
        assert_eq!(Device::options(&node, &before).open().await.refused().await, "unauthorized");
    }
    let later = eventually("a later token begins anew", || async {
        let reply = node.rest_of(&bearer(signer.sign(&claims("ann")))).get("/api/session").await;
        (reply.status == 200).then_some(reply.body)
    })
    .await;
    assert_eq!(later["sessionData"], json!({}));
    node.rest_of(&before).get("/api/session").await.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn a_key_file_that_cannot_be_used_is_a_reason_not_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    let secret = json!({"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]});
    let weak = json!({"keys": [{"kty": "RSA", "n": base64url(&[0xc5; 128]), "e": "AQAB", "kid": "weak"}]});
    let table = [
        ("", "no JWK Set"),
        (&secret.to_string(), "no public key"),
        (&weak.to_string(), "less than 2048 bits"),
    ];
    for (text, said) in table {
        std::fs::write(&file, text).unwrap();
        let exit = run_to_exit(&taking(file.to_str().unwrap())).await;
        assert_ne!(exit.code, Some(0));
        assert!(exit.output.contains(said), "{}", exit.output);
    }
    let without_issuer =
        run_to_exit(&Env::new().set("JWKS", "https://id.example.test/keys").arg("check-config")).await;
    assert!(without_issuer.output.contains("JWT_ISSUER"), "{}", without_issuer.output);
}

#[tokio::test]
async fn a_short_rsa_key_is_refused_aloud_and_spoils_no_other() {
    let signer = Signer::ed25519("ed");
    let weak = json!({"kty": "RSA", "n": base64url(&[0xc5; 128]), "e": "AQAB", "kid": "short-one"});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, json!({"keys": [weak, signer.public]}).to_string()).unwrap();

    let node = Node::start(&taking(file.to_str().unwrap())).await;

    let told = |line: &str| line.contains("less than 2048 bits").then(|| line.to_owned());
    let line = node.log_line(told).await;
    assert!(line.contains("short-one") && line.contains("1024") && line.contains("WARN"), "{line}");
    Device::connect(&node, &bearer(signer.sign(&claims("ann")))).await;
}

#[tokio::test]
async fn an_operator_gives_no_password_to_a_user_of_an_issuer_outside() {
    let signer = Signer::ed25519("ed");
    let keys = Keys::serve(&[&signer]).await;
    let node = Node::start(&taking(&keys.url)).await;
    let device = Device::connect(&node, &bearer(signer.sign(&claims("ann")))).await;
    let list = done(&node, &["user", "list"]).await;
    let address = list.split('\t').next().unwrap();

    let exit = tandem(&node, &["user", "reset-password", address]).await;

    assert_eq!(exit.code, Some(1), "{}", exit.output);
    assert!(exit.output.contains("issuer outside"), "{}", exit.output);
    assert!(!exit.output.contains("password: "), "{}", exit.output);
    device.update("k", json!("still connected")).await;
}
