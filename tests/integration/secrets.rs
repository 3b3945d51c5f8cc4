//! No secret leaves a node but to whom it belongs: none is in a log line of any level, a metric, or an error.

use serde_json::json;

use crate::support::{Device, Env, Node, RedisServer, Rest};

/// Words that occur nowhere else, each standing for one kind of secret.
const KEY: &str = "canary-jwt-key-0123456789abcdef0123456789";
const OLD_KEY: &str = "canary-old-key-0123456789abcdef0123456789";
const PASSWORD: &str = "canary-password";
const NEW_PASSWORD: &str = "canary-new-password";
const STATE: &str = "canary-state";
const EVENT: &str = "canary-event";
const MESSAGE: &str = "canary-message";
const COLLECTOR_KEY: &str = "canary-collector-key";
const REDIS_PASSWORD: &str = "canary-redis-password";

#[tokio::test]
async fn no_secret_is_in_a_log_line_a_metric_or_an_error() {
    let redis = RedisServer::start().await;
    // Redis has no password set: it says so, and the URL with one must not be repeated.
    let redis_url = redis.url().replace("redis://", &format!("redis://default:{REDIS_PASSWORD}@"));
    let env = Env::new()
        .set("LOG", "trace")
        .set("JWT_SECRET", KEY)
        .set("JWT_SECRET_PREVIOUS", OLD_KEY)
        .set("REDIS_URL", redis_url)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .set("OTEL_EXPORTER_OTLP_HEADERS", format!("x-key={COLLECTOR_KEY}"))
        .set("OTEL_TRACES_SAMPLER_ARG", 1)
        .set("DRAIN_SECONDS", 0)
        .set("DRAIN_LAG_SECONDS", 0);
    let mut node = Node::start(&env).await;
    let rest = node.rest();
    let credentials = json!({"email": "canary-mail@example.test", "password": PASSWORD});
    let made = rest.post("/api/auth/register", &credentials).await.expect(201);
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let (token, refresh_token) = (text("token"), text("refreshToken"));
    let mut answers = Vec::new();
    let own = rest.with_token(&token);
    own.put("/api/session/k", &json!(STATE)).await.expect(200);
    answers.push(rest.post("/api/auth/register", &credentials).await.text);
    answers.push(rest.post("/api/auth/login", &json!({"email": "a@b.c", "password": PASSWORD})).await.text);
    answers.push(rest.post("/api/auth/login", &json!({"email": 1, "password": PASSWORD})).await.text);
    answers.push(rest.with_token(&format!("{token}x")).get("/api/session").await.text);
    answers.push(
        rest.post("/api/auth/refresh", &json!({"refreshToken": format!("{refresh_token}x")})).await.text,
    );
    answers.push(rest.get(&format!("/socket.io/?EIO=4&transport=polling&token={token}&sid=none")).await.text);

    let account = crate::support::Account {
        id: made["user"]["id"].as_str().unwrap().to_owned(),
        token: token.clone(),
        refresh_token: refresh_token.clone(),
        email: "canary-mail@example.test".to_owned(),
        password: PASSWORD.to_owned(),
    };
    let phone = Device::named(&node, &account, "Phone").await;
    let laptop = Device::named(&node, &account, "Laptop").await;
    phone.update("k", json!(STATE)).await;
    phone.emit_ack("realtime-event", json!({"type": "t", "payload": EVENT})).await;
    phone.emit_ack("device-message", json!({"targetDeviceId": laptop.id(), "message": MESSAGE})).await;
    laptop.next("device-message").await;
    phone.emit_ack("session-update", json!({"sessionKey": "k", "state": STATE, "baseVersion": 99})).await;
    phone.emit_ack("no-such-event", json!(STATE)).await;
    own.post("/api/auth/password", &json!({"current": PASSWORD, "new": NEW_PASSWORD})).await.expect(204);
    let refreshed = rest.post("/api/auth/refresh", &json!({"refreshToken": refresh_token})).await.body;
    let refresh_again = refreshed["refreshToken"].as_str().unwrap_or("none").to_owned();
    let metrics = Rest::send(node.rest().request(reqwest::Method::GET, "/metrics")).await.text;

    node.terminate();
    let log = node.wait_exit().await.output;

    assert!(log.contains("\"level\":\"TRACE\"") || log.contains("\"level\":\"DEBUG\""), "it logs all it can");
    assert!(log.contains(account.id.as_str()), "the log is of this user");
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let secrets = [
        ("the key", KEY.to_owned()),
        ("the previous key", OLD_KEY.to_owned()),
        ("the password", PASSWORD.to_owned()),
        ("the new password", NEW_PASSWORD.to_owned()),
        ("the token", signature(&token)),
        ("the refresh token", refresh_token),
        ("the next refresh token", refresh_again),
        ("a state", STATE.to_owned()),
        ("an event", EVENT.to_owned()),
        ("a message", MESSAGE.to_owned()),
        ("the e-mail address", "canary-mail".to_owned()),
        ("the collector's key", COLLECTOR_KEY.to_owned()),
        ("Redis' password", REDIS_PASSWORD.to_owned()),
    ];
    for (what, secret) in secrets.iter().filter(|(_, secret)| secret != "none") {
        let line = log.lines().find(|line| line.contains(secret.as_str()));
        assert_eq!(line, None, "{what} is in the log");
        assert!(!metrics.contains(secret.as_str()), "{what} is in the metrics");
        assert!(answers.iter().all(|answer| !answer.contains(secret.as_str())), "{what} is in an error");
    }
}
