//! Reconciliation: all members of a prepared grant take one content (protocol.md, Grant 3 and 4). Also how a clone joins.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all, try_join_all};
use futures::stream::{StreamExt, TryStreamExt};
use gfs_proto::id::{ChunkHandle, ChunkVersion, ServerId};
use gfs_proto::link::{Peer, Range};
use gfs_proto::net::blocking;
use gfs_proto::{Error, Result, Retry, fault, pb};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Instrument;

use crate::chunk::{Chunk, held};
use crate::replica::{Candidate, Grant, Held, Position, Step, longest};
use crate::report::Change;
use crate::server::Chunkserver;
use crate::store::{Adoption, Content, Origin};

/// How long a member may take to tell what it holds.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a member may take to adopt: the copy of a whole chunk over a slow line.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(100);
/// How often a member is asked again that is busy or was out of reach for a moment, and after which pause.
const REPEATS_MAX: u32 = 3;
const REPEAT_PAUSE: Duration = Duration::from_millis(100);
/// Piece in which content is fetched, in bytes, and how many are under way.
const FETCH_BYTES: u32 = 1 << 20;
const FETCHES: usize = 4;
/// How long one piece may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

type Client = pb::chunkserver_client::ChunkserverClient<tonic::transport::Channel>;

/// What one member told of what it holds.
struct Collected {
    member: Peer,
    held: Held,
    content: Content,
}

impl Chunkserver {
    /// Grant step 3 and 4, at the primary: answers when every member has adopted. A repeat waits for the first one.
    pub(crate) async fn reconcile(self: &Arc<Self>, request: pb::ReconcileRequest) -> Result<Position> {
        self.ordered(request.head.clone())?;
        let version = ChunkVersion::from_raw(request.version);
        let chunk = self.chunk(ChunkHandle::from_raw(request.handle))?;
        // Each time, also if all has been done before: the confirm may come long after that.
        if request.verify && !blocking(|| self.verify(chunk.handle))? {
            return Err(Error::MemberFailed { handle: chunk.handle, server: self.identity()?.1 });
        }
        let mut running = chunk.quick(|state| {
            let replica = state.replica(chunk.handle)?;
            let grant = match replica.reconcile(version)? {
                Step::Done => return Ok(Err(replica.held().end)),
                Step::Go(grant) => grant,
            };
            let known = state.reconciling.as_ref().filter(|(at, _)| *at == version);
            // One that has failed is begun again.
            if let Some((_, running)) = known.filter(|(_, running)| running.borrow().is_none()) {
                return Ok(Ok(running.clone()));
            }
            let (done, running) = watch::channel(None);
            state.reconciling = Some((version, running.clone()));
            let (server, chunk) = (self.clone(), chunk.clone());
            let span = tracing::debug_span!("reconcile", handle = %chunk.handle, %version);
            let work = async move {
                let result = server.reconcile_members(&chunk, &grant).await;
                if let Err(error) = &result {
                    tracing::debug!(%error, "not reconciled");
                }
                done.send_replace(Some(result));
            };
            tokio::spawn(work.instrument(span));
            Ok::<_, Error>(Ok(running))
        });
        let mut running = match running.as_mut() {
            Ok(Ok(running)) => running.clone(),
            Ok(Err(end)) => return Ok(*end),
            Err(error) => return Err(error.clone()),
        };
        let result = running.wait_for(Option::is_some).await;
        let result = result.ok().and_then(|result| result.clone());
        result.unwrap_or_else(|| Err(Error::unavailable("the reconciliation was given up")))
    }

