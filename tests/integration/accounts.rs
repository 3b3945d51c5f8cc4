//! Registering and logging in over REST.

use serde_json::json;

use crate::answers::{is_id, is_time};
use crate::support::{Canary, Device, Env, Node, connection};

#[tokio::test]
async fn registering_gives_a_token_that_works_at_once() {
    let node = Node::start(&Env::new()).await;

    let credentials = json!({"email": "ann@example.test", "password": "a long password"});
    let body = node.rest().post("/api/auth/register", &credentials).await.expect(201);

    assert_eq!(body["user"]["email"], "ann@example.test");
    is_id(&body["user"]["id"]);
    is_time(&body["user"]["createdAt"]);
    is_time(&body["expiresAt"]);
    let rest = node.rest().with_token(body["token"].as_str().unwrap());
    let devices = rest.get("/api/devices").await.expect(200);
    assert_eq!(devices, json!({"devices": []}));
}

#[tokio::test]
async fn registering_may_bring_the_device_info_of_the_seeds_clients() {
    let node = Node::start(&Env::new()).await;
    let body = json!({
        "email": "ann@example.test",
        "password": "a long password",
        "deviceInfo": {"name": "Phone", "type": "mobile"},
    });
    node.rest().post("/api/auth/register", &body).await.expect(201);
}

#[tokio::test]
async fn logging_in_answers_as_registering_does() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let credentials = json!({"email": ann.email, "password": ann.password});
    let body = node.rest().post("/api/auth/login", &credentials).await.expect(200);

    assert_eq!(body["user"]["id"], ann.id);
    assert_eq!(body["user"]["email"], ann.email);
    is_time(&body["expiresAt"]);
    let rest = node.rest().with_token(body["token"].as_str().unwrap());
    rest.get("/api/session").await.expect(200);
}

#[tokio::test]
async fn an_address_is_one_account_however_its_letters_are_written() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let twin = json!({"email": "ANN@Example.Test", "password": ann.password});

    let reply = node.rest().post("/api/auth/register", &twin).await;
    reply.expect_error(409, "email_taken");
    let body = node.rest().post("/api/auth/login", &twin).await.expect(200);
    assert_eq!(body["user"]["id"], ann.id);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_address_get_one_answer() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let wrong = json!({"email": ann.email, "password": "not her password"});
    let unknown = json!({"email": "bob@example.test", "password": "not her password"});
    let wrong = node.rest().post("/api/auth/login", &wrong).await;
    let unknown = node.rest().post("/api/auth/login", &unknown).await;

    wrong.expect_error(401, "invalid_credentials");
    assert_eq!((wrong.status, &wrong.text), (unknown.status, &unknown.text));
}

#[tokio::test]
async fn an_unknown_address_takes_as_long_as_a_wrong_password() {
    let folder = tempfile::tempdir().unwrap();
    // Her hash is from a time when they were cheap.
    let ann = Node::start_in(folder.path(), &Env::new().set("BCRYPT_COST", 4)).await.register("ann").await;
    // A cost at which a hash takes some 60 ms: far above the rest of a request.
    let node = Node::start_in(folder.path(), &Env::new().set("BCRYPT_COST", 10)).await;
    let median_ms = async |email: &str| {
        let mut times = Vec::new();
        for _ in 0..9 {
            let credentials = json!({"email": email, "password": "not her password"});
            let started = std::time::Instant::now();
            node.rest().post("/api/auth/login", &credentials).await.expect(401);
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };

    let (wrong, unknown) = (median_ms(&ann.email).await, median_ms("bob@example.test").await);

    let ratio = unknown / wrong;
    assert!((0.5..2.0).contains(&ratio), "unknown {unknown:.1} ms, wrong {wrong:.1} ms");
}

#[tokio::test]
async fn a_login_brings_a_cheap_hash_to_the_configured_cost_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let env = |cost: u32| {
        let database = format!("sqlite://{}", folder.path().join("tandem.db").display());
        Env::new().set("DATABASE_URL", database).set("BCRYPT_COST", cost)
    };
    let costs = async || {
        let mut database = connection(folder.path()).await;
        let hashes: Vec<String> =
            sqlx::query_scalar("SELECT password_hash FROM users").fetch_all(&mut database).await.unwrap();
        hashes.iter().map(|hash| hash[4..6].to_owned()).collect::<Vec<_>>()
    };
    let ann = Node::start_in(folder.path(), &env(4)).await.register("ann").await;
    let node = Node::start_in(folder.path(), &env(5)).await;
    let phone = Device::named(&node, &ann, "Phone").await;
    let wrong = json!({"email": ann.email, "password": "not her password"});
    node.rest().post("/api/auth/login", &wrong).await.expect(401);
    assert_eq!(costs().await, ["04"]);

    ann.log_in(&node).await;

    assert_eq!(costs().await, ["05"]);
    ann.log_in(&node).await;
    node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(phone.inspect().await["connected"], true);
    // A hash that costs more than is asked for now stays.
    let cheap = Node::start_in(folder.path(), &env(4)).await;
    ann.log_in(&cheap).await;
    assert_eq!(costs().await, ["05"]);
}

#[tokio::test]
async fn an_address_is_as_long_as_it_is_kept() {
    let node = Node::start(&Env::new()).await;
    // In lower case it has one byte more for each of these letters.
    let email = |letters: usize| format!("ann@{}.{}.test", "\u{130}".repeat(letters), "d".repeat(200));
    for (letters, status) in [(10, 201), (20, 400)] {
        let credentials = json!({"email": email(letters), "password": "a long password"});
        let registered = node.rest().post("/api/auth/register", &credentials).await;
        assert_eq!(registered.status, status, "{letters}: {}", registered.text);
        let login = node.rest().post("/api/auth/login", &credentials).await;
        assert_eq!(login.status == 200, status == 201, "{letters}: {}", login.text);
    }
}

