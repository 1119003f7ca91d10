//! Linearizability by search (Wing and Gong, with Lowe's memo): trusts no log index, only calls, returns and answers.
//!
//! Operations are tried in every order that real time allows; a configuration, which is the set of those placed and
//! the state they lead to, is looked into once. Both are compared in full: no hash decides. An operation of unknown
//! outcome may be placed at any time after its call, or never.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// What the caller of an operation was told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told<'a, R> {
    /// It happened, with this answer.
    Answer(&'a R),
    /// The system decided against it.
    Refusal,
    /// Nothing.
    Unknown,
}

impl<R> Clone for Told<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R> Copy for Told<'_, R> {}

/// What placing an operation next comes to.
pub(crate) enum Step<S> {
    /// It can't be next: it would have answered otherwise.
    Misfit,
    /// It fits and changes nothing.
    Same,
    /// It fits and leads here.
    To(S),
}

/// The object that is judged, as a value.
pub(crate) trait Model {
    /// Its state.
    type State: Clone + Eq + Hash + Default;
    /// What is asked.
    type Call;
    /// What is answered.
    type Reply;
    /// What becomes of a state by an operation that was told this.
    fn step(state: &Self::State, call: &Self::Call, told: Told<'_, Self::Reply>) -> Step<Self::State>;
}

/// One operation.
pub(crate) struct Item<'a, M: Model> {
    pub(crate) call: &'a M::Call,
    pub(crate) told: Told<'a, M::Reply>,
    pub(crate) called: u64,
    /// When it returned; never for an unknown outcome.
    pub(crate) returned: Option<u64>,
}

/// How far a search may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Placements tried.
    pub(crate) steps: u64,
    /// Configurations and states remembered: the memory.
    pub(crate) remembered: usize,
}

/// What a search has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// There is an order.
    Linearizable,
    /// There is none.
    Illegal {
        /// The most operations that could be placed, in their order, by index.
        prefix: Vec<usize>,
        /// What could have come next and does not fit, the operation that must have first.
        blocking: Vec<usize>,
    },
    /// A limit was reached before either was known.
    GaveUp,
}

/// No link: before the first and after the last entry.
const END: usize = usize::MAX;

/// Calls and returns in the order of time, as a list out of which operations are lifted. Entry 0 is its head.
struct Line {
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Index of the operation.
    operation: Vec<usize>,
    is_return: Vec<bool>,
    /// Of each operation, its two entries.
    entries: Vec<(usize, usize)>,
}

impl Line {
    fn new<M: Model>(items: &[Item<'_, M>]) -> Self {
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * items.len());
        for (index, item) in items.iter().enumerate() {
            events.push((item.called, false, index));
            // At one moment calls come before returns: what touches is concurrent.
            events.push((item.returned.unwrap_or(u64::MAX), true, index));
        }
        events.sort_unstable();
        let count = events.len();
        let mut entries = vec![(0, 0); items.len()];
        for (at, (_, is_return, index)) in events.iter().enumerate() {
            let entry = at + 1;
            if *is_return { entries[*index].1 = entry } else { entries[*index].0 = entry }
        }
        Self {
            next: (0..=count).map(|at| if at < count { at + 1 } else { END }).collect(),
            previous: (0..=count).map(|at| at.checked_sub(1).unwrap_or(END)).collect(),
            operation: std::iter::once(END).chain(events.iter().map(|(_, _, index)| *index)).collect(),
            is_return: std::iter::once(false)
                .chain(events.iter().map(|(_, is_return, _)| *is_return))
                .collect(),
            entries,
        }
    }

    fn unlink(&mut self, entry: usize) {
        let (previous, next) = (self.previous[entry], self.next[entry]);
        self.next[previous] = next;
        if next != END {
            self.previous[next] = previous;
        }
    }

    fn link(&mut self, entry: usize) {
        let (previous, next) = (self.previous[entry], self.next[entry]);
        self.next[previous] = entry;
        if next != END {
            self.previous[next] = entry;
        }
    }

