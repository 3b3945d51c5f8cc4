//! `tandem migrate`, `backup`, `export`, `import` and `new-epoch`: what an
//! operator does to the database as a whole, whether or not nodes are running.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use tandem::records::{export, import};
use tandem::store::Store;

/// The subcommands.
pub fn commands() -> [Command; 5] {
    let file = |help: &'static str| Arg::new("file").value_name("FILE").required(true).help(help);
    [
        Command::new("migrate").about("Make or update the database's schema, as a node does when it starts"),
        Command::new("backup")
            .about("Copy the SQLite database as it is at one moment, while nodes go on writing")
            .arg(file("Where to; it must not exist yet")),
        Command::new("export")
            .about("Print everything that is kept of a user, as JSON")
            .arg(Arg::new("user").value_name("USER").required(true).help("An e-mail address or an id")),
        Command::new("import")
            .about("Bring in the users, devices and sessions of the replaced Node.js server")
            .arg(file("Its SQLite database, seed.db")),
        Command::new("new-epoch")
            .about("Make every client load its session anew, after an old disk was put back by hand"),
    ]
}

/// Does what `name` (one of [`commands`]) asks for.
///
/// # Errors
/// With a sentence for the operator.
pub async fn run(
    name: &str,
    matches: &ArgMatches,
    store: &dyn Store,
    devices_per_user: u32,
) -> anyhow::Result<()> {
    let file = |matches: &ArgMatches| {
        Path::new(matches.get_one::<String>("file").map_or("", String::as_str)).to_owned()
    };
    match name {
        // Opening the store has done it.
        "migrate" => say("The schema is up to date."),
        "backup" => {
            let file = file(matches);
            store.backup(&file).await?;
            say(&format!("Copied to {}.", file.display()))
        }
        "export" => {
            let who = matches.get_one::<String>("user").map_or("", String::as_str);
            let mut out = BufWriter::new(std::io::stdout().lock());
            export::export(store, who, &mut out).await?;
            Ok(out.flush()?)
        }
        "import" => {
            let imported = import::import(store, &file(matches), devices_per_user, show_progress).await?;
            for left_out in &imported.left_out {
                writeln!(std::io::stderr(), "{left_out}")?;
            }
            say(&format!(
                "{} users with {} devices and {} session keys came in; {} users were there already.",
                imported.users, imported.devices, imported.keys, imported.present
            ))?;
            let left_out = imported.left_out.len();
            anyhow::ensure!(left_out == 0, "{left_out} records were left out, as said above.");
            Ok(())
        }
        _ => {
            let epoch = store.new_epoch().await.context("no new epoch has begun")?;
            say(&format!("The epoch is {} from now on.", epoch.0))
        }
    }
}

/// On a terminal only, and there on one line.
fn show_progress(seen: u64, total: i64) {
    let mut out = std::io::stderr();
    if out.is_terminal() && (seen.is_multiple_of(50) || seen.cast_signed() == total) {
        let end = if seen.cast_signed() == total { "\n" } else { "" };
        drop(write!(out, "\r{seen} of {total} users{end}"));
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
