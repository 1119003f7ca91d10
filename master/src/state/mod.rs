//! The replicated state: a pure function of the command log (GFS §2.6.1, §2.6.3). Knows no disk, network,
//! clock or dice.
//!
//! One way in: [`apply`]. Lookups: [`read`]. Keys and values: [`format`](mod@format).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod build;
mod change;
mod chunk;
pub(crate) mod codec;
pub mod command;
pub mod format;
pub mod hash;
pub mod invariant;
pub mod lease;
mod member;
mod namespace;
pub mod read;
pub mod reply;
pub mod session;
pub mod snapshot;
pub mod table;
mod trash;

#[cfg(test)]
mod tests;

use gfs_proto::id::{ChunkHandle, LogIndex};
use gfs_proto::time::UnixMs;

use change::Change;

pub use codec::DecodeError;
pub use command::{Command, Proposal};
pub use format::{
    Accepted, Build, Chunk, Counters, Entry, EntryKind, Lease, Master, Origin, Pending, Place, Server,
    Session, Settings, Trashed,
};
pub use reply::{Applied, Rejected, Reply};
pub use table::{Memory, Overlay, Row, Table, View, Writes};

/// What a command does to the state, and what it answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The changes, to be made in one piece.
    pub writes: Writes,
    /// Log index at which the answer was decided: for a repeated request that of the first time.
    pub decided_at: LogIndex,
    /// The answer.
    pub reply: Result<Applied, Rejected>,
    /// Chunks whose members, version, lease or existence changed.
    pub touched: Vec<ChunkHandle>,
}

impl Outcome {
    /// Whether the state can't be read: this master has to stop, and nothing of the outcome may be used.
    pub fn is_damaged(&self) -> bool {
        self.reply == Err(Rejected::Damaged {})
    }
    /// The answer, as raft carries it.
    pub fn into_reply(self) -> Reply {
        Reply { decided_at: self.decided_at, result: self.reply }
    }
}

/// Applies one committed command: the only way this state ever changes.
///
/// A refused command changes nothing but the stored reply of its session, and the clock.
pub fn apply(view: &dyn View, index: LogIndex, proposal: &Proposal) -> Outcome {
    decide(view, index, proposal).unwrap_or_else(|rejected| Outcome {
        writes: Writes::default(),
        decided_at: index,
        reply: Err(rejected),
        touched: Vec::new(),
    })
}

fn decide(view: &dyn View, index: LogIndex, proposal: &Proposal) -> Result<Outcome, Rejected> {
    let mut overlay = Overlay::new(view);
    let now = tick(&mut overlay, proposal)?;
    // Before any precondition: a repeat finds the world as its first time left it (traps T30).
    if let Some(request) = proposal.request
        && let Some(first) = session::admit(&mut overlay, now, request, proposal)?
    {
        let Reply { decided_at, result: reply } = first;
        return Ok(Outcome { writes: overlay.into_writes(), decided_at, reply, touched: Vec::new() });
    }
    let mut change = Change::new(&overlay, index, now);
    let reply = run(&mut change, proposal);
    let mut touched = Vec::new();
    match &reply {
        Ok(_) => {
            let (writes, handles) = change.into_parts();
            overlay.absorb(writes);
            touched = handles;
        }
        Err(Rejected::Damaged {}) => return Err(Rejected::Damaged {}),
        Err(_) => {}
    }
    if let Some(request) = proposal.request
        && !reply.as_ref().is_err_and(Rejected::is_undecided)
    {
        let reply = Reply { decided_at: index, result: reply.clone() };
        session::store(&mut overlay, request, proposal.command.tag(), reply);
    }
    Ok(Outcome { writes: overlay.into_writes(), decided_at: index, reply, touched })
}

/// Moves the state's clock on, never back (traps T31), and tells it.
fn tick(overlay: &mut Overlay<'_>, proposal: &Proposal) -> Result<UnixMs, Rejected> {
    if !matches!(proposal.command, Command::Bootstrap { .. }) {
        read::settings(overlay)?;
    }
    let clock = read::clock(overlay)?;
    if proposal.now > clock {
        overlay.put(Table::System, format::system::CLOCK.to_vec(), codec::encode(&proposal.now));
    }
    Ok(clock.max(proposal.now))
}

fn run(change: &mut Change<'_>, proposal: &Proposal) -> Result<Applied, Rejected> {
    match &proposal.command {
        &Command::Bootstrap {
            cluster,
            chunk_bytes,
            replication,
            trash_ms,
            session_ms,
            master,
            uuid,
            ref address,
        } => {
            let created_at = change.now();
            let settings = Settings { cluster, chunk_bytes, replication, trash_ms, session_ms, created_at };
            let first = Master { master, uuid, address: address.clone(), shadow: false };
            member::bootstrap(change, &settings, &first)
        }
        Command::OpenSession { nonce } => session::open(change, *nonce),
        Command::RenewSession { client } => session::renew(change, *client, proposal.first_unacked),
        Command::ExpireSessions { limit } => session::expire(change, *limit),
        Command::Mkdir { path, parents } => namespace::mkdir(change, path, *parents),
        Command::Create { path, replication } => namespace::create(change, path, *replication),
        Command::Delete { path, recursive } => namespace::delete(change, path, *recursive),
        Command::Rename { source, target, replace } => namespace::rename(change, source, target, *replace),
        Command::Undelete { entry, target } => trash::undelete(change, *entry, target),
        Command::Expedite { entry } => trash::expedite(change, *entry),
        Command::CollectTrash { limit } => trash::collect(change, *limit),
        Command::AddChunk { file, expected_count, members, primary } => {
            chunk::add(change, *file, *expected_count, members, *primary)
        }
        &Command::PrepareGrant {
            handle,
            expected_version,
            ref members,
            ref base,
            primary,
            writer,
            fresh,
        } => {
            let wish = lease::Wish { handle, expected_version, members, base, primary, writer, fresh };
            lease::prepare(change, &wish)
        }
        Command::AcceptReplica { handle, expected_version, server } => {
            lease::accept(change, *handle, *expected_version, *server)
        }
        Command::ConfirmGrant { handle, version, lease_expires_at } => {
            lease::confirm(change, *handle, *version, *lease_expires_at)
        }
        Command::ExtendLeases { leases, expires_at } => lease::extend(change, leases, *expires_at),
        Command::RegisterServer { uuid, address, rack } => {
            member::register_server(change, *uuid, address, rack)
        }
        Command::RegisterMaster { uuid, address, shadow } => {
            member::register_master(change, *uuid, address, *shadow)
        }
        Command::Snapshot { source, target } => {
            snapshot::snapshot(change, (source, target), proposal.request)
        }
        Command::BeginSnapshot { source, target, request } => build::begin(change, source, target, *request),
        Command::BuildSnapshot { root, limit } => build::step(change, *root, *limit),
        Command::AbandonSnapshot { root, handle } => build::abandon(change, *root, *handle),
        Command::ReserveChunk {} => Ok(Applied::Reserved { handle: change.reserve_chunk()? }),
        &Command::CopyChunk { file, index, old, version, copy, ref members } => {
            snapshot::copy(change, &snapshot::Copy { file, index, old, version, copy, members })
        }
    }
}