    fn lift(&mut self, operation: usize) {
        let (call, end) = self.entries[operation];
        self.unlink(call);
        self.unlink(end);
    }

    fn put_back(&mut self, operation: usize) {
        let (call, end) = self.entries[operation];
        self.link(end);
        self.link(call);
    }

    /// The operations that could be placed next: those called before the first return that is left.
    fn candidates(&self) -> Vec<usize> {
        let mut found = Vec::new();
        let mut entry = self.next[0];
        while entry != END && !self.is_return[entry] {
            found.push(self.operation[entry]);
            entry = self.next[entry];
        }
        if entry != END {
            // Whose return it is comes first: it is the one that can wait no longer.
            let due = self.operation[entry];
            found.retain(|operation| *operation != due);
            found.insert(0, due);
        }
        found
    }
}

/// States by number, so that a configuration remembers a number and not a state.
struct States<S> {
    numbers: HashMap<S, u32>,
    all: Vec<S>,
}

impl<S: Clone + Eq + Hash> States<S> {
    fn number(&mut self, state: S) -> u32 {
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(state.clone());
        self.numbers.insert(state, number);
        number
    }
}

/// The operations placed so far, in order, and what they lead to.
struct Search<'a, M: Model> {
    items: &'a [Item<'a, M>],
    line: Line,
    states: States<M::State>,
    /// Which operations are placed, a bit each.
    placed: Vec<u64>,
    state: u32,
    /// Each placed operation with the state before it.
    path: Vec<(usize, u32)>,
    seen: HashSet<(Box<[u64]>, u32)>,
    /// Operations that must be placed and are not.
    left: usize,
    best: Option<(Vec<usize>, Vec<usize>)>,
}

impl<M: Model> Search<'_, M> {
    /// Places an operation, if it fits and leads to something new.
    fn place(&mut self, operation: usize) -> bool {
        let item = &self.items[operation];
        let next = match M::step(&self.states.all[self.state as usize], item.call, item.told) {
            Step::Misfit => return false,
            // To place what nobody was told of and what changes nothing leads nowhere.
            Step::Same if matches!(item.told, Told::Unknown) => return false,
            Step::Same => self.state,
            Step::To(state) => self.states.number(state),
        };
        let (word, bit) = (operation / 64, 1 << (operation % 64));
        self.placed[word] |= bit;
        if !self.seen.insert((self.placed.clone().into_boxed_slice(), next)) {
            self.placed[word] &= !bit;
            return false;
        }
        self.path.push((operation, self.state));
        self.state = next;
        self.line.lift(operation);
        self.left -= usize::from(item.returned.is_some());
        true
    }

    /// Takes the last placed operation back; where to go on.
    fn take_back(&mut self) -> Option<usize> {
        if self.best.as_ref().is_none_or(|(prefix, _)| prefix.len() < self.path.len()) {
            let prefix = self.path.iter().map(|(operation, _)| *operation).collect();
            self.best = Some((prefix, self.line.candidates()));
        }
        let (operation, before) = self.path.pop()?;
        self.state = before;
        self.placed[operation / 64] &= !(1 << (operation % 64));
        self.left += usize::from(self.items[operation].returned.is_some());
        self.line.put_back(operation);
        Some(self.line.next[self.line.entries[operation].0])
    }

    fn run(&mut self, limits: Limits, steps: &mut u64) -> Judgement {
        let mut entry = self.line.next[0];
        while self.left > 0 {
            *steps += 1;
            if *steps > limits.steps || self.seen.len() + self.states.all.len() > limits.remembered {
                return Judgement::GaveUp;
            }
            if entry != END && !self.line.is_return[entry] {
                let placed = self.place(self.line.operation[entry]);
                entry = self.line.next[if placed { 0 } else { entry }];
                continue;
            }
            // A return that nothing may pass, or the end.
            let Some(next) = self.take_back() else {
                let (prefix, blocking) = self.best.take().unwrap_or_default();
                return Judgement::Illegal { prefix, blocking };
            };
            entry = next;
        }
        Judgement::Linearizable
    }
}

