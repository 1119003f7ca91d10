//! One command's change in the making: typed rows over an overlay. Nothing is seen below before the command
//! has come to its end, so a command that is refused half way leaves no trace.

use std::collections::BTreeSet;

use gfs_proto::id::{ChunkHandle, ChunkIndex, EntryId, LogIndex, RequestId, ServerId};
use gfs_proto::time::UnixMs;

use crate::state::codec::encode;
use crate::state::format::{
    self, Accepted, Build, Chunk, Counters, Entry, EntryKind, Master, Origin, Place, Server, Session,
    Settings, Trashed, system,
};
use crate::state::read;
use crate::state::reply::{Applied, Rejected, Reply};
use crate::state::session;
use crate::state::table::{Overlay, Table, View, Writes};

/// What a command reads and writes.
pub(crate) struct Change<'a> {
    overlay: Overlay<'a>,
    index: LogIndex,
    now: UnixMs,
    touched: BTreeSet<ChunkHandle>,
}

impl<'a> Change<'a> {
    /// A command at `index` of the log, when the state's clock says `now`.
    pub(crate) fn new(view: &'a dyn View, index: LogIndex, now: UnixMs) -> Self {
        Self { overlay: Overlay::new(view), index, now, touched: BTreeSet::new() }
    }
    /// What was changed, and which chunks.
    pub(crate) fn into_parts(self) -> (Writes, Vec<ChunkHandle>) {
        (self.overlay.into_writes(), self.touched.into_iter().collect())
    }
    /// The state with the change so far.
    pub(crate) fn view(&self) -> &dyn View {
        &self.overlay
    }
    /// The log index of the command.
    pub(crate) fn index(&self) -> LogIndex {
        self.index
    }
    /// The state's clock.
    pub(crate) fn now(&self) -> UnixMs {
        self.now
    }

    /// Sets what was settled when the cluster was made.
    pub(crate) fn put_settings(&mut self, settings: &Settings) {
        self.overlay.put(Table::System, system::SETTINGS.to_vec(), encode(settings));
    }
    /// Sets all counters.
    pub(crate) fn put_counters(&mut self, counters: &Counters) {
        self.overlay.put(Table::System, system::COUNTERS.to_vec(), encode(counters));
    }
    /// Changes the counters; `None` if one has come to its end.
    fn count<T>(&mut self, change: impl FnOnce(&mut Counters) -> Option<T>) -> Result<T, Rejected> {
        let mut counters = read::counters(self.view())?;
        let result = change(&mut counters).ok_or(Rejected::Exhausted {})?;
        self.put_counters(&counters);
        Ok(result)
    }

    /// Draws the id of a new file or directory, and counts it.
    pub(crate) fn draw_entry(&mut self, kind: &EntryKind) -> Result<EntryId, Rejected> {
        self.count(|counters| {
            let id = counters.next_entry;
            counters.next_entry = EntryId::from_raw(id.raw().checked_add(1)?);
            let count = match kind {
                EntryKind::File {} => &mut counters.files,
                EntryKind::Directory {} => &mut counters.directories,
            };
            *count = count.checked_add(1)?;
            Some(id)
        })
    }
    /// Draws the handle of a new chunk, and counts it.
    pub(crate) fn draw_chunk(&mut self) -> Result<ChunkHandle, Rejected> {
        self.count(|counters| {
            let handle = counters.next_chunk;
            counters.next_chunk = ChunkHandle::from_raw(handle.raw().checked_add(1)?);
            counters.chunks = counters.chunks.checked_add(1)?;
            Some(handle)
        })
    }
    /// Draws a handle for a chunk that may come.
    pub(crate) fn reserve_chunk(&mut self) -> Result<ChunkHandle, Rejected> {
        self.count(|counters| {
            let handle = counters.next_chunk;
            counters.next_chunk = ChunkHandle::from_raw(handle.raw().checked_add(1)?);
            Some(handle)
        })
    }
    /// Counts a chunk that came under a reserved handle.
    pub(crate) fn count_chunk(&mut self) -> Result<(), Rejected> {
        self.count(|counters| {
            counters.chunks = counters.chunks.checked_add(1)?;
            Some(())
        })
    }
    /// Draws the id of a new chunkserver.
    pub(crate) fn draw_server(&mut self) -> Result<ServerId, Rejected> {
        self.count(|counters| {
            let id = counters.next_server;
            counters.next_server = ServerId::from_raw(id.raw().checked_add(1)?);
            Some(id)
        })
    }

