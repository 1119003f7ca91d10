//! The byte encoding of commands, replies and rows: fields in order, without names.
//!
//! ```text
//! record   := format(1 byte) field*            nothing may follow
//! integer  := LEB128, shortest form only       ids and times are integers
//! bool     := 00 | 01                          option := 00 | 01 value
//! bytes    := length(integer) byte*            text is UTF-8
//! list     := count(integer) item*             enum   := tag(1 byte) field*
//! ```
//! Every value has exactly one encoding, so that masters can compare their states byte by byte. A new
//! field means a new format number or a new tag; numbers in use are persisted and never reused.

use gfs_proto::id::{
    ChunkHandle, ChunkIndex, ChunkVersion, ClientId, ClusterId, EntryId, LogIndex, MasterId, RequestId,
    ServerId, Uuid,
};
use gfs_proto::path::FilePath;
use gfs_proto::size::ChunkBytes;
use gfs_proto::time::UnixMs;

/// The format that this version writes; the first byte of every record.
pub(crate) const FORMAT: u8 = 1;

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// A later version wrote it.
    #[error("format {0} is not known here, only {FORMAT}")]
    UnknownFormat(u8),
    /// It breaks a rule of the format.
    #[error("malformed record")]
    Malformed,
}

/// What can be part of a record.
pub(crate) trait Field: Sized {
    /// Appends the encoding.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads one value off the front; `None` if the bytes are no such value.
    fn take(bytes: &mut &[u8]) -> Option<Self>;
}

/// Encodes a whole record.
pub(crate) fn encode(record: &impl Field) -> Vec<u8> {
    let mut out = vec![FORMAT];
    record.put(&mut out);
    out
}

/// Decodes a whole record.
pub(crate) fn decode<T: Field>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (&format, mut rest) = bytes.split_first().ok_or(DecodeError::Malformed)?;
    if format != FORMAT {
        return Err(DecodeError::UnknownFormat(format));
    }
    let record = T::take(&mut rest).ok_or(DecodeError::Malformed)?;
    if rest.is_empty() { Ok(record) } else { Err(DecodeError::Malformed) }
}

fn take_bytes<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(head)
}

impl Field for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        take_bytes(bytes, 1)?.first().copied()
    }
}

impl Field for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        let mut rest = *self;
        loop {
            let [low, ..] = rest.to_le_bytes();
            rest >>= 7;
            if rest == 0 {
                out.push(low & 0x7f);
                return;
            }
            out.push(low | 0x80);
        }
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = u8::take(bytes)?;
            let part = Self::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                // The shortest form only: a last byte of zero says nothing.
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }
}

impl Field for u32 {
    fn put(&self, out: &mut Vec<u8>) {
        u64::from(*self).put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        u64::take(bytes)?.try_into().ok()
    }
}

impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        match u8::take(bytes)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let length = u64::take(bytes)?.try_into().ok()?;
        Self::from_utf8(take_bytes(bytes, length)?.to_vec()).ok()
    }
}

impl Field for [u8; 16] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        take_bytes(bytes, 16)?.try_into().ok()
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let count: usize = u64::take(bytes)?.try_into().ok()?;
        // Every item takes a byte at least: a larger count is a lie, found out before it costs memory.
        if count > bytes.len() {
            return None;
        }
        (0..count).map(|_| T::take(bytes)).collect()
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        self.iter().for_each(|value| value.put(out));
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        if bool::take(bytes)? { T::take(bytes).map(Some) } else { Some(None) }
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Some((A::take(bytes)?, B::take(bytes)?))
    }
}

impl<T: Field, E: Field> Field for Result<T, E> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(error) => error.put(out),
        }
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        if bool::take(bytes)? { T::take(bytes).map(Ok) } else { E::take(bytes).map(Err) }
    }
}

impl Field for FilePath {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_str().to_owned().put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Self::parse(&String::take(bytes)?).ok()
    }
}

impl Field for ChunkBytes {
    fn put(&self, out: &mut Vec<u8>) {
        self.raw().put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Self::parse(u64::take(bytes)?).ok()
    }
}

