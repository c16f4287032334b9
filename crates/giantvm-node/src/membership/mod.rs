//! Who belongs to the cluster: joining, heartbeats, epochs, leaving, and the loss of a node.
//!
//! [`Membership`] runs on every node. The list of nodes is fixed, but not who of it is a member. The
//! first one is the **deciding node**: always a member, and nobody else ever decides that a node is
//! lost or taken in. An [`Event`] and the time go in,
//! [`Action`]s come out. Where etcd decides instead, [`etcd`] has the machine; both are a
//! [`Machine`] to the driver.
//!
//! # The way of a node
//!
//! *Joining* until every node that the start waits for (all but [`Config::late`]) is connected with
//! every other. The deciding node learns that from heartbeats and announces epoch 1; then these are
//! *Running*. Any other node goes on *Joining* until it is taken in. A node that wants to go is
//! *Leaving* until the deciding node has struck it off. *Ended* is final: a new process with a new
//! incarnation is needed, which joins.
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
//! # Taking a node in
//!
//! Members accept connections of nodes that are no members and exchange heartbeats with them; nothing
//! else follows from such a connection. The deciding node takes one in, with a new epoch, when
//!
//! - no process is a member with its number: an earlier one has left, or was removed. So it has
//!   certainly stopped, and two processes never run as one node;
//! - no member is lost and not yet removed. So all members of the new epoch are live: the newcomer can
//!   meet all of them, and there is no loss half done that it would have to be told of;
//! - the latest heartbeat of every member is from the current epoch and names the newcomer as connected,
//!   and the newcomer's names every member. As messages of a connection come in order, a member has then
//!   said all that it ever says against an earlier process with that number: it can't hit the newcomer.
//!
//! Then the deciding node sends a heartbeat to the newcomer, and after it [`Change::Started`] with all
//! that there is to know of the epoch; each other member is told [`Change::Joined`].
//!
//! The right to run holds as for the others. The newcomer does not run unless it has an echo that is
//! fresh when the start arrives. What the deciding node heard from it counts from its connection on,
//! which is that of this incarnation, or from when it was taken in, whichever is later. As long as its
//! heartbeats say that it doesn't know that it is a member, they count for nothing on either side: one
//! that never learns it is lost for its silence, and its right to run is not prolonged.
//!
//! Members learn of the newcomer at different times, and its connections may break and be made
//! again meanwhile. It may talk to a member as a member before that one knows: it has to be
//! heard. A member that has no connection with it when it is told waits for one, which may be on its way,
//! as long as for anyone who is silent. The newcomer waits twice as long, so that the one of the two who
//! has been there for longer stays. Once they have met as members, a connection that breaks is a loss. A
//! connection with another process of a member is put off ([`Action::Postpone`]) until that member is
//! removed: it may be an old one or a newer one, and neither must end for it.
//!
//! # What the driver owes
//!
//! - Time in milliseconds that never goes back and goes on while the process is stopped or the
//!   machine suspended (`CLOCK_BOOTTIME`). A step at least once every [`Config::heartbeat_ms`].
//! - Before [`Event::Connected`]: a handshake that checked protocol version and cluster. Messages
//!   of one connection in order, then its end. One connection to a node at a time: the end of the
//!   old one is told before the new one. A second process must not end the connection of a member that
//!   runs: while there is one, the handshake refuses another incarnation.
//! - [`Action::Refuse`] sends [`MemberMessage::Fatal`] and closes the connection that had the stated
//!   incarnation and caused it; its end is not told as an event. [`Action::Postpone`] does the same
//!   with [`MemberMessage::NotYet`].
//! - Whoever has no connection with a node that joins, or joins itself, goes on trying to make one.
//! - What it sends because of [`Action::NewEpoch`] goes behind the messages of the same step: then a
//!   newcomer knows that it is one.
//! - After [`Action::Ended`], what is queued is sent as far as it goes, and all connections close.
//!
//! [`Change::Started`]: crate::control::Change::Started
//! [`Change::Joined`]: crate::control::Change::Joined
//! [`MemberMessage::Fatal`]: crate::control::MemberMessage::Fatal
//! [`MemberMessage::NotYet`]: crate::control::MemberMessage::NotYet

mod config;
mod decide;
pub mod etcd;
mod event;
mod join;
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

    /// Where things stand.
    fn verdict(&self) -> Verdict<'_>;

    /// When the next [`Event::Tick`] is due at the latest, in milliseconds.
    fn next_tick_ms(&self) -> u64;

    /// From now on this node takes no other into a cluster that runs, and refuses those that come
    /// with `reason`. Only the first reason counts, and only at the first node of the list. Where etcd
    /// decides, one that is on its way may still get in before all know.
    fn close(&mut self, reason: &str);
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
    /// The nodes that this one would talk to and has no connection to: while it joins, those that it
    /// waits for. Where the list decides, afterwards also those that are gone, or have not come yet.
    pub missing: NodeSet,
}

impl Machine for Membership {
    fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        Self::step(self, now_ms, event)
    }

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

    fn close(&mut self, reason: &str) {
        Self::close(self, reason);
    }
}
