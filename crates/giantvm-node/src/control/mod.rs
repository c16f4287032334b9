//! The messages of the control connections, and their bytes.
//!
//! There is one control connection between each two nodes, apart from those of the pages: ordered
//! and reliable while it lives. A transport frames the bodies; [`ControlMessage::encode`] and
//! [`ControlMessage::decode`] are the bodies. Every field is checked when it is decoded: a value
//! that decodes keeps all bounds of [`limits`](crate::limits).

pub mod codec;
mod message;
mod region;

pub use codec::DecodeError;
pub use message::{Change, ControlMessage, Heartbeat, MemberMessage, clip_reason};
pub use region::{RegionMessage, RegionOrigin};
