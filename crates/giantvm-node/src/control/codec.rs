//! Reading and writing of message bodies: little-endian, no padding, every length checked.

use std::collections::BTreeMap;

use dsm_core::types::{NODES_MAX, NodeId};
use thiserror::Error;

/// Why bytes from a peer are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// The body ends inside a field.
    #[error("the message ends inside field `{0}`; the peer runs another version or is broken")]
    Truncated(&'static str),
    /// Bytes follow the last field.
    #[error(
        "{0} bytes follow the message's last field; the peer runs another version or is broken"
    )]
    Trailing(usize),
    /// A field has a value that no sender writes.
    #[error("field `{field}` has the invalid value {value}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What it held.
        value: u64,
    },
    /// A text is longer than its bound, or empty where it must not be.
    #[error("field `{field}` is {len} bytes long, outside its bounds")]
    Length {
        /// The field.
        field: &'static str,
        /// Its length, in bytes.
        len: usize,
    },
    /// A text is not UTF-8.
    #[error("field `{0}` is not UTF-8")]
    NotUtf8(&'static str),
}

/// Takes fields off the front of a body.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated(field))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_le_bytes)
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Invalid { field, value: other.into() }),
        }
    }

    /// A presence byte, then the value if it says so.
    pub(crate) fn option_u64(&mut self, field: &'static str) -> Result<Option<u64>, DecodeError> {
        if self.bool(field)? { self.u64(field).map(Some) } else { Ok(None) }
    }

    pub(crate) fn node(&mut self, field: &'static str) -> Result<NodeId, DecodeError> {
        let index = self.u8(field)?;
        NodeId::new(index.into()).ok_or(DecodeError::Invalid { field, value: index.into() })
    }

    /// A text of at most `max` bytes behind its length.
    pub(crate) fn text(&mut self, max: usize, field: &'static str) -> Result<&'a str, DecodeError> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(DecodeError::Length { field, len });
        }
        std::str::from_utf8(self.take(len, field)?).map_err(|_| DecodeError::NotUtf8(field))
    }

    /// At most `max` bytes behind their length.
    pub(crate) fn blob(
        &mut self,
        max: usize,
        field: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(DecodeError::Length { field, len });
        }
        self.take(len, field)
    }

    /// As many numbers as a byte says, at most one for each possible node.
    pub(crate) fn u64_per_node(&mut self, field: &'static str) -> Result<Vec<u64>, DecodeError> {
        let count = usize::from(self.u8(field)?);
        if count > NODES_MAX {
            return Err(DecodeError::Invalid { field, value: count as u64 });
        }
        (0..count).map(|_| self.u64(field)).collect()
    }

    /// Nodes in ascending order, each with an epoch, behind their count: at most one for each
    /// possible node.
    pub(crate) fn u16_of_nodes(
        &mut self,
        field: &'static str,
    ) -> Result<BTreeMap<NodeId, u16>, DecodeError> {
        let count = usize::from(self.u8(field)?);
        let mut map = BTreeMap::new();
        for _ in 0..count {
            let (node, value) = (self.node(field)?, self.u16(field)?);
            if map.last_key_value().is_some_and(|(&last, _)| last >= node) {
                return Err(DecodeError::Invalid { field, value: node.index() as u64 });
            }
            map.insert(node, value);
        }
        Ok(map)
    }

    /// Checks that nothing is left.
    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}

/// Appends fields to a body.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub(crate) fn option_u64(&mut self, value: Option<u64>) {
        self.bool(value.is_some());
        if let Some(value) = value {
            self.u64(value);
        }
    }

    pub(crate) fn node(&mut self, node: NodeId) {
        self.u8(node.index() as u8);
    }

    /// Texts are bounded far below 64 KiB; one that is not would be cut, never mis-framed.
    pub(crate) fn text(&mut self, text: &str) {
        let text = clip(text, u16::MAX.into());
        self.u16(text.len() as u16);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Blobs are bounded far below 64 KiB; one that is not would be cut, never mis-framed.
    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(..u16::MAX.into()).unwrap_or(bytes);
        self.u16(bytes.len() as u16);
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn u64_per_node(&mut self, values: &[u64]) {
        let values = values.get(..NODES_MAX).unwrap_or(values);
        self.u8(values.len() as u8);
        values.iter().for_each(|&value| self.u64(value));
    }

    pub(crate) fn u16_of_nodes(&mut self, values: &BTreeMap<NodeId, u16>) {
        self.u8(values.len() as u8); // no more than there are nodes
        for (&node, &value) in values {
            self.node(node);
            self.u16(value);
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The longest start of `text` that is at most `max` bytes and ends at a character's end.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_never_cuts_a_character() {
        assert_eq!(clip("aäb", 2), "a");
        assert_eq!(clip("aäb", 3), "aä");
        assert_eq!(clip("ab", 9), "ab");
        assert_eq!(clip("ä", 1), "");
    }

    #[test]
    fn a_boolean_is_0_or_1_and_nothing_else() {
        assert_eq!(Reader::new(&[1]).bool("f"), Ok(true));
        assert_eq!(Reader::new(&[2]).bool("f"), Err(DecodeError::Invalid { field: "f", value: 2 }));
    }

    #[test]
    fn a_text_longer_than_its_bound_or_than_the_body_is_refused() {
        assert_eq!(
            Reader::new(&[5, 0, b'a']).text(4, "f"),
            Err(DecodeError::Length { field: "f", len: 5 })
        );
        assert_eq!(Reader::new(&[2, 0, b'a']).text(4, "f"), Err(DecodeError::Truncated("f")));
        assert_eq!(Reader::new(&[1, 0, 0xff]).text(4, "f"), Err(DecodeError::NotUtf8("f")));
    }
}
