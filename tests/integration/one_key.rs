//! One key over REST: its ETag, the preconditions that guard it, and what was kept of it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Device, Env, Node, Reply, Rest};

const KEY: &str = "/api/session/draft";

/// A request under a precondition.
async fn guarded(rest: &Rest, method: Method, header: (&str, &str), body: Option<Value>) -> Reply {
    let request = rest.request(method, KEY).header(header.0, header.1);
    Rest::send(match body {
        Some(body) => request.json(&body),
        None => request,
    })
    .await
}

fn tag(reply: &Reply) -> &str {
    reply.header("etag").unwrap_or_else(|| panic!("an ETag: {}", reply.text))
}

#[tokio::test]
async fn a_key_is_read_written_patched_and_deleted_and_its_etag_is_its_version() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    let phone = Device::named(&node, &ann, "Phone").await;
    rest.get(KEY).await.expect_error(404, "unknown_key");
    rest.delete(KEY).await.expect_error(404, "unknown_key");

    let put = rest.put(KEY, &json!({"a": 1, "b": 2})).await;
    assert_eq!((put.status, tag(&put), &put.body["version"]), (200, "\"1\"", &json!(1)));
    let patched = rest.patch(KEY, &json!({"b": null, "c": {"d": 3}})).await;
    assert_eq!((patched.status, tag(&patched)), (200, "\"2\""));
    let read = rest.get(KEY).await;
    assert_eq!((tag(&read), &read.body), ("\"2\"", &json!({"a": 1, "c": {"d": 3}})));
    let known = guarded(&rest, Method::GET, ("if-none-match", "\"2\""), None).await;
    assert_eq!((known.status, tag(&known), known.text.as_str()), (304, "\"2\"", ""));
    assert_eq!(guarded(&rest, Method::GET, ("if-none-match", "\"1\""), None).await.status, 200);
    let deleted = rest.delete(KEY).await;
    assert_eq!((deleted.status, &deleted.body["version"]), (200, &json!(3)));
    rest.get(KEY).await.expect_error(404, "unknown_key");
    let back = rest.patch(KEY, &json!({"n": 1})).await.expect(200);
    assert_eq!(back["version"], 4, "versions go on through deletion");

    // The user's devices hear of it, as of nobody's.
    for version in 1..=4 {
        let update = phone.next("session-updated").await;
        assert_eq!((&update["version"], &update["deviceId"]), (&json!(version), &Value::Null), "{update}");
    }
}

/// RFC 9110, 13.1.2: a list, compared weakly.
#[tokio::test]
async fn a_reader_that_knows_one_of_several_versions_gets_nothing_new() {
    let node = Node::start(&Env::new()).await;
    let rest = node.rest_of(&node.register("ann").await);
    rest.put(KEY, &json!(1)).await.expect(200);
    rest.put(KEY, &json!(2)).await.expect(200);
    for (known, status) in [
        ("\"1\", \"2\"", 304),
        ("W/\"2\"", 304),
        ("\"1\",W/\"2\" , \"a,b\"", 304),
        ("*", 304),
        ("\"1\", W/\"3\"", 200),
        ("2", 200),
        ("w/\"2\"", 200),
        ("", 200),
    ] {
        assert_eq!(
            guarded(&rest, Method::GET, ("if-none-match", known), None).await.status,
            status,
            "{known}"
        );
    }
}

#[tokio::test]
async fn a_precondition_that_does_not_hold_is_answered_with_what_is_there() {
    let node = Node::start(&Env::new()).await;
    let rest = node.rest_of(&node.register("ann").await);
    let absent = ("if-none-match", "*");

    let made = guarded(&rest, Method::PUT, absent, Some(json!("first"))).await;
    assert_eq!((made.status, tag(&made)), (200, "\"1\""));
    let refused = guarded(&rest, Method::PUT, absent, Some(json!("second"))).await;
    let conflict = refused.expect_error(412, "conflict");
    assert_eq!((&conflict["version"], &conflict["state"]), (&json!(1), &json!("first")), "{conflict}");
    let stale = guarded(&rest, Method::PUT, ("if-match", "\"7\""), Some(json!("second"))).await;
    assert_eq!(stale.expect_error(412, "conflict")["state"], "first");
    assert_eq!(
        guarded(&rest, Method::PUT, ("if-match", "W/\"1\""), Some(json!(0))).await.status,
        412,
        "weak"
    );
    let listed = guarded(&rest, Method::PATCH, ("if-match", "\"9\", \"1\""), Some(json!({"a": 1}))).await;
    assert_eq!((listed.status, tag(&listed)), (200, "\"2\""));
    assert_eq!(guarded(&rest, Method::DELETE, ("if-match", "\"1\""), None).await.status, 412);
    assert_eq!(guarded(&rest, Method::DELETE, ("if-match", "\"2\""), None).await.status, 200);

    let gone = guarded(&rest, Method::PUT, ("if-match", "\"2\""), Some(json!(0))).await;
    let conflict = gone.expect_error(412, "conflict");
    assert_eq!((&conflict["version"], &conflict["deleted"]), (&json!(3), &json!(true)), "{conflict}");
    assert_eq!(
        guarded(&rest, Method::PUT, ("if-match", "*"), Some(json!(0))).await.status,
        412,
        "nothing is there"
    );
    let back = guarded(&rest, Method::PUT, absent, Some(json!("back"))).await;
    assert_eq!((back.status, tag(&back)), (200, "\"4\""));
    assert_eq!(guarded(&rest, Method::PUT, ("if-match", "*"), Some(json!("on"))).await.status, 200);
    guarded(&rest, Method::PUT, ("if-match", "5"), Some(json!(0))).await.expect_error(400, "invalid_field");
}

