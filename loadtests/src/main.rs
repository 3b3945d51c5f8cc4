//! `tandem-load`: what Tandem costs, measured. See the README for what each number means.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};
use loadtests::{chaos, check, compare, instructions, logins, report, run};
use rustix::process::{Resource, Rlimit};

#[derive(Parser)]
#[command(name = "tandem-load", version, about = "Open-loop load for Tandem and its peers, on loopback")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario against a server that is running.
    Run(run::Args),
    /// Start Tandem and its peers in alternation and measure them beside each other.
    Compare(compare::Args),
    /// Start Tandem and see whether many logins at once hold up what is relayed.
    Logins(logins::Args),
    /// Break everything, one or two things at a time, and judge whether every promise was kept.
    Chaos(chaos::Args),
    /// Judge histories of clients and stores by the promises.
    Check(check::Args),
    /// Count the instructions of the hot paths and hold them against the figures that are kept.
    Instructions(instructions::Args),
    /// Draw a result as one HTML page.
    Report(report::Args),
}

fn main() -> ExitCode {
    match start(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tandem-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<()> {
    // A signal ends the run in order, so that the servers which were started end with it.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    allow_many_sockets()?;
    match command {
        Command::Run(args) => run::execute(&args, &stop),
        Command::Compare(args) => compare::execute(&args, &stop),
        Command::Logins(args) => logins::execute(&args, &stop),
        Command::Chaos(args) => chaos::execute(&args, &stop),
        Command::Check(args) => check::execute(&args),
        Command::Instructions(args) => instructions::execute(&args, &stop),
        Command::Report(args) => report::execute(&args),
    }
}

/// A socket is an open file; the servers that `compare` starts inherit the limit.
fn allow_many_sockets() -> anyhow::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
