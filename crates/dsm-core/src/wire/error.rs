//! What can be wrong with bytes from a peer.

/// Bytes from a peer that are no message. The connection they came on is of no further use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes do not open with the mark of a frame.
    #[error("a frame opens with {found:#06x} instead of {expected:#06x}: not a giantvm frame")]
    Magic {
        /// The mark that was found.
        found: u16,
        /// The mark of a frame.
        expected: u16,
    },
    /// A kind of message that this version does not have.
    #[error("unknown kind of message {kind:#04x}")]
    Kind {
        /// The kind that was found.
        kind: u8,
    },
    /// A kind of message that this decoder or encoder is not for.
    #[error("a message of kind {kind:#04x} is not a page message")]
    NotAPageMessage {
        /// The kind that was found.
        kind: u8,
    },
    /// Bits that must be zero are not.
    #[error("reserved bits in `{field}` are set: {found:#x}")]
    Reserved {
        /// Where the bits are.
        field: &'static str,
        /// The bits that must be zero.
        found: u64,
    },
    /// A number beyond its limit.
    #[error("`{field}` is {found}, beyond {max}")]
    Beyond {
        /// The field.
        field: &'static str,
        /// What it says.
        found: u64,
        /// The most that it may say.
        max: u64,
    },
    /// A body whose length is not what its counts ask for.
    #[error("a body of `{message}` has {found} bytes instead of {expected}")]
    Length {
        /// The message.
        message: &'static str,
        /// Bytes in the body.
        found: usize,
        /// Bytes that it needs.
        expected: usize,
    },
    /// The number of pages in the payload is not what the body announces.
    #[error("a payload of {found} pages where the message announces {expected}")]
    Payload {
        /// Pages in the payload.
        found: usize,
        /// Pages announced.
        expected: usize,
    },
    /// Parts of one message that contradict each other.
    #[error("`{message}` contradicts itself: {what}")]
    Contradiction {
        /// The message.
        message: &'static str,
        /// The contradiction.
        what: &'static str,
    },
}
