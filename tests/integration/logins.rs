//! What becomes of a login over REST: refreshed, logged out, its password changed, its account removed.

use serde_json::{Value, json};

use crate::answers::is_time;
use crate::support::{Account, Env, Node, Reply};

async fn refresh(node: &Node, refresh_token: &str) -> Reply {
    node.rest().post("/api/auth/refresh", &json!({"refreshToken": refresh_token})).await
}

async fn refreshed(node: &Node, refresh_token: &str) -> (String, String) {
    let body = refresh(node, refresh_token).await.expect(200);
    is_time(&body["expiresAt"]);
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    (text("token"), text("refreshToken"))
}

async fn expect_good(node: &Node, account: &Account) {
    node.rest_of(account).get("/api/session").await.expect(200);
}

async fn expect_ended(node: &Node, account: &Account) {
    node.rest_of(account).get("/api/session").await.expect_error(401, "unauthorized");
    refresh(node, &account.refresh_token).await.expect_error(401, "invalid_token");
}

#[tokio::test]
async fn a_refresh_token_gives_a_token_that_works_and_its_successor() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let (token, next) = refreshed(&node, &ann.refresh_token).await;
    expect_good(&node, &ann.with_token(token)).await;
    let (token, last) = refreshed(&node, &next).await;
    expect_good(&node, &ann.with_token(token)).await;

    assert!(next != ann.refresh_token && last != next);
    expect_good(&node, &ann).await;
}

#[tokio::test]
async fn a_lost_answer_logs_nobody_out() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let calls = (0..20).map(|_| refreshed(&node, &ann.refresh_token));
    let answers = futures_util::future::join_all(calls).await;

    let (_, successor) = &answers[0];
    assert!(answers.iter().all(|(_, next)| next == successor), "one successor for all who ask at once");
    refreshed(&node, successor).await;
}

#[tokio::test]
async fn a_refresh_token_whose_successor_was_used_ends_the_whole_login() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let other = ann.log_in(&node).await;
    let (token, second) = refreshed(&node, &ann.refresh_token).await;
    let (_, third) = refreshed(&node, &second).await;

    refresh(&node, &ann.refresh_token).await.expect_error(401, "invalid_token");

    refresh(&node, &third).await.expect_error(401, "invalid_token");
    node.rest_of(&ann.with_token(token)).get("/api/session").await.expect_error(401, "unauthorized");
    expect_good(&node, &other).await;
    refreshed(&node, &other.refresh_token).await;
}

#[tokio::test]
async fn what_is_no_refresh_token_is_refused_and_ends_nothing() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let mut flipped = ann.refresh_token.clone();
    let last = flipped.pop().unwrap();
    flipped.push(if last == 'A' { 'Q' } else { 'A' });

    for bad in ["", "r1.", "x", &flipped, &ann.token, &ann.refresh_token[..40], &"r1.".repeat(9_000)] {
        refresh(&node, bad).await.expect_error(401, "invalid_token");
    }
    for bad in [json!({}), json!({"refreshToken": null}), json!({"refreshToken": 3})] {
        node.rest().post("/api/auth/refresh", &bad).await.expect_error(400, "invalid_field");
    }

    expect_good(&node, &ann).await;
    refreshed(&node, &ann.refresh_token).await;
}

#[tokio::test]
async fn a_refresh_token_is_no_access_token_and_outlives_a_rotation_of_secrets() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let as_access = ann.with_token(&ann.refresh_token);
    node.rest_of(&as_access).get("/api/session").await.expect_error(401, "unauthorized");
    let (_, second) = refreshed(&node, &ann.refresh_token).await;

    let secret = "tests-only-a-second-secret-of-enough-bytes";
    let rotated = Env::new().set("JWT_SECRET", secret).set("JWT_SECRET_PREVIOUS", crate::support::JWT_SECRET);
    node.restart_with(&rotated).await;

    expect_good(&node, &ann).await;
    let (_, again) = refreshed(&node, &ann.refresh_token).await;
    assert_eq!(again, second, "the successor made under the secret before");
    let (token, _) = refreshed(&node, &second).await;
    expect_good(&node, &ann.with_token(token)).await;
}

