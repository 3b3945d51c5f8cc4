//! `tandem-load check HISTORY...`: whether what clients saw and what the store holds keep the promises of
//! docs/PROTOCOL.md. `history` reads the lines, `rules` judges them; both are pure.

pub mod history;
pub mod rules;

use std::path::PathBuf;

use anyhow::{Context, bail};

use history::History;

/// Violations that are printed of each history.
const SHOWN: usize = 50;

#[derive(clap::Args)]
pub struct Args {
    /// Histories as JSON Lines, each with its store's dump at the end.
    #[arg(required = true)]
    histories: Vec<PathBuf>,
}

/// Judges each history on its own.
///
/// # Errors
/// When a history cannot be read, or one breaks a rule.
pub fn execute(args: &Args) -> anyhow::Result<()> {
    let mut broken = 0;
    for path in &args.histories {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let history = History::parse(&text).with_context(|| format!("{} is no history", path.display()))?;
        let violations = rules::judge(&history);
        for violation in violations.iter().take(SHOWN) {
            println!("{}: {violation}", path.display());
        }
        if violations.len() > SHOWN {
            println!("{}: and {} more", path.display(), violations.len() - SHOWN);
        }
        println!(
            "{}: {} writes, {} deliveries, {} violations",
            path.display(),
            history.writes.len(),
            history.seen.len(),
            violations.len()
        );
        broken += violations.len();
    }
    if broken > 0 { bail!("{broken} violations") } else { Ok(()) }
}
