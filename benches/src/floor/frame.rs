//! The floors' messages: 64 bytes, and for some a body.

use super::memory::PAGE;
use super::uffd::Right;
use crate::error::BenchError;

/// Bytes of a message without its body.
pub(super) const FRAME: usize = 64;

/// Pages in one message of a stream.
pub(super) const BULK_PAGES: usize = 16;

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// Send me a copy of this page.
    Read(u64),
    /// Give me this page, and keep no right to it.
    Take(u64),
    /// The page, 4 KiB behind the header.
    Page(u64),
    /// Drop your copy of this page.
    Invalidate(u64),
    /// Done.
    Ack,
    /// A batch begins: map all pages with this right, and wait as your seat says.
    Begin(Right),
    /// A batch begins in which each side takes so many turns.
    Play(u64),
    /// The batch is over: sleep until the next.
    Park,
    /// Send so many messages of 64 KiB.
    Stream(u64),
    /// One of these, 64 KiB behind the header.
    Bulk,
    /// Answer at once.
    Ask,
    /// An interrupt for the other side's guest.
    Hop,
}

impl Frame {
    /// Bytes that follow the header.
    pub(super) fn body(self) -> usize {
        match self {
            Self::Page(_) => PAGE,
            Self::Bulk => BULK_PAGES * PAGE,
            _ => 0,
        }
    }

    pub(super) fn encode(self) -> [u8; FRAME] {
        let (kind, argument) = match self {
            Self::Read(page) => (1, page),
            Self::Take(page) => (2, page),
            Self::Page(page) => (3, page),
            Self::Invalidate(page) => (4, page),
            Self::Ack => (5, 0),
            Self::Begin(Right::Read) => (6, 0),
            Self::Begin(Right::Write) => (6, 1),
            Self::Play(turns) => (7, turns),
            Self::Park => (8, 0),
            Self::Stream(messages) => (9, messages),
            Self::Bulk => (10, 0),
            Self::Ask => (11, 0),
            Self::Hop => (12, 0),
        };
        let mut bytes = [0; FRAME];
        bytes[0] = kind;
        bytes[8..16].copy_from_slice(&argument.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; FRAME]) -> Result<Self, BenchError> {
        let mut argument = [0; 8];
        argument.copy_from_slice(&bytes[8..16]);
        let argument = u64::from_le_bytes(argument);
        Ok(match bytes[0] {
            1 => Self::Read(argument),
            2 => Self::Take(argument),
            3 => Self::Page(argument),
            4 => Self::Invalidate(argument),
            5 => Self::Ack,
            6 => Self::Begin(if argument == 0 { Right::Read } else { Right::Write }),
            7 => Self::Play(argument),
            8 => Self::Park,
            9 => Self::Stream(argument),
            10 => Self::Bulk,
            11 => Self::Ask,
            12 => Self::Hop,
            kind => return Err(BenchError::Peer(format!("sent an unknown message {kind}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        use Frame::*;
        let (read, write) = (Begin(Right::Read), Begin(Right::Write));
        let frames = [
            Read(1),
            Take(2),
            Page(3),
            Invalidate(4),
            Ack,
            read,
            write,
            Play(7),
            Park,
            Stream(8),
            Bulk,
            Ask,
            Hop,
        ];
        for frame in frames {
            assert_eq!(Frame::decode(&frame.encode()).unwrap(), frame);
        }
        assert!(Frame::decode(&[99; FRAME]).is_err());
    }
}