#[tokio::test]
async fn no_token_is_stored_as_it_is() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let (token, next) = refreshed(&node, &ann.refresh_token).await;

    for name in ["tandem.db", "tandem.db-wal"] {
        let bytes = std::fs::read(node.folder().join(name)).unwrap_or_default();
        for secret in [&ann.token, &ann.refresh_token, &token, &next, &ann.password] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{name} holds a secret");
        }
    }
    assert!(!node.log().contains(&next) && !node.log().contains(&token));
}

#[tokio::test]
async fn logging_out_ends_this_login_and_no_other() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let other = ann.log_in(&node).await;

    node.rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect(204);

    expect_ended(&node, &ann).await;
    expect_good(&node, &other).await;
    node.rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect_error(401, "unauthorized");
}

#[tokio::test]
async fn logging_out_everywhere_ends_all_logins_and_tokens_of_the_replaced_server() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let other = ann.log_in(&node).await;
    let seed = ann.with_token(crate::support::legacy_token(&ann, 3_600));
    let bob = node.register("bob").await;
    expect_good(&node, &seed).await;

    node.rest_of(&ann).post("/api/auth/logout-all", &Value::Null).await.expect(204);

    expect_ended(&node, &ann).await;
    expect_ended(&node, &other).await;
    node.rest_of(&seed).get("/api/session").await.expect_error(401, "unauthorized");
    expect_good(&node, &bob).await;
    expect_good(&node, &ann.log_in(&node).await).await;
}

#[tokio::test]
async fn a_new_password_ends_the_other_logins_and_replaces_the_old_one() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let other = ann.log_in(&node).await;
    let change = |current: &str, new: &str| json!({"current": current, "new": new});
    let rest = node.rest_of(&ann);
    let path = "/api/auth/password";

    rest.post(path, &change("not her password", "a new password"))
        .await
        .expect_error(401, "invalid_credentials");
    let weak = rest.post(path, &change(&ann.password, "short")).await;
    assert_eq!(weak.expect_error(400, "weak_password")["field"], "new");
    let long = rest.post(path, &change(&ann.password, &"p".repeat(73))).await;
    long.expect_error(400, "password_too_long");
    rest.post(path, &json!({"new": "a new password"})).await.expect_error(400, "invalid_field");
    expect_good(&node, &other).await;

    rest.post(path, &change(&ann.password, "a new password")).await.expect(204);

    expect_good(&node, &ann).await;
    expect_ended(&node, &other).await;
    let old = json!({"email": ann.email, "password": ann.password});
    node.rest().post("/api/auth/login", &old).await.expect_error(401, "invalid_credentials");
    let renewed = Account { password: "a new password".into(), ..ann }.log_in(&node).await;
    expect_good(&node, &renewed).await;
}

#[tokio::test]
async fn a_stolen_token_does_not_help_to_guess_the_password() {
    let node = Node::start(&Env::new().set("LIMIT_LOGINS_PER_EMAIL", 3)).await;
    let ann = node.register("ann").await;
    let guess = json!({"current": "a guess of it", "new": "a new password"});
    let mut last = node.rest_of(&ann).post("/api/auth/password", &guess).await;
    for _ in 0..4 {
        last = node.rest_of(&ann).post("/api/auth/password", &guess).await;
    }
    last.expect_error(429, "rate_limited");
    assert!(last.header("retry-after").is_some());
}

#[tokio::test]
async fn a_removed_account_is_gone_with_everything_and_its_address_is_free() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let bob = node.register("bob").await;
    node.rest_of(&ann).put("/api/session/note", &json!("ann's")).await.expect(200);
    node.rest_of(&bob).put("/api/session/note", &json!("bob's")).await.expect(200);
    let remove = async |password: &str| {
        let request = node.rest_of(&ann).request(reqwest::Method::DELETE, "/api/account");
        crate::support::Rest::send(request.json(&json!({"password": password}))).await
    };

    remove("not her password").await.expect_error(401, "invalid_credentials");
    expect_good(&node, &ann).await;
    remove(&ann.password).await.expect(204);

    expect_ended(&node, &ann).await;
    let again = node.register("ann").await;
    assert_ne!(again.id, ann.id);
    let session = node.rest_of(&again).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({}));
    let session = node.rest_of(&bob).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({"note": "bob's"}));
}

