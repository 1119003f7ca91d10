//! The fence in time: one server, one chunk, changing leaders, a clock of a few ticks. When may a leader believe that a
//! fence has run out? Heartbeats and answers arrive late, twice, in any order, or never. The main model's `FenceRunsOut`
//! rests on this one.

use std::collections::HashMap;

const FENCE: u8 = 3;
const END: u8 = 7;
pub(crate) const BUGS: &[(&str, &str)] = &[
    (
        "no_lapse_check",
        "a server does not notice that its fence had run out when an answer extends it (every answer names the exclusion)",
    ),
    ("named_once", "the leader names the exclusion in one answer only; the server notices a lapse"),
    (
        "from_receipt",
        "the fence counts from the receipt of the answer, not from the sending of the heartbeat",
    ),
    ("no_term_start", "a new leader does not count from the start of its term"),
    ("no_epoch", "answers are not bound to the server's epoch (restart or lapse)"),
    ("exclusion_forgotten", "an older answer, arriving after the exclusion, validates the chunk again"),
    ("deposed_answers", "a deposed leader answers without asking a quorum"),
    (
        "answers_do_not_count",
        "the leader goes on answering without naming the exclusion, and counts from the prepare",
    ),
    ("slow_clock", "the server's clock runs slower than the margin allows"),
];

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
struct State {
    now: u8,
    // the server: epoch (a new one after each restart or lapse), end of the fence (0: none), the chunk's standing
    epoch: u8,
    ends: u8,
    validated: bool,
    told: bool,
    // messages, a bit per (time of the heartbeat, epoch, "you are left out"); one heartbeat goes out at every moment
    heartbeats: u64,
    answers: u64,
    /// Some heartbeat said "I know that I am left out".
    said: bool,
    // the leader: start of its term, its last answer that did not name the exclusion
    term_start: u8,
    last_plain: u8,
    // the log: prepared without this server; the leader took its fence for run out (the confirm may follow)
    left_out: bool,
    surely_out: bool,
    deposed: bool,
    named: bool,
}

fn message(sent: u8, epoch: u8, flag: bool) -> u64 {
    1 << (sent * 8 + epoch * 2 + u8::from(flag))
}
fn each(messages: u64) -> impl Iterator<Item = (u8, u8, bool)> {
    (0..=END)
        .flat_map(|s| (0..4).flat_map(move |e| [(s, e, false), (s, e, true)]))
        .filter(move |&(s, e, f)| messages & message(s, e, f) != 0)
}

fn successors(s: &State, bug: &str) -> Vec<(String, State)> {
    let mut all = Vec::new();
    let mut go = |name: String, change: &dyn Fn(&mut State)| {
        let mut t = *s;
        change(&mut t);
        t.heartbeats |= message(t.now, t.epoch, false);
        t.said |= t.told;
        all.push((name, t));
    };
    let length = if bug == "slow_clock" { FENCE + 1 } else { FENCE };
    let lapse = |t: &mut State| (t.epoch, t.ends, t.validated, t.told) = (t.epoch + 1, 0, false, false);
    if s.now < END {
        go("a tick".into(), &|t| {
            t.now += 1;
            // What is a fence's length old is void.
            let fresh = u64::MAX << (t.now.saturating_sub(length - 1) * 8);
            t.heartbeats &= fresh;
            t.answers &= if bug == "from_receipt" { u64::MAX } else { fresh };
        });
    }
    if s.epoch < 3 {
        go("the server restarts".into(), &lapse);
    }
    if s.said && s.left_out {
        go("the leader hears that the server knows".into(), &|t| t.surely_out = true);
    }
    for (sent, epoch, _) in each(s.heartbeats) {
        go(format!("the leader answers the heartbeat of {sent}, epoch {epoch}"), &|t| {
            let named = s.left_out && bug != "answers_do_not_count" && !(bug == "named_once" && s.named);
            t.answers |= message(sent, epoch, named);
            t.named |= named && bug == "named_once";
            t.last_plain = if s.left_out { t.last_plain } else { s.now };
        });
        if s.deposed && bug == "deposed_answers" {
            go(format!("the deposed leader answers the heartbeat of {sent}"), &|t| {
                t.answers |= message(sent, epoch, false)
            });
        }
    }
    for (sent, epoch, excludes) in each(s.answers) {
        let lapsed = s.ends > 0 && s.now >= s.ends && bug != "no_lapse_check";
        if lapsed && s.epoch < 3 {
            go("an answer finds the fence run out: new epoch".into(), &lapse);
        }
        if !lapsed && (epoch == s.epoch || bug == "no_epoch") {
            go(format!("the answer to the heartbeat of {sent} arrives, left out: {excludes}"), &|t| {
                t.told |= excludes;
                t.validated = !excludes && (!s.told || bug == "exclusion_forgotten");
                let ends = if bug == "from_receipt" { s.now } else { sent } + length;
                t.ends = if ends > s.now { t.ends.max(ends) } else { t.ends };
            });
        }
    }
    go("prepared without this server".into(), &|t| t.left_out = true);
    if !s.deposed {
        go("a new leader".into(), &|t| (t.deposed, t.term_start, t.last_plain) = (true, s.now, 0));
    }
    let since = if bug == "no_term_start" { s.last_plain } else { s.last_plain.max(s.term_start) };
    if s.left_out && s.now >= since + FENCE {
        go("the leader takes the fence for run out".into(), &|t| t.surely_out = true);
    }
    all
}

/// Visits every state; the story of the first one in which a server surely out still serves.
pub(crate) fn explore(bug: &str) -> (usize, Option<Vec<String>>) {
    let first = State { heartbeats: message(0, 0, false), ..State::default() };
    let mut reached: HashMap<State, Option<State>> = HashMap::from([(first, None)]);
    let mut edge = vec![first];
    while !edge.is_empty() {
        let mut later = Vec::new();
        for from in edge {
            for (_, state) in successors(&from, bug) {
                if reached.contains_key(&state) {
                    continue;
                }
                reached.insert(state, Some(from));
                if state.surely_out && state.validated && state.now < state.ends {
                    let mut story = Vec::new();
                    let mut at = state;
                    while let Some(before) = reached[&at] {
                        let how = successors(&before, bug)
                            .into_iter()
                            .find(|(_, s)| *s == at)
                            .map(|(name, _)| name);
                        story.push(format!("{:>2}: {}", before.now, how.unwrap_or_default()));
                        at = before;
                    }
                    story.reverse();
                    return (reached.len(), Some(story));
                }
                later.push(state);
            }
        }
        edge = later;
    }
    (reached.len(), None)
}
