//! The metadata cache: where chunks are, and who may mutate them (GFS §2.7.1). Holds no file data.
//!
//! What it says may be old: versions are checked by the chunkservers, and an error drops the entry (trap T12).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::id::{ChunkHandle, ChunkIndex, ChunkVersion, EntryId, ServerId};
use gfs_proto::link::Peer;
use gfs_proto::time::Moment;
use parking_lot::Mutex;

use crate::entry::Server;

/// How long a location is believed.
const LOCATION_LIFE: Duration = Duration::from_secs(60);
/// How long a server that did not answer is asked last.
const AVOIDED_FOR: Duration = Duration::from_secs(10);
/// Most entries of each kind.
const ENTRIES_MAX: usize = 16 * 1024;
/// Most servers that are asked last.
const AVOIDED_MAX: usize = 1024;

/// Where the replicas of a chunk are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Location {
    pub(crate) handle: ChunkHandle,
    /// The confirmed version, [`ChunkVersion::NONE`] of a chunk that never had a grant confirmed.
    pub(crate) version: ChunkVersion,
    pub(crate) replicas: Vec<Server>,
}

/// Who orders the mutations of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lease {
    pub(crate) index: ChunkIndex,
    pub(crate) handle: ChunkHandle,
    pub(crate) version: ChunkVersion,
    pub(crate) primary: Peer,
    pub(crate) replicas: Vec<Server>,
}

type Key = (EntryId, ChunkIndex);

/// Entries with an end of life, the oldest thrown out first.
#[derive(Debug)]
struct Aging<K, V> {
    entries: BTreeMap<K, (Moment, V)>,
    /// Keys in the order of their coming; may name entries that are gone.
    order: VecDeque<K>,
    limit: usize,
}

impl<K: Ord + Copy, V: Clone> Aging<K, V> {
    fn new(limit: usize) -> Self {
        Self { entries: BTreeMap::new(), order: VecDeque::new(), limit }
    }
    fn insert(&mut self, key: K, value: V, ends: Moment) {
        if self.entries.insert(key, (ends, value)).is_none() {
            self.order.push_back(key);
        }
        while self.entries.len() > self.limit || self.order.len() > 2 * self.limit {
            let Some(oldest) = self.order.pop_front() else { break };
            self.entries.remove(&oldest);
        }
    }
    fn find(&self, key: K, now: Moment) -> Option<V> {
        self.entries.get(&key).filter(|(ends, _)| now < *ends).map(|(_, value)| value.clone())
    }
}

