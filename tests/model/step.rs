//! The steps of the protocol: every action that may happen next, with its guards.

use crate::config::{Config, bug, variant};
use crate::effect::fence_runs_out;
use crate::log::{Log, SEAL, bit, has, length, position, prefix, push};
use crate::state::{Grant, Role, SERVERS, Server, State, Verdict, forward_at, forward_bit};

#[rustfmt::skip]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    // grants: commit 1; a member stores the version; the primary gets a member's content; a member takes the agreed content;
    // the primary has every reply; commit 2; the primary hears of it
    Prepare { version: u8, members: u8, base: u8, primary: usize, writer: bool }, Store { server: usize, version: u8 },
    Collect { primary: usize, from: usize }, Adopt { server: usize, version: u8 }, AdoptReplyTooEarly { server: usize },
    Reconciled { primary: usize }, Confirm { version: u8 }, Activate { primary: usize },
    // fences: no answer for a fence's length, nor a term that short; the server said that it knows; a validating answer
    FenceRunsOut { server: usize }, Revoked { server: usize }, Answer { server: usize }, DeposedLeaderAnswers { server: usize },
    AnswerArrives { server: usize },
    // mutations
    Accept { primary: usize, record: u32 }, Apply { server: usize, index: u8, record: u32 }, Learn { primary: usize, commit: u8 },
    Acknowledge { primary: usize, request: u32 }, CommitNotice { server: usize }, NextChunk { primary: usize, request: u32 },
    // reads, snapshots, faults
    Read { server: usize }, ReadAsking { server: usize, primary: usize }, TakeSnapshot, MapToCopy, AcknowledgeInCopy,
    Restart { server: usize }, PowerCut { server: usize, kept: u8 }, Die { server: usize }, LeaderChange,
    Clone { server: usize }, ListClone { server: usize },
}

pub(crate) struct Step {
    pub(crate) action: Action,
    pub(crate) state: State,
    pub(crate) verdict: Verdict,
}

/// Every step possible in a state.
pub(crate) struct Steps<'a> {
    pub(crate) s: &'a State,
    pub(crate) c: &'a Config,
    pub(crate) found: &'a mut Vec<Step>,
}

pub(crate) fn steps(s: &State, c: &Config, found: &mut Vec<Step>) {
    found.clear();
    let mut all = Steps { s, c, found };
    all.of_the_leader();
    all.of_snapshots();
    for i in (0..SERVERS).filter(|&i| !s.servers[i].dead) {
        all.of_grants(i);
        all.of_fences(i);
        all.of_mutations(i);
        all.of_reads(i);
        all.of_faults(i);
    }
}

