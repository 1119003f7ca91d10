//! The cluster and who belongs to it: bootstrap, chunkservers, masters. Ids are never reused; an identity
//! (the uuid of a data directory) keeps its id wherever its server moves.

use gfs_proto::id::{ChunkHandle, EntryId, MasterId, ServerId, Uuid};
use gfs_proto::size::REPLICATION_MAX;

use crate::state::change::Change;
use crate::state::format::{Counters, Master, Server, Settings, system};
use crate::state::namespace;
use crate::state::read;
use crate::state::reply::{Applied, Limit, Rejected};
use crate::state::table::Table;

/// Longest address, in bytes: a host name and a port.
const ADDRESS_BYTES_MAX: usize = 300;
/// Longest name of a rack, in bytes.
const RACK_BYTES_MAX: usize = 255;

/// Most chunkservers ever registered: bounds what a list of them costs.
const SERVERS_MAX: u64 = 100_000;

/// Makes an empty state into a cluster's.
pub(crate) fn bootstrap(
    change: &mut Change<'_>,
    settings: &Settings,
    first: &Master,
) -> Result<Applied, Rejected> {
    match read::settings(change.view()) {
        Ok(found) if found.cluster == settings.cluster => return Ok(Applied::Done {}),
        Ok(found) => return Err(Rejected::AlreadyBootstrapped { cluster: found.cluster }),
        Err(Rejected::NotBootstrapped {}) => {}
        Err(damaged) => return Err(damaged),
    }
    check_length(Limit::Address {}, &first.address, ADDRESS_BYTES_MAX)?;
    if !(1..=REPLICATION_MAX).contains(&settings.replication) {
        let (size, limit) = (settings.replication.into(), REPLICATION_MAX.into());
        return Err(Rejected::TooLarge { what: Limit::Replication {}, size, limit });
    }
    if first.master == MasterId::default() {
        return Err(Rejected::BadMasterId { master: first.master });
    }
    change.put_settings(settings);
    change.put_counters(&Counters {
        next_entry: EntryId::from_raw(EntryId::ROOT.raw() + 1),
        next_chunk: ChunkHandle::from_raw(1),
        next_server: ServerId::from_raw(1),
        files: 0,
        directories: 1,
        chunks: 0,
        sessions: 0,
    });
    namespace::make_root(change);
    change.put_master(first);
    Ok(Applied::Done {})
}

/// Takes a chunkserver into the cluster, or notes where it is now.
pub(crate) fn register_server(
    change: &mut Change<'_>,
    uuid: Uuid,
    address: &str,
    rack: &str,
) -> Result<Applied, Rejected> {
    check_length(Limit::Address {}, address, ADDRESS_BYTES_MAX)?;
    check_length(Limit::Rack {}, rack, RACK_BYTES_MAX)?;
    let known: Option<ServerId> = read::row(change.view(), Table::System, &system::server_uuid(uuid))?;
    let next = read::counters(change.view())?.next_server.raw();
    if known.is_none() && next > SERVERS_MAX {
        return Err(Rejected::TooLarge { what: Limit::Servers {}, size: next, limit: SERVERS_MAX });
    }
    let server = match known {
        Some(server) => server,
        None => change.draw_server()?,
    };
    change.put_server(&Server { server, uuid, address: address.to_owned(), rack: rack.to_owned() });
    Ok(Applied::ServerRegistered { server })
}

/// Gives a master or shadow its id, which is the log index, or notes where it is now.
pub(crate) fn register_master(
    change: &mut Change<'_>,
    uuid: Uuid,
    address: &str,
    shadow: bool,
) -> Result<Applied, Rejected> {
    check_length(Limit::Address {}, address, ADDRESS_BYTES_MAX)?;
    let known: Option<MasterId> = read::row(change.view(), Table::System, &system::master_uuid(uuid))?;
    let master = known.unwrap_or(MasterId::from_raw(change.index().raw()));
    // The first master's id was not given by the log.
    if known.is_none() && read::master(change.view(), master)?.is_some() {
        return Err(Rejected::BadMasterId { master });
    }
    change.put_master(&Master { master, uuid, address: address.to_owned(), shadow });
    Ok(Applied::MasterRegistered { master })
}

fn check_length(what: Limit, text: &str, limit: usize) -> Result<(), Rejected> {
    if text.len() <= limit {
        return Ok(());
    }
    Err(Rejected::TooLarge { what, size: text.len() as u64, limit: limit as u64 })
}
