//! A copy of the database as it is at one moment.
//!
//! `VACUUM INTO` reads in one transaction, so writers go on meanwhile; the WAL
//! cannot shrink until it is done. The copy gets its name when it is whole.

use std::path::Path;

use anyhow::Context;
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// Copies the database of `options` to `file`.
///
/// # Errors
/// With a sentence for the operator.
pub async fn backup(options: &SqliteConnectOptions, file: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(!file.exists(), "{} exists already", file.display());
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    match std::fs::remove_file(unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot write {}", unfinished.display()));
        }
        _ => {}
    }
    let target = unfinished.to_str().context("the file's name is not UTF-8")?;
    let mut connection = SqliteConnection::connect_with(options).await?;
    let copied = sqlx::query("VACUUM INTO ?").bind(target).execute(&mut connection).await;
    connection.close().await?;
    let finished = copied.map_err(anyhow::Error::from).and_then(|_| {
        std::fs::File::open(unfinished)?.sync_all()?;
        // Fails, rather than replaces, where somebody was quicker.
        std::fs::hard_link(unfinished, file)?;
        Ok(())
    });
    let cleaned = std::fs::remove_file(unfinished);
    finished.with_context(|| format!("cannot copy to {}", file.display()))?;
    Ok(cleaned?)
}
