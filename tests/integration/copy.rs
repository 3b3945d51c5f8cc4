//! `tandem copy`: a deployment that outgrows one machine moves to PostgreSQL, and its clients notice nothing.

use std::path::Path;

use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor};

use crate::support::{
    Account, Device, Env, Exit, Node, Postgres, Process, connection, eventually, run_to_exit, within,
};

const SECRET: &str = "a secret that both deployments share, long enough";

fn env() -> Env {
    Env::new().set("JWT_SECRET", SECRET)
}

/// The arguments of a copy out of `folder`.
fn copying(folder: &Path, to: &str) -> Env {
    let from = format!("sqlite://{}", folder.join("tandem.db").display());
    Env::new().arg("copy").arg("--from").arg(&from).arg("--to").arg(to)
}

async fn copy(folder: &Path, to: &str) -> Exit {
    run_to_exit(&copying(folder, to)).await
}

/// What a client sees of its session and of one key's past.
async fn seen(node: &Node, account: &Account, key: &str) -> [Value; 3] {
    let rest = node.rest_of(account);
    [
        rest.get("/api/session").await.expect(200),
        rest.get(&format!("/api/session/{key}/history")).await.expect(200),
        rest.get("/api/devices").await.expect(200)["devices"][0]["id"].clone(),
    ]
}

#[tokio::test]
async fn what_moves_to_postgresql_is_all_there_and_clients_go_on_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut old = Node::start_in(folder.path(), &env().set("DATABASE_URL", sqlite_in(folder.path()))).await;
    let ann = old.register("ann").await;
    let bob = old.register("bob").await;
    let phone = Device::named(&old, &ann, "Phone").await;
    let laptop = Device::named(&old, &ann, "Laptop").await;
    for n in 0..5 {
        phone.update("note", json!({"n": n, "text": "naïve \u{1f600}"})).await;
    }
    phone.update("gone", json!(1)).await;
    old.rest_of(&ann).delete("/api/session/gone").await.expect(200);
    let write =
        json!({"sessionKey": "once", "ops": [{"op": "inc", "path": "/n", "value": 1}], "opId": "op-1"});
    let first = phone.emit_ack("session-update", write.clone()).await;
    old.rest_of(&bob).put("/api/session/own", &json!([1.50, null])).await.expect(200);
    let laptop_id = laptop.id().to_owned();
    laptop.disconnect().await;
    let message = json!({"targetDeviceId": laptop_id, "message": {"wait": true}, "messageId": "m-1"});
    assert_eq!(phone.emit_ack("device-message", message.clone()).await["status"], "queued");
    let position = phone.restored()["epoch"].as_str().unwrap().to_owned();
    let before = [seen(&old, &ann, "note").await, seen(&old, &bob, "own").await];
    phone.disconnect().await;
    old.kill_9();

    let database = Postgres::start().await;
    let said = copy(folder.path(), &database.url()).await;
    assert_eq!(said.code, Some(0), "{}", said.output);
    assert!(said.output.contains("2 users came over"), "{}", said.output);

    let new = Node::start(&env().set("DATABASE_URL", database.url())).await;
    assert_eq!([seen(&new, &ann, "note").await, seen(&new, &bob, "own").await], before);
    let since = new.rest_of(&ann).get(&format!("/api/session?since={position}:7")).await.expect(200);
    assert_eq!(since["mode"], "delta");
    let phone = Device::named(&new, &ann, "Phone").await;
    let again = phone.emit_ack("session-update", write.clone()).await;
    assert_eq!((&again["duplicate"], &again["version"]), (&json!(true), &first["version"]));
    let options = Device::options(&new, &ann).named("Laptop").auth("deviceId", laptop_id);
    let laptop = options.connect().await;
    assert_eq!(laptop.next("device-message").await["message"], json!({"wait": true}));
    let credentials = json!({"email": ann.email, "password": ann.password});
    new.rest().post("/api/auth/login", &credentials).await.expect(200);
    let next = phone.update("note", json!("on")).await;
    assert_eq!(next["version"], 6);
    laptop.next("session-updated").await;
}

#[tokio::test]
async fn a_source_that_is_in_use_and_a_target_that_holds_records_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &env().set("DATABASE_URL", sqlite_in(folder.path()))).await;
    node.register("ann").await;
    let database = Postgres::start().await;

    let running = copy(folder.path(), &database.url()).await;
    node.register("bob").await;
    node.kill_9();
    assert_eq!(copy(folder.path(), &database.url()).await.code, Some(0));
    let twice = copy(folder.path(), &database.url()).await;
    let missing = copy(&folder.path().join("nowhere"), &database.url()).await;

    assert_eq!(running.code, Some(1));
    assert!(running.output.contains("stop its nodes"), "{}", running.output);
    assert_eq!(twice.code, Some(1));
    assert!(twice.output.contains("holds users already"), "{}", twice.output);
    assert_eq!(missing.code, Some(1));
    assert!(missing.output.contains("there is no database"), "{}", missing.output);
}

