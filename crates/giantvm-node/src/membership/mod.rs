//! Who belongs to the cluster: joining, heartbeats, epochs, leaving, and the loss of a node.
//!
//! [`Membership`] runs on every node. The list of nodes is fixed; the first one is the **deciding
//! node**, and nobody else ever decides that a node is lost. An [`Event`] and the time go in,
//! [`Action`]s come out. Where etcd decides instead, [`etcd`] has the machine; both are a
//! [`Machine`] to the driver.
//!
//! # The way of a node
//!
//! *Joining* until every node of the list is connected with every other. The deciding node learns
//! that from heartbeats and announces epoch 1; then all are *Running*. A node that wants to go is
//! *Leaving* until the deciding node has struck it off. *Ended* is final: a new process with a
//! new incarnation is needed, and a running cluster does not take it in.
//!
//! # Losing a node takes two steps
//!
//! 1. **Lost**: the deciding node says so at once when the connection to a node breaks, when it is
//!    silent for `timeout`, or when another member reports that it can't talk to it. Everyone ends
//!    what depends on that node ([`Action::PeerLost`]). To end things is safe at any time, even if
//!    the node is alive and unaware.
//! 2. **Removed**: a new epoch without the node ([`Action::NewEpoch`]). Only then may others do
//!    anything that would be wrong if the node still ran. So this waits until it has certainly
//!    stopped: it said so itself, or its right to run has run out.
//!
//! # The right to run, and why it runs out in time
//!
//! A heartbeat carries its sender's clock, and the deciding node returns the latest such time in its
//! own heartbeats. So a node knows a time `s` *of its own clock* at which it sent something that the
//! deciding node did receive. Its right to run ends at `s + timeout`; nothing but a later echo
//! prolongs it. The deciding node received that heartbeat at `r`, not before it was sent, and after
//! it has declared a node lost it echoes nothing more to it. It removes the node at
//! `r + timeout + margin`, so all others go on later than the node has stopped if
//!
//! ```text
//! margin >= 2 * heartbeat + timeout / 1000 + stop
//! ```
//!
//! One heartbeat is the interval at which the node looks at its clock, the other is what its thread
//! may be late, the third term is the drift of two clocks, and the last
//! ([`STOP_MS`](crate::limits::STOP_MS)) is what it takes until no thread of the node can use a
//! region any more: its program is told before. The delay of messages is not in the
//! inequality: late messages only end the right earlier. [`Config`] refuses a smaller margin. A node
//! that says itself that it has ended is removed after the margin, since its memory may take that long.
//!
//! Every step looks at the clock before it looks at the event. So a node that was stopped and
//! resumes finds out that it is out before it acts on anything; it needs no message for that. What
//! this cannot do is to hold back the other threads of a process that was just resumed, until
//! the thread that steps the membership has run.
//!
//! # What the driver owes
//!
//! - Time in milliseconds that never goes back and goes on while the process is stopped or the
//!   machine suspended (`CLOCK_BOOTTIME`). A step at least once every [`Config::heartbeat_ms`].
//! - Before [`Event::Connected`]: a handshake that checked protocol version and cluster. Messages
//!   of one connection in order, then its end. One connection to a node at a time: the end of the
//!   old one is told before the new one.
//! - [`Action::Refuse`] sends [`MemberMessage::Fatal`] and closes the connection that had the stated
//!   incarnation and caused it; its end is not told as an event.
//! - After [`Action::Ended`], what is queued is sent as far as it goes, and all connections close.
//!
//! [`MemberMessage::Fatal`]: crate::control::MemberMessage::Fatal

mod config;
mod decide;
pub mod etcd;
mod event;
mod machine;
mod member;
mod peers;

pub use config::{Config, ConfigError};
pub use event::{Action, EndReason, Event, Said, State};
pub use machine::Membership;

use dsm_core::types::NodeSet;

/// What a driver needs of a membership, whoever decides.
pub trait Machine: Send {
    /// Takes in one event that happened at `now_ms`. Looks at the clock before the event.
    fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action>;

    /// This node can have no newcomer from now on; says why, for people. One that is on its way may
    /// still get in before all know.
    fn close(&mut self, reason: &str);

    /// Where things stand.
    fn verdict(&self) -> Verdict<'_>;

    /// When the next [`Event::Tick`] is due at the latest, in milliseconds.
    fn next_tick_ms(&self) -> u64;
}

/// Where a [`Machine`] stands.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// Where this node stands.
    pub state: &'a State,
    /// The epoch; 0 before the cluster runs. It only rises.
    pub epoch: u64,
    /// The members of the epoch, lost ones included until they are removed.
    pub members: NodeSet,
    /// The members that can be talked to.
    pub live: NodeSet,
    /// The nodes of the list that this one would talk to, and has no connection to.
    pub missing: NodeSet,
}

impl Machine for Membership {
    fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        Self::step(self, now_ms, event)
    }

    fn close(&mut self, _reason: &str) {}

    fn verdict(&self) -> Verdict<'_> {
        Verdict {
            state: self.state(),
            epoch: self.epoch(),
            members: self.members(),
            live: self.live(),
            missing: self.missing(),
        }
    }

    fn next_tick_ms(&self) -> u64 {
        Self::next_tick_ms(self)
    }
}
