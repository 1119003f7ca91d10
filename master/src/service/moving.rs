//! Deleting, replacing and snapshots, as far as they take more than one command: nobody may be writing then.

use std::time::Duration;

use gfs_proto::id::{EntryId, RequestId};
use gfs_proto::path::FilePath;
use gfs_proto::{Error, Result, pb};

use super::refusal::Refusal;
use super::{Service, convert};
use crate::state::{Applied, Command, Proposal, Rejected, read};

/// How long one request waits for a large snapshot before its caller is told to come back.
const BUILD_PATIENCE: Duration = Duration::from_millis(1500);
/// Most turns of one request for a snapshot: each ends with an answer, or with something out of its way.
const TURNS_MAX: usize = 4;

impl Service {
    /// Takes what is at a path away, by a command that says how: a file only when nobody writes it any more
    /// (docs/decisions/0015). Returns the log index of the answer.
    pub(super) async fn unlink(
        &self,
        request: Option<pb::RequestId>,
        path: &FilePath,
        command: Command,
    ) -> Result<u64, Refusal> {
        let reign = self.leader.reign()?;
        let granter = self.leader.granter();
        let file = read::stat(&self.node.view(), path).ok().filter(crate::state::Entry::is_file);
        let _hold = match file {
            Some(file) => Some(granter.end_leases(&reign, file.id).await?),
            None => None,
        };
        let (rev, applied) = self.mutate(request, command).await?;
        // Another file may have come to this path meanwhile, or a chunk to this file; and this may be a repeat, of which
        // the first was cut short here.
        if let Applied::Deleted { entry, .. } = applied {
            granter.end_leases(&reign, entry).await?;
        }
        Ok(rev)
    }

    /// Makes a snapshot, in one command or in many.
    pub(super) async fn make_snapshot(
        &self,
        request: Option<pb::RequestId>,
        source: FilePath,
        target: FilePath,
    ) -> Result<pb::EntryReply, Refusal> {
        let reign = self.leader.reign()?;
        let command = Command::Snapshot { source: source.clone(), target: target.clone() };
        let mut hold = None;
        for _ in 0..TURNS_MAX {
            let made = self.mutate(request, command.clone()).await;
            match (made.as_ref().map_err(Refusal::error), request) {
                // Somebody may be writing there: no longer, from here to the end of this call.
                (Err(Error::GrantPending { .. }), _) => {
                    hold = match self.leader.granter().still(&reign, &source).await {
                        Ok(held) => Some(held),
                        Err(Error::TooLarge { .. }) => None,
                        Err(error) => return Err(error.into()),
                    };
                }
                (Err(Error::TooLarge { .. }), Some(request)) => {
                    let command = Command::BeginSnapshot {
                        source: source.clone(),
                        target: target.clone(),
                        request: request.into(),
                    };
                    self.build(request.into(), command).await?;
                }
                (_, _) => return Ok(convert::entry_reply(made?)?),
            }
        }
        drop(hold);
        Err(Error::Busy { what: "the tree".into() }.into())
    }

    /// Has a large snapshot built and waits until it is; what came of it the request itself is told.
    async fn build(&self, request: RequestId, begin: Command) -> Result<()> {
        let proposal = Proposal::internal(self.node.date().await, begin);
        // Why else nothing is begun the request itself says.
        if let Err(rejected @ Rejected::Held { .. }) = self.node.propose(proposal).await?.1 {
            return Err(rejected.into());
        }
        let mut applied = self.node.applied();
        let under_way = || -> Result<Option<EntryId>> {
            let build = read::build(&self.node.view())?;
            Ok(build.filter(|build| build.request == request).map(|build| build.source))
        };
        let built = async {
            while under_way()?.is_some() {
                applied.changed().await.map_err(Error::unavailable)?;
            }
            Ok(())
        };
        match tokio::time::timeout(BUILD_PATIENCE, built).await {
            Ok(built) => built,
            Err(_) => match under_way()? {
                Some(entry) => Err(Rejected::Held { entry }.into()),
                None => Ok(()),
            },
        }
    }
}