#[tokio::test]
async fn an_interrupted_copy_goes_on_and_no_node_serves_a_part() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &env().set("DATABASE_URL", sqlite_in(folder.path()))).await;
    let ann = node.register("ann").await;
    node.rest_of(&ann).put("/api/session/k", &json!(1)).await.expect(200);
    node.kill_9();
    let ids = many_users(folder.path(), &ann, 170).await;
    let database = Postgres::start().await;
    let migrated = run_to_exit(
        &env().set("DATABASE_URL", database.url()).set("REDIS_URL", "redis://127.0.0.1:1").arg("migrate"),
    )
    .await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.output);
    // Somebody holds the 120th user's row, so that the copy stands still in its third transaction.
    let mut holder = PgConnection::connect(&database.url()).await.unwrap();
    let held = format!(
        "BEGIN; INSERT INTO users (id, email, password_hash, created_at, updated_at) VALUES ('{}', 'x', 'x', 0, 0)",
        ids[119]
    );
    holder.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(held))).await.unwrap();

    let mut copying_process =
        Process::spawn("copy", &mut copying(folder.path(), &database.url()).command(folder.path()));
    eventually("two groups are there", || async {
        (database.query("SELECT count(*) FROM users").trim() == "100").then_some(())
    })
    .await;
    copying_process.kill();
    holder.close().await.unwrap();
    let part = run_to_exit(&env().set("DATABASE_URL", database.url())).await;
    let rest = copy(folder.path(), &database.url()).await;

    assert_ne!(part.code, Some(0));
    assert!(part.output.contains("copy into this database is not finished"), "{}", part.output);
    assert_eq!(rest.code, Some(0), "{}", rest.output);
    assert!(rest.output.contains("171 users came over"), "{}", rest.output);
    let node = Node::start(&env().set("DATABASE_URL", database.url())).await;
    assert_eq!(node.rest_of(&ann).get("/api/session").await.expect(200)["sessionData"], json!({"k": 1}));
}

#[tokio::test]
async fn a_copy_that_differs_from_its_source_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &env().set("DATABASE_URL", sqlite_in(folder.path()))).await;
    let ann = node.register("ann").await;
    node.rest_of(&ann).put("/api/session/k", &json!("here")).await.expect(200);
    node.kill_9();
    let database = Postgres::start().await;
    let migrated = run_to_exit(&env().set("DATABASE_URL", database.url()).arg("migrate")).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.output);
    // A target that changes what it is given.
    database.query(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN NEW.data := '\"there\"'; RETURN NEW; END $$;
         CREATE TRIGGER spoil BEFORE INSERT ON changes FOR EACH ROW EXECUTE FUNCTION spoil()",
    );

    let said = copy(folder.path(), &database.url()).await;

    assert_eq!(said.code, Some(1));
    assert!(said.output.contains("changes: 1 rows here and 1 there"), "{}", said.output);
}

#[tokio::test]
async fn a_source_that_a_later_version_has_upgraded_is_not_copied_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &env().set("DATABASE_URL", sqlite_in(folder.path()))).await;
    node.kill_9();
    let mut source = connection(folder.path()).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', TRUE, X'00', 1)",
    )
    .execute(&mut source)
    .await
    .unwrap();
    within(source.close()).await.unwrap();
    let database = Postgres::start().await;

    let said = copy(folder.path(), &database.url()).await;

    assert_eq!(said.code, Some(1));
    assert!(said.output.contains("migration 9999"), "{}", said.output);
}

fn sqlite_in(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("tandem.db").display())
}

/// Rows of further users, made like `account`'s. Returns all users' ids in order.
async fn many_users(folder: &Path, account: &Account, more: u32) -> Vec<String> {
    let mut database = connection(folder).await;
    for n in 0..more {
        let id = uuid::Uuid::new_v4().to_string();
        sqlx::query(
            "INSERT INTO users (id, email, password_hash, created_at, updated_at)
             SELECT ?, ?, password_hash, created_at, updated_at FROM users WHERE id = ?",
        )
        .bind(id)
        .bind(format!("user{n}@example.test"))
        .bind(&account.id)
        .execute(&mut database)
        .await
        .unwrap();
    }
    let ids = sqlx::query_scalar("SELECT id FROM users ORDER BY id").fetch_all(&mut database).await.unwrap();
    within(database.close()).await.unwrap();
    ids
}
