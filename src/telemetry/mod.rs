//! Logs, traces and metrics.

pub mod metrics;
pub mod process;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
/// terminal, JSON lines elsewhere, unless `format` decides.
pub fn init_logs(filter: &str, format: LogFormat) {
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let lines =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr);
    if json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
    } else {
        // Colours only where they can be seen; NO_COLOR is honoured by the formatter.
        lines.with_ansi(terminal).with_target(false).init();
    }
}