/// The cache of one client.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Held for single steps only.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    locations: Aging<Key, Arc<Location>>,
    leases: Aging<Key, Arc<Lease>>,
    avoided: Aging<ServerId, ()>,
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                locations: Aging::new(ENTRIES_MAX),
                leases: Aging::new(ENTRIES_MAX),
                avoided: Aging::new(AVOIDED_MAX),
            }),
        }
    }

    pub(crate) fn location(&self, file: EntryId, index: ChunkIndex, now: Moment) -> Option<Arc<Location>> {
        self.inner.lock().locations.find((file, index), now)
    }
    pub(crate) fn put_location(&self, file: EntryId, index: ChunkIndex, location: Location, now: Moment) {
        // A chunk without a confirmed grant gets one any moment: not worth keeping.
        if location.version != ChunkVersion::NONE && !location.replicas.is_empty() {
            let ends = now.plus(LOCATION_LIFE);
            self.inner.lock().locations.insert((file, index), Arc::new(location), ends);
        }
    }
    /// Drops a location that has proven wrong, unless it has been replaced meanwhile.
    pub(crate) fn drop_location(&self, file: EntryId, index: ChunkIndex, wrong: &Location) {
        let mut inner = self.inner.lock();
        if inner.locations.entries.get(&(file, index)).is_some_and(|(_, held)| **held == *wrong) {
            inner.locations.entries.remove(&(file, index));
        }
    }

    pub(crate) fn lease(&self, file: EntryId, index: ChunkIndex, now: Moment) -> Option<Arc<Lease>> {
        self.inner.lock().leases.find((file, index), now)
    }
    /// Keeps a lease for `life`; its members are also the newest locations.
    pub(crate) fn put_lease(&self, file: EntryId, lease: &Arc<Lease>, now: Moment, life: Duration) {
        let Lease { index, handle, version, .. } = **lease;
        let location = Location { handle, version, replicas: lease.replicas.clone() };
        self.put_location(file, index, location, now);
        self.inner.lock().leases.insert((file, index), lease.clone(), now.plus(life));
    }
    /// Drops a lease that has proven wrong, unless there is a newer one.
    pub(crate) fn drop_lease(&self, file: EntryId, wrong: &Lease) {
        let mut inner = self.inner.lock();
        let key = (file, wrong.index);
        // Copy on write gives the place another chunk, whose versions begin anew.
        let is_wrong = |held: &Lease| held.handle == wrong.handle && held.version <= wrong.version;
        if inner.leases.entries.get(&key).is_some_and(|(_, held)| is_wrong(held)) {
            inner.leases.entries.remove(&key);
        }
    }

    /// Forgets everything about a file: done when it is opened (GFS §2.7.1).
    pub(crate) fn purge(&self, file: EntryId) {
        let all = (file, ChunkIndex::from_raw(0))..=(file, ChunkIndex::from_raw(u32::MAX));
        let mut inner = self.inner.lock();
        let keys: Vec<Key> = inner.locations.entries.range(all.clone()).map(|(key, _)| *key).collect();
        for key in keys {
            inner.locations.entries.remove(&key);
        }
        let keys: Vec<Key> = inner.leases.entries.range(all).map(|(key, _)| *key).collect();
        for key in keys {
            inner.leases.entries.remove(&key);
        }
    }

    /// Asks a server last for a while, because it did not answer.
    pub(crate) fn avoid(&self, server: ServerId, now: Moment) {
        self.inner.lock().avoided.insert(server, (), now.plus(AVOIDED_FOR));
    }
    /// Moves the servers that did not answer lately to the end.
    pub(crate) fn avoided_last(&self, servers: &mut [Server], now: Moment) {
        let inner = self.inner.lock();
        servers.sort_by_key(|server| inner.avoided.find(server.id, now).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: EntryId = EntryId::from_raw(7);

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }
    fn index(index: u32) -> ChunkIndex {
        ChunkIndex::from_raw(index)
    }
    fn server(id: u64) -> Server {
        Server { id: ServerId::from_raw(id), address: format!("h{id}:1"), rack: String::new() }
    }
    fn location(version: u64) -> Location {
        Location {
            handle: ChunkHandle::from_raw(1),
            version: ChunkVersion::from_raw(version),
            replicas: vec![server(1)],
        }
    }
    fn lease(version: u64) -> Arc<Lease> {
        Arc::new(Lease {
            index: index(0),
            handle: ChunkHandle::from_raw(1),
            version: ChunkVersion::from_raw(version),
            primary: Peer { server: ServerId::from_raw(1), address: "h1:1".into() },
            replicas: vec![server(1)],
        })
    }

    #[test]
    fn a_location_ends_after_its_life_and_when_the_file_is_opened() {
        let cache = Cache::new();
        cache.put_location(FILE, index(3), location(1), at(0));
        assert!(cache.location(FILE, index(3), at(59)).is_some());
        assert!(cache.location(FILE, index(3), at(60)).is_none());
        cache.put_location(EntryId::from_raw(8), index(0), location(1), at(0));
        cache.purge(FILE);
        assert!(cache.location(FILE, index(3), at(1)).is_none());
        assert!(cache.location(EntryId::from_raw(8), index(0), at(1)).is_some());
    }

    #[test]
    fn an_error_drops_what_it_was_about_and_nothing_newer() {
        let cache = Cache::new();
        cache.put_lease(FILE, &lease(2), at(0), Duration::from_secs(60));
        assert_eq!(cache.location(FILE, index(0), at(0)).unwrap().version.raw(), 2);
        cache.drop_lease(FILE, &lease(1));
        cache.drop_location(FILE, index(0), &location(1));
        assert!(
            cache.lease(FILE, index(0), at(1)).is_some() && cache.location(FILE, index(0), at(1)).is_some()
        );
        cache.drop_lease(FILE, &lease(2));
        cache.drop_location(FILE, index(0), &location(2));
        assert!(
            cache.lease(FILE, index(0), at(1)).is_none() && cache.location(FILE, index(0), at(1)).is_none()
        );
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut aging = Aging::new(2);
        for key in 0..1000 {
            aging.insert(key % 5, key, at(1));
            assert!(aging.entries.len() <= 2 && aging.order.len() <= 4);
        }
        assert_eq!(aging.find(4, at(0)), Some(999));
        assert_eq!(aging.find(4, at(1)), None);
    }

    #[test]
    fn a_chunk_without_a_confirmed_grant_is_not_kept() {
        let cache = Cache::new();
        cache.put_location(FILE, index(0), location(0), at(0));
        assert!(cache.location(FILE, index(0), at(0)).is_none());
    }

    #[test]
    fn a_silent_server_is_asked_last_for_a_while() {
        let cache = Cache::new();
        cache.avoid(ServerId::from_raw(1), at(0));
        let mut servers = [server(1), server(2)];
        cache.avoided_last(&mut servers, at(1));
        assert_eq!(servers, [server(2), server(1)]);
        servers.reverse();
        cache.avoided_last(&mut servers, at(10));
        assert_eq!(servers, [server(1), server(2)]);
    }
}
