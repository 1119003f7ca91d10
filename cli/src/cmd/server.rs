//! `gfs master` and `gfs chunkserver`: one server in this process, until it is told to stop.

use std::path::Path;

use anyhow::{Context, Result};
use gfs_proto::Environment;
use gfs_proto::net::Listener;
use tokio_util::sync::CancellationToken;

use crate::cmd::dev::StopSignal;
use crate::{args, config};

/// Runs a master or shadow.
pub(crate) async fn master(top: &args::TopSettings, flags: args::Master) -> Result<()> {
    let (config, listen) = config::master(top, flags)?;
    make_dir(&config.data)?;
    let environment = Environment::real();
    let listener = bind(&environment, &listen).await?;
    gfs_master::run(config, environment, listener, stop_on_signal()?).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Runs a chunkserver.
pub(crate) async fn chunkserver(top: &args::TopSettings, flags: args::Chunkserver) -> Result<()> {
    let (config, listen) = config::chunkserver(top, flags)?;
    for dir in &config.data {
        make_dir(dir)?;
    }
    let environment = Environment::real();
    let listener = bind(&environment, &listen).await?;
    gfs_chunkserver::run(config, environment, listener, stop_on_signal()?).await?;
    tracing::info!("stopped");
    Ok(())
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--data {} can't be made", dir.display()))
}

async fn bind(environment: &Environment, listen: &str) -> Result<Box<dyn Listener>> {
    let listener =
        environment.net.listen(listen).await.with_context(|| format!("can't listen on {listen}"))?;
    tracing::info!(address = %listener.local_address()?, version = env!("CARGO_PKG_VERSION"), "listening");
    Ok(listener)
}

/// A token that Ctrl-C or SIGTERM cancels.
fn stop_on_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut signal = StopSignal::listen()?;
    let token = stop.clone();
    tokio::spawn(async move {
        signal.received().await;
        tracing::info!("told to stop");
        token.cancel();
    });
    Ok(stop)
}
