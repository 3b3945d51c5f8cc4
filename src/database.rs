//! `tandem migrate`, `backup`, `copy`, `export`, `import` and `new-epoch`: what an
//! operator does to the database as a whole, whether or not nodes are running.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use indicatif::{ProgressBar, ProgressStyle};
use tandem::model::Secret;
use tandem::records::{export, import};
use tandem::store::{self, Bounds, Store};

/// The subcommands.
pub fn commands() -> [Command; 6] {
    let file = |help: &'static str| Arg::new("file").value_name("FILE").required(true).help(help);
    let url = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("URL").required(true).help(help)
    };
    [
        Command::new("migrate").about("Make or update the database's schema, as a node does when it starts"),
        Command::new("backup")
            .about("Copy the SQLite database as it is at one moment, while nodes go on writing")
            .arg(file("Where to; it must not exist yet")),
        Command::new("copy")
            .about("Move a stopped SQLite database into an empty PostgreSQL one, or go on with it")
            .arg(url("from", "sqlite://PATH; nothing else may have it open"))
            .arg(url("to", "postgres://USER@HOST/NAME; the password may come from PGPASSWORD or .pgpass")),
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
            let bar = progress_bar("users").with_message("importing");
            let imported = import::import(store, &file(matches), devices_per_user, |seen, total| {
                bar.set_length(total.cast_unsigned());
                bar.set_position(seen);
            })
            .await?;
            bar.finish_and_clear();
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

/// `tandem copy`: unlike the rest it knows both databases by its arguments.
///
/// # Errors
/// With a sentence for the operator.
pub async fn copy(matches: &ArgMatches, bounds: Bounds) -> anyhow::Result<()> {
    let url = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let from = url("from").strip_prefix("sqlite://").context("--from takes sqlite://PATH")?;
    anyhow::ensure!(store::is_postgres_url(url("to")), "--to takes postgres://USER@HOST/NAME");
    let bar = progress_bar("rows");
    let copied = store::copy::copy(Path::new(from), &Secret::new(url("to").to_owned()), bounds, |progress| {
        bar.set_message(progress.doing);
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    })
    .await?;
    bar.finish_and_clear();
    say(&format!(
        "{} users came over in {} rows, each compared on both sides. Set DATABASE_URL of every node to the new \
         database, with the same JWT_SECRET.",
        copied.users, copied.rows
    ))
}

/// On standard error, and on a terminal only.
fn progress_bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!(
        "{{msg}} {{wide_bar}} {{human_pos}} of {{human_len}} {what}, {{eta}} left"
    ));
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
