//! Catch-up from anywhere: whatever position a device comes back with, what it gets makes its session whole.

use serde_json::{Map, Value, json};

use crate::support::{Env, Node, Random, short_or_long};

/// Positions asked from.
fn positions() -> u64 {
    short_or_long(1_500, 10_000)
}

#[tokio::test]
async fn a_catch_up_from_any_position_equals_the_full_state() {
    let seed = std::process::id().into();
    let mut random = Random::seeded(seed);
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let rest = node.rest_of(&ann);
    // The session as it was at every seq.
    let mut past = vec![Map::new()];
    while past.len() < 200 {
        let key = format!("k{}", random.below(12));
        let mut session = past.last().unwrap().clone();
        let path = format!("/api/session/{key}");
        if random.below(4) == 0 {
            let deleted = rest.delete(&path).await;
            if !session.contains_key(&key) {
                deleted.expect_error(404, "unknown_key");
                continue;
            }
            deleted.expect(200);
            session.remove(&key);
        } else {
            let state = json!({"n": random.below(1_000)});
            rest.put(&path, &state).await.expect(200);
            session.insert(key, state);
        }
        past.push(session);
    }
    let head = past.len() as u64 - 1;
    let full = rest.get("/api/session").await.expect(200);
    assert_eq!(
        (&full["seq"], &full["sessionData"]),
        (&json!(head), &Value::Object(past[past.len() - 1].clone()))
    );
    let epoch = full["epoch"].as_str().unwrap().to_owned();

    for _ in 0..positions() {
        // Some from the future, some of another past.
        let seq = random.below(head + 20);
        let epoch = if random.below(10) == 0 { "another-epoch" } else { &epoch };
        let caught_up = rest.get(&format!("/api/session?since={epoch}:{seq}")).await.expect(200);
        let is_known = epoch != "another-epoch" && seq <= head;
        assert_eq!(caught_up["mode"], if is_known { "delta" } else { "full" }, "seed {seed}, {epoch}:{seq}");
        let mut session = if is_known { past[seq as usize].clone() } else { Map::new() };
        for removed in caught_up["removed"].as_array().unwrap() {
            session.remove(removed.as_str().unwrap());
        }
        session.extend(caught_up["sessionData"].as_object().unwrap().clone());
        assert_eq!(Value::Object(session), full["sessionData"], "seed {seed}, {epoch}:{seq}");
        assert_eq!(caught_up["seq"], head);
    }
}
