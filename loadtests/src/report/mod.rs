//! `tandem-load report`: a result as one HTML page that needs nothing else, its plots drawn here as SVG.
//!
//! `page` is the page, `charts` says which plots a result can tell, `plot` draws one, `scale` maps values to
//! the paper.

mod charts;
mod page;
pub mod plot;
pub mod scale;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::measure::result::RunResult;

#[derive(clap::Args)]
pub struct Args {
    /// Results that `run` or `compare` wrote; several are shown as one, the first one's machine for all.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// The page [default: the first result's name with .html].
    #[arg(long)]
    html: Option<PathBuf>,
}

pub fn execute(args: &Args) -> anyhow::Result<()> {
    let (first, others) = args.results.split_first().context("no result given")?;
    let mut result = RunResult::load(first)?;
    for path in others {
        let other = RunResult::load(path)?;
        result.samples.extend(other.samples);
        result.failures.extend(other.failures);
    }
    let path = args.html.clone().unwrap_or_else(|| first.with_extension("html"));
    write(&result, &path)?;
    println!("{}", path.display());
    Ok(())
}

pub fn write(result: &RunResult, path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, page::page(result)).with_context(|| format!("cannot write {}", path.display()))
}
