//! `gfs undelete`, `gfs trash list` and `gfs trash empty`

use anyhow::Result;
use futures::TryStreamExt;
use gfs_client::{Error, Trashed};
use serde_json::{Value, json};

use crate::args::{TrashEmpty, TrashList, Undelete};
use crate::cmd::{Session, trimmed, visible};
use crate::exit::{self, Failed};
use crate::units::show_time;

/// Restores what was deleted.
pub(crate) async fn undelete(session: &Session, args: &Undelete) -> Result<()> {
    let path = trimmed(&args.path);
    let trashed = match find(session, path, args.id).await? {
        Some(trashed) => trashed,
        None => return Err(not_there(session, path, args.id).await?.into()),
    };
    let target = args.to.as_deref().map_or(path, trimmed);
    let restored = session.client.undelete_entry(trashed.entry.id, target).await;
    let entry = restored.map_err(|error| refused(path, target, error))?;
    session.print(&json!({"path": path, "target": target, "id": entry.id.raw()}), String::new)
}

/// What was deleted at a path: the last one, or that with an id.
async fn find(session: &Session, path: &str, id: Option<u64>) -> Result<Option<Trashed>> {
    let Some(id) = id else { return Ok(session.client.last_trashed(path).await?) };
    let mut trash = session.client.trash(path);
    while let Some(trashed) = trash.try_next().await? {
        if trashed.entry.id.raw() == id && trashed.path == path {
            return Ok(Some(trashed));
        }
    }
    Ok(None)
}

/// Why there is nothing to restore: it may have been deleted with a directory above it.
async fn not_there(session: &Session, path: &str, id: Option<u64>) -> Result<Failed> {
    let mut above = path;
    while let (None, Some((parent, _))) = (id, above.rsplit_once('/'))
        && !parent.is_empty()
    {
        above = parent;
        if let Some(whole) = session.client.last_trashed(above).await? {
            let deleted = show_time(whole.deleted.raw());
            return Ok(Failed {
                what: format!(
                    "{path}: not in the trash by itself; {above} was deleted as a whole on {deleted} UTC"
                ),
                step: format!("`gfs undelete {above}` restores all of it (--to elsewhere)"),
                code: exit::NOT_FOUND,
            });
        }
    }
    let which = id.map(|id| format!(" under the id e{id}")).unwrap_or_default();
    Ok(Failed {
        what: format!("{path}: not in the trash{which}, or its date has passed"),
        step: "`gfs trash list` shows what can be restored".into(),
        code: exit::NOT_FOUND,
    })
}

/// A refusal in words of the command.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others say all there is")]
fn refused(path: &str, target: &str, error: Error) -> anyhow::Error {
    match error {
        Error::NotFound { what } if what.ends_with("in the trash") => Failed {
            what: format!("{path}: not in the trash any more"),
            step: "`gfs trash list` shows what can be restored".into(),
            code: exit::NOT_FOUND,
        }
        .into(),
        Error::NotFound { what } => Failed {
            what: format!("{path} can't go back to {target}: {what}: not found"),
            step: "`gfs mkdir -p` makes the directory anew; --to restores it elsewhere".into(),
            code: exit::NOT_FOUND,
        }
        .into(),
        Error::AlreadyExists { path: taken } => Failed {
            what: format!("{path} can't go back: {taken}: exists already"),
            step: "--to restores it elsewhere; `gfs mv` moves away what is there".into(),
            code: exit::EXISTS,
        }
        .into(),
        other => other.into(),
    }
}

/// Lists what can be restored.
pub(crate) async fn list(session: &Session, args: &TrashList) -> Result<()> {
    let mut trash = session.client.trash(trimmed(&args.path));
    while let Some(trashed) = trash.try_next().await? {
        session.print(&as_json(&trashed), || as_text(&trashed))?;
    }
    Ok(())
}

/// Deletes what was deleted again: it is collected at once (GFS §4.4).
pub(crate) async fn empty(session: &Session, args: &TrashEmpty) -> Result<()> {
    let path = trimmed(&args.path);
    let mut trash = session.client.trash(path);
    let mut count = 0;
    while let Some(trashed) = trash.try_next().await? {
        if args.id.is_some_and(|id| id != trashed.entry.id.raw()) {
            continue;
        }
        match session.client.expedite(trashed.entry.id).await {
            Ok(()) => count += 1,
            // Somebody restored it, or its date has come.
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
        session.print(&as_json(&trashed), String::new)?;
    }
    if count == 0 && args.id.is_some() {
        return Err(not_there(session, path, args.id).await?.into());
    }
    if session.json { Ok(()) } else { crate::cmd::print_line(&format!("{count} deleted for good")) }
}

fn as_json(trashed: &Trashed) -> Value {
    json!({
        "id": trashed.entry.id.raw(),
        "path": trashed.path,
        "kind": if trashed.entry.is_file() { "file" } else { "directory" },
        "chunks": trashed.entry.is_file().then_some(trashed.entry.chunk_count),
        "deleted_ms": trashed.deleted.raw(),
        "until_ms": trashed.until.raw(),
    })
}

fn as_text(trashed: &Trashed) -> String {
    let slash = if trashed.entry.is_directory() { "/" } else { "" };
    format!(
        "{:<8} deleted {}  until {}  {}{slash}",
        trashed.entry.id.to_string(),
        show_time(trashed.deleted.raw()),
        show_time(trashed.until.raw()),
        visible(&trashed.path)
    )
}
