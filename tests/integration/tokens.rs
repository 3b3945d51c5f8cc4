//! Which tokens open a connection or REST, and which do not.

use serde_json::{Value, json};

use crate::support::{Account, Canary, Device, Env, JWT_SECRET, Node, legacy_token, sign_hs256};

/// Seconds that are far enough for any clock leeway.
const LONG: i64 = 3_600;

#[tokio::test]
async fn tokens_of_the_replaced_server_go_on_working() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let before = Device::connect(&node, &ann).await;
    before.update("k", json!(1)).await;

    let seed = ann.with_token(legacy_token(&ann, LONG));

    let device = Device::connect(&node, &seed).await;
    assert_eq!(device.restored()["sessionData"], json!({"k": 1}));
    let session = node.rest_of(&seed).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({"k": 1}));
}

#[tokio::test]
async fn tokens_of_the_replaced_server_can_be_switched_off() {
    let node = Node::start(&Env::new().set("LEGACY_TOKENS", "off")).await;
    let ann = node.register("ann").await;
    let seed = ann.with_token(legacy_token(&ann, LONG));

    node.rest_of(&seed).get("/api/session").await.expect_error(401, "unauthorized");
    refused_for_good(&node, &seed, "unauthorized").await;
    node.rest_of(&ann).get("/api/session").await.expect(200);
}

#[tokio::test]
async fn an_expired_token_is_refused_as_expired() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let late = ann.with_token(legacy_token(&ann, -LONG));

    let reply = node.rest_of(&late).get("/api/session").await;
    reply.expect_error(401, "token_expired");
    assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    refused_for_good(&node, &late, "token_expired").await;
}

#[tokio::test]
async fn a_missing_or_odd_token_is_unauthorized() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let without = Device::options(&node, &ann).without_auth().open().await;
    assert_eq!(without.refused().await, "unauthorized");
    for token in [json!(null), json!(3), json!({}), json!([ann.token]), json!(""), json!("a.b.c")] {
        let device = Device::options(&node, &ann).auth("token", token.clone()).open().await;
        assert_eq!(device.refused().await, "unauthorized", "{token}");
    }
}

#[tokio::test]
async fn forged_tokens_are_unauthorized() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let hs256 = json!({"alg": "HS256", "typ": "JWT"});
    let with = |name: &str, value: Value| {
        let mut header = hs256.clone();
        header[name] = value;
        header
    };
    let legacy = |exp: Value| json!({"userId": ann.id, "email": ann.email, "exp": exp});
    let later = json!(4_000_000_000_u64);
    let good = legacy(later.clone());
    let unsigned = {
        let token = sign_hs256(&json!({"alg": "none"}), &good, JWT_SECRET);
        format!("{}.", token.rsplit_once('.').unwrap().0)
    };
    let forged = [
        ("alg none", sign_hs256(&json!({"alg": "none"}), &good, JWT_SECRET)),
        ("no signature", unsigned),
        ("alg None", sign_hs256(&json!({"alg": "None"}), &good, JWT_SECRET)),
        ("no alg", sign_hs256(&json!({"typ": "JWT"}), &good, JWT_SECRET)),
        ("alg HS384", sign_hs256(&json!({"alg": "HS384"}), &good, JWT_SECRET)),
        ("alg RS256", sign_hs256(&json!({"alg": "RS256"}), &good, JWT_SECRET)),
        ("another secret", sign_hs256(&hs256, &good, "another secret of more than 32 bytes")),
        ("an empty secret", sign_hs256(&hs256, &good, "")),
        ("a kid that is a path", sign_hs256(&with("kid", json!("../../../dev/null")), &good, "")),
        ("a kid that is SQL", sign_hs256(&with("kid", json!("x' UNION SELECT '' --")), &good, "")),
        ("a jku", sign_hs256(&with("jku", json!("http://127.0.0.1:1/keys")), &good, "of my own choosing")),
        ("an x5u", sign_hs256(&with("x5u", json!("http://127.0.0.1:1/cert")), &good, "of my own choosing")),
        (
            "a key of its own",
            sign_hs256(
                &with("jwk", json!({"kty": "oct", "k": "b2YgbXkgb3duIGNob29zaW5n"})),
                &good,
                "of my own choosing",
            ),
        ),
        ("a refresh token", ann.refresh_token.clone()),
        ("another purpose", sign_hs256(&hs256, &json!({"purpose": "reset", "exp": later}), JWT_SECRET)),
        ("exp as null", sign_hs256(&hs256, &legacy(json!(null)), JWT_SECRET)),
        ("exp below 0", sign_hs256(&hs256, &legacy(json!(-1)), JWT_SECRET)),
        ("no exp", sign_hs256(&hs256, &json!({"userId": ann.id, "email": ann.email}), JWT_SECRET)),
        ("exp as text", sign_hs256(&hs256, &legacy(json!("4000000000")), JWT_SECRET)),
        ("no userId", sign_hs256(&hs256, &json!({"email": ann.email, "exp": later}), JWT_SECRET)),
        (
            "an unknown user",
            sign_hs256(
                &hs256,
                &json!({"userId": uuid::Uuid::new_v4(), "email": "x@y.test", "exp": later}),
                JWT_SECRET,
            ),
        ),
    ];
    let canary = Canary::on(&node).await;
    for (what, token) in forged {
        let forger = ann.with_token(token);
        let reply = node.rest_of(&forger).get("/api/session").await;
        assert_eq!(reply.body["error"]["code"], "unauthorized", "{what}: {}", reply.text);
        let device = Device::options(&node, &forger).open().await;
        assert_eq!(device.refused().await, "unauthorized", "{what}");
        canary.sings_after(what).await;
    }

    Device::connect(&node, &ann.with_token(sign_hs256(&hs256, &good, JWT_SECRET))).await;
}

#[tokio::test]
async fn a_token_in_the_url_opens_nothing() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let options = Device::options(&node, &ann).without_auth().query("token", ann.token.clone());
    assert_eq!(options.open().await.refused().await, "unauthorized");
}

async fn refused_for_good(node: &Node, account: &Account, code: &str) {
    let device = Device::options(node, account).open().await;
    let error = device.next("$connect_error").await;
    assert_eq!(error, json!({"message": code, "type": null, "retries": false}));
}
