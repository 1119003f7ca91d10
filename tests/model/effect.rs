//! What the steps do to the state, where it takes more than a line.

use crate::config::{bug, variant};
use crate::log::{bit, has, length, prefix};
use crate::state::{Grant, Role, SERVERS, Server, State};

pub(crate) fn fence_runs_out(t: &mut State, i: usize) {
    t.out |= bit(i);
    t.servers[i].valid = false;
    t.servers[i].answer = false;
}

impl Grant {
    pub(crate) fn applied_by_all(&self, all_but_one: bool) -> u8 {
        let mut applied: Vec<u8> =
            (0..SERVERS).filter(|&j| has(self.members, j)).map(|j| self.applied[j]).collect();
        applied.sort_unstable();
        applied[usize::from(all_but_one && applied.len() > 1)]
    }
}

impl Server {
    pub(crate) fn restart(&mut self, flags: u64) {
        let survives = flags & bug::primary_survives_restart != 0 && self.role == Role::Active;
        self.role = if survives { Role::Active } else { Role::None };
        self.plan = if survives { self.log } else { 0 };
        self.valid = false;
        self.answer = false;
        if flags & bug::restart_is_clean != 0 {
            self.commit = length(self.log);
        }
        if flags & bug::version_not_durable != 0 && self.previous > 0 {
            self.version = self.previous;
            self.adopted = self.adopted.min(self.version);
        }
    }
}

impl State {
    pub(crate) fn confirm(&mut self, version: u8) {
        self.confirmed = version;
        self.members = self.grants[version as usize].members;
        self.grants[version as usize].confirmed = true;
        self.out = 0;
        if self.snapshot < 2 {
            self.cached |= bit(version as usize);
        }
    }

    pub(crate) fn store(&mut self, i: usize, version: u8, flags: u64) {
        let grant = &mut self.grants[version as usize];
        let x = &mut self.servers[i];
        x.previous = if flags & bug::version_not_durable != 0 { x.version } else { 0 };
        x.version = version;
        x.role = Role::None;
        x.plan = 0;
        if !has(grant.base, i) {
            // A joiner starts from nothing, and is not whole until it has adopted.
            let partial = flags & bug::partial_forgotten == 0;
            let adopted = if has(self.members, i) { x.adopted } else { 0 };
            *x = Server {
                version,
                adopted,
                previous: x.previous,
                answer: x.answer,
                partial,
                ..Server::default()
            };
        }
        if flags & bug::no_reconcile != 0 {
            x.adopted = version;
            grant.adopted |= bit(i);
            grant.applied[i] = length(x.log);
        }
        if grant.primary as usize == i && (!x.partial || flags & bug::power_cut_ignored != 0) {
            x.role = Role::Collecting;
            grant.collected |= bit(i);
            self.send_content(i, flags);
        }
    }

    pub(crate) fn collect(&mut self, i: usize, j: usize, flags: u64) {
        let y = self.servers[j];
        let x = &mut self.servers[i];
        let grant = &mut self.grants[x.version as usize];
        let counts = has(grant.base, j) && (!y.partial || flags & bug::power_cut_ignored != 0);
        let shortest = flags & variant::shortest != 0;
        let better = if shortest { length(y.log) < length(x.log) } else { length(y.log) > length(x.log) };
        if counts && better && flags & variant::own_content == 0 {
            x.log = y.log;
            x.synced = x.synced.min(length(y.log));
        }
        grant.collected |= bit(j);
        self.send_content(i, flags);
    }

    /// Once it has collected from every member, the primary fixes the content, holds it durably, and sends it to all.
    pub(crate) fn send_content(&mut self, i: usize, flags: u64) {
        let x = &mut self.servers[i];
        let grant = &mut self.grants[x.version as usize];
        if grant.collected != grant.members || flags & bug::no_reconcile != 0 {
            return;
        }
        if flags & bug::truncate_to_commit != 0 {
            x.log = prefix(x.log, x.commit);
        }
        x.adopted = x.version;
        x.synced = length(x.log);
        grant.sent = true;
        grant.adopt = x.log;
        self.reply_adopted(i);
    }

    pub(crate) fn adopt(&mut self, i: usize) {
        let x = &mut self.servers[i];
        x.log = self.grants[x.version as usize].adopt;
        x.adopted = x.version;
        x.synced = length(x.log);
        x.partial = false;
        x.commit = x.commit.min(length(x.log));
        self.reply_adopted(i);
    }

    pub(crate) fn reply_adopted(&mut self, i: usize) {
        let grant = &mut self.grants[self.servers[i].version as usize];
        grant.adopted |= bit(i);
        grant.applied[i] = grant.applied[i].max(length(grant.adopt));
    }
}
