//! The state of the model: the master log, the leader's soft state, the chunkservers, the messages under way.

use crate::config::Config;
use crate::log::{Log, SEAL, compatible, has, is_prefix, length, position, prefix, record};

/// Chunkservers in the model.
pub(crate) const SERVERS: usize = 3;
/// Versions are 1..VERSIONS.
pub(crate) const VERSIONS: usize = 7;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) enum Role {
    #[default]
    None,
    Collecting, // named primary of a prepared grant; gets the members' content
    Reconciled, // every member holds the agreed content; waits for the confirm
    Active,     // orders mutations, knows the committed position
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Server {
    // durable
    pub(crate) version: u8,
    pub(crate) adopted: u8, // the version at which this replica last took the reconciled content
    pub(crate) log: Log,
    pub(crate) synced: u8, // how much of it a power cut cannot take (only `power` looks)
    pub(crate) partial: bool, // not whole: joins and has not adopted, or lost power with unsynced records; serves nothing, is no base
    pub(crate) commit: u8,    // the greatest position known to be committed: a lower bound, written lazily
    pub(crate) previous: u8,  // the version before the last store (only for the bug "version not durable")
    pub(crate) dead: bool,
    // volatile
    pub(crate) role: Role,
    pub(crate) plan: Log, // what the primary has assigned, the content it started with included
    pub(crate) valid: bool, // fresh and told that it is a member: may serve reads
    pub(crate) answer: bool, // a heartbeat answer that says so is on its way
}

/// One prepared grant, with every message ever sent about it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Grant {
    pub(crate) members: u8,
    pub(crate) base: u8, // the members whose content counts: confirmed members when the grant was prepared; the others join
    pub(crate) primary: u8,
    pub(crate) writer: bool,
    pub(crate) collected: u8,
    pub(crate) sent: bool, // the Adopt message exists, with `adopt` as the content every member must take
    pub(crate) adopt: Log,
    pub(crate) adopted: u8, // replies to it
    pub(crate) reconciled: bool,
    pub(crate) confirmed: bool,
    pub(crate) fenced: bool, // everyone left out was once fenced (only the bug "confirm is not a compare-and-set" looks)
    pub(crate) applied: [u8; SERVERS], // replies "applied up to", the greatest of each server
    pub(crate) commit: u8,   // the greatest commit notice of this grant's primary
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct State {
    // the chunk in the log
    pub(crate) version: u8,
    pub(crate) confirmed: u8,
    pub(crate) members: u8,
    pub(crate) out: u8, // the leader's soft state: servers left out by the pending grant and known to serve no more
    pub(crate) grants: [Grant; VERSIONS],
    pub(crate) forwards: u128, // Forward messages: a bit per (version, index, record)
    pub(crate) servers: [Server; SERVERS],
    // clients
    pub(crate) acked: u8,
    pub(crate) begun: u8, // requests are alike: the first one to be accepted is called 1, the next 2
    pub(crate) next: u8,  // requests that went to the next chunk
    pub(crate) snapshot: u8, // 0 none, 1 taken, 2 the file's entry mapped to the copy, 3 an append to the copy acknowledged
    pub(crate) frozen: Log,
    pub(crate) mark: u8,
    pub(crate) cached: u8, // versions under which some client has cached "file -> this chunk"
    pub(crate) deaths: u8,
    pub(crate) cuts: u8,
    pub(crate) old: [u8; 3], // a deposed leader's view (only for the bug "answers without a quorum"): confirmed, members, pending members
    pub(crate) seen: Log,    // ghost: the longest content acknowledged or returned to a reader
}

pub(crate) fn forward_bit(version: u8, index: u8, record: u32) -> u128 {
    let record = if record == SEAL { 3 } else { record - 1 };
    1 << ((u32::from(version) - 1) * 20 + u32::from(index) * 4 + record)
}
pub(crate) fn forward_at(forwards: u128, version: u8, index: u8) -> impl Iterator<Item = u32> {
    let bits = (forwards >> ((u32::from(version) - 1) * 20 + u32::from(index) * 4)) as u8 & 15;
    [1, 2, 3, SEAL].into_iter().enumerate().filter(move |(i, _)| has(bits, *i)).map(|(_, r)| r)
}

impl State {
    pub(crate) fn initial(config: &Config) -> State {
        let mut state =
            State { version: 1, confirmed: 1, members: config.members, cached: 2, ..State::default() };
        state.deaths = config.deaths;
        state.cuts = config.cuts;
        let members = config.members;
        state.grants[1] = Grant {
            members,
            base: members,
            adopted: members,
            writer: true,
            reconciled: true,
            confirmed: true,
            ..Grant::default()
        };
        for i in 0..SERVERS {
            if has(members, i) {
                state.servers[i] = Server { version: 1, adopted: 1, valid: true, ..Server::default() };
            } else {
                state.servers[i].dead = !config.join;
            }
        }
        state.servers[0].role = Role::Active;
        state
    }

    pub(crate) fn pending(&self) -> Option<&Grant> {
        (self.version > self.confirmed).then(|| &self.grants[self.version as usize])
    }

    /// Forgets what can no longer matter and sorts the servers, so that equal futures are one state.
    pub(crate) fn canonical(&self) -> State {
        let mut s = *self;
        for server in &mut s.servers {
            if server.dead {
                *server = Server { dead: true, ..Server::default() };
            }
            if server.role != Role::Active {
                server.plan = 0;
            }
        }
        for v in 1..VERSIONS as u8 {
            let grant = s.grants[v as usize];
            let reachable =
                |x: &Server, i: usize| !x.dead && (x.version == v || x.version < v && has(grant.members, i));
            if v > s.version || (v < s.version && !s.servers.iter().enumerate().any(|(i, x)| reachable(x, i)))
            {
                s.grants[v as usize] = Grant::default();
                s.forwards &= !(0xF_FFFF << ((u32::from(v) - 1) * 20));
            }
        }
        let key = |i: usize| {
            let mut bits = u128::from(s.members >> i & 1) | u128::from(s.out >> i & 1) << 1;
            for m in &s.old[1..] {
                bits = bits << 1 | u128::from(*m >> i & 1);
            }
            for g in &s.grants[1..] {
                let of = |m: u8| u128::from(m >> i & 1);
                let primary = u128::from(g.members != 0 && g.primary as usize == i);
                bits = bits << 8
                    | of(g.members)
                    | of(g.base) << 1
                    | of(g.collected) << 2
                    | of(g.adopted) << 3
                    | primary << 4
                    | u128::from(g.applied[i]) << 5;
            }
            (s.servers[i], bits)
        };
        let keys = [key(0), key(1), key(2)];
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| keys[a].cmp(&keys[b]));
        s.permuted(order)
    }

    /// The same state with server `order[i]` called `i`.
    pub(crate) fn permuted(&self, order: [usize; SERVERS]) -> State {
        let mask = |m: u8| (0..SERVERS).fold(0, |acc, i| acc | (m >> order[i] & 1) << i);
        let mut s = *self;
        s.members = mask(self.members);
        s.out = mask(self.out);
        s.old = [self.old[0], mask(self.old[1]), mask(self.old[2])];
        for (i, &from) in order.iter().enumerate() {
            s.servers[i] = self.servers[from];
            for (g, was) in s.grants.iter_mut().zip(&self.grants) {
                g.applied[i] = was.applied[from];
                if was.members != 0 && was.primary as usize == from {
                    g.primary = i as u8;
                }
            }
        }
        for g in &mut s.grants {
            g.members = mask(g.members);
            g.base = mask(g.base);
            g.collected = mask(g.collected);
            g.adopted = mask(g.adopted);
        }
        s
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        let mut h = 0x9E37_79B9_7F4A_7C15u64;
        let mut mix = |x: u64| {
            h = (h ^ x).wrapping_mul(0xD6E8_FEB8_6659_FD93);
            h ^= h >> 32;
        };
        let pack = |bytes: &[u8]| bytes.iter().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        mix(pack(&[
            self.version,
            self.confirmed,
            self.members,
            self.out,
            self.acked,
            self.next,
            self.snapshot,
            self.mark,
        ]));
        mix(pack(&[self.cached, self.deaths, self.cuts, self.old[0], self.old[1], self.old[2], self.begun]));
        mix(u64::from(self.frozen) << 32 | u64::from(self.seen));
        mix(self.forwards as u64);
        mix((self.forwards >> 64) as u64);
        for x in &self.servers {
            mix(u64::from(x.log) << 32 | u64::from(x.plan));
            let flags =
                [x.partial, x.dead, x.valid, x.answer].iter().fold(0, |acc, &f| acc << 1 | u8::from(f));
            mix(pack(&[x.version, x.adopted, x.synced, x.commit, x.previous, x.role as u8, flags]));
        }
        for (v, g) in self.grants.iter().enumerate().filter(|(_, g)| g.members != 0) {
            let flags = [g.writer, g.sent, g.reconciled, g.confirmed, g.fenced]
                .iter()
                .fold(0, |acc, &f| acc << 1 | u8::from(f));
            mix(pack(&[g.members, g.base, g.primary, g.collected, g.adopted, flags, g.commit, v as u8]));
            mix(u64::from(g.adopt) << 32 | pack(&[g.applied[0], g.applied[1], g.applied[2]]));
        }
        mix(1);
        h
    }

    /// Judges one answer to a reader, or one acknowledgement, against all that went before.
    pub(crate) fn show(&mut self, value: Log, is_read: bool) -> Verdict {
        if !compatible(value, self.seen) {
            return Some("what one client saw is contradicted by what another is shown");
        }
        if is_read && length(value) < length(self.seen) {
            return Some("a read misses a record acknowledged or read before it began");
        }
        if length(value) > length(self.seen) {
            self.seen = value;
        }
        None
    }

    pub(crate) fn violation(&self) -> Verdict {
        let all = || 0..SERVERS;
        let server = |i: usize| &self.servers[i];
        let current = |i: usize| has(self.members, i) && !server(i).dead;
        let whole = |i: usize| current(i) && !server(i).partial;
        let twice = |log: Log, r: u32| (0..length(log)).filter(|&k| record(log, k) == r).count() > 1;
        let able = |i: usize| {
            let members = self.grants[server(i).version as usize].members;
            let all_there =
                all().all(|j| !has(members, j) || !server(j).dead && server(j).version == server(i).version);
            server(i).role == Role::Active && all_there
        };
        let mut wholes = all().filter(|&i| whole(i)).map(|i| server(i).log);
        let serving = || self.servers.iter().filter(|x| x.valid && !x.partial);
        let bad = |is_bad: bool, text: &'static str| is_bad.then_some(text);
        bad(wholes.clone().any(|log| !is_prefix(self.seen, log)), "a record acknowledged or read is missing from a confirmed member")
            .or(bad(wholes.clone().any(|a| wholes.clone().any(|b| !compatible(a, b))), "two confirmed members differ at one position"))
            .or(bad(wholes.clone().any(|log| (1..4).any(|r| twice(log, r))), "a request id is twice in the chunk"))
            .or(bad(wholes.any(|log| (1..4).any(|r| has(self.next, r as usize) && position(log, r).is_some())), "a request id is in this chunk and in the next one"))
            .or(bad(serving().any(|x| !compatible(prefix(x.log, x.commit), self.seen)), "a serving replica takes for committed what is not"))
            .or(bad(all().filter(|&i| able(i)).count() > 1, "two primaries can acknowledge"))
            .or(bad(all().any(current) && !all().any(|i| current(i) && server(i).version >= self.confirmed), "every replica is judged stale although the data is there"))
            .or(bad(all().any(|i| current(i) && server(i).adopted < self.confirmed), "a confirmed member does not hold the reconciled content"))
            .or(bad(self.snapshot >= 1 && !is_prefix(self.seen, self.frozen), "a mutation was acknowledged or shown in a chunk that a snapshot shares"))
            .or(bad(self.snapshot == 3 && serving().any(|x| has(self.cached, x.version as usize)), "a reader with a cached location reads the old chunk after an append to its copy was acknowledged"))
    }
}

pub(crate) type Verdict = Option<&'static str>;