#[tokio::test]
async fn earlier_versions_are_listed_and_brought_back_as_new_ones() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    let phone = Device::named(&node, &ann, "Phone").await;
    phone.update("draft", json!({"text": "good"})).await;
    rest.put(KEY, &json!({"text": "bad"})).await.expect(200);
    rest.delete(KEY).await.expect(200);

    let history = rest.get(&format!("{KEY}/history")).await.expect(200);
    assert_eq!(history["sessionKey"], "draft");
    let versions = history["versions"].as_array().unwrap();
    let seen: Vec<_> =
        versions.iter().map(|kept| (&kept["version"], &kept["state"], &kept["deviceId"])).collect();
    let (good, bad) = (json!({"text": "good"}), json!({"text": "bad"}));
    assert_eq!(
        seen,
        [
            (&json!(3), &Value::Null, &Value::Null),
            (&json!(2), &bad, &Value::Null),
            (&json!(1), &good, &json!(phone.id()))
        ]
    );
    assert!(versions.iter().all(|kept| kept["updatedAt"].is_string()), "{history}");

    let restore = format!("{KEY}/restore");
    let back = rest.post(&restore, &json!({"version": 1})).await;
    assert_eq!((back.status, tag(&back), &back.body["version"]), (200, "\"4\"", &json!(4)));
    assert_eq!(rest.get(KEY).await.body, good);
    assert_eq!(phone.next_where("session-updated", |update| update["version"] == 4).await["state"], good);
    rest.post(&restore, &json!({"version": 99})).await.expect_error(404, "unknown_key");
    rest.post(&restore, &json!({"version": 3})).await.expect_error(404, "unknown_key");
    rest.post(&restore, &json!({"version": "1"})).await.expect_error(400, "invalid_field");
    rest.get("/api/session/never/history").await.expect_error(404, "unknown_key");
    // Another user's key of the same name has a history of its own.
    let bob = node.rest_of(&node.register("bob").await);
    bob.get(&format!("{KEY}/history")).await.expect_error(404, "unknown_key");
    bob.post(&restore, &json!({"version": 1})).await.expect_error(404, "unknown_key");
}

#[tokio::test]
async fn an_op_id_is_applied_once_whichever_node_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let one = Node::start_in(folder.path(), &Env::new()).await;
    let other = Node::start_in(folder.path(), &Env::new()).await;
    let ann = one.register("ann").await;
    let (phone, laptop) =
        (Device::named(&one, &ann, "Phone").await, Device::named(&other, &ann, "Laptop").await);
    let count =
        |n: u64| json!({"sessionKey": "n", "ops": [{"op": "inc", "path": "/n", "value": n}], "opId": "x"});

    let first = phone.emit_ack("session-update", count(1)).await;
    for device in [&laptop, &phone] {
        let again = device.emit_ack("session-update", count(1)).await;
        assert_eq!((&again["duplicate"], &again["seq"]), (&json!(true), &first["seq"]), "{again}");
        let reused = device.emit_ack("session-update", count(2)).await;
        assert_eq!(reused["error"]["code"], "op_id_reused", "{reused}");
    }
    // At once, by both: one applies it, the other is told.
    let both =
        |id: &str| json!({"sessionKey": "n", "ops": [{"op": "inc", "path": "/n", "value": 1}], "opId": id});
    for round in 0..20 {
        let payload = both(&format!("at once {round}"));
        let (here, there) = tokio::join!(
            phone.emit_ack("session-update", payload.clone()),
            laptop.emit_ack("session-update", payload.clone())
        );
        assert_eq!(here["seq"], there["seq"], "{here} {there}");
        assert_ne!(here["duplicate"], there["duplicate"], "{here} {there}");
    }
    let session = one.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], json!({"n": {"n": 21}}));
}
