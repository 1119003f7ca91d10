//! Random work, a crash at a random change of the disk, recovery: what was promised is there, what is there is whole.

use std::collections::BTreeMap;

use super::version as v;
use super::*;

/// Runs of random work; each has its own seed.
const SEEDS: u64 = 30;
const CHUNKS: u64 = 3;
const CRASHES: u64 = 4;
const STEPS: u64 = 60;

#[derive(Clone, PartialEq, Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    requests: Requests,
    sealed: bool,
}

/// What a replica may be: content after each serial, and how many of them were promised.
#[derive(Clone, Debug)]
struct World {
    version: u64,
    adopted: u64,
    partial: bool,
    history: Vec<Held>,
    /// Survives a power cut, say tickets; does, or the replica is partial; survives the process.
    synced: usize,
    replicated: usize,
    kept: usize,
    /// A promise may have been given that a power cut breaks.
    promised: bool,
}

impl World {
    fn new(version: u64, adopted: u64, held: Held) -> Self {
        let partial = adopted == 0;
        World {
            version,
            adopted,
            partial,
            history: vec![held],
            synced: 0,
            replicated: 0,
            kept: 0,
            promised: false,
        }
    }
    fn last(&self) -> &Held {
        self.history.last().unwrap()
    }
    /// Whether a recovered replica may be this.
    fn allows(&self, state: &ReplicaState, held: &Held, powered: bool) -> bool {
        let serial = state.serial.raw() as usize;
        let lost_promise = !powered && self.promised;
        state.version.raw() == self.version
            && state.adopted.raw() == self.adopted
            && self.history.get(serial) == Some(held)
            && serial >= if powered { self.kept } else { self.synced }
            && (state.partial == self.partial || (state.partial && lost_promise))
            && (powered || serial >= self.replicated || state.partial)
            && state.commit_mark.is_none_or(|mark| mark <= state.serial)
            && !state.corrupt
    }
}

