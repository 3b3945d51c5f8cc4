//! What an operator does to accounts from the command line while a node runs on the same database.

use serde_json::json;

use crate::support::{Account, Device, Env, Exit, Node, run_to_exit, within};

/// `tandem ARGS` on the node's database.
pub async fn tandem(node: &Node, args: &[&str]) -> Exit {
    let env = Env::new().set("DATABASE_URL", node.database()).set("JWT_SECRET", crate::support::JWT_SECRET);
    run_to_exit(&args.iter().fold(env, |env, arg| env.arg(arg))).await
}

pub async fn done(node: &Node, args: &[&str]) -> String {
    let exit = tandem(node, args).await;
    assert_eq!(exit.code, Some(0), "{args:?}: {}", exit.output);
    exit.output
}

fn made_password(output: &str) -> String {
    output.lines().find_map(|line| line.strip_prefix("password: ")).expect("a password is printed").to_owned()
}

async fn log_in(node: &Node, email: &str, password: &str) -> u16 {
    let credentials = json!({"email": email, "password": password});
    node.rest().post("/api/auth/login", &credentials).await.status
}

#[tokio::test]
async fn an_operator_makes_accounts_where_strangers_may_not() {
    let node = Node::start(&Env::new().set("REGISTRATION", "closed")).await;

    let output = done(&node, &["user", "add", "Ann@Example.Test"]).await;

    assert_eq!(log_in(&node, "ann@example.test", &made_password(&output)).await, 200);
    let again = tandem(&node, &["user", "add", "ann@example.test"]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.output.contains("email_taken"), "{}", again.output);
    let list = done(&node, &["user", "list"]).await;
    let fields: Vec<_> = list.trim().split('\t').collect();
    assert_eq!(fields[0], "ann@example.test");
    assert!(output.starts_with(fields[1]), "{output} {list}");
}

#[tokio::test]
async fn a_token_for_a_tool_works_and_can_be_ended() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;

    let token = done(&node, &["token", &ann.email, "--token-ttl-seconds", "600"]).await;

    let tool = ann.with_token(token.trim());
    node.rest_of(&tool).get("/api/session").await.expect(200);
    node.rest_of(&tool).post("/api/auth/logout", &json!(null)).await.expect(204);
    node.rest_of(&tool).get("/api/session").await.expect_error(401, "unauthorized");
    node.rest_of(&ann).get("/api/session").await.expect(200);
    assert_eq!(tandem(&node, &["token", "nobody@example.test"]).await.code, Some(1));
}

#[tokio::test]
async fn a_reset_password_ends_what_stood_on_the_old_one_also_on_running_nodes() {
    let node = Node::start(&Env::new()).await;
    let ann = node.register("ann").await;
    let device = Device::connect(&node, &ann).await;

    let output = done(&node, &["user", "reset-password", &ann.email]).await;

    assert_eq!(log_in(&node, &ann.email, &ann.password).await, 401);
    assert_eq!(log_in(&node, &ann.email, &made_password(&output)).await, 200);
    node.rest_of(&ann).get("/api/session").await.expect_error(401, "unauthorized");
    assert_eq!(within(device.next("error")).await["code"], "unauthorized");
    assert_eq!(device.disconnected().await, "io server disconnect");
}

#[tokio::test]
async fn an_operator_logs_out_and_removes_users() {
    let node = Node::start(&Env::new()).await;
    let (ann, bob) = (node.register("ann").await, node.register("bob").await);

    done(&node, &["user", "logout", &ann.email]).await;
    node.rest_of(&ann).get("/api/session").await.expect_error(401, "unauthorized");
    assert_eq!(log_in(&node, &ann.email, &ann.password).await, 200);

    assert_eq!(tandem(&node, &["user", "remove", &ann.email]).await.code, Some(1), "without --yes");
    assert_eq!(log_in(&node, &ann.email, &ann.password).await, 200);
    done(&node, &["user", "remove", &ann.email, "--yes"]).await;
    assert_eq!(log_in(&node, &ann.email, &ann.password).await, 401);
    let Account { email, password, .. } = &bob;
    assert_eq!(log_in(&node, email, password).await, 200);
    assert_eq!(tandem(&node, &["user", "remove", &ann.email, "--yes"]).await.code, Some(1));
}

#[tokio::test]
async fn passwords_come_from_standard_input_and_are_held_to_the_same_rules() {
    let node = Node::start(&Env::new()).await;
    // Nothing to read is the empty password.
    let exit = tandem(&node, &["user", "add", "ann@example.test", "--password-stdin"]).await;
    assert_eq!(exit.code, Some(1));
    assert!(exit.output.contains("weak_password"), "{}", exit.output);
    let exit = tandem(&node, &["user", "add", "no address"]).await;
    assert!(exit.output.contains("invalid_email"), "{}", exit.output);
}

#[tokio::test]
async fn a_smoke_test_from_outside_sees_devices_hear_each_other_and_leaves_nothing() {
    let node = Node::start(&Env::new()).await;

    let smoke = done(&node, &["smoke", &node.url()]).await;

    assert!(smoke.contains("a change is stored and reaches the other device"), "{smoke}");
    assert_eq!(done(&node, &["user", "list"]).await, "");
}

#[tokio::test]
async fn a_smoke_test_fails_where_registration_is_closed_unless_it_has_a_token() {
    let node = Node::start(&Env::new().set("REGISTRATION", "closed")).await;
    done(&node, &["user", "add", "smoke@example.test"]).await;
    let file = node.folder().join("token");
    std::fs::write(&file, done(&node, &["token", "smoke@example.test"]).await).unwrap();

    let without = tandem(&node, &["smoke", &node.url()]).await;
    let with = done(&node, &["smoke", &node.url(), "--token-file", file.to_str().unwrap()]).await;

    assert_eq!(without.code, Some(1));
    assert!(without.output.contains("registration_closed"), "{}", without.output);
    assert!(with.contains("an event reaches the other device"), "{with}");
}
