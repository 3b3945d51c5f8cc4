//! A PostgreSQL whose past goes back under stores that are open: it is noticed with the next connection.

use std::sync::Arc;

use tandem::model::{Epoch, Secret, Seq, UserId};
use tandem::store::{Command, Database, MovedSince, Selection, Store};

use super::bed::{bounds, new_user, state, write, written};
use super::support::{Postgres, within_secs};

/// Two nodes on a server of their own; what was stored when the copy `copy` was made, and was written since.
struct Nodes {
    server: Postgres,
    stores: [Arc<dyn Store>; 2],
    user: UserId,
    asked: MovedSince,
}

impl Nodes {
    async fn start() -> Self {
        let server = Postgres::start().await;
        let database = Database::Postgres { url: Secret::new(server.url()) };
        let open = || async { tandem::store::open(&database, bounds()).await.unwrap() };
        let stores = [open().await, open().await];
        let user = new_user(&*stores[0]).await;
        written(&*stores[0], write(user, "a", "\"kept\"")).await;
        server.copy_data("copy");
        for n in 0..20 {
            written(&*stores[0], write(user, "a", &n.to_string())).await;
        }
        let asked = stores[1].moved(&MovedSince::default()).await.unwrap().next;
        Self { server, stores, user, asked }
    }

    /// Both write, as soon as they can, and ask; the epoch that they are in then.
    async fn epoch(&self) -> Epoch {
        for (store, name) in self.stores.iter().zip(["b", "c"]) {
            let batch = [Command::Write(Arc::new(write(self.user, name, "1")))];
            let writing = async { while store.commit(&batch).await.is_err() {} };
            within_secs(20, writing).await;
        }
        for store in &self.stores {
            // The connection that it has for reading may be one to the server of before.
            let asking = async { while store.moved(&MovedSince::default()).await.is_err() {} };
            within_secs(20, asking).await;
        }
        assert_eq!(self.stores[0].epoch(), self.stores[1].epoch());
        self.stores[0].epoch()
    }

    async fn assert_new_past(&self, before: &Epoch) {
        let epoch = self.epoch().await;
        assert_ne!(epoch, *before);
        let [one, other] = &self.stores;
        assert_eq!(state(&**one, self.user, "a").await.as_deref(), Some("\"kept\""));
        let since = Selection { since: Some((before.clone(), Seq(2))), keys: None };
        let snapshot = other.snapshot(self.user, &since).await.unwrap().unwrap();
        assert_eq!(
            (snapshot.epoch, snapshot.delta),
            (epoch.clone(), false),
            "a position of the old past is none"
        );
        let moved = other.moved(&self.asked).await.unwrap();
        assert_eq!(moved.heads, [(self.user, Seq(3))], "the old place in the log is none either");
        assert_eq!(self.epoch().await, epoch, "it begins once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_put_back_under_open_stores_begins_one_new_epoch() {
    let mut nodes = Nodes::start().await;
    let before = nodes.stores[0].epoch();
    within_secs(60, nodes.server.put_back("copy")).await;
    nodes.assert_new_past(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_under_open_stores_begins_one_new_epoch() {
    let mut nodes = Nodes::start().await;
    let before = nodes.stores[0].epoch();
    within_secs(60, nodes.server.fail_over("copy")).await;
    nodes.assert_new_past(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_past_that_lost_only_the_last_commit_is_noticed() {
    let mut nodes = Nodes::start().await;
    nodes.server.copy_data("later");
    written(&*nodes.stores[0], write(nodes.user, "a", "\"lost\"")).await;
    let before = nodes.stores[0].epoch();
    within_secs(60, nodes.server.put_back("later")).await;
    // Others may be first, and write far more than what was lost.
    nodes.server.query("CREATE TABLE filler AS SELECT generate_series(1, 10000)");
    assert_ne!(nodes.epoch().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_another_node_begins_is_known_with_the_next_batch_and_the_next_ask() {
    let nodes = Nodes::start().await;
    let [one, other] = &nodes.stores;
    let begun = other.new_epoch().await.unwrap();
    assert_ne!(one.epoch(), begun);
    written(&**one, write(nodes.user, "a", "1")).await;
    assert_eq!(one.epoch(), begun);

    let begun = one.new_epoch().await.unwrap();
    other.moved(&nodes.asked).await.unwrap();
    assert_eq!(other.epoch(), begun);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_begins_no_new_epoch() {
    let mut nodes = Nodes::start().await;
    let before = nodes.epoch().await;
    for _ in 0..3 {
        within_secs(60, nodes.server.restart()).await;
        assert_eq!(nodes.epoch().await, before);
    }
}
