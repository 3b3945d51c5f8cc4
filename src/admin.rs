//! `tandem user` and `tandem token`: what an operator does to accounts.
//!
//! Passwords are read from standard input or made here, never given as an
//! argument, where every process of the machine could read them.

use std::io::{BufRead, Write};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Arg, ArgAction, ArgMatches, Command};
use tandem::auth::operator::Operator;

/// Random bytes of a password that is made here: 120 bits, 20 characters.
const PASSWORD_BYTES: usize = 15;

/// The subcommands.
pub fn commands() -> [Command; 2] {
    let email = || Arg::new("email").value_name("EMAIL").required(true);
    let from_stdin = || {
        Arg::new("password-stdin")
            .long("password-stdin")
            .action(ArgAction::SetTrue)
            .help("Read the password from the first line of standard input; else one is made and printed")
    };
    let sure =
        Arg::new("yes").long("yes").action(ArgAction::SetTrue).help("Really remove it: there is no way back");
    let user = Command::new("user")
        .about("Make, list and end accounts on the configured database")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("add")
                .about("Make an account, also with REGISTRATION=closed")
                .args([email(), from_stdin()]),
        )
        .subcommand(Command::new("list").about("List accounts: address, id, when it was made"))
        .subcommand(
            Command::new("reset-password")
                .about("Set a password and end all logins")
                .args([email(), from_stdin()]),
        )
        .subcommand(Command::new("logout").about("End all logins of a user").arg(email()))
        .subcommand(
            Command::new("remove")
                .about("Remove an account and everything of its user's")
                .args([email(), sure]),
        );
    let token = Command::new("token")
        .about("Print an access token for a user, for tools; TOKEN_TTL_SECONDS is its life")
        .arg(email());
    [user, token]
}

/// Does what `name` (`user` or `token`) asks for.
///
/// # Errors
/// With a sentence for the operator.
pub async fn run(name: &str, matches: &ArgMatches, operator: &Operator) -> anyhow::Result<()> {
    match name {
        "token" => {
            let token = operator.token(email(matches)).await.map_err(explained)?;
            say(&format!("{token}\n"))
        }
        _ => user(operator, matches).await,
    }
}

async fn user(operator: &Operator, matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("add", matches)) => {
            let password = Password::of(matches)?;
            let id = operator.add(email(matches), &password.text).await.map_err(explained)?;
            say(&format!("{id}\n"))?;
            password.show()
        }
        Some(("list", _)) => {
            let mut out = std::io::stdout().lock();
            operator
                .list(|account| writeln!(out, "{}\t{}\t{}", account.email, account.user, account.created_at))
                .await
        }
        Some(("reset-password", matches)) => {
            let password = Password::of(matches)?;
            operator.reset_password(email(matches), &password.text).await.map_err(explained)?;
            password.show()
        }
        Some(("logout", matches)) => operator.log_out(email(matches)).await.map_err(explained),
        Some(("remove", matches)) => {
            anyhow::ensure!(matches.get_flag("yes"), "Nothing was removed: say --yes to remove the account.");
            operator.remove(email(matches)).await.map_err(explained)
        }
        _ => anyhow::bail!("tandem user --help lists what can be done."),
    }
}

fn email(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("email").map_or("", String::as_str)
}

struct Password {
    text: String,
    made_here: bool,
}

impl Password {
    fn of(matches: &ArgMatches) -> anyhow::Result<Self> {
        if !matches.get_flag("password-stdin") {
            let bytes: [u8; PASSWORD_BYTES] = rand::random();
            return Ok(Self { text: URL_SAFE_NO_PAD.encode(bytes), made_here: true });
        }
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).context("cannot read the password")?;
        let text = line.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Self { text, made_here: false })
    }

    fn show(&self) -> anyhow::Result<()> {
        if self.made_here { say(&format!("password: {}\n", self.text)) } else { Ok(()) }
    }
}

fn explained(failure: tandem::failure::Failure) -> anyhow::Error {
    anyhow::anyhow!("{} ({})", failure.message, failure.code.as_str())
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