impl Steps<'_> {
    pub(crate) fn is(&self, flag: u64) -> bool {
        self.c.flags & flag != 0
    }

    pub(crate) fn go(&mut self, action: Action, change: impl FnOnce(&mut State)) {
        let mut state = *self.s;
        change(&mut state);
        if state != *self.s {
            self.found.push(Step { action, state, verdict: None });
        }
    }

    pub(crate) fn shown(
        &mut self,
        action: Action,
        value: Log,
        is_read: bool,
        change: impl FnOnce(&mut State),
    ) {
        let mut state = *self.s;
        change(&mut state);
        let verdict = state.show(value, is_read);
        if verdict.is_some() || state != *self.s {
            self.found.push(Step { action, state, verdict });
        }
    }

    pub(crate) fn of_the_leader(&mut self) {
        let s = *self.s;
        if s.version < self.c.max_version {
            for members in 1..1u8 << SERVERS {
                self.prepare(members);
            }
        }
        if self.is(bug::fence_before_prepare) && s.pending().is_none() {
            for i in (0..SERVERS).filter(|&i| has(s.members, i)) {
                self.go(Action::FenceRunsOut { server: i }, |t| fence_runs_out(t, i));
            }
        }
        if let Some(grant) = s.pending() {
            let not_cas = self.is(bug::confirm_not_cas);
            for i in (0..SERVERS).filter(|&i| has(s.members & !grant.members & !s.out, i)) {
                self.go(Action::FenceRunsOut { server: i }, |t| {
                    fence_runs_out(t, i);
                    t.grants[s.version as usize].fenced |=
                        not_cas && s.members & !grant.members & !t.out == 0;
                });
                if self.is(bug::late_answer_validates) && !s.servers[i].dead {
                    self.go(Action::Revoked { server: i }, |t| {
                        t.out |= bit(i);
                        t.servers[i].valid = false;
                    });
                }
            }
            for version in if not_cas { s.confirmed + 1 } else { s.version }..=s.version {
                let grant = &s.grants[version as usize];
                let fenced = s.members & !grant.members & !s.out == 0
                    || self.is(bug::no_fence_wait | variant::writes_only)
                    || not_cas && grant.fenced;
                if grant.reconciled && !grant.confirmed && fenced {
                    self.go(Action::Confirm { version }, |t| t.confirm(version));
                }
            }
        }
        let (reuse, no_term_wait, no_quorum) =
            (self.is(bug::version_reuse), self.is(bug::no_term_wait), self.is(bug::answer_without_quorum));
        self.go(Action::LeaderChange, |t| {
            t.out = if no_term_wait && s.pending().is_some() { 7 } else { 0 };
            t.version = if reuse { t.confirmed } else { t.version };
            if no_quorum {
                t.old = [s.confirmed, s.members, s.pending().map_or(7, |g| g.members)];
            }
        });
    }

    /// The leader may take any servers it believes alive, as long as one of them is current.
    pub(crate) fn prepare(&mut self, members: u8) {
        let s = *self.s;
        if (0..SERVERS).any(|j| has(members, j) && s.servers[j].dead) {
            return;
        }
        let by_version = self.is(bug::current_by_version);
        let current = |j: usize| {
            let x = &s.servers[j];
            let whole = !x.partial || self.is(bug::power_cut_ignored);
            if by_version { x.version >= s.confirmed } else { has(s.members, j) && whole }
        };
        let base = (0..SERVERS).filter(|&j| has(members, j) && current(j)).fold(0, |acc, j| acc | bit(j));
        let early_fence = self.is(bug::fence_before_prepare);
        let single = self.is(bug::single_commit);
        for primary in (0..SERVERS).filter(|&j| has(base, j)) {
            for writer in [true, false] {
                if writer && s.snapshot >= 1 || !writer && !self.c.snapshot {
                    continue;
                }
                let version = s.version + 1;
                self.go(Action::Prepare { version, members, base, primary, writer }, |t| {
                    t.version = version;
                    t.out = if early_fence { t.out & !members } else { 0 };
                    t.grants[version as usize] =
                        Grant { members, base, primary: primary as u8, writer, ..Grant::default() };
                    if single {
                        t.confirm(version);
                    }
                });
            }
        }
    }

    pub(crate) fn of_snapshots(&mut self) {
        let s = *self.s;
        if !self.c.snapshot {
            return;
        }
        let grant = &s.grants[s.confirmed as usize];
        let holder = (0..SERVERS)
            .find(|&i| has(s.members, i) && !s.servers[i].dead && s.servers[i].adopted == s.confirmed);
        let settled = s.version == s.confirmed && grant.confirmed && !grant.writer;
        let early = self.is(bug::bump_before_map);
        match (s.snapshot, holder) {
            (0, Some(holder)) if settled || self.is(bug::snapshot_under_lease) => {
                self.go(Action::TakeSnapshot, |t| {
                    t.frozen = if settled { s.servers[holder].log } else { s.seen };
                    t.snapshot = 1;
                    t.mark = s.version;
                })
            }
            (1, _) if !early || s.confirmed > s.mark => self.go(Action::MapToCopy, |t| {
                t.snapshot = 2;
                t.mark = if early { t.mark } else { s.version };
            }),
            (2, _) if s.confirmed > s.mark || self.is(bug::copy_without_bump) => {
                self.go(Action::AcknowledgeInCopy, |t| t.snapshot = 3)
            }
            _ => {}
        }
    }

    pub(crate) fn of_grants(&mut self, i: usize) {
        let s = *self.s;
        let x = s.servers[i];
        let v = x.version as usize;
        let reuse = self.is(bug::version_reuse);
        let flags = self.c.flags;
        for version in 1..=s.version {
            let grant = &s.grants[version as usize];
            let again = reuse
                && x.version == version
                && x.role == Role::None
                && !grant.sent
                && grant.primary as usize == i;
            if has(grant.members, i) && (x.version < version || again) {
                self.go(Action::Store { server: i, version }, |t| t.store(i, version, flags));
            }
        }
        let grant = s.grants[v];
        if x.role == Role::Collecting && !grant.sent {
            for j in (0..SERVERS).filter(|&j| has(grant.members & !grant.collected, j)) {
                if !s.servers[j].dead && s.servers[j].version == x.version {
                    self.go(Action::Collect { primary: i, from: j }, |t| t.collect(i, j, flags));
                }
            }
        }
        if grant.sent && has(grant.members, i) {
            let joins = !has(grant.base, i);
            if x.adopted < x.version || self.is(bug::adopt_twice) {
                self.go(Action::Adopt { server: i, version: x.version }, |t| t.adopt(i));
            }
            if reuse && x.adopted == x.version || self.is(bug::adopt_in_place) && joins {
                self.go(Action::AdoptReplyTooEarly { server: i }, |t| t.reply_adopted(i));
            }
        }
        if x.role == Role::Collecting && x.adopted == x.version && grant.adopted == grant.members {
            let (early, not_cas) = (self.is(bug::committed_before_confirm), self.is(bug::confirm_not_cas));
            self.go(Action::Reconciled { primary: i }, |t| {
                t.servers[i].role = Role::Reconciled;
                t.grants[v].reconciled = true;
                t.grants[v].fenced |= not_cas && s.members & !grant.members == 0;
                if early {
                    t.servers[i].commit = length(x.log);
                    t.grants[v].commit = length(x.log);
                }
            });
        }
        let again = self.is(bug::late_activation)
            && x.role == Role::None
            && grant.primary as usize == i
            && x.adopted == x.version;
        if grant.confirmed && (x.role == Role::Reconciled || again) {
            self.go(Action::Activate { primary: i }, |t| {
                let commit = length(x.log);
                t.servers[i] = Server { role: Role::Active, plan: x.log, commit, ..x };
                t.grants[v].commit = t.grants[v].commit.max(commit);
            });
        }
    }

    pub(crate) fn of_fences(&mut self, i: usize) {
        let s = *self.s;
        let x = s.servers[i];
        let (prompt, late) = (self.c.prompt, self.is(bug::late_answer_validates));
        let taken_in =
            s.pending().is_none_or(|g| has(g.members, i)) || self.is(bug::validate_ignores_pending);
        let current = x.version >= s.confirmed && (has(s.members, i) || self.is(bug::current_by_version));
        if (current && taken_in || self.is(bug::server_fence_only)) && (!x.valid || late) {
            self.go(Action::Answer { server: i }, |t| {
                t.servers[i].answer = !prompt;
                t.servers[i].valid |= prompt;
            });
        }
        let deposed = s.old[0] > 0 && has(s.old[1] & s.old[2], i) && x.version >= s.old[0] && !x.valid;
        if deposed && self.is(bug::answer_without_quorum) {
            self.go(Action::DeposedLeaderAnswers { server: i }, |t| t.servers[i].answer = true);
        }
        if x.answer {
            self.go(Action::AnswerArrives { server: i }, |t| {
                t.servers[i].valid = true;
                t.servers[i].answer = late;
            });
        }
    }

    pub(crate) fn of_mutations(&mut self, i: usize) {
        let s = *self.s;
        let x = s.servers[i];
        let v = x.version as usize;
        if x.role == Role::Active {
            let offered = self.c.requests.min(u32::from(s.begun) + 1);
            for r in (1..=offered).chain(self.c.seal.then_some(SEAL)) {
                self.of_request(i, r);
            }
            let commit = s.grants[v].applied_by_all(self.is(bug::ack_early)).min(length(x.plan));
            if commit > x.commit {
                self.go(Action::Learn { primary: i, commit }, |t| {
                    t.servers[i].commit = commit;
                    t.grants[v].commit = t.grants[v].commit.max(commit);
                });
            }
        }
        let next = length(x.log);
        let oldest = if self.is(bug::old_version_applied) { 1 } else { x.version };
        let last = if self.is(bug::gap_applied) { 3 } else { next };
        for version in (oldest..=x.version).filter(|_| x.version > 0 && x.adopted == x.version && next < 5) {
            for index in next..=last {
                for r in forward_at(s.forwards, version, index) {
                    self.go(Action::Apply { server: i, index, record: r }, |t| {
                        t.servers[i].log = push(x.log, r);
                        let applied = &mut t.grants[version as usize].applied[i];
                        *applied = (*applied).max(index + 1);
                    });
                }
            }
        }
        let notice = s.grants[v].commit.min(length(x.log));
        if x.adopted == x.version && notice > x.commit {
            self.go(Action::CommitNotice { server: i }, |t| t.servers[i].commit = notice);
        }
    }

    /// What an active primary does with one request, which may be late, repeated, or long acknowledged.
    pub(crate) fn of_request(&mut self, i: usize, r: u32) {
        let s = *self.s;
        let x = s.servers[i];
        let grant = &s.grants[x.version as usize];
        let sealed = position(x.plan, SEAL);
        let known_from = if self.is(bug::ids_not_content) { length(grant.adopt) } else { 0 };
        let known = position(x.plan >> (4 * known_from), r).is_some();
        if grant.writer && sealed.is_none() && !known && length(x.plan) < 4 {
            self.go(Action::Accept { primary: i, record: r }, |t| {
                t.forwards |= forward_bit(x.version, length(x.plan), r);
                t.begun = if r == SEAL { t.begun } else { t.begun.max(r as u8) };
                t.servers[i].plan = push(x.plan, r);
            });
        }
        if r == SEAL {
            return;
        }
        if let Some(index) =
            position(x.plan, r).filter(|&index| index < x.commit || self.is(bug::retry_acked_at_once))
        {
            self.shown(
                Action::Acknowledge { primary: i, request: r },
                prefix(x.plan, index + 1),
                false,
                |t| t.acked |= bit(r as usize),
            );
        }
        let told = sealed.is_some_and(|index| index < x.commit || self.is(bug::seal_told_early));
        let absent =
            position(x.plan, r).is_none() || self.is(bug::next_without_asking) && !has(s.acked, r as usize);
        if told && absent {
            self.go(Action::NextChunk { primary: i, request: r }, |t| {
                t.next |= bit(r as usize);
                t.begun = t.begun.max(r as u8);
            });
        }
    }

    pub(crate) fn of_reads(&mut self, i: usize) {
        let s = *self.s;
        let x = s.servers[i];
        if x.partial && !self.is(bug::power_cut_ignored) || self.is(variant::writes_only) {
            return;
        }
        let active = x.role == Role::Active;
        let serves = x.valid || active && self.is(bug::unfenced_primary_reads);
        if serves && (active || x.commit == length(x.log) || self.is(bug::dirty_read)) {
            let value = if self.is(bug::dirty_read) { x.log } else { prefix(x.log, x.commit) };
            self.shown(Action::Read { server: i }, value, true, |_| ());
        }
        for (j, p) in s.servers.iter().enumerate().filter(|&(j, p)| j != i && p.role == Role::Active) {
            let asker = x.valid || self.is(variant::ask_from_anywhere);
            let asked = p.valid || self.is(variant::ask_anyone);
            if asker && asked && p.version == x.version && x.adopted == x.version && p.commit <= length(x.log)
            {
                self.shown(
                    Action::ReadAsking { server: i, primary: j },
                    prefix(x.log, p.commit),
                    true,
                    |_| (),
                );
            }
        }
    }

    pub(crate) fn of_faults(&mut self, i: usize) {
        let s = *self.s;
        let x = s.servers[i];
        let flags = self.c.flags;
        self.go(Action::Restart { server: i }, |t| t.servers[i].restart(flags));
        if s.cuts > 0 && length(x.log) > x.synced {
            for kept in x.synced..=length(x.log) {
                self.go(Action::PowerCut { server: i, kept }, |t| {
                    t.cuts -= 1;
                    t.servers[i].restart(flags);
                    let y = t.servers[i];
                    t.servers[i] =
                        Server { log: prefix(y.log, kept), commit: y.commit.min(kept), partial: true, ..y };
                });
            }
        }
        if s.deaths > 0 {
            self.go(Action::Die { server: i }, |t| {
                t.deaths -= 1;
                t.servers[i].dead = true;
            });
        }
        if self.is(bug::clone_without_grant) && !has(s.members, i) {
            if let Some(source) = (0..SERVERS).find(|&j| has(s.members, j) && !s.servers[j].dead) {
                let log = s.servers[source].log;
                let version = s.confirmed;
                self.go(Action::Clone { server: i }, |t| {
                    t.servers[i] = Server { version, adopted: version, log, ..Server::default() }
                });
            }
            if x.version == s.confirmed {
                self.go(Action::ListClone { server: i }, |t| t.members |= bit(i));
            }
        }
    }
}
