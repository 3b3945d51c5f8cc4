//! Three devices do random things, lose their transports and repeat themselves; a fourth only looks. In the end
//! all of them hold exactly what the store holds, and a model in the test says the same.

use serde_json::{Map, Value, json};

use crate::replica::Replica;
use crate::support::{Device, Env, Node, Random, short_or_long};

fn steps() -> u64 {
    short_or_long(400, 5_000)
}

/// A random write as it is sent, and what it makes of the model.
fn write(random: &mut Random, model: &mut Map<String, Value>) -> (&'static str, Value) {
    let key = format!("k{}", random.below(5));
    let field = format!("f{}", random.below(4));
    let number = random.below(100);
    match random.below(5) {
        0 if model.contains_key(&key) => {
            model.remove(&key);
            ("session-delete", json!({"sessionKey": key}))
        }
        0 | 1 => {
            model.insert(key.clone(), json!({field.clone(): number}));
            ("session-update", json!({"sessionKey": key, "state": {field: number}}))
        }
        2 => {
            let entry = model.entry(key.clone()).or_insert_with(|| json!({}));
            entry[&field] = json!(number);
            ("session-update", json!({"sessionKey": key, "patch": {field: number}}))
        }
        3 => {
            let entry = model.entry(key.clone()).or_insert_with(|| json!({}));
            entry.as_object_mut().unwrap().remove(&field);
            ("session-update", json!({"sessionKey": key, "patch": {field: null}}))
        }
        _ => {
            let entry = model.entry(key.clone()).or_insert_with(|| json!({}));
            let before = entry["n"].as_u64().unwrap_or(0);
            entry["n"] = json!(before + number);
            let ops = json!([{"op": "inc", "path": "/n", "value": number}]);
            ("session-update", json!({"sessionKey": key, "ops": ops}))
        }
    }
}

#[tokio::test]
async fn random_devices_end_with_what_the_store_holds() {
    let seed = u64::from(std::process::id());
    let mut random = Random::seeded(seed);
    let node = Node::start(&Env::new().set("RESUME_WINDOW_SECONDS", 60)).await;
    let ann = node.register("ann").await;
    let mut devices = Vec::new();
    for name in ["Phone", "Laptop", "Tablet"] {
        devices.push(Device::named(&node, &ann, name).await);
    }
    let mut observer = Device::named(&node, &ann, "Observer").await;
    let mut model = Map::new();

    for step in 0..steps() {
        let who = random.below(3) as usize;
        let (event, mut payload) = write(&mut random, &mut model);
        payload["opId"] = json!(format!("{seed}-{step}"));
        let first = devices[who].emit_ack(event, payload.clone()).await;
        assert_eq!(first["ok"], true, "seed {seed}, step {step}: {payload} {first}");
        if random.below(5) == 0 {
            // The same again, from another device: applied once.
            let again = devices[(who + 1) % 3].emit_ack(event, payload).await;
            assert_eq!(again["duplicate"], true, "seed {seed}, step {step}: {again}");
            assert_eq!((&again["version"], &again["seq"]), (&first["version"], &first["seq"]), "seed {seed}");
        }
        if random.below(40) == 0 {
            devices[who].break_transport().await;
            devices[who].restored_again().await;
        }
        if random.below(60) == 0 {
            observer.break_transport().await;
            observer.restored_again().await;
        }
    }

    let session = node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(session["sessionData"], Value::Object(model), "seed {seed}: the store and the model");
    assert_eq!(session["seq"], steps(), "seed {seed}: each write once");
    let seq = session["seq"].clone();
    if observer.events("session-updated").last().is_none_or(|last| last["seq"] != seq) {
        observer.next_where("session-updated", |update| update["seq"] == seq).await;
    }
    let held = Replica::of(&observer.seen());
    assert!(held.equals(&session), "seed {seed}: {} and {session}", held.session_data());
    for device in &mut devices {
        device.break_transport().await;
        let restored = device.restored_again().await;
        assert_eq!(restored["sessionData"], session["sessionData"], "seed {seed}");
        assert_eq!(restored["versions"], session["versions"], "seed {seed}");
    }
}
