//! The stories: what a user may rely on, tried on clusters of real processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a story that can't go on fails")]

mod command_line;
mod faults;
mod files;
mod fsck;
mod healing;
mod records;
mod refusals;
mod restarts;
mod rot;
mod simulation;
mod snapshots;
mod tidy;
mod trash;

use std::process::Output;

/// What a command printed, if it succeeded.
fn printed(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{:?}: {text}{}", output.status, complaint(output));
    text
}

/// What a command said on the standard error.
fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of JSON that a command printed.
fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    printed(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