/// Looks for an order of the operations that explains every answer. Adds to `steps` what it took.
pub(crate) fn search<M: Model>(items: &[Item<'_, M>], limits: Limits, steps: &mut u64) -> Judgement {
    let mut states = States { numbers: HashMap::new(), all: Vec::new() };
    let state = states.number(M::State::default());
    let mut search = Search {
        items,
        line: Line::new(items),
        states,
        placed: vec![0; items.len().div_ceil(64)],
        state,
        path: Vec::new(),
        seen: HashSet::new(),
        left: items.iter().filter(|item| item.returned.is_some()).count(),
        best: None,
    };
    let mut here = 0;
    let judgement = search.run(limits, &mut here);
    *steps += here;
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: `w` writes, `r` reads, 0 at first.
    struct Register;
    impl Model for Register {
        type State = u64;
        type Call = Option<u64>;
        type Reply = u64;
        fn step(state: &u64, call: &Option<u64>, told: Told<'_, u64>) -> Step<u64> {
            match (call, told) {
                (Some(value), _) if value == state => Step::Same,
                (Some(value), _) => Step::To(*value),
                (None, Told::Answer(read)) if read != state => Step::Misfit,
                (None, _) => Step::Same,
            }
        }
    }

    /// Lines of `called returned w value`, `called returned r value`; `-` for no return.
    fn judge(script: &str, limits: Limits) -> Judgement {
        let lines: Vec<(u64, Option<u64>, Option<u64>, u64)> = script
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let value = words[3].parse().unwrap();
                let call = (words[2] == "w").then_some(value);
                (words[0].parse().unwrap(), words[1].parse().ok(), call, value)
            })
            .collect();
        let items: Vec<Item<'_, Register>> = lines
            .iter()
            .map(|(called, returned, call, value)| Item {
                call,
                told: if returned.is_some() { Told::Answer(value) } else { Told::Unknown },
                called: *called,
                returned: *returned,
            })
            .collect();
        search(&items, limits, &mut 0)
    }
    const ROOM: Limits = Limits { steps: 1_000_000, remembered: 1_000_000 };

    #[test]
    fn good_histories_are_linearizable() {
        for script in [
            "1 2 w 5\n3 4 r 5",
            // At the same time: either order.
            "1 9 w 5\n2 3 r 0\n4 5 r 5",
            "1 9 w 5\n1 9 w 6\n10 11 r 5",
            // What touches is concurrent.
            "1 2 w 5\n2 3 r 0",
            // Unknown: late, or never.
            "1 - w 5\n2 3 r 0\n4 5 r 5",
            "1 - w 5\n2 3 r 0\n4 5 r 0",
        ] {
            assert_eq!(judge(script, ROOM), Judgement::Linearizable, "{script}");
        }
    }

    #[test]
    fn an_illegal_history_shows_how_far_it_can_be_explained_and_what_blocks_it() {
        let judgement = judge("1 2 w 5\n3 4 r 5\n5 6 r 0\n5 7 w 6", ROOM);
        let Judgement::Illegal { prefix, blocking } = judgement else { panic!("{judgement:?}") };
        assert_eq!((&prefix[..2], blocking[0]), (&[0, 1][..], 2));
        for script in
            ["1 2 r 5", "1 2 w 5\n3 4 r 0", "1 9 w 5\n2 3 r 5\n4 5 r 0", "1 - w 5\n2 3 r 5\n4 5 r 0"]
        {
            assert!(matches!(judge(script, ROOM), Judgement::Illegal { .. }), "{script}");
        }
    }

    #[test]
    fn a_search_that_reaches_a_limit_says_so() {
        let writes: Vec<String> = (1..=12).map(|value| format!("1 100 w {value}")).collect();
        let script = format!("{}\n101 102 r 77", writes.join("\n"));
        for limits in [Limits { steps: 1000, ..ROOM }, Limits { remembered: 1000, ..ROOM }] {
            assert_eq!(judge(&script, limits), Judgement::GaveUp);
        }
        assert!(matches!(judge(&script, ROOM), Judgement::Illegal { .. }));
    }
}
