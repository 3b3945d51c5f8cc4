//! Live sockets and the tokens they stand on: warned, renewed, ended, on every node.

use serde_json::{Value, json};

use crate::support::{Cluster, Device, Env, Node, legacy_token, within_secs};

/// The client was told `code`, was disconnected for good and does not come back by itself.
async fn expect_sent_away(device: &Device, code: &str) {
    let error = device.next("error").await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!(code), &json!(false)), "{error}");
    assert_eq!(device.disconnected().await, "io server disconnect");
    assert_eq!(device.inspect().await["active"], false, "the client would come back");
}

async fn expect_connected(device: &Device) {
    device.update("still", json!("here")).await;
    assert_eq!(device.inspect().await["connected"], true);
}

#[tokio::test]
async fn logging_out_closes_the_sockets_of_that_login_for_good() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let other = ann.log_in(&node).await;
    let (one, two) = (Device::connect(&node, &ann).await, Device::connect(&node, &ann).await);
    let kept = Device::connect(&node, &other).await;

    node.rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect(204);

    expect_sent_away(&one, "unauthorized").await;
    expect_sent_away(&two, "unauthorized").await;
    expect_connected(&kept).await;
    // Nobody waits for who was sent away.
    let gone =
        within_secs(2, kept.next_where("device-disconnected", |gone| gone["deviceId"] == one.id())).await;
    assert_eq!(gone["reason"], "server disconnect");
    one.reconnect().await;
    assert_eq!(one.refused().await, "unauthorized");
}

#[tokio::test]
async fn logging_out_everywhere_closes_all_of_the_users_sockets_and_nobody_elses() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let other = ann.log_in(&node).await;
    let seed = ann.with_token(legacy_token(&ann, 3_600));
    let mut devices = Vec::new();
    for account in [&ann, &other, &seed] {
        devices.push(Device::connect(&node, account).await);
    }
    let bobs = Device::connect(&node, &bob).await;

    node.rest_of(&ann).post("/api/auth/logout-all", &Value::Null).await.expect(204);

    for device in &devices {
        expect_sent_away(device, "unauthorized").await;
    }
    expect_connected(&bobs).await;
}

#[tokio::test]
async fn a_new_password_closes_the_sockets_of_the_other_logins() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let other = ann.log_in(&node).await;
    let (own, theirs) = (Device::connect(&node, &ann).await, Device::connect(&node, &other).await);

    let change = json!({"current": ann.password, "new": "a new password"});
    node.rest_of(&ann).post("/api/auth/password", &change).await.expect(204);

    expect_sent_away(&theirs, "unauthorized").await;
    expect_connected(&own).await;
}

#[tokio::test]
async fn a_removed_account_takes_its_sockets_along() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;

    let request = node.rest_of(&ann).request(reqwest::Method::DELETE, "/api/account");
    let removed = crate::support::Rest::send(request.json(&json!({"password": ann.password}))).await;
    removed.expect(204);

    expect_sent_away(&device, "unauthorized").await;
}

#[tokio::test]
async fn reuse_of_a_refresh_token_closes_the_sockets_of_its_login() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;
    let mut token = ann.refresh_token.clone();
    for _ in 0..2 {
        let body = node.rest().post("/api/auth/refresh", &json!({"refreshToken": token})).await.expect(200);
        token = body["refreshToken"].as_str().unwrap().to_owned();
    }

    let reused = json!({"refreshToken": ann.refresh_token});
    node.rest().post("/api/auth/refresh", &reused).await.expect_error(401, "invalid_token");

    expect_sent_away(&device, "unauthorized").await;
}

#[tokio::test]
async fn a_polling_client_is_sent_away_too() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::options(&node, &ann).transports(&["polling"]).connect().await;

    node.rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect(204);

    expect_sent_away(&device, "unauthorized").await;
}