#[tokio::test]
async fn registering_checks_the_device_info_it_brings() {
    let node = Node::start(&Env::new()).await;
    let with =
        |info: Value| json!({"email": "ann@example.test", "password": "a long password", "deviceInfo": info});
    for bad in [json!(3), json!([]), json!("no object"), json!({"name": "x".repeat(5_000)})] {
        let reply = node.rest().post("/api/auth/register", &with(bad)).await;
        reply.expect_error(400, "invalid_device_info");
    }
    node.rest().post("/api/auth/register", &with(Value::Null)).await.expect(201);
}

#[tokio::test]
async fn an_address_that_asks_too_often_has_to_wait_and_others_do_not() {
    let env = Env::new().set("LIMIT_AUTH_PER_ADDRESS", 4).set("TRUSTED_PROXIES", "127.0.0.0/8");
    let node = Node::start(&env).await;
    let ask = async |from: &str| {
        let request = node.rest().request(reqwest::Method::POST, "/api/auth/refresh");
        let request = request.header("x-forwarded-for", from).json(&json!({"refreshToken": "x"}));
        crate::support::Rest::send(request).await
    };
    for _ in 0..4 {
        ask("192.0.2.1").await.expect_error(401, "invalid_token");
    }
    let refused = ask("192.0.2.1").await;
    refused.expect_error(429, "rate_limited");
    assert!(refused.header("retry-after").is_some_and(|wait| wait.parse::<u64>().unwrap() >= 1));
    ask("192.0.2.2").await.expect_error(401, "invalid_token");
}

#[tokio::test]
async fn what_a_stranger_says_of_where_it_comes_from_spares_it_no_wait() {
    // Nobody is trusted; then only a network that this client does not come from.
    for trusted in [None, Some("10.0.0.0/8, 2001:db8::/32")] {
        let mut env = Env::new().set("LIMIT_AUTH_PER_ADDRESS", 4);
        if let Some(trusted) = trusted {
            env = env.set("TRUSTED_PROXIES", trusted);
        }
        let node = Node::start(&env).await;
        let ask = async |name: &str, from: &str| {
            let request = node.rest().request(reqwest::Method::POST, "/api/auth/refresh");
            crate::support::Rest::send(request.header(name, from).json(&json!({"refreshToken": "x"}))).await
        };
        for n in 0..4 {
            ask("x-forwarded-for", &format!("192.0.2.{n}")).await.expect_error(401, "invalid_token");
        }
        let spoofed = [
            ("x-forwarded-for", "192.0.2.9"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "192.0.2.9, 10.0.0.1"),
            ("x-forwarded-for", "nonsense"),
            ("x-real-ip", "192.0.2.9"),
            ("forwarded", "for=192.0.2.9"),
            ("x-client-ip", "192.0.2.9"),
        ];
        for (name, from) in spoofed {
            let reply = ask(name, from).await;
            assert_eq!(reply.status, 429, "{trusted:?} {name}: {from}: {}", reply.text);
            reply.expect_error(429, "rate_limited");
        }
    }
}

#[tokio::test]
async fn behind_a_trusted_proxy_only_what_the_proxy_adds_counts() {
    let env = Env::new().set("LIMIT_AUTH_PER_ADDRESS", 4).set("TRUSTED_PROXIES", "127.0.0.0/8");
    let node = Node::start(&env).await;
    // The client invents the front of the list; its proxy appends where it really came from.
    let ask = async |invented: String| {
        let request = node.rest().request(reqwest::Method::POST, "/api/auth/refresh");
        let request = request.header("x-forwarded-for", format!("{invented}, 192.0.2.1"));
        crate::support::Rest::send(request.json(&json!({"refreshToken": "x"}))).await
    };
    for n in 0..4 {
        ask(format!("198.51.100.{n}")).await.expect_error(401, "invalid_token");
    }
    for invented in ["198.51.100.9", "127.0.0.1", "nonsense", ""] {
        ask(invented.to_owned()).await.expect_error(429, "rate_limited");
    }
}
