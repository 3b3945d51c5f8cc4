//! Tries are counted over all nodes, and on each by itself while they cannot.

use serde_json::json;

use crate::support::{Cluster, Env};

const LOGINS: u32 = 6;

#[tokio::test]
async fn logins_are_counted_over_all_nodes_and_never_wait_for_a_redis_that_hangs() {
    let env = Env::new().set("LIMIT_LOGINS_PER_EMAIL", LOGINS);
    let cluster = Cluster::start_with(2, &env).await;
    cluster.register("ann").await;
    let login = async |node: usize, email: &str| {
        let body = json!({"email": email, "password": "not the password"});
        cluster.nodes[node].rest().post("/api/auth/login", &body).await
    };
    for n in 0..LOGINS {
        login(n as usize % 2, "guessed@example.test").await.expect_error(401, "invalid_credentials");
    }
    for node in 0..2 {
        let refused = login(node, "guessed@example.test").await;
        refused.expect_error(429, "rate_limited");
        assert!(refused.header("retry-after").is_some());
        login(node, "another@example.test").await.expect_error(401, "invalid_credentials");
    }

    cluster.redis.stop();
    for _ in 0..LOGINS {
        login(0, "third@example.test").await.expect_error(401, "invalid_credentials");
    }
    login(0, "third@example.test").await.expect_error(429, "rate_limited");
    cluster.redis.cont();
}