impl Field for RequestId {
    fn put(&self, out: &mut Vec<u8>) {
        (self.client, self.sequence).put(out);
    }
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let (client, sequence) = Field::take(bytes)?;
        Some(Self { client, sequence })
    }
}

macro_rules! number_fields {
    ($($id:ident($raw:ty)),* $(,)?) => {$(
        impl Field for $id {
            fn put(&self, out: &mut Vec<u8>) {
                self.raw().put(out);
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                <$raw>::take(bytes).map(Self::from_raw)
            }
        }
    )*};
}
number_fields!(
    ChunkHandle(u64),
    ChunkVersion(u64),
    ChunkIndex(u32),
    ServerId(u64),
    MasterId(u64),
    EntryId(u64),
    ClientId(u64),
    LogIndex(u64),
    UnixMs(u64),
);

macro_rules! id128_fields {
    ($($id:ident),* $(,)?) => {$(
        impl Field for $id {
            fn put(&self, out: &mut Vec<u8>) {
                self.bytes().put(out);
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Field::take(bytes).map(Self::from_bytes)
            }
        }
    )*};
}
id128_fields!(ClusterId, Uuid);

/// Defines a struct and its encoding: the fields in this order. Changing it means a new [`FORMAT`].
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }
        impl $crate::state::codec::Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::state::codec::Field::put(&self.$field, out);)*
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: $crate::state::codec::Field::take(bytes)?,)* })
            }
        }
    };
}
pub(crate) use record;

/// Defines an enum and its encoding: the tag, then the fields in this order. Tags are never reused.
macro_rules! tagged {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$variant_meta:meta])* $tag:literal $variant:ident {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        })*
    }) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$variant_meta])* $variant { $($(#[$field_meta])* $field: $type,)* },)*
        }
        impl $name {
            /// The tag that the encoding starts with.
            pub fn tag(&self) -> u8 {
                match self {
                    $(Self::$variant { .. } => $tag,)*
                }
            }
            /// Every tag in use, with the name of its variant.
            #[cfg(test)]
            #[allow(dead_code, reason = "small enums are in the golden bytes of what has them")]
            pub(crate) const TAGS: &[(u8, &str)] = &[$(($tag, stringify!($variant)),)*];
        }
        impl $crate::state::codec::Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(self.tag());
                match self {
                    $(Self::$variant { $($field,)* } => {
                        $($crate::state::codec::Field::put($field, out);)*
                    })*
                }
            }
            fn take(bytes: &mut &[u8]) -> Option<Self> {
                match <u8 as $crate::state::codec::Field>::take(bytes)? {
                    $($tag => Some(Self::$variant {
                        $($field: $crate::state::codec::Field::take(bytes)?,)*
                    }),)*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use tagged;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_integer_has_one_encoding_only() {
        for value in [0, 1, 127, 128, 300, u64::MAX] {
            let bytes = encode(&value);
            assert_eq!(decode::<u64>(&bytes), Ok(value));
        }
        for bad in [
            &[1, 0x80, 0][..],
            &[1, 0x80],
            &[1],
            &[1, 0, 0],
            &[1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
        ] {
            assert_eq!(decode::<u64>(bad), Err(DecodeError::Malformed), "{bad:?}");
        }
        assert_eq!(decode::<u64>(&[2, 0]), Err(DecodeError::UnknownFormat(2)));
        assert_eq!(decode::<u32>(&encode(&u64::MAX)), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_lie_about_a_length_costs_no_memory() {
        assert_eq!(decode::<Vec<u64>>(&encode(&u64::MAX)), Err(DecodeError::Malformed));
        assert_eq!(decode::<String>(&encode(&(1_u64 << 40))), Err(DecodeError::Malformed));
    }

    proptest! {
        #![proptest_config(crate::state::tests::config(200))]

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = decode::<(Vec<(u64, bool)>, Option<String>)>(&bytes) {
                prop_assert_eq!(encode(&value), bytes);
            }
        }
    }
}
