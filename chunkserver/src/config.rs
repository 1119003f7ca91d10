//! What a chunkserver is told at its start: plain values, checked once.

use std::path::PathBuf;

use gfs_proto::{Error, Result};

/// Memory for pushed data that waits for its write (GFS §3.1 step 3).
pub const BUFFER_BYTES_DEFAULT: u64 = 128 * 1024 * 1024;
/// Longest rack name.
const RACK_BYTES_MAX: usize = 255;

/// Settings of one chunkserver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkserverConfig {
    /// Data directories, one for each disk.
    pub data: Vec<PathBuf>,
    /// `host:port` that the others are told; the listener's own address if `None`.
    pub advertise: Option<String>,
    /// Masters and shadows to begin with; the rest is learnt from them.
    pub masters: Vec<String>,
    /// Where the server stands: replicas of a chunk are spread over racks (GFS §4.2).
    pub rack: String,
    /// Memory for pushed data, in bytes.
    pub buffer_bytes: u64,
}

impl ChunkserverConfig {
    /// The default settings for these data directories and masters.
    pub fn new(data: impl IntoIterator<Item = impl Into<PathBuf>>, masters: Vec<String>) -> Self {
        Self {
            data: data.into_iter().map(Into::into).collect(),
            advertise: None,
            masters,
            rack: String::new(),
            buffer_bytes: BUFFER_BYTES_DEFAULT,
        }
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`Error::BadArgument`] that names the setting.
    pub fn check(&self) -> Result<()> {
        if self.data.is_empty() {
            return Err(Error::bad_argument("no data directory is given"));
        }
        if self.masters.is_empty() {
            return Err(Error::bad_argument("no master is given (--masters HOST:PORT,..)"));
        }
        if self.rack.len() > RACK_BYTES_MAX || self.rack.chars().any(char::is_control) {
            return Err(Error::bad_argument("a rack name is at most 255 bytes, without control characters"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let good = ChunkserverConfig::new(["/d"], vec!["m:1".into()]);
        assert_eq!(good.check(), Ok(()));
        assert!(ChunkserverConfig { data: Vec::new(), ..good.clone() }.check().is_err());
        assert!(ChunkserverConfig { masters: Vec::new(), ..good.clone() }.check().is_err());
        assert!(ChunkserverConfig { rack: "a\nb".into(), ..good }.check().is_err());
    }
}
