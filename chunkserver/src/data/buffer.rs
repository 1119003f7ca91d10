//! Pushed data that waits for its write (GFS §3.1 step 3): bounded, by id, the least recently used first to go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use gfs_proto::frame::Payload;
use gfs_proto::id::DataId;
use gfs_proto::time::{Clock, Moment};
use gfs_proto::{Error, Result};
use parking_lot::Mutex;

/// Data that nobody asked for in this time is dropped: its client pushes again if it is still there (trap T42).
const AGE_MAX: Duration = Duration::from_secs(30);
/// Under pressure, data may be dropped after this much. A client writes what it pushed long before, and the
/// pushes of those who never write make room.
const PRESSED_AGE_MAX: Duration = Duration::from_secs(5);
/// Most pieces of data, however small they are.
const ENTRIES_MAX: usize = 64 * 1024;

/// The buffer of one chunkserver.
pub struct Buffer {
    clock: Arc<dyn Clock>,
    bytes_max: usize,
    /// Behind a lock because all connections share it; every access is short.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<DataId, Entry>,
    /// By last use, oldest first.
    order: BTreeMap<u64, DataId>,
    next_use: u64,
    /// Held and reserved.
    bytes: usize,
}

struct Entry {
    payload: Payload,
    used: Moment,
    order: u64,
}

/// Room for data that is being received; given back on drop.
pub struct Reservation {
    buffer: Arc<Buffer>,
    bytes: usize,
}

impl Buffer {
    /// An empty buffer for at most `bytes_max` bytes.
    pub fn new(clock: Arc<dyn Clock>, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { clock, bytes_max, inner: Mutex::default() })
    }

    /// Makes room for data before it is received.
    ///
    /// # Errors
    /// [`Error::Busy`] if nothing old enough can be dropped for it; [`Error::TooLarge`] if it can never fit.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation> {
        if bytes > self.bytes_max {
            let (size, limit) = (bytes as u64, self.bytes_max as u64);
            return Err(Error::TooLarge { what: "pushed data".into(), size, limit });
        }
        let now = self.clock.moment();
        let mut inner = self.inner.lock();
        let full = |inner: &Inner| inner.bytes + bytes > self.bytes_max || inner.order.len() >= ENTRIES_MAX;
        inner.drop_older(now, AGE_MAX, |_| true);
        inner.drop_older(now, PRESSED_AGE_MAX, full);
        if full(&inner) {
            return Err(Error::Busy { what: "the buffer for pushed data".into() });
        }
        inner.bytes += bytes;
        Ok(Reservation { buffer: self.clone(), bytes })
    }

    /// The data with this id, which counts as used now.
    ///
    /// # Errors
    /// [`Error::DataUnknown`] if it is not here (any more).
    pub fn find(&self, data: DataId) -> Result<Payload> {
        let now = self.clock.moment();
        let mut inner = self.inner.lock();
        let order = inner.next_use;
        let entry = inner.entries.get_mut(&data).ok_or(Error::DataUnknown { data })?;
        let before = std::mem::replace(&mut entry.order, order);
        entry.used = now;
        let payload = entry.payload.clone();
        inner.next_use += 1;
        inner.order.remove(&before);
        inner.order.insert(order, data);
        Ok(payload)
    }

    /// Drops data whose mutation has been applied.
    pub fn remove(&self, data: DataId) {
        self.inner.lock().remove(data);
    }

    /// Drops what is too old; called now and then, so that an idle server holds nothing.
    pub fn drop_aged(&self) {
        self.inner.lock().drop_older(self.clock.moment(), AGE_MAX, |_| true);
    }

    /// Bytes held and reserved.
    pub fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.bytes(), self.bytes_max)
    }
}

impl Inner {
    /// Drops the oldest data, as long as it is older than `age` and `more` says so.
    fn drop_older(&mut self, now: Moment, age: Duration, more: impl Fn(&Self) -> bool) {
        while let Some((_, &oldest)) = self.order.first_key_value() {
            let old = self.entries.get(&oldest).is_none_or(|entry| now.since(entry.used) >= age);
            if !old || !more(self) {
                return;
            }
            self.remove(oldest);
        }
    }

