//! Logs, traces and metrics.

pub mod exemplars;
pub mod metrics;
pub mod process;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use traces::Exporter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For eyes.
    Text,
    /// Text on a terminal, JSON otherwise.
    Auto,
}

/// Sends this process's log lines to standard error: readable ones to a
/// terminal, JSON lines elsewhere, unless `format` decides; and its traces to
/// `exporter`, if there is one.
pub fn init(filter: &str, format: LogFormat, exporter: Option<&Exporter>) {
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        // Colours only where they can be seen; NO_COLOR is honoured by the formatter.
        lines.with_ansi(terminal).with_target(false).boxed()
    };
    let is_trace = |about: &tracing::Metadata<'_>| about.target() == traces::TARGET;
    // The hints spare what no one looks at the question whether somebody does.
    let no_trace = filter_fn(move |about| !is_trace(about)).with_max_level_hint(LevelFilter::TRACE);
    let lines = lines.with_filter(EnvFilter::new(filter).and(no_trace));
    let spans = exporter.map(|exporter| {
        tracing_opentelemetry::layer()
            .with_tracer(exporter.tracer())
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_trace).with_max_level_hint(LevelFilter::INFO))
    });
    tracing_subscriber::registry().with(lines).with(spans).init();
}
