//! The life of the process: configure, observe, start, wait, drain.

mod admin;
mod cli;
mod database;
mod smoke;

use std::process::ExitCode;

use tandem::telemetry::traces::Exporter;
use tandem::{app, telemetry};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse() {
        cli::Asked::Serve(config) => serve(*config),
        cli::Asked::Done(code) => code,
    }
}

fn serve(config: tandem::config::Config) -> ExitCode {
    let served = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let served = served.map_err(anyhow::Error::from).and_then(|runtime| {
        let served = runtime.block_on(observed(config));
        // Hashes and files that still run are not waited for.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn observed(config: tandem::config::Config) -> anyhow::Result<()> {
    let exporter = config.traces.as_ref().map(|traces| Exporter::start(traces, &config.node_id)).transpose();
    telemetry::init(&config.log, config.log_format, exporter.as_ref().ok().and_then(Option::as_ref));
    let exporter = exporter?;
    let ran = run(config).await;
    if let Some(exporter) = exporter {
        exporter.flush().await;
    }
    ran
}

async fn run(config: tandem::config::Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let banner = cli::Banner::of(&config);
    let running = tokio::select! {
        running = app::start(config) => running?,
        // Nobody was served yet, so there is nothing to drain.
        _ = terminate.recv() => return stopped_while_starting(),
        _ = interrupt.recv() => return stopped_while_starting(),
    };
    banner.show(&running);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining; a second signal exits at once");
    tokio::select! {
        () = running.drain() => tracing::info!("stopped"),
        _ = terminate.recv() => tracing::warn!("stopped at once"),
        _ = interrupt.recv() => tracing::warn!("stopped at once"),
    }
    Ok(())
}

fn stopped_while_starting() -> anyhow::Result<()> {
    tracing::info!("stopped while starting");
    Ok(())
}
