//! An operator's decision about a chunk of which every current replica is partial (docs/decisions/0020): what each of them
//! holds, whether somebody may decide, and the grant that stands on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::{Error, Result, pb};

use super::grant::{Granter, Wish};
use super::lease::{GRANT_PATIENCE, GRANTS_MAX};
use crate::cluster::Reign;
use crate::state::{Chunk, read};

impl Granter {
    /// What each of some servers says that it holds of a chunk.
    pub(crate) async fn inspect(
        &self,
        reign: &Reign,
        handle: ChunkHandle,
        servers: &[ServerId],
    ) -> Vec<Result<pb::InspectReplicaReply>> {
        futures::future::join_all(servers.iter().map(|server| {
            let head = Some(self.head(reign, *server));
            let request = pb::InspectReplicaRequest { head, handle: handle.raw() };
            self.orders.inspect(self.soft.target(*server), request)
        }))
        .await
    }

    /// Whether what a server holds of a chunk may be made its content: nobody has more, as far as anybody can know. The
    /// servers are asked now, because what they reported may be old; whatever makes one of them whole after that raises
    /// the version, and the decision is void.
    ///
    /// # Errors
    /// [`Error::BadArgument`] with the reason if not, [`Error::Unavailable`] if the server does not answer.
    pub(crate) async fn may_accept(
        &self,
        reign: &Reign,
        chunk: &Chunk,
        server: ServerId,
        given_up: &BTreeSet<ServerId>,
    ) -> Result<()> {
        let (handle, members) = (chunk.handle, &chunk.members);
        let refuse = |what: String| Err(Error::bad_argument(what));
        if chunk.confirmed == ChunkVersion::NONE {
            return refuse(format!("{handle} was never written: there is nothing to decide"));
        }
        if !members.contains(&server) {
            return refuse(format!("{server} never had all of {handle}: only {members:?} had"));
        }
        if let Some(other) = given_up.iter().find(|other| !members.contains(other) || **other == server) {
            return refuse(format!("{other} is none of the other replicas of {handle}"));
        }
        let told = self.inspect(reign, handle, members).await;
        for (member, told) in members.iter().zip(told) {
            match told {
                Ok(held) if is_whole(chunk, &held) => {
                    return refuse(format!(
                        "{member} has a whole replica of {handle}: it heals without a decision"
                    ));
                }
                Ok(held) if *member == server => {
                    if let Some(reason) = unfit(chunk, &held) {
                        return refuse(format!("{handle}: what {server} has can't be accepted: {reason}"));
                    }
                }
                Ok(_) => {}
                Err(error) if *member == server => return Err(Error::unavailable(error)),
                Err(_) if given_up.contains(member) => {}
                Err(error) => {
                    return refuse(format!(
                        "{member} may have a whole replica of {handle} and does not answer ({error}): bring it back, or say \
                         that it is lost for good"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Drives the grant of a decision to its end.
    ///
    /// # Errors
    /// [`Error::GrantPending`] if it takes longer than a caller waits; it goes on then. Else why there is none.
    pub(crate) async fn carry_out_decision(
        self: &Arc<Self>,
        reign: &Reign,
        handle: ChunkHandle,
        version: ChunkVersion,
    ) -> Result<()> {
        let driving = async {
            for _ in 0..GRANTS_MAX {
                let chunk = read::chunk(&*self.log.view(), handle)?;
                if chunk.confirmed >= version {
                    return Ok(());
                }
                if chunk.version != version {
                    // Something else came in between, so that the decision is void.
                    return Err(Error::bad_argument(format!(
                        "{handle} has moved on to {} before the decision was carried out: look at it again",
                        chunk.version
                    )));
                }
                self.grant(reign, handle, Wish { writer: false, ..Wish::write() }).await?;
            }
            Err(Error::GrantPending { handle })
        };
        tokio::time::timeout(GRANT_PATIENCE, driving).await.unwrap_or(Err(Error::GrantPending { handle }))
    }
}

/// Whether a confirmed member has everything that was acknowledged: then nobody else may be decided for.
fn is_whole(chunk: &Chunk, held: &pb::InspectReplicaReply) -> bool {
    held.present && held.version >= chunk.confirmed.raw() && !held.partial && !held.corrupt
}

/// Why what a member holds is nothing that could be decided for.
fn unfit(chunk: &Chunk, held: &pb::InspectReplicaReply) -> Option<&'static str> {
    if !held.present {
        return Some("it has nothing");
    }
    if held.corrupt {
        return Some("it is damaged");
    }
    // It joined a grant and has dropped what it had, or its disk went back in time.
    (held.adopted < chunk.confirmed.raw())
        .then_some("it is not what was last acknowledged, nor a part of that")
}