    async fn reconcile_members(&self, chunk: &Arc<Chunk>, grant: &Grant) -> Result<Position> {
        let us = self.identity()?.1;
        let version = grant.version;
        let adopted = chunk.quick(|state| state.replica(chunk.handle)?.adopt(version))?;
        let (content, adopted) = match adopted {
            // An earlier attempt has settled what all adopt.
            Step::Done => {
                let content = blocking(|| self.store.content(chunk.handle));
                (content.map_err(|error| self.wire(&error))?, ChunkVersion::NONE)
            }
            Step::Go(()) => {
                let Collected { member: source, held, content } = self.agree(chunk, grant, us).await?;
                fault::try_reach("reconcile::agreed").await?;
                let (origin, from) = if source.server == us {
                    (Origin::Own, None)
                } else {
                    (Origin::Adopted(held.adopted), Some(&source))
                };
                let taken = self.take_over(chunk, version, (content.clone(), origin), from).await;
                if let Err(Error::Corrupt { handle, .. }) = taken {
                    // The source could not give what it holds: a grant without it may do better.
                    return Err(Error::MemberFailed { handle, server: source.server });
                }
                taken?;
                (content, held.adopted)
            }
        };
        let others = grant.members.iter().filter(|member| member.server != us);
        let request = pb::AdoptRequest {
            cluster: self.identity()?.0.to_string(),
            handle: chunk.handle.raw(),
            version: version.raw(),
            content: Some((&content).into()),
            primary: grant.primary().map(Into::into),
            origin: adopted.raw(),
            ..Default::default()
        };
        fault::try_reach("reconcile::before_adopts").await?;
        let adoptions = others.map(|member| self.have_adopted(chunk.handle, member, &request));
        // Guard adopt_in_place: a member's reply means that it holds all of it, durably.
        let adopted = try_join_all(adoptions).await;
        fault::reach("reconcile::adopted").await;
        chunk.quick(|state| {
            if state.replica(chunk.handle)?.held().corrupt {
                // What the members could not fetch is damaged here.
                return Err(Error::MemberFailed { handle: chunk.handle, server: us });
            }
            adopted?;
            let replica = state.replica(chunk.handle)?;
            replica.reconciled(version)?;
            Ok(replica.held().end)
        })
    }

    /// Collects what every member holds, and chooses.
    async fn agree(&self, chunk: &Chunk, grant: &Grant, us: ServerId) -> Result<Collected> {
        let collects = grant.members.iter().map(|member| async move {
            let answer = if member.server == us {
                let own = self.collect_own(chunk, grant.version);
                own.map(|(held, content)| Collected { member: member.clone(), held, content })
            } else {
                self.collect_from(chunk.handle, grant.version, member).await
            };
            (member.server, answer)
        });
        // With all of them in hand, also those that join: each has then stored the version, so that nothing of an
        // older one can be added any more.
        let mut collected = everybody(chunk.handle, us, join_all(collects).await)?;
        let candidates: Vec<_> =
            collected.iter().map(|one| Candidate { server: one.member.server, held: one.held }).collect();
        let chosen = longest(grant, &candidates).ok_or(Error::NoReplica { handle: chunk.handle })?;
        let at = collected.iter().position(|one| one.member.server == chosen);
        let at = at.ok_or(Error::NoReplica { handle: chunk.handle })?;
        Ok(collected.swap_remove(at))
    }

    fn collect_own(&self, chunk: &Chunk, version: ChunkVersion) -> Result<(Held, Content)> {
        chunk.with(|state| {
            let held = state.replica(chunk.handle)?.collect(version)?;
            let content = self.store.content(chunk.handle).map_err(|error| self.wire(&error))?;
            Ok((held, content))
        })
    }

    async fn collect_from(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        member: &Peer,
    ) -> Result<Collected> {
        let cluster = self.identity()?.0.to_string();
        let request = pb::CollectRequest {
            cluster,
            server: member.server.raw(),
            handle: handle.raw(),
            version: version.raw(),
        };
        let reply = self
            .ask(handle, member, COLLECT_TIMEOUT, move |mut peer| {
                let request = request.clone();
                async move { peer.collect(request).await.map(tonic::Response::into_inner) }.boxed()
            })
            .await?;
        let content: Content = reply.content.unwrap_or_default().into();
        let held = Held {
            version,
            adopted: ChunkVersion::from_raw(reply.adopted),
            end: Position { serial: content.serial, length: content.length, sealed: content.sealed },
            partial: reply.partial,
            corrupt: false,
        };
        Ok(Collected { member: member.clone(), held, content })
    }

    /// Has one member adopt.
    async fn have_adopted(
        &self,
        handle: ChunkHandle,
        member: &Peer,
        request: &pb::AdoptRequest,
    ) -> Result<()> {
        let request = pb::AdoptRequest { server: member.server.raw(), ..request.clone() };
        let answer = self.ask(handle, member, ADOPT_TIMEOUT, move |mut peer| {
            let request = request.clone();
            async move { peer.adopt(request).await.map(drop) }.boxed()
        });
        answer.await.map_err(|error| failed(handle, member.server, error))
    }

