//! The page of one run: faults over time, above them what clients felt, and how it ended.

use std::fmt::Write;

use super::StoreKind;
use super::devices::{Sample, Settled};
use super::faults::Happened;
use crate::check::rules::Violation;
use crate::report::plot::{Line, Plot, Point, Side, escaped};
use crate::report::scale::Scale;

const STYLE: &str = include_str!("../report/page.css");
const WIDTH: f64 = 1_000.0;
const ROW: f64 = 18.0;
const LEFT: f64 = 170.0;

pub fn page(
    seed: u64,
    store: StoreKind,
    samples: &[Sample],
    happened: &[Happened],
    settled: &Settled,
    violations: &[Violation],
) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Tandem chaos report</title><style>{STYLE}</style></head><body><main><h1>What broke, and what held</h1>\
         <p>{store:?}, seed {seed}: {} faults; after the last was healed every device showed what the store holds within {} ms{}.</p>",
        happened.len(),
        settled.ms,
        if settled.converged { "" } else { ", except those named below" }
    );
    for device in &settled.differs {
        html.push_str(&format!("<p class=\"missed\">{} differs</p>", escaped(device)));
    }
    for violation in violations {
        html.push_str(&format!("<p class=\"missed\">{}</p>", escaped(&violation.to_string())));
    }
    if violations.is_empty() {
        html.push_str("<p>No rule is broken.</p>");
    }
    html.push_str("<h2>Faults</h2>");
    html.push_str(&timeline(samples, happened));
    let line = |name: &str, dashed, of: fn(&Sample) -> Option<f64>| Line {
        contender: name.to_owned(),
        points: samples
            .iter()
            .filter_map(|sample| of(sample).map(|y| Point { x: sample.second, y, range: (y, y) }))
            .collect(),
        dots: false,
        dashed,
    };
    let plots = [
        (
            "Acknowledgement in ms, p99 and (broken) p50",
            Scale::Log,
            vec![
                line("tandem", false, |sample| sample.p99.map(|ms| ms.max(0.5))),
                line("tandem", true, |sample| sample.p50.map(|ms| ms.max(0.5))),
            ],
        ),
        (
            "Acknowledged in each second, and (broken) devices online",
            Scale::Linear,
            vec![
                line("tandem", false, |sample| Some(sample.acks as f64)),
                line("tandem", true, |sample| Some(sample.online as f64)),
            ],
        ),
    ];
    for (title, scale, lines) in plots {
        let side = |label: &str, scale| Side { label: label.to_owned(), scale };
        let plot =
            Plot { title: title.to_owned(), x: side("second", Scale::Linear), y: side(title, scale), lines };
        let _ = write!(html, "<h2>{}</h2>{}", escaped(title), plot.svg());
    }
    html.push_str("</main></body></html>\n");
    html
}

/// A row for each kind of fault.
fn timeline(samples: &[Sample], happened: &[Happened]) -> String {
    let mut kinds: Vec<&str> = happened.iter().map(|fault| fault.name).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let last = happened.iter().map(|fault| fault.to.as_secs_f64());
    let end = last.chain(samples.iter().map(|sample| sample.second)).fold(1.0, f64::max);
    let at = |seconds: f64| LEFT + (WIDTH - LEFT) * seconds / end;
    let height = ROW * kinds.len() as f64 + 4.0;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Faults over time\">");
    for (row, kind) in kinds.iter().enumerate() {
        let top = ROW * row as f64;
        let _ = write!(svg, "<text class=\"tick\" x=\"0\" y=\"{:.1}\">{}</text>", top + 13.0, escaped(kind));
        for fault in happened.iter().filter(|fault| fault.name == *kind) {
            let (from, to) = (at(fault.from.as_secs_f64()), at(fault.to.as_secs_f64()));
            let _ = write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"currentColor\" opacity=\"0.55\"><title>{} for {:.1} s</title></rect>",
                top + 3.0,
                (to - from).max(2.0),
                ROW - 6.0,
                escaped(kind),
                (fault.to - fault.from).as_secs_f64()
            );
        }
    }
    svg.push_str("</svg>");
    svg
}
