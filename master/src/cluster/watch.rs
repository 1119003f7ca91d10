//! Keeps the soft state's conclusions up to date, in bounded steps: who fell silent, which chunks suffer.

use std::collections::BTreeSet;

use gfs_proto::id::ChunkHandle;
use gfs_proto::time::Moment;

use super::{Cluster, OWN_PAUSE, RECENT_HALVING};
use crate::state::{View, read};

/// Most chunks looked at in one step because a server came or went.
const RECHECK_BATCH: usize = 2000;
/// Most chunks looked at in one step of the walk over all chunks, until it has been round once.
const FIRST_WALK_BATCH: usize = 4096;
/// The same from then on: the walk only mends what events have missed.
const WALK_BATCH: usize = 256;

impl Cluster {
    /// One bounded step: notes who is silent and looks at some chunks again.
    pub(crate) fn tick(&mut self, view: &dyn View, now: Moment) {
        self.forgive_own_pause(now);
        self.note_silence(now);
        for _ in 0..RECHECK_BATCH {
            let Some(handle) = self.recheck.pop_first() else { break };
            self.examine_in(handle, view, now);
        }
        self.walk(view, now);
        if now.since(self.halved) >= RECENT_HALVING {
            self.halved = now;
            self.servers.values_mut().for_each(|server| server.recent /= 2);
        }
    }

    /// Forgets every conclusion and looks at everything again, a step at a time: the state was replaced. The
    /// denied chunks are computed at once, because answers depend on them.
    pub(crate) fn start_over(&mut self, view: &dyn View, now: Moment) {
        let held = self.servers.values().flat_map(|server| server.replicas.keys().copied());
        let all: BTreeSet<ChunkHandle> = held.chain(self.weak.keys().copied()).collect();
        for handle in all {
            self.examine_in(handle, view, now);
        }
        self.walk = ChunkHandle::default();
        self.walked = false;
    }

    /// After a pause of this process the servers' messages are still on their way: nobody is silent for it.
    fn forgive_own_pause(&mut self, now: Moment) {
        let pause = self.ticked.map(|ticked| now.since(ticked)).unwrap_or_default();
        self.ticked = Some(now);
        if pause > OWN_PAUSE {
            tracing::info!(?pause, "this process was paused: waiting for the servers anew");
            for server in self.servers.values_mut() {
                server.heard = server.heard.plus(pause);
            }
        }
    }

    fn note_silence(&mut self, now: Moment) {
        for (id, server) in &mut self.servers {
            let alive = server.is_alive(now);
            if alive != server.was_alive {
                server.was_alive = alive;
                tracing::info!(server = %id, address = %server.address, alive, "chunkserver");
                self.recheck.extend(server.replicas.keys().copied());
            }
        }
    }

    /// A step towards having looked at every chunk at least once: whether that is so.
    pub(crate) fn is_counted(&mut self, view: &dyn View, now: Moment) -> bool {
        if !self.walked {
            self.walk(view, now);
        }
        self.walked && self.recheck.is_empty()
    }

    fn walk(&mut self, view: &dyn View, now: Moment) {
        let batch = if self.walked { WALK_BATCH } else { FIRST_WALK_BATCH };
        let Ok(page) = read::chunks(view, self.walk, batch) else { return };
        for chunk in &page.items {
            self.examine(chunk.handle, Some(chunk), now);
        }
        match page.items.last() {
            Some(last) if page.more => self.walk = ChunkHandle::from_raw(last.handle.raw() + 1),
            Some(_) | None => {
                self.walk = ChunkHandle::default();
                self.walked = true;
            }
        }
    }
}
