//! `tandem-load instructions`: what the hot paths cost in instructions, held against the figures that are kept.
//!
//! Callgrind counts what the server executes outside of the kernel, one event after another, so the machine's other
//! work does not show and a second run says nearly the same. It tells a change that makes a path dearer; what a path
//! costs in time is `compare`'s to say.

mod callgrind;
mod paths;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};

use crate::progress::Progress;

/// A path may cost so much more than what is kept.
const GROWTH_MAX: f64 = 1.10;
/// Below this the kept figure no longer guards anything.
const SHRUNK: f64 = 0.85;

#[derive(clap::Args)]
pub struct Args {
    /// Tandem's binary, a debug build as the figures that are kept are of.
    #[arg(long)]
    tandem: PathBuf,
    /// The figures that are kept.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json"))]
    kept: PathBuf,
    /// Keep the figures of this run.
    #[arg(long)]
    keep: bool,
}

/// Instructions an event, by path.
type Figures = BTreeMap<String, u64>;

/// # Errors
/// When a path grew, or could not be counted.
pub fn execute(args: &Args, stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let counted = paths::count(&std::path::absolute(&args.tandem)?, stop, &mut progress);
    progress.clear();
    let counted = counted?;
    if args.keep {
        let text = serde_json::to_string_pretty(&counted)? + "\n";
        return std::fs::write(&args.kept, text).context("cannot write the figures");
    }
    let kept = read(&args.kept)?;
    let verdicts = judge(&kept, &counted);
    for verdict in &verdicts {
        println!("{}", verdict.line);
    }
    let grown = verdicts.iter().filter(|verdict| !verdict.is_good).count();
    ensure!(
        grown == 0,
        "{grown} of the hot paths cost more than they did; if they have to, --keep the figures"
    );
    Ok(())
}

fn read(kept: &Path) -> anyhow::Result<Figures> {
    let text = std::fs::read_to_string(kept).with_context(|| format!("cannot read {}", kept.display()))?;
    Ok(serde_json::from_str(&text)?)
}

struct Verdict {
    line: String,
    is_good: bool,
}

/// A path that is counted and not kept, or the other way round, is no good either.
fn judge(kept: &Figures, counted: &Figures) -> Vec<Verdict> {
    let mut names: Vec<&String> = kept.keys().chain(counted.keys()).collect();
    names.sort();
    names.dedup();
    let verdict = |name: &String| match (kept.get(name), counted.get(name)) {
        (Some(kept), Some(counted)) => {
            let ratio = *counted as f64 / *kept as f64;
            let (is_good, word) = match ratio {
                ratio if ratio > GROWTH_MAX => (false, "GREW"),
                ratio if ratio < SHRUNK => (true, "less: --keep it"),
                _ => (true, "as kept"),
            };
            Verdict {
                line: format!("{name}: {counted} instructions an event, {kept} kept ({ratio:.2}): {word}"),
                is_good,
            }
        }
        _ => Verdict { line: format!("{name}: not both counted and kept"), is_good: false },
    };
    names.into_iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_good(kept: &[(&str, u64)], counted: &[(&str, u64)]) -> bool {
        let figures =
            |all: &[(&str, u64)]| all.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect();
        judge(&figures(kept), &figures(counted)).iter().all(|verdict| verdict.is_good)
    }

    #[test]
    fn a_tenth_more_is_too_much() {
        assert!(is_good(&[("relay", 1_000)], &[("relay", 1_100)]));
        assert!(!is_good(&[("relay", 1_000)], &[("relay", 1_101)]));
        assert!(is_good(&[("relay", 1_000)], &[("relay", 10)]));
    }

    #[test]
    fn a_path_cannot_be_forgotten() {
        assert!(!is_good(&[("relay", 1), ("connect", 1)], &[("relay", 1)]));
        assert!(!is_good(&[("relay", 1)], &[("relay", 1), ("connect", 1)]));
    }
}
