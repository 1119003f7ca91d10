//! What must be true at every moment, looked at from outside without changing anything.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use gfs_chunkserver::store::ReplicaState;
use gfs_master::state::format::END;
use gfs_master::state::{Table, View, invariant, read};
use gfs_proto::id::ChunkVersion;
use gfs_proto::time::UnixMs;

use crate::doors::EPOCH_MS;
use crate::hosts::{Role, Servers};

/// How near a master's own clock has to be to the group's to count as it is, and a second.
const CLOCKS_APART: Duration = Duration::from_secs(6);
/// Findings after which a probe says no more.
const FINDINGS_MAX: usize = 20;

/// Remembers what it has seen.
#[derive(Default)]
pub(crate) struct Probe {
    /// The one leader of each term.
    leaders: BTreeMap<u64, String>,
    /// The state's hash at each index, and who had it first.
    states: BTreeMap<u64, (u64, String)>,
    pub(crate) findings: Vec<String>,
    /// Checks made.
    pub(crate) checks: u64,
}

impl Probe {
    fn find(&mut self, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(what);
        }
    }

    /// At most one leader per term: cheap enough for every step.
    pub(crate) fn check_leaders(&mut self, servers: &Servers) {
        for server in servers.of(Role::Master).chain(servers.of(Role::Shadow)) {
            let node = server.node.borrow();
            let Some(leadership) = node.as_ref().map(|node| node.leadership().borrow().clone()) else {
                continue;
            };
            if !leadership.leading {
                continue;
            }
            let first = self.leaders.entry(leadership.term.raw()).or_insert_with(|| server.name.clone());
            if *first != server.name {
                let what = format!("term {} has two leaders: {first} and {}", leadership.term, server.name);
                self.find(what);
            }
        }
    }

    /// The masters' states keep their invariants and are the same at the same index; replicas that applied the same
    /// mutations hold the same.
    pub(crate) fn check_states(&mut self, servers: &Servers, elapsed: Duration) {
        self.checks += 1;
        self.check_masters(servers, elapsed);
        self.check_replicas(servers);
    }

    fn check_masters(&mut self, servers: &Servers, elapsed: Duration) {
        for server in servers.of(Role::Master).chain(servers.of(Role::Shadow)) {
            let view = match &*server.node.borrow() {
                Some(node) => node.view(),
                None => continue,
            };
            let index = view.applied().raw();
            let hash = hash(&view);
            match self.states.get(&index) {
                Some((other, _)) if *other == hash => continue,
                Some((_, first)) => {
                    let what = format!("the states of {first} and {} differ at index {index}", server.name);
                    self.find(what);
                }
                None => {
                    self.states.insert(index, (hash, server.name.clone()));
                }
            }
            // Promise P7: what ends at a date does not end because one clock is wrong (decision 0023).
            let (dated, latest) = (read::clock(&view).unwrap_or_default(), latest(servers, elapsed));
            if dated > latest {
                self.find(format!(
                    "the state of {} is at {dated}, no clock but the liar's beyond {latest}",
                    server.name
                ));
            }
            if let Err(broken) = invariant::check(&view) {
                self.find(format!("the state of {} at index {index}: {broken}", server.name));
            }
        }
    }

    fn check_replicas(&mut self, servers: &Servers) {
        let mut alike: BTreeMap<_, Vec<(&str, &gfs_chunkserver::store::Store)>> = BTreeMap::new();
        let stores: Vec<_> = servers
            .of(Role::Chunkserver)
            .filter_map(|server| Some((server.name.as_str(), server.store.borrow().clone()?)))
            .collect();
        for (name, store) in &stores {
            let complete = |replica: &ReplicaState| {
                !replica.partial && !replica.corrupt && replica.adopted != ChunkVersion::NONE
            };
            for replica in store.list().into_iter().filter(complete) {
                let key = (replica.handle, replica.adopted, replica.serial);
                alike.entry(key).or_default().push((name, store));
            }
        }
        for ((handle, version, serial), holders) in alike {
            let mut first = None;
            for (name, store) in holders {
                let Ok(content) = store.content(handle) else { continue };
                let told = (content.length, content.sealed, content.block_crcs);
                match &first {
                    None => first = Some((name, told)),
                    Some((_, other)) if *other == told => {}
                    Some((other, _)) => self.find(format!(
                        "chunk {handle} differs on {other} and {name} at version {version}, serial {serial}"
                    )),
                }
            }
        }
    }

    /// At the end, all masters have applied the same.
    pub(crate) fn check_end(&mut self, servers: &Servers, elapsed: Duration) {
        self.check_states(servers, elapsed);
        let mut ends = BTreeMap::new();
        for server in servers.of(Role::Master).chain(servers.of(Role::Shadow)) {
            match &*server.node.borrow() {
                Some(node) => ends.insert(server.name.clone(), node.view().applied().raw()),
                None => ends.insert(server.name.clone(), 0),
            };
        }
        let (least, most) = (ends.values().min(), ends.values().max());
        // The leader goes on meanwhile: a few entries may be under way.
        if most.copied().unwrap_or(0) > least.copied().unwrap_or(0) + 20 {
            self.find(format!("the masters do not come together: {ends:?}"));
        }
    }
}

/// What no wall clock but the liar's shows yet: they are off by a jump and run too fast by less than a tenth. The liar's counts
/// as long as it is as near as that.
fn latest(servers: &Servers, elapsed: Duration) -> UnixMs {
    let jump = Duration::from_millis(servers.plan.jump_ms_max().unsigned_abs());
    UnixMs::from_raw(EPOCH_MS).plus(elapsed + elapsed / 10 + jump + CLOCKS_APART)
}

/// A hash of the whole replicated state.
fn hash(view: &dyn View) -> u64 {
    let mut hasher = DefaultHasher::new();
    for table in Table::ALL {
        for (key, value) in view.scan(table, &[], &END, usize::MAX) {
            hasher.write_usize(key.len());
            hasher.write(&key);
            hasher.write_usize(value.len());
            hasher.write(&value);
        }
        hasher.write_u8(0);
    }
    hasher.finish()
}
