//! The trash: what was deleted and can still be restored (GFS §4.4).

use std::time::Duration;

use futures::stream::{BoxStream, TryStreamExt};
use gfs_proto::id::EntryId;
use gfs_proto::path::FilePath;
use gfs_proto::time::UnixMs;
use gfs_proto::{Error, Result, pb};

use crate::client::{Client, parsed};
use crate::entry::Entry;

/// A deleted file or directory that can still be restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trashed {
    /// What it is. It has no name any more; its id is what names it in the trash.
    pub entry: Entry,
    /// The path from which it was deleted.
    pub path: String,
    /// When it was deleted.
    pub deleted: UnixMs,
    /// Until when it can be restored.
    pub until: UnixMs,
}

impl Trashed {
    pub(crate) fn parse(trashed: pb::TrashEntry) -> Result<Self> {
        Ok(Self {
            entry: Entry::parse(trashed.entry)?,
            path: trashed.path,
            deleted: UnixMs::from_raw(trashed.deleted_ms),
            until: UnixMs::from_raw(trashed.collect_ms),
        })
    }
}

impl Client {
    /// What was deleted at `path` or below it and can still be restored, those first that go first; asked for page by
    /// page. `/` is everything.
    pub fn trash(&self, path: &str) -> BoxStream<'static, Result<Trashed>> {
        self.paged(path, None, |client, path, after| async move {
            let (page, next) = client.trash_page(&path, after).await?;
            Ok((page, next.map(Some)))
        })
    }

    async fn trash_page(
        &self,
        path: &FilePath,
        after: Option<pb::TrashCursor>,
    ) -> Result<(Vec<Trashed>, Option<pb::TrashCursor>)> {
        let request = pb::ListTrashRequest {
            path: path.to_string(),
            after,
            limit: 0,
            freshness: self.core.freshness(),
        };
        let reply = self
            .core
            .fresh_lookup(self.core.patience(), |mut master| {
                let request = request.clone();
                async move { master.list_trash(request).await }
            })
            .await?;
        self.core.seen(reply.rev);
        let page = reply.entries.into_iter().map(Trashed::parse).collect::<Result<_>>()?;
        // A page that ends where it began would be asked for again for ever.
        Ok((page, reply.next.filter(|next| after != Some(*next))))
    }

    /// What was deleted last of all that was deleted at exactly this path, if it can still be restored. Looks through the
    /// whole trash.
    ///
    /// # Errors
    /// What the master says.
    pub async fn last_trashed(&self, path: &str) -> Result<Option<Trashed>> {
        let mut trash = self.trash(path);
        let mut last: Option<Trashed> = None;
        while let Some(trashed) = trash.try_next().await? {
            let key = |trashed: &Trashed| (trashed.deleted, trashed.entry.id);
            if trashed.path == path && last.as_ref().is_none_or(|last| key(last) <= key(&trashed)) {
                last = Some(trashed);
            }
        }
        Ok(last)
    }

    /// Restores what was deleted last at this path to where it was.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not in the trash (any more) or its directory is gone, [`Error::AlreadyExists`] if
    /// something else has the name; or what the master says.
    pub async fn undelete(&self, path: &str) -> Result<Entry> {
        let not_there = || Error::NotFound { what: format!("{path} in the trash") };
        let trashed = self.last_trashed(path).await?.ok_or_else(not_there)?;
        self.undelete_entry(trashed.entry.id, path).await
    }

    /// Restores a deleted file or directory, with all that was below it, to a path that nothing has.
    ///
    /// # Errors
    /// As [`Client::undelete`].
    pub async fn undelete_entry(&self, id: EntryId, target: &str) -> Result<Entry> {
        let target = parsed(target)?;
        let reply = self
            .core
            .sessions
            .change(self.core.patience(), |mut master, request| {
                let target = target.to_string();
                let message = pb::UndeleteRequest { request: Some(request), id: id.raw(), target };
                async move { master.undelete(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Entry::parse(reply.entry)
    }

    /// Deletes a deleted file or directory again: it can't be restored any more, and its room is given back soon.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not in the trash; or what the master says.
    pub async fn expedite(&self, id: EntryId) -> Result<()> {
        self.expedite_within(id, self.core.patience()).await
    }
    pub(crate) async fn expedite_within(&self, id: EntryId, patience: Duration) -> Result<()> {
        let reply = self
            .core
            .sessions
            .change(patience, |mut master, request| {
                let message = pb::ExpediteRequest { request: Some(request), id: id.raw() };
                async move { master.expedite(message).await }
            })
            .await?;
        self.core.seen(reply.rev);
        Ok(())
    }
}
