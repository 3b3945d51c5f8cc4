//! `tandem migrate`, `backup` and `new-epoch`: what an operator does to the
//! database as a whole, whether or not nodes are running.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use tandem::store::Store;

/// The subcommands.
pub fn commands() -> [Command; 3] {
    let file = Arg::new("file").value_name("FILE").required(true).help("Where to; it must not exist yet");
    [
        Command::new("migrate").about("Make or update the database's schema, as a node does when it starts"),
        Command::new("backup")
            .about("Copy the SQLite database as it is at one moment, while nodes go on writing")
            .arg(file),
        Command::new("new-epoch")
            .about("Make every client load its session anew, after an old disk was put back by hand"),
    ]
}

/// Does what `name` (one of [`commands`]) asks for.
///
/// # Errors
/// With a sentence for the operator.
pub async fn run(name: &str, matches: &ArgMatches, store: &dyn Store) -> anyhow::Result<()> {
    match name {
        // Opening the store has done it.
        "migrate" => say("The schema is up to date."),
        "backup" => {
            let file = Path::new(matches.get_one::<String>("file").map_or("", String::as_str));
            store.backup(file).await?;
            say(&format!("Copied to {}.", file.display()))
        }
        _ => {
            let epoch = store.new_epoch().await.context("no new epoch has begun")?;
            say(&format!("The epoch is {} from now on.", epoch.0))
        }
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
