//! Records as a whole: the replaced server's users brought in, one user's taken out.

use std::path::Path;

use serde_json::{Value, json};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};

use crate::support::{Account, Device, Env, Exit, Node, Postgres, legacy_token, run_to_exit, within_secs};

const ANN: &str = "6d1c8f0e-51c6-4f7d-9b0a-3f1f6a1f2b01";
const BOB: &str = "6d1c8f0e-51c6-4f7d-9b0a-3f1f6a1f2b02";
const PHONE: &str = "9a7b3c52-0d8e-4c1f-8a63-5e2d7f9b1c01";

/// Made by bcryptjs 2.4.3 of the password below.
const HASH: &str = "$2a$10$4h3R5waQ.A2pAkpubBQ9cO/Kuyjvgn6RyHSDu6nEDQyQS.v4aWW4G";
const PASSWORD: &str = "the old server's password";

/// A database as the replaced server makes it, what it has not checkpointed yet included.
async fn seed_database(folder: &Path, more: &[&str]) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(folder.join("seed.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .pragma("wal_autocheckpoint", "0");
    let mut seed = SqliteConnection::connect_with(&options).await.unwrap();
    let session = |key: &str, data: &str| {
        format!(
            "insert into sessions values('{ANN}:{key}','{ANN}','{PHONE}','{data}',1600000000000,1600000000000)"
        )
    };
    let statements = [
        "create table users(id text primary key,email text unique,password_hash text,created_at int,updated_at int)"
            .to_owned(),
        "create table devices(id text primary key,user_id text,name text,type text,last_seen int,metadata text)"
            .to_owned(),
        "create table sessions(id text primary key,user_id text,device_id text,data text,created_at int,updated_at int)"
            .to_owned(),
        format!("insert into users values('{ANN}','Ann@Example.test','{HASH}',1600000000000,1600000000000)"),
        format!("insert into users values('{BOB}','bob@example.test','{HASH}',1600000000000,1600000000000)"),
        format!(
            r#"insert into devices values('{PHONE}','{ANN}','Phone','mobile',1600000000000,'{{"name":"Phone","type":"mobile","os":"x"}}')"#
        ),
        session("editor", r#"{"n": 1.50, "big": 12345678901234567890}"#),
        session("a:b", "null"),
    ];
    for statement in statements.iter().map(String::as_str).chain(more.iter().copied()) {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut seed).await.unwrap();
    }
    seed
}

async fn run(folder: &Path, args: &[&str]) -> Exit {
    let database = format!("sqlite://{}", folder.join("tandem.db").display());
    let env = args.iter().fold(Env::new().set("DATABASE_URL", database), |env, arg| env.arg(arg));
    run_to_exit(&env).await
}

fn owner(id: &str, token: &Value) -> Account {
    let text = |text: &str| text.to_owned();
    Account {
        id: text(id),
        email: text("ann@example.test"),
        password: text(PASSWORD),
        token: text(token.as_str().unwrap_or_default()),
        refresh_token: String::new(),
    }
}

#[tokio::test]
async fn users_of_the_replaced_server_log_in_and_restore_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let _still_open = seed_database(folder.path(), &[]).await;
    let seed = folder.path().join("seed.db");
    let seed = seed.to_str().unwrap();

    let first = run(folder.path(), &["import", seed]).await;
    assert_eq!(first.code, Some(0), "{}", first.output);
    assert!(first.output.contains("2 users with 1 devices and 2 session keys came in"), "{}", first.output);
    let again = run(folder.path(), &["import", seed]).await;
    assert_eq!(again.code, Some(0), "{}", again.output);
    assert!(
        again.output.contains("0 users") && again.output.contains("2 users were there"),
        "{}",
        again.output
    );

    let node = Node::start_in(folder.path(), &Env::new()).await;
    let login = json!({"email": "Ann@Example.test", "password": PASSWORD});
    let body = node.rest().post("/api/auth/login", &login).await.expect(200);
    assert_eq!(body["user"]["id"], ANN);
    assert_eq!(body["user"]["createdAt"], "2020-09-13T12:26:40.000Z");
    let ann = owner(ANN, &body["token"]);
    let raw = node.rest_of(&ann).get("/api/session").await.text;
    assert!(raw.contains(r#""editor":{"n": 1.50, "big": 12345678901234567890}"#), "digit for digit: {raw}");
    // The old server's tokens work, and its devices are known by their ids.
    let stock = ann.with_token(legacy_token(&ann, 3_600));
    let phone = Device::options(&node, &stock).auth("deviceId", PHONE).connect().await;
    assert_eq!(phone.id(), PHONE);
    assert_eq!(phone.restored()["sessionData"].as_object().unwrap().len(), 2);
    assert_eq!(phone.restored()["sessionData"]["a:b"], Value::Null);
    let laptop = Device::named(&node, &stock, "Laptop").await;
    phone.update("editor", json!(2)).await;
    let update = laptop.next("session-updated").await;
    assert_eq!((&update["version"], &update["deviceId"]), (&json!(2), &json!(PHONE)));
}

#[tokio::test]
async fn what_cannot_come_in_is_named_and_harms_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let long_key = format!("insert into sessions values('{BOB}:{}','{BOB}',null,'1',0,0)", "k".repeat(129));
    let seed = seed_database(
        folder.path(),
        &[
            &format!("insert into users values('no-uuid','x@example.test','{HASH}',0,0)"),
            "insert into users values('6d1c8f0e-51c6-4f7d-9b0a-3f1f6a1f2b03','no address','$2a$',0,0)",
            "insert into users values('6d1c8f0e-51c6-4f7d-9b0a-3f1f6a1f2b04','y@example.test','md5',0,0)",
            &format!("insert into users values('6d1c8f0e-51c6-4f7d-9b0a-3f1f6a1f2b05','BOB@example.test','{HASH}',0,0)"),
            &format!("insert into sessions values('{BOB}:cut','{BOB}',null,'{{\"a\":',0,0)"),
            &format!("insert into sessions values('{BOB}:big','{BOB}',null,'\"{}\"',0,0)", "x".repeat(300_000)),
            &format!("insert into sessions values('{BOB}:good','{BOB}',null,'\"it is\"',0,0)"),
            &long_key,
        ],
    )
    .await;
    seed.close().await.unwrap();

    let exit = run(folder.path(), &["import", folder.path().join("seed.db").to_str().unwrap()]).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    for reason in [
        "no UUID",
        "its address is none",
        "not bcrypt's",
        "belongs to another user",
        ":cut: its state is not JSON",
        ":big: ",
        "its key is none",
        "7 records were left out",
    ] {
        assert!(exit.output.contains(reason), "{reason}: {}", exit.output);
    }
    let exit = run(folder.path(), &["export", "bob@example.test"]).await;
    let bob: Value = serde_json::from_str(&exit.output).unwrap();
    assert_eq!(bob["sessionData"], json!({"good": "it is"}));

    let exit = run(folder.path(), &["import", folder.path().join("none.db").to_str().unwrap()]).await;
    assert!(exit.code == Some(1) && exit.output.contains("cannot open"), "{}", exit.output);
}

#[tokio::test]
async fn an_export_holds_all_that_is_kept_of_a_user_and_nothing_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start_in(folder.path(), &Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);
    let phone = Device::named(&node, &ann, "Phone").await;
    phone.update("a", json!(1)).await;
    phone.update("a", json!({"now": true})).await;
    phone.update("gone", json!("x")).await;
    phone.emit_ack("session-delete", json!({"sessionKey": "gone"})).await;
    let tablet = Device::named(&node, &ann, "Tablet").await;
    let target = tablet.id().to_owned();
    drop(tablet);
    phone.next("device-disconnected").await;
    let message = json!({"targetDeviceId": target, "message": {"n": 1}});
    assert_eq!(phone.emit_ack("device-message", message).await["status"], "queued");
    node.rest_of(&bob).put("/api/session/b", &json!("bob's")).await.expect(200);

    for who in [ann.email.as_str(), ann.id.as_str()] {
        let exit = run(folder.path(), &["export", who]).await;
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        let out: Value = serde_json::from_str(&exit.output).unwrap_or_else(|_| panic!("{}", exit.output));
        assert_eq!((&out["user"]["id"], &out["user"]["email"]), (&json!(ann.id), &json!(ann.email)));
        assert_eq!(out["devices"][0]["id"], phone.id());
        assert_eq!((&out["sessionData"], &out["versions"]), (&json!({"a": {"now": true}}), &json!({"a": 2})));
        let history: Vec<_> =
            out["history"].as_array().unwrap().iter().map(|entry| &entry["state"]).collect();
        assert_eq!(history, [&json!(1), &json!({"now": true}), &json!("x"), &Value::Null]);
        assert_eq!(out["history"][3]["deleted"], true);
        let message = &out["messages"][0];
        assert_eq!((&message["targetDeviceId"], &message["message"]), (&json!(target), &json!({"n": 1})));
        assert!(!exit.output.contains("bob") && !exit.output.contains("$2"), "{}", exit.output);
    }
    let exit = run(folder.path(), &["export", "nobody@example.test"]).await;
    assert!(exit.code == Some(1) && exit.output.contains("There is no user"), "{}", exit.output);
}

