//! The search: breadth first over all states, or random walks; the trace of a failure is a shortest one.

use std::time::Instant;

use crate::config::{Config, bug};
use crate::log::{Log, SEAL, length, record};
use crate::state::{Role, State};
use crate::step::{Action, Step, steps};

/// A set of fingerprints with open addressing, and how each state was reached.
pub(crate) struct Seen {
    pub(crate) table: Vec<u64>,
    pub(crate) order: Vec<u64>,
    pub(crate) parent: Vec<u32>,
}

impl Seen {
    pub(crate) fn new() -> Seen {
        Seen { table: vec![0; 1 << 20], order: Vec::new(), parent: Vec::new() }
    }
    pub(crate) fn insert(&mut self, fingerprint: u64, parent: u32) -> bool {
        if self.order.len() * 10 > self.table.len() * 7 {
            let mut bigger = vec![0; self.table.len() * 2];
            for &f in &self.order {
                Self::place(&mut bigger, f);
            }
            self.table = bigger;
        }
        let new = Self::place(&mut self.table, fingerprint.max(1));
        if new {
            self.order.push(fingerprint.max(1));
            self.parent.push(parent);
        }
        new
    }
    pub(crate) fn place(table: &mut [u64], fingerprint: u64) -> bool {
        let mask = table.len() - 1;
        let mut at = fingerprint as usize & mask;
        loop {
            match table[at] {
                0 => break table[at] = fingerprint,
                f if f == fingerprint => return false,
                _ => at = (at + 1) & mask,
            }
        }
        true
    }
}