#[tokio::test]
async fn a_client_is_warned_a_minute_before_its_token_ends_and_cut_at_the_end() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let early = Device::connect(&node, &ann.with_token(legacy_token(&ann, 600))).await;
    let late = Device::connect(&node, &ann.with_token(legacy_token(&ann, 4))).await;

    let warning = late.next("auth-expiring").await;
    assert_eq!(warning["expiresAt"], late.restored()["tokenExpiresAt"]);
    expect_sent_away(&late, "token_expired").await;

    assert_eq!(late.events("auth-expiring").len(), 1);
    early.expect_none("auth-expiring").await;
    expect_connected(&early).await;
    // The token's end is not that of the device: with a fresh one it is back.
    let back = Device::options(&node, &ann).auth("deviceId", late.id()).connect().await;
    assert_eq!(back.id(), late.id());
}

#[tokio::test]
async fn a_fresh_token_keeps_the_socket() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let short = ann.with_token(legacy_token(&ann, 4));
    let (renewed, clock) = (Device::connect(&node, &short).await, Device::connect(&node, &short).await);

    let reply = renewed.emit_ack("auth-refresh", json!({"token": ann.token})).await;
    assert_eq!(reply["ok"], true, "{reply}");
    assert!(reply["expiresAt"].as_str().unwrap() > renewed.restored()["tokenExpiresAt"].as_str().unwrap());

    expect_sent_away(&clock, "token_expired").await;
    renewed.expect_none("error").await;
    expect_connected(&renewed).await;
    // It stands on the login of the new token now.
    node.rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect(204);
    expect_sent_away(&renewed, "unauthorized").await;
}

#[tokio::test]
async fn only_a_good_token_of_the_same_user_is_taken_by_a_live_socket() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let ended = ann.log_in(&node).await;
    node.rest_of(&ended).post("/api/auth/logout", &Value::Null).await.expect(204);
    let device = Device::connect(&node, &ann).await;

    let table = [
        (json!({"token": bob.token}), "unauthorized"),
        (json!({"token": ended.token}), "unauthorized"),
        (json!({"token": legacy_token(&ann, -60)}), "token_expired"),
        (json!({"token": "a.b.c"}), "unauthorized"),
        (json!({"token": ann.refresh_token}), "unauthorized"),
        (json!({"token": 3}), "invalid_field"),
        (json!({}), "invalid_field"),
        (json!("text"), "invalid_field"),
    ];
    for (payload, code) in table {
        let reply = device.emit_ack("auth-refresh", payload.clone()).await;
        assert_eq!(reply["error"]["code"], code, "{payload}: {reply}");
    }

    expect_connected(&device).await;
    node.rest_of(&bob).post("/api/auth/logout", &Value::Null).await.expect(204);
    expect_connected(&device).await;
}

#[tokio::test]
async fn who_connects_while_the_login_ends_is_not_left_over() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    for round in 0..10 {
        let login = ann.log_in(&node).await;
        let opened = (0..4).map(|_| Device::options(&node, &login).without_reconnection().open());
        let rest = node.rest_of(&login);
        let (devices, ended) =
            tokio::join!(futures_util::future::join_all(opened), rest.post("/api/auth/logout", &Value::Null));
        ended.expect(204);
        for device in devices {
            let out = |names: &[String]| {
                names.iter().any(|name| name == "$connect_error" || name == "$disconnect").then_some(())
            };
            crate::support::eventually(format!("round {round}: out"), || async { out(&device.names()) })
                .await;
            assert_eq!(device.inspect().await["connected"], false);
        }
    }
}

#[tokio::test]
async fn what_ends_on_one_node_ends_on_every_node_within_2_s() {
    let cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let other = ann.log_in(&cluster.nodes[0]).await;
    let (far, kept) = (cluster.connect(1, &ann).await, cluster.connect(1, &other).await);

    cluster.nodes[0].rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect(204);

    within_secs(2, expect_sent_away(&far, "unauthorized")).await;
    expect_connected(&kept).await;
}

#[tokio::test]
async fn without_redis_it_ends_on_every_node_all_the_same() {
    let mut cluster = Cluster::start(2).await;
    let ann = cluster.register("ann").await;
    let far = cluster.connect(1, &ann).await;
    cluster.redis.kill();

    cluster.nodes[0].rest_of(&ann).post("/api/auth/logout", &Value::Null).await.expect(204);

    within_secs(30, expect_sent_away(&far, "unauthorized")).await;
}
