//! `gfs snapshot`

use anyhow::Result;
use gfs_client::Error;
use serde_json::json;

use crate::args::Snapshot;
use crate::cmd::{Session, trimmed};
use crate::exit::{self, Failed};

/// Copies a file or tree that shares its chunks with the original until one of them is written.
pub(crate) async fn run(session: &Session, args: &Snapshot) -> Result<()> {
    let (source, target) = (trimmed(&args.source), trimmed(&args.target));
    let entry = session.client.snapshot(source, target).await.map_err(refused)?;
    session.print(&json!({"source": source, "target": target, "id": entry.id.raw()}), String::new)
}

/// A refusal in words of the command: a copy takes the place of nothing.
fn refused(error: Error) -> anyhow::Error {
    if !matches!(error, Error::AlreadyExists { .. }) {
        return error.into();
    }
    let step = "a copy gets a name that nothing has; `gfs mv` moves away what is there";
    Failed { what: error.to_string(), step: step.into(), code: exit::EXISTS }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_to_be_moved_away_and_not_forced() {
        let told = refused(Error::AlreadyExists { path: "/b".into() });
        assert_eq!((exit::code_of(&told), told.to_string().as_str()), (exit::EXISTS, "/b: exists already"));
        assert!(exit::next_step(&told).unwrap().contains("gfs mv"));
    }
}
