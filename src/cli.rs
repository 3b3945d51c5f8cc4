//! The command line: flags for every setting, and the subcommands.

use std::collections::HashMap;
use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use tandem::app::{self, Running};
use tandem::config::{Config, Mistakes, SETTINGS, Sources};
use tandem::net::tls;
use tandem::store::Database;

use crate::{admin, database, smoke};

/// The exit code for a configuration that cannot work.
const EXIT_CONFIG: u8 = 2;

/// How long `tandem health` waits.
const HEALTH_WITHIN: Duration = Duration::from_secs(3);

/// What the command line asks for.
pub enum Asked {
    /// Run a node.
    Serve(Box<Config>),
    /// It was done; exit with this.
    Done(ExitCode),
}

/// Reads the command line and does what needs no running node.
pub fn parse() -> Asked {
    let matches = command().get_matches();
    let config = Sources::of_process(flags(&matches)).and_then(|sources| Config::load(&sources));
    match (matches.subcommand_name(), config) {
        (Some("gen-config"), _) => done(gen_config()),
        (Some("smoke"), _) => Asked::Done(finish(async { smoke::run(subcommand(&matches)) })),
        (_, Err(mistakes)) => Asked::Done(refuse(&mistakes)),
        (Some("check-config"), Ok(_)) => done(say("The configuration is good.\n")),
        (Some("health"), Ok(config)) => done(health(&config)),
        (Some("copy"), Ok(config)) => {
            Asked::Done(finish(async { database::copy(subcommand(&matches), app::bounds(&config)).await }))
        }
        (Some(name @ ("user" | "token")), Ok(config)) => Asked::Done(administrate(name, &matches, &config)),
        (Some(name), Ok(config)) if name != "serve" => Asked::Done(maintain(name, &matches, &config)),
        (_, Ok(config)) => Asked::Serve(Box::new(config)),
    }
}

fn command() -> Command {
    let flags = SETTINGS.iter().map(|setting| {
        Arg::new(setting.name)
            .long(setting.name.to_ascii_lowercase().replace('_', "-"))
            .value_name("VALUE")
            .help(format!("{} [env: {}]", setting.help, setting.name))
            .global(true)
            .hide_short_help(setting.name.starts_with("LIMIT_"))
    });
    Command::new("tandem")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps one person's devices in step")
        .after_help("Flags win over the environment, which wins over .env in the working directory.")
        .args(flags)
        .subcommand(Command::new("serve").about("Run a node (the default)"))
        .subcommand(Command::new("check-config").about("Report every mistake in the configuration"))
        .subcommand(
            Command::new("gen-config")
                .about("Print a .env file with every setting and its default, all of them commented out"),
        )
        .subcommands(admin::commands())
        .subcommands(database::commands())
        .subcommand(smoke::command())
        .subcommand(Command::new("health").about("Ask the node on this host whether it is ready; for probes"))
}

/// What was said after the subcommand's name, or all of it where none is named.
fn subcommand(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| matches)
}

fn flags(matches: &ArgMatches) -> HashMap<String, String> {
    let matches = subcommand(matches);
    SETTINGS
        .iter()
        .filter_map(|setting| {
            let value = matches.get_one::<String>(setting.name)?;
            Some((setting.name.to_owned(), value.clone()))
        })
        .collect()
}

fn refuse(mistakes: &Mistakes) -> ExitCode {
    drop(writeln!(std::io::stderr(), "The configuration cannot work:\n{mistakes}"));
    ExitCode::from(EXIT_CONFIG)
}

fn administrate(name: &str, matches: &ArgMatches, config: &Config) -> ExitCode {
    let matches = subcommand(matches);
    finish(async {
        let operator = app::operator(config).await?;
        let done = admin::run(name, matches, &operator).await;
        operator.store.close().await;
        done
    })
}

fn maintain(name: &str, matches: &ArgMatches, config: &Config) -> ExitCode {
    let matches = subcommand(matches);
    finish(async {
        let store = app::open_store(config).await?;
        let done = database::run(name, matches, &*store, config.limits.devices_per_user).await;
        store.close().await;
        done
    })
}

fn finish(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(work));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn done(outcome: std::io::Result<ExitCode>) -> Asked {
    Asked::Done(outcome.unwrap_or(ExitCode::FAILURE))
}

fn say(text: &str) -> std::io::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes()).map(|()| ExitCode::SUCCESS)
}

fn gen_config() -> std::io::Result<ExitCode> {
    say(include_str!("../.env.example"))
}

/// A plain HTTP/1.1 request, so that images need no curl.
fn health(config: &Config) -> std::io::Result<ExitCode> {
    let host = if config.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { config.host };
    let stream = TcpStream::connect_timeout(&SocketAddr::new(host, config.port), HEALTH_WITHIN)?;
    stream.set_read_timeout(Some(HEALTH_WITHIN))?;
    let answer = match config.tls {
        None => ask_health(stream)?,
        Some(_) => ask_health(tls::probe(stream).map_err(std::io::Error::other)?)?,
    };
    let is_ready = answer.starts_with("HTTP/1.1 200");
    drop(writeln!(std::io::stdout(), "{}", answer.lines().last().unwrap_or_default()));
    Ok(if is_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ask_health(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET /api/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // The whole answer came; over TLS, without the farewell.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
        outcome => drop(outcome?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What a person at a terminal wants to know of a node that has just started.
pub struct Banner {
    node: String,
    storage: String,
    backplane: &'static str,
    scheme: &'static str,
}

impl Banner {
    /// What the configuration says.
    pub fn of(config: &Config) -> Self {
        let storage = match &config.database {
            Database::Sqlite { path, .. } => format!("SQLite in {}", path.display()),
            // Where is a secret, since its URL may hold a password.
            Database::Postgres { .. } => "PostgreSQL".to_owned(),
        };
        Self {
            node: config.node_id.clone(),
            storage,
            scheme: if config.tls.is_some() { "https" } else { "http" },
            backplane: if config.redis_url.is_some() { "Redis" } else { "none: this node is alone" },
        }
    }

    /// Log lines always; the banner on a terminal only.
    pub fn show(&self, running: &Running) {
        tracing::info!(
            address = %running.address,
            metrics_address = running.metrics_address.map(|address| address.to_string()),
            version = env!("CARGO_PKG_VERSION"),
            node = self.node,
            storage = self.storage,
            backplane = self.backplane,
            "listening"
        );
        for warning in &running.warnings {
            tracing::warn!("{warning}");
        }
        if std::io::stdout().is_terminal() {
            let url = format!("{}://localhost:{}", self.scheme, running.address.port());
            drop(writeln!(
                std::io::stdout(),
                "\n  Tandem {} · {}\n  {url}\n  storage    {}\n  backplane  {}\n",
                env!("CARGO_PKG_VERSION"),
                self.node,
                self.storage,
                self.backplane
            ));
        }
    }
}
