//! Client sessions: each request is carried out once, however often it comes (Raft thesis §6.3; traps T30).

use std::time::Duration;

use gfs_proto::fault;
use gfs_proto::id::{ClientId, RequestId};
use gfs_proto::time::UnixMs;

use crate::state::change::{self, Change};
use crate::state::codec::encode;
use crate::state::command::Proposal;
use crate::state::format::{self, Session, StoredReply, system};
use crate::state::read;
use crate::state::reply::{Applied, Limit, Rejected, Reply};
use crate::state::table::{Overlay, Row, Table, View};

/// Most requests of a session that are not acknowledged by the client: bounds its stored replies.
pub const WINDOW_REQUESTS: u32 = 1024;
/// Most open sessions.
pub const SESSIONS_MAX: u64 = 100_000;
/// Most sessions that one command removes.
const EXPIRE_MAX: u32 = 64;
/// With that many answers removed a command begins no further session.
const EXPIRE_REPLIES: usize = 4096;

/// Lets a request in, before anything else is looked at; or finds the answer that it got before.
pub(crate) fn admit(
    overlay: &mut Overlay<'_>,
    now: UnixMs,
    request: RequestId,
    proposal: &Proposal,
) -> Result<Option<Reply>, Rejected> {
    let old = read::session(overlay, request.client)?;
    if request.sequence < old.first_unacked {
        return Err(Rejected::AlreadyAcknowledged { request });
    }
    // Mutant repeat_not_recognized: a repeat is carried out again.
    if let Some(stored) = read::stored_reply(overlay, request.client, request.sequence)?
        && !fault::mutant("repeat_not_recognized")
    {
        if stored.command != proposal.command.tag() {
            return Err(Rejected::RequestReused { request });
        }
        return Ok(Some(stored.reply));
    }
    // Nobody acknowledges a request that is still being made.
    let first_unacked = proposal.first_unacked.clamp(old.first_unacked, request.sequence);
    if request.sequence - first_unacked >= u64::from(WINDOW_REQUESTS) {
        return Err(Rejected::WindowFull { request, first_unacked });
    }
    let until = format::reply_key(request.client, first_unacked);
    for (key, _) in replies(overlay, &old, &until) {
        overlay.remove(Table::Session, key);
    }
    let expires_at = renewed(overlay, &old, now)?;
    let new = Session { expires_at, first_unacked, ..old.clone() };
    if new != old {
        change::put_session(overlay, Some(&old), &new);
    }
    Ok(None)
}

/// Keeps the answer to a request for its repeats.
pub(crate) fn store(overlay: &mut Overlay<'_>, request: RequestId, command: u8, reply: Reply) {
    // The command may have ended the very session, or acknowledged this very request: nobody would ever remove the answer.
    let kept =
        read::session(overlay, request.client).is_ok_and(|session| request.sequence >= session.first_unacked);
    if !kept {
        return;
    }
    let key = format::reply_key(request.client, request.sequence);
    overlay.put(Table::Session, key, encode(&StoredReply { command, reply }));
}

/// The stored replies of a session before a key. The window bounds their number.
fn replies(view: &dyn View, session: &Session, until: &[u8]) -> Vec<Row> {
    let from = format::reply_key(session.client, session.first_unacked);
    view.scan(Table::Session, &from, until, WINDOW_REQUESTS as usize)
}

/// The end of a session that is used now. It moves only when a quarter of its time is gone, so that not
/// every request writes it.
fn renewed(view: &dyn View, session: &Session, now: UnixMs) -> Result<UnixMs, Rejected> {
    let session_ms = read::settings(view)?.session_ms;
    let wanted = now.plus(Duration::from_millis(session_ms));
    let gained = wanted.since(session.expires_at);
    Ok(if gained > Duration::from_millis(session_ms / 4) { wanted } else { session.expires_at })
}

