//! The other way to decide: etcd keeps one key, the **epoch key**, and each node a lease.
//!
//! The epoch key's value is a [`Record`]: the nodes in order, and what became of each. It is changed
//! only by transactions that compare its revision, so every node sees one sequence of records. Any
//! node may propose the next; whoever is first wins, and the others look again. No node is special.
//!
//! # The way of a node
//!
//! It takes a lease, puts a key of its own under it, and [`Forming`] brings it into a list. Then
//! [`EtcdMembership`] goes the way that [the static machine](crate::membership) goes: *Joining* until
//! everyone is connected with everyone, when the first to know it writes that the cluster has
//! started; *Running*; perhaps *Leaving*, until its own transaction says that it left; *Ended*.
//!
//! # Losing a node takes two steps
//!
//! 1. **Lost**: a node that can't talk to a member proposes it, unless it can't talk to most of
//!    them: then it hesitates, since it is likely the one that is cut off.
//! 2. **Removed**: proposed by any node that sees the lost one's key gone, in a transaction that
//!    compares that it is. The key goes with the lease: when etcd drops it, or when the node, having
//!    stopped, gives it back.
//!
//! A member whose key is gone without a word is lost and removed in one step.
//!
//! # The right to run, and why it runs out in time
//!
//! A node keeps its lease alive once a heartbeat. Let `s` be a time *of its own clock* at which it
//! sent a request that etcd granted. etcd drops the lease at `s + lease` at the earliest, since the
//! request can't arrive before it was sent. The node's right to run ends at `s + lease - margin`, with
//!
//! ```text
//! margin >= 2 * heartbeat + lease / 1000 + stop
//! ```
//!
//! for the reasons given for the static machine: one heartbeat between two looks at the clock, one
//! for a thread that is late, the drift of two clocks, and the time until the memory has ended. The delay of messages is not in the
//! inequality. etcd's restarts and changes of leader only make leases longer. A leader that was
//! deposed without knowing it could grant a renewal that the next leader does not know of; so a
//! renewal counts only once a linearizable read, which begins after it was granted, is answered in
//! the same term: then that leader still led. The driver checks that before it says
//! [`Said::Renewed`](crate::membership::Said::Renewed). Renewals wait for nothing else that the node
//! asks of etcd: only so does a lease end only if etcd did not hear of its node for that long.
//!
//! What nobody may do is delete a running node's key or revoke its lease from outside.

mod forming;
mod machine;
mod member;
mod record;

pub use forming::{Announcement, Forming, Next, Present, Proposal, Settings, View};
pub use machine::{EtcdMembership, Lease};
pub use record::{Listed, Record, RecordError, Standing};
