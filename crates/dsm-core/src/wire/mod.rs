//! The bytes that nodes exchange: framing, page messages, and the handshake of a connection.
//!
//! A connection carries one handshake ([`Hello`] against [`Answer`]) and then frames: a
//! [`FrameHeader`], a body, and a payload of whole pages. Every layout is fixed and little-endian,
//! and every message has exactly one encoding: what [`decode`] accepts, [`encode`] gives back bit
//! by bit. docs/wire.md describes the format for readers who do not have this code.

mod decode;
mod encode;
mod error;
mod header;
mod hello;
mod layout;
mod recover;
mod walk;

pub use decode::{Limits, decode};
pub use encode::{encode, encode_control, encode_in};
pub use error::WireError;
pub use header::{ControlKind, FRAME_MAX, FrameHeader, HEADER_LEN, Kind};
pub use hello::{
    ANSWER_LEN, Answer, Channel, ClusterId, HELLO_LEN, Hello, Identity, Incarnation, MAGIC,
    REASON_MAX, Refusal, RefusalCode,
};

use crate::protocol::COMPANIONS_MAX;

/// Version of everything in this module; nodes of different versions refuse each other.
pub const PROTOCOL_VERSION: u16 = 7;

/// Most bytes in the body of a frame. The largest page message, a verdict with 512 runs of pages,
/// needs 12,312; the rest is room for control messages.
pub const BODY_MAX: usize = 16 * 1024;

/// Most pages in the payload of a frame: the requested page and its companions.
pub const PAYLOAD_PAGES_MAX: usize = COMPANIONS_MAX + 1;

/// Most requests that a grant hands over with the page: one of every node.
pub const WAITERS_MAX: usize = crate::types::NODES_MAX;

#[cfg(test)]
mod tests;