pub(crate) struct Outcome {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    /// `None`: every reachable state was visited and none was bad.
    pub(crate) bad: Option<(&'static str, Vec<String>)>,
    pub(crate) exhausted: bool,
    pub(crate) witnesses: String,
}

pub(crate) fn keep_old_messages(c: &Config) -> bool {
    c.flags
        & (bug::old_version_applied | bug::version_reuse | bug::confirm_not_cas | bug::version_not_durable)
        != 0
}

pub(crate) fn reduce(s: &State, c: &Config) -> State {
    if keep_old_messages(c) { *s } else { s.canonical() }
}

pub(crate) fn explore(c: &Config, state_limit: usize, quiet: bool) -> Outcome {
    let mut seen = Seen::new();
    let first = reduce(&State::initial(c), c);
    seen.insert(first.fingerprint(), u32::MAX);
    let mut frontier = vec![(first, 0u32)];
    let mut found = Vec::new();
    let (mut depth, mut acked, mut confirmed, mut joined, mut next) = (0, 0u64, 0u64, 0u64, 0u64);
    let started = Instant::now();
    let mut exhausted = true;
    while !frontier.is_empty() {
        let mut later = Vec::new();
        for (state, index) in &frontier {
            steps(state, c, &mut found);
            for step in &found {
                let reduced = reduce(&step.state, c);
                let bad = step.verdict.or_else(|| step.state.violation());
                if let Some(what) = bad {
                    let trace = trace(c, &seen, *index, step);
                    return Outcome {
                        states: seen.order.len(),
                        depth,
                        bad: Some((what, trace)),
                        exhausted: false,
                        witnesses: String::new(),
                    };
                }
                if seen.insert(reduced.fingerprint(), *index) {
                    acked += u64::from(length(reduced.seen) as u32 >= c.requests);
                    confirmed += u64::from(reduced.confirmed == c.max_version);
                    let last = reduced.grants[reduced.confirmed as usize];
                    joined += u64::from(last.members & !last.base != 0 && reduced.seen != 0);
                    next += u64::from(reduced.next != 0 || reduced.snapshot == 3);
                    later.push((reduced, seen.order.len() as u32 - 1));
                }
            }
        }
        if later.is_empty() {
            break;
        }
        depth += 1;
        if !quiet && depth % 5 == 0 {
            eprintln!(
                "  depth {depth}: {} states, {} on the edge, {:.0?}",
                seen.order.len(),
                later.len(),
                started.elapsed()
            );
        }
        if seen.order.len() > state_limit {
            exhausted = false;
            break;
        }
        frontier = later;
    }
    let witnesses = format!(
        "all requests seen in {acked}, last version confirmed in {confirmed}, joiner with data in {joined}, next chunk or copy used in {next}"
    );
    Outcome { states: seen.order.len(), depth, bad: None, exhausted, witnesses }
}

/// The path to a bad step, told with the servers' names kept from step to step.
pub(crate) fn trace(c: &Config, seen: &Seen, index: u32, last: &Step) -> Vec<String> {
    let mut path = Vec::new();
    let mut at = index;
    while at != u32::MAX {
        path.push(seen.order[at as usize]);
        at = seen.parent[at as usize];
    }
    let mut state = State::initial(c);
    let mut lines = vec![format!("      {}", describe(&state))];
    let mut found = Vec::new();
    for wanted in path.iter().rev().skip(1).map(Some).chain([None]) {
        steps(&state, c, &mut found);
        let print = |s: &State| reduce(s, c).fingerprint().max(1);
        let fits = |s: &&Step| match wanted {
            Some(wanted) => print(&s.state) == *wanted,
            None => s.verdict == last.verdict && print(&s.state) == print(&last.state),
        };
        let Some(step) = found.iter().find(fits) else {
            lines.push(format!("(cannot be replayed) {:?}", last.action));
            break;
        };
        lines.push(line(step));
        state = step.state;
    }
    lines
}

pub(crate) fn line(step: &Step) -> String {
    format!("{:?}\n      {}", step.action, describe(&step.state))
}

pub(crate) fn text(log: Log) -> String {
    (0..length(log))
        .map(|i| if record(log, i) == SEAL { '#' } else { (b'a' + record(log, i) as u8 - 1) as char })
        .collect()
}

pub(crate) fn describe(s: &State) -> String {
    let mut line = format!("log: v{} confirmed v{} of {:03b}", s.version, s.confirmed, s.members);
    if let Some(g) = s.pending() {
        line += &format!(" (pending {:03b}, out {:03b})", g.members, s.out & 7);
    }
    for (i, x) in s.servers.iter().enumerate() {
        let role = match x.role {
            Role::None => "",
            Role::Collecting => " collecting",
            Role::Reconciled => " reconciled",
            Role::Active => " PRIMARY",
        };
        let marks =
            [(x.valid, " serves"), (x.partial, " partial"), (x.dead, " DEAD"), (x.answer, " answer-coming")];
        let marks: String = marks.iter().filter(|(on, _)| *on).map(|(_, text)| *text).collect();
        line += &format!(" | {i}: v{} \"{}\" committed {}{role}{marks}", x.version, text(x.log), x.commit);
    }
    line += &format!(" | clients saw \"{}\"", text(s.seen));
    line
}

/// Random walks: deeper and wider than the exhaustive search, without its proof.
pub(crate) fn walk(c: &Config, seconds: u64, seed: u64) -> bool {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % n
    };
    // Faults and new grants are always possible; taken at their share they would drown the work.
    let heavy = |a: &Action| {
        matches!(
            a,
            Action::Prepare { .. }
                | Action::Restart { .. }
                | Action::LeaderChange
                | Action::Die { .. }
                | Action::PowerCut { .. }
        )
    };
    let started = Instant::now();
    let (mut walks, mut taken, mut found) = (0u64, 0u64, Vec::new());
    while started.elapsed().as_secs() < seconds {
        let mut state = State::initial(c);
        let mut lines = vec![describe(&state)];
        for _ in 0..200 {
            steps(&state, c, &mut found);
            if draw(8) != 0 && found.iter().any(|f| !heavy(&f.action)) {
                found.retain(|f| !heavy(&f.action));
            }
            if found.is_empty() {
                break;
            }
            let step = &found[draw(found.len())];
            lines.push(line(step));
            if let Some(what) = step.verdict.or_else(|| step.state.violation()) {
                println!("walk BAD: {what}");
                tell(&lines);
                return false;
            }
            (state, taken) = (step.state, taken + 1);
        }
        walks += 1;
    }
    println!("walk ok: {walks} walks, {taken} steps, seed {seed}");
    true
}

pub(crate) fn tell(lines: &[String]) {
    lines.iter().for_each(|line| println!("  {line}"));
}