    /// Writes a file or directory.
    pub(crate) fn put_entry(&mut self, entry: &Entry) {
        self.overlay.put(Table::Entry, format::entry_key(entry.id), encode(entry));
    }
    /// Removes a file or directory for ever.
    pub(crate) fn remove_entry(&mut self, entry: &Entry) -> Result<(), Rejected> {
        self.overlay.remove(Table::Entry, format::entry_key(entry.id));
        self.count(|counters| {
            let count = match entry.kind {
                EntryKind::File {} => &mut counters.files,
                EntryKind::Directory {} => &mut counters.directories,
            };
            *count = count.checked_sub(1)?;
            Some(())
        })
    }
    /// Takes an entry out of the directory or the trash that it is in; the caller says where it goes.
    pub(crate) fn take_out(&mut self, entry: &Entry) {
        match &entry.place {
            Place::Root {} => {}
            Place::In { parent, name } => {
                self.overlay.remove(Table::Name, format::name_key(*parent, name));
            }
            Place::Trash { collect_at } => {
                self.overlay.remove(Table::Trash, format::trash_key(*collect_at, entry.id));
            }
        }
    }
    /// Puts an entry into a directory, where the name is free.
    pub(crate) fn put_in(&mut self, entry: &mut Entry, parent: EntryId, name: &str) {
        entry.place = Place::In { parent, name: name.to_owned() };
        self.overlay.put(Table::Name, format::name_key(parent, name), encode(&entry.id));
        self.put_entry(entry);
    }
    /// Puts an entry into the trash.
    pub(crate) fn put_trashed(&mut self, entry: &mut Entry, trashed: &Trashed) {
        entry.place = Place::Trash { collect_at: trashed.collect_at };
        self.overlay.put(Table::Trash, format::trash_key(trashed.collect_at, trashed.entry), encode(trashed));
        self.put_entry(entry);
    }

