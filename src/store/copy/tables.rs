//! What a copy takes over: tables and columns, which both databases call alike. A test holds the list against the schema,
//! so that a migration cannot be forgotten here.

use sqlx::AssertSqlSafe;

/// What a column holds. SQLite keeps UUIDs as text and flags as numbers.
#[derive(Clone, Copy)]
pub enum Kind {
    Uuid,
    Text,
    Int,
    Bytes,
    Flag,
}

impl Kind {
    /// The type of an array of these.
    pub fn array(self) -> &'static str {
        match self {
            Kind::Uuid => "uuid[]",
            Kind::Text => "text[]",
            Kind::Int => "bigint[]",
            Kind::Bytes => "bytea[]",
            Kind::Flag => "boolean[]",
        }
    }
}

/// A table that comes over, by its columns.
pub struct Table {
    pub name: &'static str,
    /// The column that says whose a row is; empty where no user is left.
    pub user: &'static str,
    /// What the order of a device's messages goes by; elsewhere any order does.
    pub order: &'static str,
    pub columns: &'static [(&'static str, Kind)],
}

const fn table(name: &'static str, columns: &'static [(&'static str, Kind)]) -> Table {
    Table { name, user: "user_id", order: "user_id", columns }
}

/// Of no user who is there: comes over as a whole.
pub const REMOVED_USERS: Table =
    Table { user: "", order: "id", ..table("removed_users", &[("id", Kind::Uuid), ("at", Kind::Int)]) };

/// In the order in which they refer to each other. Not here: `nodes`, `revocations`, `moves` and `commits`, which are
/// about nodes that run; and the numbers of changes and messages, which the target gives anew.
pub const TABLES: &[Table] = &[
    Table {
        user: "id",
        order: "id",
        ..table(
            "users",
            &[
                ("id", Kind::Uuid),
                ("email", Kind::Text),
                ("password_hash", Kind::Text),
                ("created_at", Kind::Int),
                ("updated_at", Kind::Int),
                ("seq", Kind::Int),
                ("live_keys", Kind::Int),
                ("live_bytes", Kind::Int),
                ("version_floor", Kind::Int),
                ("pruned_seq", Kind::Int),
                ("tokens_since", Kind::Int),
                ("kept_bytes", Kind::Int),
                ("tombstones", Kind::Int),
            ],
        )
    },
    table(
        "devices",
        &[
            ("id", Kind::Uuid),
            ("user_id", Kind::Uuid),
            ("name", Kind::Text),
            ("type", Kind::Text),
            ("last_seen", Kind::Int),
            ("metadata", Kind::Text),
            ("created_at", Kind::Int),
            ("fingerprint", Kind::Int),
            ("connection_id", Kind::Uuid),
            ("fence", Kind::Int),
            ("boot_id", Kind::Uuid),
            ("login_id", Kind::Uuid),
            ("connected_at", Kind::Int),
            ("disconnected_at", Kind::Int),
            ("revoked_at", Kind::Int),
        ],
    ),
    table(
        "logins",
        &[
            ("id", Kind::Uuid),
            ("user_id", Kind::Uuid),
            ("created_at", Kind::Int),
            ("expires_at", Kind::Int),
            ("refresh_hash", Kind::Bytes),
            ("rotated_hash", Kind::Bytes),
            ("rotated_at", Kind::Int),
            ("revoked_at", Kind::Int),
        ],
    ),
    table("ended_tokens", &[("login_id", Kind::Uuid), ("user_id", Kind::Uuid), ("at", Kind::Int)]),
    table(
        "sessions",
        &[
            ("id", Kind::Text),
            ("user_id", Kind::Uuid),
            ("session_key", Kind::Text),
            ("device_id", Kind::Uuid),
            ("data", Kind::Text),
            ("version", Kind::Int),
            ("seq", Kind::Int),
            ("created_at", Kind::Int),
            ("updated_at", Kind::Int),
        ],
    ),
    table(
        "changes",
        &[
            ("user_id", Kind::Uuid),
            ("seq", Kind::Int),
            ("session_key", Kind::Text),
            ("version", Kind::Int),
            ("device_id", Kind::Uuid),
            ("at", Kind::Int),
            ("data", Kind::Text),
        ],
    ),
    table(
        "op_ids",
        &[
            ("user_id", Kind::Uuid),
            ("op_id", Kind::Text),
            ("content_hash", Kind::Bytes),
            ("session_key", Kind::Text),
            ("version", Kind::Int),
            ("seq", Kind::Int),
            ("at", Kind::Int),
        ],
    ),
    Table {
        order: "messages.id",
        ..table(
            "messages",
            &[
                ("user_id", Kind::Uuid),
                ("device_id", Kind::Uuid),
                ("message_id", Kind::Text),
                ("source_device_id", Kind::Uuid),
                ("body", Kind::Text),
                ("bytes", Kind::Int),
                ("sent_at", Kind::Int),
                ("expires_at", Kind::Int),
            ],
        )
    },
    table(
        "message_ids",
        &[
            ("user_id", Kind::Uuid),
            ("message_id", Kind::Text),
            ("device_id", Kind::Uuid),
            ("content_hash", Kind::Bytes),
            ("at", Kind::Int),
            ("expired", Kind::Flag),
        ],
    ),
    REMOVED_USERS,
];

/// Counts the rows of all tables.
pub fn count() -> AssertSqlSafe<String> {
    let counts: Vec<_> =
        TABLES.iter().map(|table| format!("(SELECT count(*) FROM {})", table.name)).collect();
    AssertSqlSafe(format!("SELECT {}", counts.join(" + ")))
}

impl Table {
    /// Reads its rows: all of them, or which, and in which order, `clauses` say.
    pub fn select(&self, clauses: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(format!("SELECT {} FROM {} {clauses}", self.column_names(), self.name))
    }

    /// As a statement lists them.
    pub fn column_names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection;
    use sqlx::sqlite::SqliteConnection;

    use super::*;

    /// What stays behind, as the comment of [`TABLES`] says.
    const LEFT_OUT: &[&str] = &["meta", "nodes", "revocations", "_sqlx_migrations", "sqlite_sequence"];

    #[tokio::test]
    async fn every_column_of_the_schema_comes_over_or_is_left_out_on_purpose() {
        let mut database = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::migrate!("migrations/sqlite").run_direct(None, &mut database, false).await.unwrap();
        let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
            .fetch_all(&mut database)
            .await
            .unwrap();
        for name in tables.iter().filter(|name| !LEFT_OUT.contains(&name.as_str())) {
            let table = TABLES.iter().find(|table| table.name == name);
            let table = table.unwrap_or_else(|| panic!("{name} is not copied"));
            let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?)")
                .bind(name)
                .fetch_all(&mut database)
                .await
                .unwrap();
            let numbered = ["changes", "messages"].contains(&name.as_str());
            let expected: Vec<_> =
                columns.into_iter().filter(|column| !(numbered && column == "id")).collect();
            assert_eq!(expected.join(", "), table.column_names(), "{name}");
        }
    }
}
