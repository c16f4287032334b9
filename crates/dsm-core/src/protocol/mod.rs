//! The coherence protocol: Ivy with a dynamic distributed manager, without I/O.

mod message;

pub use message::{
    COMPANIONS_MAX, Companion, Grant, Hint, Invalidate, InvalidateAck, Message, PageGrant, Request,
    Right,
};
