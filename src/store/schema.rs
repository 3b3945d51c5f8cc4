//! The schema beside a program that may be older than it.
//!
//! Migrations are only added, and are such that programs that do not know them can go on: a rolling upgrade and a
//! rollback both have old nodes on a new schema. One that they cannot live with raises the row [`NEEDED`] of `meta` to
//! its own number, for good; only then do older programs refuse the database.

use anyhow::{Context, ensure};
use sqlx::migrate::Migrator;

/// The row of `meta` with the newest migration that a program has to know.
pub const NEEDED: &str = "needs_migration";

/// What was found in a database, after this program's own migrations.
pub struct Found {
    /// The newest migration that it went through.
    pub newest: i64,
    /// The value of [`NEEDED`].
    pub needed: Option<String>,
}

/// `migrator`, as it has to run on schemas that may be newer.
pub fn lenient(mut migrator: Migrator) -> Migrator {
    migrator.set_ignore_missing(true);
    migrator
}

/// The newest migration of this program.
pub fn newest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Warns of a schema that is newer than this program.
///
/// # Errors
/// When this program cannot live with it.
pub fn check(own: i64, found: &Found) -> anyhow::Result<()> {
    let needed = found.needed.as_deref().map_or(Ok(0), str::parse::<i64>);
    let needed = needed.with_context(|| format!("{NEEDED} in the database is no number"))?;
    ensure!(
        needed <= own,
        "the database needs a program that knows migration {needed}, and this one knows those up to {own}: run the \
         version that upgraded it, or a later one"
    );
    if found.newest > own {
        tracing::warn!(
            schema = found.newest,
            own,
            "the database's schema is newer than this program, which can live with it: a later version has upgraded it"
        );
    }
    Ok(())
}

/// For whatever has to know every table.
///
/// # Errors
/// When the schema is newer than this program.
pub fn must_know_all(own: i64, found: &Found) -> anyhow::Result<()> {
    ensure!(
        found.newest <= own,
        "the database went through migration {}, and this program knows those up to {own}: use the version that \
         upgraded it",
        found.newest
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(newest: i64, needed: Option<&str>) -> Found {
        Found { newest, needed: needed.map(str::to_owned) }
    }

    #[test]
    fn a_newer_schema_is_lived_with_unless_it_says_what_it_needs() {
        for (newest, needed) in [(7, None), (8, None), (8, Some("7")), (9, Some("6"))] {
            check(7, &found(newest, needed)).unwrap();
        }
        let refusal = check(7, &found(9, Some("8"))).unwrap_err().to_string();
        assert!(refusal.contains("migration 8") && refusal.contains("up to 7"), "{refusal}");
        assert!(check(7, &found(7, Some("eight"))).is_err());
    }

    #[test]
    fn what_has_to_know_every_table_takes_no_newer_schema() {
        must_know_all(7, &found(7, None)).unwrap();
        assert!(must_know_all(7, &found(8, None)).is_err());
    }
}