/// The model: what each replica may be; `None` is no replica.
struct Run {
    seed: u64,
    /// What was lent to be sent, and the bytes that it had.
    lent: Vec<(FileRange, u32, Vec<u8>)>,
    random: SeededRandom,
    memory: MemoryFiles,
    files: Arc<dyn Files>,
    worlds: BTreeMap<u64, Vec<Option<World>>>,
    waiting: Vec<(u64, usize, Durability, Ticket)>,
    sequence: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (memory, files) = memory();
        let random = SeededRandom::new(seed);
        let worlds = (0..CHUNKS).map(|chunk| (chunk, vec![None])).collect();
        Run { seed, lent: Vec::new(), random, memory, files, worlds, waiting: Vec::new(), sequence: 0 }
    }
    fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }
    fn world(&mut self, chunk: u64) -> Option<&mut World> {
        let worlds = self.worlds.get_mut(&chunk).unwrap();
        assert_eq!(worlds.len(), 1);
        worlds[0].as_mut()
    }

    fn run(&mut self) {
        for _ in 0..CRASHES {
            let store = open_in(&self.files, self.random.bits64()).unwrap();
            let ends_well = self.below(8) == 0;
            if !ends_well {
                self.memory.die_after(1 + self.below(150));
            }
            for _ in 0..STEPS {
                if let Err(error) = self.step(&store) {
                    assert!(self.memory.is_dead(), "seed {}: {error}", self.seed);
                    break;
                }
            }
            self.check_lent();
            if ends_well {
                store.close().unwrap();
                self.settle_tickets();
            }
            self.crash(store);
        }
    }

    fn settle_tickets(&mut self) {
        for (chunk, serial, durability, ticket) in std::mem::take(&mut self.waiting) {
            let done = ticket.wait().is_ok();
            self.note(chunk, serial, durability, done);
        }
    }
    fn note(&mut self, chunk: u64, serial: usize, durability: Durability, done: bool) {
        let worlds = self.worlds.get_mut(&chunk).unwrap();
        for world in worlds.iter_mut().flatten().filter(|_| done) {
            if world.history.len() > serial {
                world.kept = world.kept.max(serial);
                if durability >= Durability::Replicated {
                    world.replicated = world.replicated.max(serial);
                }
                if durability == Durability::Synced {
                    world.synced = world.synced.max(serial);
                }
            }
        }
    }

    /// Ends the process somehow and checks what is left.
    fn crash(&mut self, store: Store) {
        let mut powered = self.below(2) == 0;
        // Tickets of a dead process may have been done before it died.
        let before: Vec<_> = std::mem::take(&mut self.waiting);
        self.memory.die_after(0);
        drop(store);
        for (chunk, serial, durability, ticket) in before {
            let done = ticket.wait().is_ok();
            self.note(chunk, serial, durability, done);
        }
        if powered {
            self.memory.kill();
        } else {
            self.memory.cut_power(&self.random);
        }
        if self.below(4) == 0 {
            // A crash of the recovery itself.
            self.memory.die_after(1 + self.below(30));
            drop(open_in(&self.files, self.random.bits64()));
            if self.below(2) == 0 {
                self.memory.kill();
            } else {
                self.memory.cut_power(&self.random);
                powered = false;
            }
        }
        let store = open_in(&self.files, self.random.bits64())
            .unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        for chunk in 0..CHUNKS {
            self.check(&store, chunk, powered);
        }
        drop(store);
        self.memory.kill();
    }

    fn check(&mut self, store: &Store, chunk: u64, powered: bool) {
        let found = store.state(handle(chunk)).ok();
        let worlds = self.worlds.remove(&chunk).unwrap();
        let Some(state) = found else {
            assert!(worlds.iter().any(Option::is_none), "seed {}: c{chunk} is gone", self.seed);
            self.worlds.insert(chunk, vec![None]);
            return;
        };
        let content = store.content(handle(chunk)).unwrap();
        let bytes = whole(store, handle(chunk))
            .unwrap_or_else(|error| panic!("seed {}: c{chunk} {state:?}: {error}", self.seed));
        let held = Held { bytes: bytes.to_vec(), requests: content.requests, sealed: content.sealed };
        let fits = worlds.iter().flatten().find(|world| world.allows(&state, &held, powered));
        let Some(world) = fits else {
            let known: Vec<_> = worlds
                .iter()
                .map(|world| {
                    world.as_ref().map(|w| {
                        let lengths: Vec<_> = w.history.iter().map(|held| held.bytes.len()).collect();
                        let at = w.history.iter().position(|other| *other == held);
                        (
                            w.version,
                            w.adopted,
                            w.partial,
                            w.synced,
                            w.replicated,
                            w.kept,
                            w.promised,
                            at,
                            lengths,
                        )
                    })
                })
                .collect();
            panic!("seed {}: c{chunk} is {state:?} (powered {powered}), not of {known:?}", self.seed);
        };
        let mut world = world.clone();
        let serial = state.serial.raw() as usize;
        world.history.truncate(serial + 1);
        (world.synced, world.replicated, world.kept) = (serial, serial, serial);
        world.promised = false;
        world.partial = state.partial;
        self.worlds.insert(chunk, vec![Some(world)]);
    }

    fn step(&mut self, store: &Store) -> Result<()> {
        let chunk = self.below(CHUNKS);
        let Some(world) = self.world(chunk).cloned() else {
            let version = 1 + self.below(3);
            let fresh = self.below(2) == 0;
            let made = World::new(version, if fresh { version } else { 0 }, Held::default());
            let id = handle(chunk);
            return self.change(chunk, Some(made), || {
                if fresh {
                    store.create(id, v(version)).map(drop)
                } else {
                    store.store_version(id, v(version), Membership::Joiner).map(drop)
                }
            });
        };
        match self.below(24) {
            0 => {
                let gone = v(world.version);
                self.change(chunk, None, || store.delete(handle(chunk), gone).map(drop))
            }
            1 => self.regrant(store, chunk, world, Membership::Base),
            2 => self.regrant(store, chunk, world, Membership::Joiner),
            3 if !self.waiting.is_empty() => {
                self.settle_tickets();
                Ok(())
            }
            4 => {
                let read = whole(store, handle(chunk))?;
                assert!(read == world.last().bytes, "seed {}: c{chunk} reads otherwise", self.seed);
                self.lend(store, chunk, &read);
                Ok(())
            }
            5 => store.set_commit_mark(
                handle(chunk),
                v(world.adopted),
                Serial::from_raw(world.history.len() as u64 - 1),
            ),
            _ if world.adopted != world.version || world.partial => self.adopt(store, chunk, world),
            _ => self.mutate(store, chunk, world),
        }
    }

    /// Takes a block as a read does that is to be sent.
    fn lend(&mut self, store: &Store, chunk: u64, bytes: &[u8]) {
        let blocks = bytes.len() as u64 / u64::from(BLOCK_BYTES);
        if blocks == 0 {
            return;
        }
        let offset = self.below(blocks) as u32 * BLOCK_BYTES;
        if let Ok(range) = store.file_range(handle(chunk), offset, BLOCK_BYTES) {
            let bytes = bytes[offset as usize..][..BLOCK_BYTES as usize].to_vec();
            self.lent.push((range, offset, bytes));
        }
    }

    /// Who is still being sent it gets what it was.
    fn check_lent(&mut self) {
        for (range, offset, before) in std::mem::take(&mut self.lent) {
            let mut now = vec![0; before.len()];
            let read = range.file.read_at(&mut now, offset.into()).is_ok_and(|read| read == now.len());
            // The machine may have died.
            assert!(!read || now == before, "seed {}: other bytes are sent", self.seed);
        }
    }

    /// Does something that replaces a replica; when it fails, either may be there.
    fn change(&mut self, chunk: u64, new: Option<World>, act: impl FnOnce() -> Result<()>) -> Result<()> {
        self.settle_tickets();
        let result = act();
        let worlds = self.worlds.get_mut(&chunk).unwrap();
        if result.is_ok() {
            worlds.clear();
        }
        worlds.push(new);
        result
    }

    fn regrant(&mut self, store: &Store, chunk: u64, old: World, membership: Membership) -> Result<()> {
        let version = old.version + 1 + self.below(2);
        let new = match membership {
            Membership::Base => World { version, ..old },
            Membership::Joiner => World::new(version, 0, Held::default()),
        };
        self.change(chunk, Some(new), || store.store_version(handle(chunk), v(version), membership).map(drop))
    }

    fn adopt(&mut self, store: &Store, chunk: u64, old: World) -> Result<()> {
        if old.version == old.adopted {
            let next = old.clone();
            return self.regrant(store, chunk, next, Membership::Base);
        }
        let mut held = old.last().clone();
        match self.below(4) {
            0 => {}
            1 => held.bytes.extend(pattern(self.below(150_000) as usize, self.random.bits64())),
            2 => held.bytes = pattern(self.below(200_000) as usize, self.random.bits64()).to_vec(),
            _ => {
                // A diverged tail.
                held.bytes.truncate(held.bytes.len() / 2);
                held.bytes.extend(pattern(self.below(100_000) as usize, self.random.bits64()));
            }
        }
        held.bytes.truncate(512 * 1024);
        let fits = |at: &Outcome| (at.offset + at.length) as usize <= held.bytes.len();
        let outcomes = held.requests.outcomes().filter(|(_, at)| fits(at));
        held.requests =
            Requests::new(outcomes.collect::<Vec<_>>(), held.requests.first_kept().collect::<Vec<_>>());
        let content = Content {
            length: held.bytes.len() as u32,
            block_crcs: held.bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect(),
            requests: held.requests.clone(),
            sealed: held.sealed,
            serial: Serial::from_raw(9),
        };
        let new = World::new(old.version, old.version, held.clone());
        let abandoned = self.below(4) == 0;
        let version = v(old.version);
        let act = || -> Result<()> {
            let mut adoption = store.adopt((handle(chunk), version), (content, Origin::Unknown))?;
            while let Some(range) = adoption.missing().first().cloned() {
                adoption.write(range.start, &held.bytes[range.start as usize..range.end as usize])?;
            }
            if abandoned {
                return Ok(());
            }
            adoption.commit().map(drop)
        };
        if abandoned { act() } else { self.change(chunk, Some(new), act) }
    }

    fn mutate(&mut self, store: &Store, chunk: u64, world: World) -> Result<()> {
        let mut held = world.last().clone();
        let length = held.bytes.len() as u64;
        let size = match self.below(4) {
            0 => self.below(100),
            1 => self.below(5_000),
            2 => self.below(70_000),
            _ => self.below(140_000),
        };
        let room = 512 * 1024;
        let durability =
            [Durability::Synced, Durability::Synced, Durability::Deferred, Durability::Replicated]
                [self.below(4) as usize];
        let kind = match self.below(12) {
            0 => MutationKind::Sync,
            1 if !held.sealed && self.below(8) == 0 => MutationKind::Seal,
            2..=5 => MutationKind::Write { offset: self.below(length + 1) as u32 },
            6 => MutationKind::Write { offset: (length + self.below(80_000)) as u32 },
            _ if held.sealed => MutationKind::Write { offset: length as u32 },
            _ => MutationKind::Append,
        };
        let offset = match kind {
            MutationKind::Write { offset } => u64::from(offset),
            MutationKind::Append | MutationKind::Seal | MutationKind::Sync => length,
        };
        let size = if matches!(kind, MutationKind::Seal | MutationKind::Sync) { 0 } else { size };
        let size = size.min(room.max(offset) - offset) as usize;
        if offset > room {
            return Ok(());
        }
        let data = pattern(size, self.random.bits64());
        self.sequence += 1;
        let id = (self.below(2) == 0).then(|| request(self.sequence)).flatten();
        let first_unacked = self.sequence.saturating_sub(self.below(20));
        let offset = if size == 0 { length as usize } else { offset as usize };
        if size > 0 {
            held.bytes.resize(held.bytes.len().max(offset + size), 0);
            held.bytes[offset..offset + size].copy_from_slice(&data);
        }
        if let Some(id) = id {
            held.requests.record(id, first_unacked, Outcome { offset: offset as u32, length: size as u32 });
        }
        held.sealed |= kind == MutationKind::Seal;
        let serial = world.history.len();
        let mutation = Mutation {
            version: v(world.version),
            serial: Serial::from_raw(serial as u64),
            kind,
            data,
            request: id,
            first_unacked,
            durability,
        };
        let result = store.apply(handle(chunk), &mutation);
        let world = self.world(chunk).unwrap();
        world.promised |= durability == Durability::Replicated;
        world.history.push(held);
        let ticket = result?;
        let durability = if kind == MutationKind::Sync { Durability::Synced } else { durability };
        self.waiting.push((chunk, serial, durability, ticket));
        Ok(())
    }
}

#[test]
fn promised_content_survives_a_crash_at_any_change_of_the_disk() {
    for seed in 0..SEEDS {
        Run::new(seed).run();
    }
}