#[tokio::test]
async fn users_come_over_to_postgresql_and_an_operator_works_there_as_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    seed_database(folder.path(), &[]).await.close().await.unwrap();
    let server = Postgres::start().await;
    let env = Env::new().set("DATABASE_URL", server.url());
    let run = async |args: &[&str]| {
        let exit = run_to_exit(&args.iter().fold(env.clone(), |env, arg| env.arg(arg))).await;
        assert_eq!(exit.code, Some(0), "{args:?}: {}", exit.output);
        exit.output
    };

    let said = run(&["import", folder.path().join("seed.db").to_str().unwrap()]).await;
    assert!(said.contains("2 users with 1 devices and 2 session keys came in"), "{said}");
    let exported: Value = serde_json::from_str(&run(&["export", "ann@example.test"]).await).unwrap();
    assert_eq!((&exported["user"]["id"], &exported["devices"][0]["id"]), (&json!(ANN), &json!(PHONE)));
    assert_eq!(exported["history"].as_array().unwrap().len(), 2, "{exported}");

    let node = Node::start(&env).await;
    let login = json!({"email": "ann@example.test", "password": PASSWORD});
    let ann = owner(ANN, &node.rest().post("/api/auth/login", &login).await.expect(200)["token"]);
    let mut phone = Device::options(&node, &ann).auth("deviceId", PHONE).connect().await;
    assert_eq!(phone.id(), PHONE);
    let before = phone.restored()["epoch"].clone();
    let said = run(&["new-epoch"]).await;
    let restored = within_secs(20, phone.restored_again()).await;
    assert_eq!(restored["mode"], "full");
    assert_ne!(restored["epoch"], before);
    assert!(said.contains(restored["epoch"].as_str().unwrap()), "{said}");
    let refused = run_to_exit(&env.clone().arg("backup").arg("/tmp/never")).await;
    assert!(refused.code == Some(1) && refused.output.contains("pg_dump"), "{}", refused.output);
}
