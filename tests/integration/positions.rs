//! Catch-up from anywhere: whatever position a device comes back with, what it gets makes its session whole; also
//! when the history and the deletions behind that position are forgotten.

use serde_json::{Map, Value, json};

use crate::support::{Account, Device, Env, Node, Random, age, eventually, short_or_long, within_secs};

/// Changes before the first question.
const CHANGES: usize = 200;

/// The last change that is a week old when the node forgets.
const FORGOTTEN: u64 = 120;

/// Positions asked from, before and after the node has forgotten half.
fn positions() -> u64 {
    short_or_long(1_000, 5_000)
}

/// A node, a user, and their session as it was at every seq.
struct Past {
    seed: u64,
    node: Node,
    ann: Account,
    sessions: Vec<Map<String, Value>>,
    epoch: String,
    /// When each deleted key was last deleted, and its version then.
    deleted: Map<String, Value>,
}

impl Past {
    async fn of(seed: u64, random: &mut Random) -> Self {
        let node = Node::start(&Env::new()).await;
        let ann = node.register("ann").await;
        let rest = node.rest_of(&ann);
        let mut sessions = vec![Map::new()];
        let mut deleted = Map::new();
        while sessions.len() <= CHANGES {
            // Keys come and go for good, so that some deletions stay.
            let mut session = sessions.last().unwrap().clone();
            let key = match session.keys().next() {
                Some(oldest) if session.len() > 6 => oldest.clone(),
                _ => format!("k{}", sessions.len() / 20 * 4 + random.below(12) as usize),
            };
            let path = format!("/api/session/{key}");
            if session.len() > 6 || random.below(4) == 0 {
                let gone = rest.delete(&path).await;
                if !session.contains_key(&key) {
                    gone.expect_error(404, "unknown_key");
                    continue;
                }
                let version = gone.expect(200)["version"].clone();
                deleted.insert(key.clone(), json!({"seq": sessions.len(), "version": version}));
                session.remove(&key);
            } else {
                let state = json!({"n": random.below(1_000)});
                rest.put(&path, &state).await.expect(200);
                deleted.remove(&key);
                session.insert(key, state);
            }
            sessions.push(session);
        }
        let full = rest.get("/api/session").await.expect(200);
        let epoch = full["epoch"].as_str().unwrap().to_owned();
        Self { seed, node, ann, sessions, epoch, deleted }
    }

    fn head(&self) -> u64 {
        self.sessions.len() as u64 - 1
    }

    /// The last deletion that is a week old.
    fn forgotten_deletion(&self) -> u64 {
        let seqs = self.deleted.values().map(|deleted| deleted["seq"].as_u64().unwrap());
        seqs.filter(|seq| *seq <= FORGOTTEN).max().expect("some key was deleted early and for good")
    }

    async fn forget(&mut self) {
        let forgotten = self.forgotten_deletion();
        self.node.kill_9();
        age(self.node.folder(), FORGOTTEN).await;
        self.node.restart().await;
        let rest = self.node.rest_of(&self.ann);
        eventually("the node forgets what is a week old", || async {
            let since = format!("/api/session?since={}:{}", self.epoch, forgotten - 1);
            (rest.get(&since).await.expect(200)["mode"] == "full").then_some(())
        })
        .await;
    }

    /// Asks from random positions, some in the future and some of another past. From `known_from` on a position
    /// gets only what changed.
    async fn ask(&self, random: &mut Random, known_from: u64) {
        let rest = self.node.rest_of(&self.ann);
        let full = rest.get("/api/session").await.expect(200);
        let head = self.head();
        assert_eq!(full["seq"], json!(head));
        assert_eq!(full["sessionData"], Value::Object(self.sessions[head as usize].clone()));
        for _ in 0..positions() {
            let seq = random.below(head + 20);
            let epoch = if random.below(10) == 0 { "another-epoch" } else { &self.epoch };
            let caught_up = rest.get(&format!("/api/session?since={epoch}:{seq}")).await.expect(200);
            let is_known = epoch != "another-epoch" && seq <= head && seq >= known_from;
            assert_eq!(
                caught_up["mode"],
                if is_known { "delta" } else { "full" },
                "seed {}, {epoch}:{seq}",
                self.seed
            );
            let mut session = if is_known { self.sessions[seq as usize].clone() } else { Map::new() };
            for removed in caught_up["removed"].as_array().unwrap() {
                session.remove(removed.as_str().unwrap());
            }
            session.extend(caught_up["sessionData"].as_object().unwrap().clone());
            assert_eq!(Value::Object(session), full["sessionData"], "seed {}, {epoch}:{seq}", self.seed);
            assert_eq!(caught_up["seq"], head);
        }
    }
}

#[tokio::test]
async fn a_catch_up_from_any_position_equals_the_full_state() {
    let seed = std::process::id().into();
    let mut random = Random::seeded(seed);
    let mut past = Past::of(seed, &mut random).await;

    past.ask(&mut random, 0).await;
    past.forget().await;
    past.ask(&mut random, past.forgotten_deletion()).await;

    // A key whose end is forgotten goes on above every version that was forgotten.
    let rest = past.node.rest_of(&past.ann);
    let forgotten = past.deleted.iter().filter(|(_, at)| at["seq"].as_u64().unwrap() <= FORGOTTEN);
    let floor = forgotten.clone().map(|(_, at)| at["version"].as_u64().unwrap()).max().unwrap();
    for (key, _) in forgotten {
        let path = format!("/api/session/{key}");
        rest.get(&format!("{path}/history")).await.expect_error(404, "unknown_key");
        let back = rest.put(&path, &json!("back")).await.expect(200);
        assert_eq!(back["version"], json!(floor + 1), "{key}");
    }
}

#[tokio::test]
async fn a_device_whose_node_missed_a_deletion_that_is_forgotten_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::start_in(folder.path(), &Env::new()).await;
    let late = Node::start_in(folder.path(), &Env::new()).await;
    let ann = node.register("ann").await;
    let writer = node.rest_of(&ann);
    writer.put("/api/session/gone", &json!(1)).await.expect(200);
    let mut device = Device::named(&late, &ann, "Late").await;
    assert_eq!(device.restored()["sessionData"], json!({"gone": 1}));

    late.stop();
    writer.delete("/api/session/gone").await.expect(200);
    node.kill_9();
    age(folder.path(), 2).await;
    node.restart().await;
    let full = format!("/api/session?since={}:1", device.restored()["epoch"].as_str().unwrap());
    let rest = node.rest_of(&ann);
    eventually("the deletion is forgotten", || async {
        (rest.get(&full).await.expect(200)["mode"] == "full").then_some(())
    })
    .await;
    writer.put("/api/session/new", &json!(2)).await.expect(200);
    late.cont();

    let restored = within_secs(20, device.restored_again()).await;
    assert_eq!(restored["sessionData"], json!({"new": 2}));
}
