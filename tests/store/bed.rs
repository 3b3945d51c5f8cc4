//! A store to ask, with a database of its own behind it, and short ways to say what the cases need.

use std::sync::Arc;

use tandem::drain::Tasks;
use tandem::merge::{self, OnConflict};
use tandem::model::{
    BootId, ConnectionId, DeviceInfo, JsonText, LoginId, Secret, Seq, SessionKey, Timestamp, UserId, Version,
};
use tandem::store::{
    self, Account, Bounds, Command, ConnectDevice, Database, NewAccount, NewLogin, Reply, SessionWrite,
    StillThere, Store, WriteChange, WriteRefusal, Writer, Written,
};
use tandem::telemetry::metrics::Metrics;
use tempfile::TempDir;

use super::support::{ChaosProxy, Postgres};

pub struct Bed {
    pub store: Arc<dyn Store>,
    pub database: Database,
    bounds: Bounds,
    _folder: Option<TempDir>,
    server: Option<Arc<Postgres>>,
}

pub fn bounds() -> Bounds {
    Bounds {
        merge: merge::Limits::default(),
        keys_per_user: 2_000,
        bytes_per_user: 8 << 20,
        devices_per_user: 3,
    }
}

impl Bed {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite { path: folder.path().join("tandem.db"), full_sync: true };
        Self::on(database, Some(folder), None).await
    }

    pub async fn postgres() -> Self {
        let server = Postgres::shared().await;
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        server.query(&format!("CREATE DATABASE {name}"));
        let url = server.url().replace("/postgres", &format!("/{name}"));
        Self::on(Database::Postgres { url: Secret::new(url) }, None, Some(server)).await
    }

    /// PostgreSQL with a server of its own, to do harm to.
    pub async fn postgres_alone() -> Self {
        let server = Arc::new(Postgres::start().await);
        let database = Database::Postgres { url: Secret::new(server.url()) };
        Self::on(database, None, Some(server)).await
    }

    /// The same, reached through `proxy` in front of `server`.
    pub async fn postgres_through(server: Postgres, proxy: &ChaosProxy) -> Self {
        let database = Database::Postgres { url: Secret::new(server.url_at(proxy.address())) };
        Self::on(database, None, Some(Arc::new(server))).await
    }

    async fn on(database: Database, folder: Option<TempDir>, server: Option<Arc<Postgres>>) -> Self {
        let store = store::open(&database, bounds()).await.unwrap();
        Self { store, database, bounds: bounds(), _folder: folder, server }
    }

    /// Another store on the same database, as another node opens it.
    pub async fn another(&self) -> Arc<dyn Store> {
        store::open(&self.database, self.bounds.clone()).await.unwrap()
    }

    /// The same with other bounds.
    pub async fn bounded(&self, bounds: Bounds) -> Arc<dyn Store> {
        store::open(&self.database, bounds).await.unwrap()
    }

    pub fn server(&self) -> &Postgres {
        self.server.as_ref().expect("a bed on PostgreSQL")
    }

    pub fn url(&self) -> String {
        match &self.database {
            Database::Postgres { url } => url.expose().to_owned(),
            Database::Sqlite { path, .. } => format!("sqlite://{}", path.display()),
        }
    }

    /// A connection of the test's own to the same database, past any proxy.
    pub async fn connection(&self) -> sqlx::PgConnection {
        let name = self.url().rsplit('/').next().unwrap().to_owned();
        let url = self.server().url().replace("/postgres", &format!("/{name}"));
        <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap()
    }

    pub async fn user(&self) -> UserId {
        new_user(&*self.store).await
    }
}

pub fn account(email: &str) -> NewAccount {
    let user = UserId::fresh();
    NewAccount {
        account: Account {
            user,
            email: email.to_owned(),
            password_hash: "hash".into(),
            created_at: Timestamp(1),
        },
        login: login(user),
    }
}

pub fn login(user: UserId) -> NewLogin {
    NewLogin {
        user,
        login: LoginId::fresh(),
        at: Timestamp(1),
        expires_at: Timestamp(1_000),
        refresh_hash: [7; 32],
    }
}

pub async fn new_user(store: &dyn Store) -> UserId {
    let account = account(&format!("{}@example.org", uuid::Uuid::new_v4()));
    let user = account.account.user;
    let replies = store.commit(&[Command::CreateAccount(account)]).await.unwrap();
    assert!(matches!(replies[0], Reply::AccountCreated(true)));
    user
}

pub fn key(text: &str) -> SessionKey {
    SessionKey::parse(text).unwrap()
}

/// A write of `state` that asks nothing of what is there.
pub fn write(user: UserId, name: &str, state: &str) -> SessionWrite {
    SessionWrite {
        user,
        device: None,
        key: key(name),
        change: WriteChange::State(JsonText::from(state)),
        base_version: None,
        on_conflict: OnConflict::Overwrite,
        op_id: None,
        at: Timestamp(10),
    }
}

pub fn delete(user: UserId, name: &str) -> SessionWrite {
    SessionWrite { change: WriteChange::Delete, ..write(user, name, "") }
}

pub async fn commit(
    store: &dyn Store,
    writes: impl IntoIterator<Item = SessionWrite>,
) -> Vec<Result<Written, WriteRefusal>> {
    let batch: Vec<_> = writes.into_iter().map(|write| Command::Write(Arc::new(write))).collect();
    let replies = store.commit(&batch).await.unwrap();
    replies
        .into_iter()
        .map(|reply| match reply {
            Reply::Written(outcome) => outcome,
            other => panic!("a write is answered by {other:?}"),
        })
        .collect()
}

pub async fn written(store: &dyn Store, write: SessionWrite) -> (Version, Seq) {
    let written = commit(store, [write]).await.remove(0).unwrap();
    (written.version, written.seq)
}

pub async fn state(store: &dyn Store, user: UserId, name: &str) -> Option<String> {
    let entry = store.entry(user, &key(name)).await.unwrap()?;
    entry.state.map(|state| state.to_string())
}

pub fn info(fingerprint: u64) -> DeviceInfo {
    DeviceInfo {
        name: format!("device {fingerprint}"),
        kind: "desktop".into(),
        json: r#"{"name":"x"}"#.into(),
        metadata: r#"{"os":"linux"}"#.into(),
        fingerprint,
    }
}

/// A device of `user` that looks like `fingerprint`, names none and connects at `at` to the run `boot`.
pub fn connect(user: UserId, boot: BootId, fingerprint: u64, at: i64) -> ConnectDevice {
    ConnectDevice {
        user,
        login: None,
        issued_at: Timestamp(0),
        let_go: Vec::new(),
        dead_before: Timestamp(i64::MAX),
        claimed: None,
        info: info(fingerprint),
        online: Vec::new(),
        live_boots: vec![boot],
        resumable_since: Timestamp(at - 100),
        connection: ConnectionId::fresh(),
        boot,
        at: Timestamp(at),
        still_there: StillThere::when(|| true),
    }
}

/// A writer as a node has it; what it commits is taken and forgotten.
pub fn writer(store: Arc<dyn Store>, tasks: &Tasks) -> Writer {
    let (committed, mut batches) = tokio::sync::mpsc::channel(64);
    tasks.spawn(async move { while batches.recv().await.is_some() {} });
    Writer::start(store, None, committed, tasks, Arc::new(Metrics::new()))
}