/// Opens a session, or finds the one that was opened with the same nonce.
pub(crate) fn open(change: &mut Change<'_>, nonce: [u8; 16]) -> Result<Applied, Rejected> {
    if let Some(client) = read::row(change.view(), Table::System, &system::nonce(nonce))? {
        let session = read::session(change.view(), client).map_err(|_| Rejected::Damaged {})?;
        return Ok(Applied::SessionOpened { client, expires_at: session.expires_at });
    }
    let sessions = read::counters(change.view())?.sessions;
    if sessions >= SESSIONS_MAX {
        let (size, limit) = (sessions.saturating_add(1), SESSIONS_MAX);
        return Err(Rejected::TooLarge { what: Limit::Sessions {}, size, limit });
    }
    let client = ClientId::from_raw(change.index().raw());
    let session_ms = read::settings(change.view())?.session_ms;
    let expires_at = change.now().plus(Duration::from_millis(session_ms));
    change.put_new_session(&Session { client, nonce, expires_at, first_unacked: 1 })?;
    Ok(Applied::SessionOpened { client, expires_at })
}

/// Keeps a session alive, and forgets the answers that its client has.
pub(crate) fn renew(
    change: &mut Change<'_>,
    client: ClientId,
    first_unacked: u64,
) -> Result<Applied, Rejected> {
    let old = read::session(change.view(), client)?;
    let first_unacked = first_unacked.max(old.first_unacked);
    for (key, _) in replies(change.view(), &old, &format::reply_key(client, first_unacked)) {
        change.remove_reply(key);
    }
    let expires_at = renewed(change.view(), &old, change.now())?;
    let new = Session { expires_at, first_unacked, ..old.clone() };
    if new != old {
        change.put_session(&old, &new);
    }
    Ok(Applied::SessionRenewed { expires_at })
}

/// Removes sessions whose end has passed by the state's clock. Until this is decided in the log a session
/// lives, so all masters agree on what it may still do.
pub(crate) fn expire(change: &mut Change<'_>, limit: u32) -> Result<Applied, Rejected> {
    let limit = limit.clamp(1, EXPIRE_MAX);
    let until = system::session_ends_after(change.now());
    let due = change.view().scan(Table::System, &[system::SESSION_ENDS], &until, limit as usize + 1);
    let (mut count, mut removed) = (0, 0);
    for (key, _) in due.iter().take(limit as usize) {
        if removed >= EXPIRE_REPLIES {
            break;
        }
        let (_, client) = system::session_of_end(key).ok_or(Rejected::Damaged {})?;
        let session = read::session(change.view(), client).map_err(|_| Rejected::Damaged {})?;
        for (key, _) in replies(change.view(), &session, &format::replies_end(client)) {
            change.remove_reply(key);
            removed += 1;
        }
        change.remove_session(&session)?;
        count += 1;
    }
    Ok(Applied::SessionsExpired { count, more: due.len() > count as usize })
}

#[cfg(test)]
mod tests {
    use gfs_proto::id::LogIndex;
    use gfs_proto::path::FilePath;

    use super::*;
    use crate::state::tests::World;
    use crate::state::{Command, apply};

    #[test]
    fn a_command_ends_fewer_sessions_when_each_has_many_answers() {
        let mut memory = World::with_servers().memory;
        let mut index = 1000;
        let mut propose = |now, request, command: Command| {
            index += 1;
            let proposal = Proposal { request, ..Proposal::internal(UnixMs::from_raw(now), command) };
            let outcome = apply(&memory, LogIndex::from_raw(index), &proposal);
            memory.write(outcome.writes);
            outcome.reply.unwrap()
        };
        for nonce in 1..=8_u8 {
            let opened = propose(1, None, Command::OpenSession { nonce: [nonce; 16] });
            let Applied::SessionOpened { client, .. } = opened else { panic!("{opened:?}") };
            for sequence in 1..=600 {
                let path = FilePath::parse(&format!("/{nonce}-{sequence}")).unwrap();
                let command = Command::Create { path, replication: 0 };
                propose(1, Some(RequestId { client, sequence }), command);
            }
        }
        let mut expire = || propose(u64::MAX, None, Command::ExpireSessions { limit: 1000 });
        assert_eq!(expire(), Applied::SessionsExpired { count: 7, more: true });
        assert_eq!(expire(), Applied::SessionsExpired { count: 1, more: false });
    }
}