    fn remove(&mut self, data: DataId) {
        if let Some(entry) = self.entries.remove(&data) {
            self.order.remove(&entry.order);
            self.bytes -= entry.payload.bytes.len();
        }
    }
}

impl Reservation {
    /// Puts the received data into the room that was reserved for it. The same id again replaces the data.
    pub fn fill(mut self, data: DataId, payload: Payload) {
        debug_assert!(payload.bytes.len() <= self.bytes);
        let now = self.buffer.clock.moment();
        let mut inner = self.buffer.inner.lock();
        inner.remove(data);
        let order = inner.next_use;
        inner.next_use += 1;
        inner.order.insert(order, data);
        // The room is the entry's from here on; what it does not need is given back.
        inner.bytes -= self.bytes - payload.bytes.len();
        self.bytes = 0;
        inner.entries.insert(data, Entry { payload, used: now, order });
    }
}
impl Drop for Reservation {
    fn drop(&mut self) {
        self.buffer.inner.lock().bytes -= self.bytes;
    }
}
impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use gfs_proto::time::ManualClock;
    use proptest::prelude::*;

    fn id(number: u8) -> DataId {
        DataId::from_bytes([number; 16])
    }
    fn payload(length: usize) -> Payload {
        Payload::new(0, Bytes::from(vec![1; length]))
    }
    fn push(buffer: &Arc<Buffer>, number: u8, length: usize) -> Result<()> {
        buffer.reserve(length)?.fill(id(number), payload(length));
        Ok(())
    }

    #[test]
    fn a_full_buffer_refuses_until_data_is_used_or_old() {
        let clock = Arc::new(ManualClock::default());
        let buffer = Buffer::new(clock.clone(), 100);
        push(&buffer, 1, 60).unwrap();
        assert!(matches!(push(&buffer, 2, 60), Err(Error::Busy { .. })));
        assert!(matches!(push(&buffer, 2, 101), Err(Error::TooLarge { .. })));
        buffer.remove(id(1));
        push(&buffer, 2, 60).unwrap();

        clock.advance(Duration::from_secs(4));
        push(&buffer, 3, 40).unwrap();
        clock.advance(Duration::from_secs(2));
        // 2 is old enough to make room, 3 is not; without need, both would have stayed.
        push(&buffer, 4, 50).unwrap();
        assert_eq!(buffer.find(id(2)), Err(Error::DataUnknown { data: id(2) }));
        assert_eq!(buffer.find(id(3)).unwrap(), payload(40));

        clock.advance(Duration::from_secs(30));
        buffer.drop_aged();
        assert_eq!(buffer.bytes(), 0);
    }

    #[test]
    fn used_data_is_the_last_to_go_and_an_abandoned_reservation_gives_its_room_back() {
        let clock = Arc::new(ManualClock::default());
        let buffer = Buffer::new(clock.clone(), 100);
        push(&buffer, 1, 50).unwrap();
        push(&buffer, 2, 50).unwrap();
        clock.advance(Duration::from_secs(6));
        buffer.find(id(1)).unwrap();
        drop(buffer.reserve(40).unwrap());
        assert_eq!(buffer.bytes(), 50);
        buffer.find(id(1)).unwrap();
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_held_and_never_more_than_the_bound(
            steps in prop::collection::vec((0u8..4, 0u8..8, 0usize..60, 0u64..8), 1..200),
        ) {
            let clock = Arc::new(ManualClock::default());
            let buffer = Buffer::new(clock.clone(), 200);
            for (step, number, length, seconds) in steps {
                match step {
                    0 | 1 => drop(push(&buffer, number, length)),
                    2 => buffer.remove(id(number)),
                    _ => clock.advance(Duration::from_secs(seconds)),
                }
                let inner = buffer.inner.lock();
                let held: usize = inner.entries.values().map(|entry| entry.payload.bytes.len()).sum();
                prop_assert_eq!(held, inner.bytes);
                prop_assert_eq!(inner.order.len(), inner.entries.len());
                prop_assert!(held <= 200);
            }
        }
    }
}
