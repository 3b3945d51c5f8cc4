//! From a slow bucket of a histogram to a trace that fell into it: the OpenMetrics form of the metrics, with exemplars.
//!
//! The text is made of what Prometheus's own form says (OpenMetrics 1.0,
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>): counters are declared without
//! `_total`, the end is marked, and a bucket may name the last trace in it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::traces::Context;
use crate::model::{Clock, Timestamp};

/// What scrapers ask for, and are told that they get.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether an `Accept` header prefers OpenMetrics, as Prometheus's does unless it is told otherwise.
pub fn is_accepted(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        parts.next() == Some("application/openmetrics-text")
            && !parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)))
    })
}

/// The last traced observation of each bucket.
#[derive(Default)]
pub struct Exemplars {
    kept: Mutex<BTreeMap<(&'static str, usize), Exemplar>>,
}

#[derive(Clone, Copy)]
struct Exemplar {
    trace: Context,
    value: f64,
    at: Timestamp,
}

impl Exemplars {
    /// Notes an observation of `histogram`, whose buckets these are, that belongs to a trace.
    pub fn note(&self, histogram: &'static str, buckets: &[f64], value: f64, trace: Context) {
        let bucket = buckets.iter().take_while(|bound| **bound < value).count();
        let exemplar = Exemplar { trace, value, at: Clock::now() };
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert((histogram, bucket), exemplar);
    }

    /// `text`, in Prometheus's form, as OpenMetrics.
    pub fn open_metrics(&self, text: &str) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out = String::with_capacity(text.len() + 256);
        // The histogram that lines belong to, and its buckets so far.
        let mut family = (String::new(), 0);
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(about) = line.strip_prefix("# ") {
                let mut words = about.splitn(3, ' ');
                let (word, name, rest) = (words.next(), words.next().unwrap_or_default(), words.next());
                let declared = name.strip_suffix("_total").unwrap_or(name);
                family = (name.to_owned(), 0);
                let (word, rest) = (word.unwrap_or_default(), rest.unwrap_or_default());
                out.push_str(&format!("# {word} {declared} {rest}\n"));
                continue;
            }
            out.push_str(line);
            if line.strip_prefix(&family.0).is_some_and(|rest| rest.starts_with("_bucket{")) {
                let exemplar =
                    kept.iter().find(|((name, bucket), _)| *name == family.0 && *bucket == family.1);
                family.1 += 1;
                if let Some((_, Exemplar { trace, value, at })) = exemplar {
                    let seconds = at.0 as f64 / 1_000.0;
                    out.push_str(&format!(" # {{trace_id=\"{}\"}} {value} {seconds:.3}", trace.trace_id()));
                }
            }
            out.push('\n');
        }
        out.push_str("# EOF\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP tandem_x_total What.\n# TYPE tandem_x_total counter\ntandem_x_total 3\n\n\
        # TYPE tandem_y_seconds histogram\ntandem_y_seconds_bucket{le=\"0.1\"} 1\ntandem_y_seconds_bucket{le=\"1\"} 2\n\
        tandem_y_seconds_bucket{le=\"+Inf\"} 2\ntandem_y_seconds_sum 0.7\ntandem_y_seconds_count 2\n\n";

    #[test]
    fn counters_are_declared_without_total_and_the_end_is_marked() {
        let text = Exemplars::default().open_metrics(TEXT);
        assert!(
            text.starts_with("# HELP tandem_x What.\n# TYPE tandem_x counter\ntandem_x_total 3\n# TYPE"),
            "{text}"
        );
        assert!(text.ends_with("tandem_y_seconds_count 2\n# EOF\n"), "{text}");
        assert!(!text.contains("\n\n"), "{text}");
    }

    #[test]
    fn the_bucket_of_a_traced_observation_names_its_trace() {
        let trace = Context::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        let exemplars = Exemplars::default();
        exemplars.note("tandem_y_seconds", &[0.1, 1.0], 0.6, trace);
        let text = exemplars.open_metrics(TEXT);
        let line = text.lines().find(|line| line.contains("le=\"1\"")).unwrap();
        assert!(
            line.starts_with(
                "tandem_y_seconds_bucket{le=\"1\"} 2 # {trace_id=\"0af7651916cd43dd8448eb211c80319c\"} 0.6 "
            ),
            "{line}"
        );
        assert_eq!(text.matches("trace_id").count(), 1);
    }

    #[test]
    fn the_accept_header_decides() {
        assert!(is_accepted(
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        assert!(!is_accepted("text/plain"));
        assert!(!is_accepted("application/openmetrics-text;q=0"));
        assert!(!is_accepted("*/*"));
    }
}