#[tokio::test]
async fn what_cannot_be_an_account_is_refused_by_name() {
    let node = Node::start(&Env::new()).await;
    let long = |length: usize| "p".repeat(length - 3) + "aB3";
    let table = [
        (json!({"email": "no-at-sign", "password": "a long password"}), "invalid_email"),
        (json!({"email": "two@at@signs.test", "password": "a long password"}), "invalid_email"),
        (json!({"email": "ann@", "password": "a long password"}), "invalid_email"),
        (json!({"email": "a n n@b.test", "password": "a long password"}), "invalid_email"),
        (json!({"email": "Ann <ann@b.test>", "password": "a long password"}), "invalid_email"),
        (json!({"email": "a@b\rc.test", "password": "a long password"}), "invalid_email"),
        (
            json!({"email": format!("a@{}.test", "b".repeat(248)), "password": "a long password"}),
            "invalid_email",
        ),
        (json!({"email": "", "password": "a long password"}), "invalid_email"),
        (json!({"email": "@", "password": "a long password"}), "invalid_email"),
        (json!({"email": "a@b\r\nc.test", "password": "a long password"}), "invalid_email"),
        (json!({"email": "a\u{0}@b.test", "password": "a long password"}), "invalid_email"),
        (
            json!({"email": format!("{}@b.test", "a".repeat(255)), "password": "a long password"}),
            "invalid_email",
        ),
        (json!({"email": "ann@example.test", "password": "seven77"}), "weak_password"),
        (json!({"email": "ann@example.test", "password": ""}), "weak_password"),
        (json!({"email": "ann@example.test", "password": "NUL\u{0}in the middle"}), "weak_password"),
        (json!({"email": "ann@example.test", "password": "ANN@Example.test"}), "weak_password"),
        (json!({"email": "ann@example.test", "password": "ann@example.test"}), "weak_password"),
        (json!({"email": "ann@example.test", "password": long(73)}), "password_too_long"),
        (json!({"email": "ann@example.test", "password": "é".repeat(37)}), "password_too_long"),
        (json!({"email": 3, "password": "a long password"}), "invalid_field"),
        (json!({"email": "ann@example.test", "password": null}), "invalid_field"),
        (json!({"password": "a long password"}), "invalid_field"),
        (json!({"email": "ann@example.test"}), "invalid_field"),
    ];
    let canary = Canary::on(&node).await;
    for (body, code) in table {
        let reply = node.rest().post("/api/auth/register", &body).await;
        assert_eq!(reply.body["error"]["code"], code, "{body}: {}", reply.text);
        reply.expect_error(400, code);
        canary.sings_after(&body.to_string()).await;
        // Nor is it an account to log in to, or a reason for anything else.
        let login = node.rest().post("/api/auth/login", &body).await;
        assert!([400, 401].contains(&login.status), "{body}: {}", login.text);
    }

    let at_the_limit = json!({"email": "ann@example.test", "password": long(72)});
    node.rest().post("/api/auth/register", &at_the_limit).await.expect(201);
}

#[tokio::test]
async fn a_hundred_registrations_of_one_address_at_once_make_one_account() {
    let node = Node::start(&Env::new()).await;
    let rest = node.rest();
    let credentials = json!({"email": "ann@example.test", "password": "a long password"});

    let calls = (0..100).map(|_| rest.post("/api/auth/register", &credentials));
    let replies = futures_util::future::join_all(calls).await;

    let made = replies.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(made, 1);
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        reply.expect_error(409, "email_taken");
    }
    Canary::on(&node).await.sings_after("100 registrations").await;
}

#[tokio::test]
async fn a_server_closed_to_newcomers_still_lets_its_people_in() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    node.restart_with(&Env::new().set("REGISTRATION", "closed")).await;

    let newcomer = json!({"email": "bob@example.test", "password": "a long password"});
    let reply = node.rest().post("/api/auth/register", &newcomer).await;
    reply.expect_error(403, "registration_closed");
    let credentials = json!({"email": ann.email, "password": ann.password});
    node.rest().post("/api/auth/login", &credentials).await.expect(200);
}

#[tokio::test]
async fn too_many_logins_for_an_address_have_to_wait() {
    let node = Node::start(&Env::new().set("LIMIT_LOGINS_PER_EMAIL", 3)).await;
    let ann = node.register("ann").await;
    let wrong = json!({"email": ann.email, "password": "not her password"});

    let mut last = node.rest().post("/api/auth/login", &wrong).await;
    for _ in 0..5 {
        last = node.rest().post("/api/auth/login", &wrong).await;
    }

    let error = last.expect_error(429, "rate_limited");
    assert!(error["retryAfterMs"].as_u64().is_some_and(|wait| wait > 0), "{error}");
    assert_eq!(error["retryable"], true);
    assert!(last.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok()));
}

#[tokio::test]
async fn an_account_outlives_the_process() {
    let mut node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    node.kill_9();
    node.restart().await;

    node.rest_of(&ann).get("/api/session").await.expect(200);
    let credentials = json!({"email": ann.email, "password": ann.password});
    node.rest().post("/api/auth/login", &credentials).await.expect(200);
}