    /// Asks a member, again if it is busy or out of reach for a moment.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it gives no answer, [`Error::VersionMismatch`] if a newer grant is on its way, else
    /// [`Error::MemberFailed`].
    async fn ask<T>(
        &self,
        handle: ChunkHandle,
        member: &Peer,
        patience: Duration,
        call: impl Fn(Client) -> BoxFuture<'static, std::result::Result<T, tonic::Status>> + Send + Sync,
    ) -> Result<T> {
        let mut repeats = 0;
        loop {
            let result = match timeout(patience, call(self.peer(&member.address)?)).await {
                Ok(result) => result.map_err(Error::from),
                // Waited for long enough.
                Err(_) => return Err(Error::unavailable(format!("{} does not answer", member.address))),
            };
            match result {
                Err(error) if error.retry() == Retry::Later && repeats < REPEATS_MAX => {
                    tracing::debug!(server = %member.server, %error, "asked again");
                    repeats += 1;
                    tokio::time::sleep(REPEAT_PAUSE).await;
                }
                Err(error @ (Error::VersionMismatch { .. } | Error::Unavailable { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(server = %member.server, %error, "member failed");
                    return Err(Error::MemberFailed { handle, server: member.server });
                }
                Ok(reply) => return Ok(reply),
            }
        }
    }

    // ---- at the members ----

    /// Grant step 3, at a member.
    pub(crate) fn collect(&self, request: &pb::CollectRequest) -> Result<pb::CollectReply> {
        self.meant(&request.cluster, request.server)?;
        fault::at("reconcile::collect");
        let chunk = self.chunk(ChunkHandle::from_raw(request.handle))?;
        let (held, content) = self.collect_own(&chunk, ChunkVersion::from_raw(request.version))?;
        Ok(pb::CollectReply {
            content: Some((&content).into()),
            partial: held.partial || held.corrupt,
            adopted: held.adopted.raw(),
        })
    }

    /// Grant step 4, at a member: answers when the content is here, durably.
    pub(crate) async fn adopt(self: &Arc<Self>, request: pb::AdoptRequest) -> Result<()> {
        self.meant(&request.cluster, request.server)?;
        let chunk = self.chunk(ChunkHandle::from_raw(request.handle))?;
        let version = ChunkVersion::from_raw(request.version);
        let origin = match ChunkVersion::from_raw(request.origin) {
            ChunkVersion::NONE => Origin::Unknown,
            adopted => Origin::Adopted(adopted),
        };
        let content = request.content.ok_or_else(|| Error::bad_argument("no content"))?;
        let primary = request.primary.ok_or_else(|| Error::bad_argument("no primary"))?;
        let primary = Peer::from(&primary);
        // A task of its own: the copy goes on if the caller has gone, and its repeat finds it done.
        let server = self.clone();
        let work =
            async move { server.take_over(&chunk, version, (content.into(), origin), Some(&primary)).await };
        tokio::spawn(work.in_current_span())
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("the adoption was given up")))
    }

    /// Makes `content` this replica's, with the bytes that may differ from `source`; durable when this returns.
    async fn take_over(
        &self,
        chunk: &Chunk,
        version: ChunkVersion,
        (content, origin): (Content, Origin),
        source: Option<&Peer>,
    ) -> Result<()> {
        let begun = chunk.with(|state| {
            if state.replica(chunk.handle)?.adopt(version)? == Step::Done {
                return Ok(None);
            }
            // One of an older version is overtaken, however long it still waits for its source.
            if state.adopting >= Some(version) {
                return Err(Error::Busy { what: format!("the adoption of {}", chunk.handle) });
            }
            let adoption = self.store.adopt((chunk.handle, version), (content, origin));
            let adoption = adoption.map_err(|error| self.wire(&error))?;
            state.adopting = Some(version);
            Ok(Some(adoption))
        })?;
        let Some(mut adoption) = begun else { return Ok(()) };
        let fetched = self.fetch_missing(chunk.handle, version, &mut adoption, source).await;
        fault::reach("reconcile::fetched").await;
        chunk.with(|state| {
            if state.adopting == Some(version) {
                state.adopting = None;
            }
            fetched?;
            // A newer version may have come in the meantime: then the store refuses, too.
            if state.replica(chunk.handle)?.adopt(version)? == Step::Done {
                return Ok(());
            }
            let same = adoption.is_same();
            let adopted = held(&adoption.commit().map_err(|error| self.wire(&error))?);
            state.replica(chunk.handle)?.adopted(adopted, same);
            state.changed();
            self.note(chunk.handle, Change::Changed);
            Ok(())
        })
    }

