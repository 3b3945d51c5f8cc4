//! A schema that a later version has upgraded: this program goes on with it, unless that says that it cannot.

use sqlx::{Connection, Executor};
use tandem::store::{self, Database};

use super::bed::{Bed, bounds, state, write, written};

on_every_store!(a_newer_schema_is_lived_with, a_schema_that_needs_a_newer_program_is_refused_by_both_numbers);

/// A migration that this program does not know.
const LATER: i64 = 9_999;

async fn execute(bed: &Bed, sql: &str) {
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    match &bed.database {
        Database::Postgres { .. } => drop(bed.connection().await.execute(sql).await.unwrap()),
        Database::Sqlite { .. } => {
            let mut connection = sqlx::SqliteConnection::connect(&bed.url()).await.unwrap();
            connection.execute(sql).await.unwrap();
            connection.close().await.unwrap();
        }
    }
}

/// By the names of their files, `0007_what_it_does.sql`.
fn newest_of_ours() -> u32 {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    let files =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    files.filter_map(|name| name.split('_').next()?.parse().ok()).max().unwrap()
}

async fn upgrade(bed: &Bed) {
    let checksum = match &bed.database {
        Database::Postgres { .. } => r"'\x00'",
        Database::Sqlite { .. } => "X'00'",
    };
    let row = format!("({LATER}, 'later', TRUE, {checksum}, 1)");
    let columns = "(version, description, success, checksum, execution_time)";
    execute(bed, &format!("INSERT INTO _sqlx_migrations {columns} VALUES {row}")).await;
}

async fn a_newer_schema_is_lived_with(bed: &Bed) {
    let user = bed.user().await;
    upgrade(bed).await;

    let store = bed.another().await;

    written(&*store, write(user, "k", "1")).await;
    assert_eq!(state(&*store, user, "k").await.as_deref(), Some("1"));
}

async fn a_schema_that_needs_a_newer_program_is_refused_by_both_numbers(bed: &Bed) {
    upgrade(bed).await;
    execute(bed, &format!("INSERT INTO meta (name, value) VALUES ('needs_migration', '{LATER}')")).await;

    let Err(refusal) = store::open(&bed.database, bounds()).await else { panic!("it was opened") };

    let refusal = format!("{refusal:#}");
    let own = format!("up to {}:", newest_of_ours());
    assert!(refusal.contains(&format!("migration {LATER}")) && refusal.contains(&own), "{refusal}");
}
