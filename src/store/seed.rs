//! The database of the replaced Node.js server, to read from: its tables as they
//! are, values as text where programs have written them in more than one way.

use std::path::Path;

use anyhow::Context;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, FromRow};

use super::sqlite;

/// Users read at a time.
const PAGE: i64 = 200;

/// See the module's comment.
pub struct SeedDatabase {
    connection: SqliteConnection,
    after: i64,
}

/// A row of its users.
#[derive(FromRow)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct SeedUser {
    row: i64,
    pub id: String,
    pub email: String,
    pub password_hash: String,
    pub created_at: String,
}

/// A row of its devices.
#[derive(FromRow)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct SeedDevice {
    pub id: String,
    pub name: String,
    pub kind: String,
    pub last_seen: String,
    pub metadata: String,
}

/// A row of its sessions; `id` is `user:sessionKey`.
#[derive(FromRow)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct SeedEntry {
    pub id: String,
    pub device: String,
    pub data: String,
    pub updated_at: String,
}

impl SeedDatabase {
    /// Opens the file.
    ///
    /// # Errors
    /// When it is no such database.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        // Not read-only: what its server has not checkpointed yet is in the WAL.
        let options = sqlite::file(path).create_if_missing(false);
        let mut connection = SqliteConnection::connect_with(&options)
            .await
            .with_context(|| format!("cannot open {}", path.display()))?;
        for table in ["users", "devices", "sessions"] {
            let found = sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?")
                .bind(table)
                .fetch_optional(&mut connection)
                .await
                .with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::ensure!(found.is_some(), "{} has no table {table}", path.display());
        }
        Ok(Self { connection, after: i64::MIN })
    }

    /// How many users it has.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn count(&mut self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut self.connection).await?)
    }

    /// The next users; none at the end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn next_users(&mut self) -> anyhow::Result<Vec<SeedUser>> {
        let users: Vec<SeedUser> = sqlx::query_as(
            "SELECT rowid AS row, CAST(coalesce(id, '') AS TEXT) AS id, CAST(coalesce(email, '') AS TEXT) AS email,
                 CAST(coalesce(password_hash, '') AS TEXT) AS password_hash,
                 CAST(coalesce(created_at, 0) AS TEXT) AS created_at
             FROM users WHERE rowid > ? ORDER BY rowid LIMIT ?",
        )
        .bind(self.after)
        .bind(PAGE)
        .fetch_all(&mut self.connection)
        .await?;
        if let Some(last) = users.last() {
            self.after = last.row;
        }
        Ok(users)
    }

    /// A user's devices, the latest `limit` of them: its server made one for each
    /// connection.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn devices(&mut self, user: &str, limit: u32) -> anyhow::Result<Vec<SeedDevice>> {
        Ok(sqlx::query_as(
            "SELECT CAST(id AS TEXT) AS id, CAST(coalesce(name, '') AS TEXT) AS name,
                 CAST(coalesce(type, '') AS TEXT) AS kind, CAST(coalesce(last_seen, 0) AS TEXT) AS last_seen,
                 CAST(coalesce(metadata, '') AS TEXT) AS metadata
             FROM devices WHERE user_id = ? AND id IS NOT NULL ORDER BY last_seen DESC, rowid DESC LIMIT ?",
        )
        .bind(user)
        .bind(limit)
        .fetch_all(&mut self.connection)
        .await?)
    }

    /// A user's session entries, the oldest change first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn entries(&mut self, user: &str) -> anyhow::Result<Vec<SeedEntry>> {
        Ok(sqlx::query_as(
            "SELECT CAST(id AS TEXT) AS id, CAST(coalesce(device_id, '') AS TEXT) AS device,
                 CAST(coalesce(data, '') AS TEXT) AS data, CAST(coalesce(updated_at, 0) AS TEXT) AS updated_at
             FROM sessions WHERE user_id = ? AND id IS NOT NULL ORDER BY updated_at, rowid",
        )
        .bind(user)
        .fetch_all(&mut self.connection)
        .await?)
    }

    /// Closes it.
    ///
    /// # Errors
    /// When that fails.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(self.connection.close().await?)
    }
}
