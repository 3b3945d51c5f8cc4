//! Clients that hang up while what they asked for is being committed: what follows a commit happens all the same.

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnection;

use crate::support::{Account, Device, Env, Node, RawTcp, connection, eventually, within_secs};

/// Requests at once: of the first at least the commit has begun when all of them hang up.
const AT_ONCE: usize = 4;

/// A node on SQLite, where a test can hold up the commits.
async fn node() -> (tempfile::TempDir, Node) {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", folder.path().join("tandem.db").display());
    let node = Node::start_in(folder.path(), &Env::new().set("DATABASE_URL", database)).await;
    (folder, node)
}

/// Sends these (method and path, body) in the name of `account`, and hangs up on all of them in the middle of the
/// commit, which then goes on.
async fn ask_and_hang_up(node: &Node, account: &Account, requests: &[(String, Value)]) {
    let mut holder: SqliteConnection = connection(node.folder()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    let mut asking = Vec::new();
    for (line, body) in requests {
        let (mut tcp, body) = (RawTcp::open(node).await, body.to_string());
        let request = format!(
            "{line} HTTP/1.1\r\nHost: tandem\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            account.token,
            body.len()
        );
        tcp.write(request.as_bytes()).await.unwrap();
        asking.push(tcp);
    }
    // What waits does so behind one that was taken.
    eventually("the first is being committed", || async {
        (node.metric("tandem_store_queue").await >= 1.0).then_some(())
    })
    .await;
    let open = node.metric("tandem_tcp_connections").await;
    drop(asking);
    eventually("all have hung up", || async {
        (node.metric("tandem_tcp_connections").await <= open - requests.len() as f64).then_some(())
    })
    .await;
    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
}

async fn listed(node: &Node, account: &Account) -> Vec<Value> {
    let rest = node.rest_of(account);
    // Behind all that is still to be committed.
    rest.put("/api/session/k", &json!(1)).await.expect(200);
    rest.get("/api/devices").await.expect(200)["devices"].as_array().unwrap().clone()
}

async fn phones(node: &Node, account: &Account) -> Vec<Device> {
    let mut phones = Vec::new();
    for n in 0..AT_ONCE {
        phones.push(Device::named(node, account, &format!("Phone {n}")).await);
    }
    phones
}

#[tokio::test]
async fn a_rename_is_told_to_the_others_though_who_asked_for_it_has_hung_up() {
    let (_folder, node) = node().await;
    let ann = node.register("ann").await;
    let phones = phones(&node, &ann).await;
    let laptop = Device::named(&node, &ann, "Laptop").await;

    let rename = |phone: &Device| (format!("PATCH /api/devices/{}", phone.id()), json!({"name": "renamed"}));
    ask_and_hang_up(&node, &ann, &phones.iter().map(rename).collect::<Vec<_>>()).await;

    let devices = listed(&node, &ann).await;
    let renamed: Vec<_> = devices.iter().filter(|device| device["name"] == "renamed").collect();
    assert!(!renamed.is_empty(), "{devices:?}");
    for device in renamed {
        laptop.next_where("device-updated", |told| told["deviceId"] == device["id"]).await;
    }
}

#[tokio::test]
async fn a_revoked_device_is_sent_away_though_who_revoked_it_has_hung_up() {
    let (_folder, node) = node().await;
    let ann = node.register("ann").await;
    let phones = phones(&node, &ann).await;
    // Their login stays with it.
    let laptop = Device::named(&node, &ann, "Laptop").await;

    let revoke = |phone: &Device| (format!("DELETE /api/devices/{}", phone.id()), Value::Null);
    ask_and_hang_up(&node, &ann, &phones.iter().map(revoke).collect::<Vec<_>>()).await;

    let devices = listed(&node, &ann).await;
    let revoked: Vec<_> =
        phones.iter().filter(|phone| devices.iter().all(|device| device["id"] != phone.id())).collect();
    assert!(!revoked.is_empty(), "{devices:?}");
    for phone in revoked {
        assert_eq!(within_secs(2, phone.next("error")).await["code"], "device_revoked");
        laptop.next_where("device-removed", |told| told["deviceId"] == phone.id()).await;
    }
}

#[tokio::test]
async fn ended_logins_lose_their_sockets_though_who_ended_them_has_hung_up() {
    let (_folder, node) = node().await;
    let ann = node.register("ann").await;
    let phones = phones(&node, &ann).await;

    let ends = vec![("POST /api/auth/logout-all".to_owned(), Value::Null); AT_ONCE];
    ask_and_hang_up(&node, &ann, &ends).await;

    for phone in phones {
        assert_eq!(within_secs(2, phone.next("error")).await["code"], "unauthorized");
    }
}