    async fn fetch_missing(
        &self,
        handle: ChunkHandle,
        version: ChunkVersion,
        adoption: &mut Adoption,
        source: Option<&Peer>,
    ) -> Result<()> {
        let missing = adoption.missing();
        let pieces = missing.into_iter().flat_map(|range| {
            range.clone().step_by(FETCH_BYTES as usize).map(move |offset| Range {
                handle,
                version,
                offset,
                length: (range.end - offset).min(FETCH_BYTES),
            })
        });
        let fetches = futures::stream::iter(pieces).map(|range| async move {
            let source = source
                .ok_or(Error::Corrupt { handle, block: range.offset / gfs_proto::size::BLOCK_BYTES })?;
            Ok::<_, Error>((range.offset, self.fetch_piece(source, &range).await?))
        });
        fetches
            .buffered(FETCHES)
            .try_for_each(|(offset, bytes)| {
                let written = blocking(|| adoption.write(offset, &bytes)).map_err(|error| self.wire(&error));
                async move { written }
            })
            .await
    }

    /// One piece of the content, asked for again if the source is busy or out of reach for a moment.
    async fn fetch_piece(&self, source: &Peer, range: &Range) -> Result<Bytes> {
        let mut repeats = 0;
        let attempts = async {
            loop {
                match self.links.fetch(source, range, FETCH_TIMEOUT).await {
                    Err(error) if error.retry() == Retry::Later && repeats < REPEATS_MAX => {
                        repeats += 1;
                        tokio::time::sleep(REPEAT_PAUSE).await;
                    }
                    result => return result.map(|reply| reply.bytes),
                }
            }
        };
        let silent = || Err(Error::unavailable(format!("{} does not answer", source.address)));
        let fetched = timeout(FETCH_TIMEOUT, attempts).await.unwrap_or_else(|_| silent());
        fetched.map_err(|error| {
            if matches!(error, Error::Corrupt { .. } | Error::VersionMismatch { .. }) {
                return error;
            }
            // Said so, since else it would be taken for a failure of this server.
            tracing::debug!(server = %source.server, %error, "not fetched");
            Error::MemberFailed { handle: range.handle, server: source.server }
        })
    }
}

/// What all members answered.
///
/// # Errors
/// [`Error::CutOff`] if none of several others gave an answer (guard `one_accused`), else the first one's error.
fn everybody<T>(handle: ChunkHandle, us: ServerId, answers: Vec<(ServerId, Result<T>)>) -> Result<Vec<T>> {
    let others = || answers.iter().filter(|(server, _)| *server != us);
    if others().count() > 1 && others().all(|(_, answer)| matches!(answer, Err(Error::Unavailable { .. }))) {
        return Err(Error::CutOff { handle });
    }
    let settled = answers.into_iter().map(|(server, answer)| match answer {
        Err(error) if server != us => Err(failed(handle, server, error)),
        own => own,
    });
    settled.collect()
}

/// What it means that a member could not be asked.
fn failed(handle: ChunkHandle, server: ServerId, error: Error) -> Error {
    if matches!(error, Error::Unavailable { .. }) { Error::MemberFailed { handle, server } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::upkeep::server_on;

    #[tokio::test]
    async fn whoever_does_not_give_what_it_holds_is_the_one_that_failed_and_not_who_asks_for_it() {
        let (_files, server) = server_on(&["/a"]);
        // Nobody listens there.
        let source = Peer { server: ServerId::from_raw(2), address: "127.0.0.1:1".into() };
        let handle = ChunkHandle::from_raw(7);
        let range = Range { handle, version: ChunkVersion::from_raw(2), offset: 0, length: 10 };
        let failed = Error::MemberFailed { handle, server: source.server };
        assert_eq!(server.fetch_piece(&source, &range).await, Err(failed));
    }
}
