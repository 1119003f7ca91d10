//! A server that was started by another gfs process ends when that one does, also when it is killed.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// Names the process that a server belongs to. Set by `gfs dev` and by test harnesses for the servers they start.
pub(crate) const VARIABLE: &str = "GFS_PARENT_PID";

/// Asks the kernel to end this process with its parent, if it was started with [`VARIABLE`].
///
/// # Errors
/// The variable is no process id, or the parent has ended already.
pub(crate) fn follow() -> Result<()> {
    let Ok(text) = std::env::var(VARIABLE) else {
        return Ok(());
    };
    let parent = text.parse().ok().and_then(Pid::from_raw);
    let parent = parent.with_context(|| format!("{VARIABLE}={text:?} is no process id"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before the request was made: then nobody would tell us.
    anyhow::ensure!(
        rustix::process::getppid() == Some(parent),
        "the process that started this one has ended"
    );
    Ok(())
}