    /// Says which chunk stands at an index of a file.
    pub(crate) fn put_file_chunk(&mut self, file: EntryId, index: ChunkIndex, handle: ChunkHandle) {
        self.overlay.put(Table::FileChunk, format::file_chunk_key(file, index), encode(&handle));
    }
    /// No chunk stands at an index of a file any more.
    pub(crate) fn remove_file_chunk(&mut self, file: EntryId, index: ChunkIndex) {
        self.overlay.remove(Table::FileChunk, format::file_chunk_key(file, index));
    }
    /// Writes a chunk, and whether it has a pending grant.
    pub(crate) fn put_chunk(&mut self, chunk: &Chunk) {
        self.touched.insert(chunk.handle);
        self.overlay.put(Table::Chunk, format::chunk_key(chunk.handle), encode(chunk));
        let key = system::pending(chunk.handle);
        match (&chunk.pending, self.overlay.get(Table::System, &key)) {
            (Some(_), None) => self.overlay.put(Table::System, key, Vec::new()),
            // Only what is there: whoever scans the list has to step over every removal.
            (None, Some(_)) => self.overlay.remove(Table::System, key),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    /// Writes a chunk of which only the number of references has changed: of no interest to the soft state.
    pub(crate) fn put_references(&mut self, chunk: &Chunk) {
        self.overlay.put(Table::Chunk, format::chunk_key(chunk.handle), encode(chunk));
    }
    /// Takes note of how far the snapshot of a large tree is.
    pub(crate) fn put_build(&mut self, build: &Build) {
        self.overlay.put(Table::System, system::BUILD.to_vec(), encode(build));
    }
    /// No snapshot of a large tree is being built any more.
    pub(crate) fn remove_build(&mut self) {
        self.overlay.remove(Table::System, system::BUILD.to_vec());
    }
    /// Takes note of where a copy comes from.
    pub(crate) fn put_origin(&mut self, copy: ChunkHandle, origin: &Origin) {
        self.overlay.put(Table::System, system::origin(copy), encode(origin));
    }
    /// Where a copy comes from is of no interest any more.
    pub(crate) fn remove_origin(&mut self, copy: ChunkHandle) {
        self.overlay.remove(Table::System, system::origin(copy));
    }
    /// An operator has decided about the pending grant of a chunk.
    pub(crate) fn put_accepted(&mut self, handle: ChunkHandle, accepted: &Accepted) {
        self.overlay.put(Table::System, system::accepted(handle), encode(accepted));
    }
    /// A decision is over, if there was one.
    pub(crate) fn remove_accepted(&mut self, handle: ChunkHandle) {
        self.remove_if_there(system::accepted(handle));
    }
    /// Removes a row of the system's that mostly is not there: whoever scans them has to step over every removal.
    fn remove_if_there(&mut self, key: Vec<u8>) {
        if self.overlay.get(Table::System, &key).is_some() {
            self.overlay.remove(Table::System, key);
        }
    }
    /// Removes a chunk for ever: from now on its replicas are garbage.
    pub(crate) fn remove_chunk(&mut self, handle: ChunkHandle) -> Result<(), Rejected> {
        self.touched.insert(handle);
        self.overlay.remove(Table::Chunk, format::chunk_key(handle));
        self.remove_if_there(system::pending(handle));
        self.remove_accepted(handle);
        self.count(|counters| {
            counters.chunks = counters.chunks.checked_sub(1)?;
            Some(())
        })
    }

    /// Writes a chunkserver.
    pub(crate) fn put_server(&mut self, server: &Server) {
        self.overlay.put(Table::System, system::server(server.server), encode(server));
        self.overlay.put(Table::System, system::server_uuid(server.uuid), encode(&server.server));
    }
    /// Writes a master.
    pub(crate) fn put_master(&mut self, master: &Master) {
        self.overlay.put(Table::System, system::master(master.master), encode(master));
        self.overlay.put(Table::System, system::master_uuid(master.uuid), encode(&master.master));
    }

    /// Writes a new session and counts it.
    pub(crate) fn put_new_session(&mut self, session: &Session) -> Result<(), Rejected> {
        put_session(&mut self.overlay, None, session);
        self.overlay.put(Table::System, system::nonce(session.nonce), encode(&session.client));
        self.count(|counters| {
            counters.sessions = counters.sessions.checked_add(1)?;
            Some(())
        })
    }
    /// Writes a session that was there before.
    pub(crate) fn put_session(&mut self, old: &Session, new: &Session) {
        put_session(&mut self.overlay, Some(old), new);
    }
    /// Removes a session, but for its replies.
    pub(crate) fn remove_session(&mut self, session: &Session) -> Result<(), Rejected> {
        self.overlay.remove(Table::Session, format::session_key(session.client));
        self.overlay.remove(Table::System, system::nonce(session.nonce));
        self.overlay.remove(Table::System, system::session_end(session.expires_at, session.client));
        self.count(|counters| {
            counters.sessions = counters.sessions.checked_sub(1)?;
            Some(())
        })
    }
    /// Keeps the answer to a request that this command is not, but ends.
    pub(crate) fn put_reply(&mut self, request: RequestId, command: u8, result: Result<Applied, Rejected>) {
        session::store(&mut self.overlay, request, command, Reply { decided_at: self.index, result });
    }
    /// Removes a stored reply by its key.
    pub(crate) fn remove_reply(&mut self, key: Vec<u8>) {
        self.overlay.remove(Table::Session, key);
    }
}

/// Writes a session, and its end into the list of ends.
pub(crate) fn put_session(overlay: &mut Overlay<'_>, old: Option<&Session>, new: &Session) {
    if let Some(old) = old {
        overlay.remove(Table::System, system::session_end(old.expires_at, old.client));
    }
    overlay.put(Table::System, system::session_end(new.expires_at, new.client), Vec::new());
    overlay.put(Table::Session, format::session_key(new.client), encode(new));
}
