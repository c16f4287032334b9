//! What goes into a [`Membership`](super::Membership) and what comes out.

use dsm_core::types::{Epoch, NodeId};
use thiserror::Error;

use super::etcd::{Proposal, View};
use crate::control::MemberMessage;

/// Something that happened at this node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// The control connection with `node` is up.
    Connected {
        /// The other end.
        node: NodeId,
        /// Its incarnation, from the handshake.
        incarnation: u64,
    },
    /// A control connection ended.
    Disconnected {
        /// The other end.
        node: NodeId,
        /// The incarnation it had.
        incarnation: u64,
        /// Why, for people.
        why: String,
    },
    /// `from` sent a message.
    Message {
        /// The sender, as the connection says.
        from: NodeId,
        /// What it said.
        message: MemberMessage,
    },
    /// Time has passed.
    Tick,
    /// The user of this node wants it to leave.
    LeaveRequested,
    /// The user of this node wants it to go at once, although others may use what it has: to them, it
    /// is lost. Its own use of regions has ended.
    Abandon,
    /// etcd was asked; only where it decides.
    Etcd(Said),
}

/// What etcd said.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Said {
    /// It has renewed this node's lease.
    Renewed {
        /// When the request was sent, in milliseconds of this node's clock.
        sent_ms: u64,
    },
    /// It did not answer a request to renew the lease, or not as it should.
    NotRenewed {
        /// Why, for people.
        why: String,
    },
    /// It knows this node's lease no more.
    LeaseEnded,
    /// What it has of the cluster, read after the last transaction that was asked for.
    Has(View),
    /// It did not answer a transaction or a read, or not as it should.
    Failed {
        /// Why, for people.
        why: String,
    },
}

/// Something the driver has to do, in the order given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Send a message to a connected node.
    Send {
        /// The receiver.
        to: NodeId,
        /// The message.
        message: MemberMessage,
    },
    /// Tell a node why it is out, and close the connection.
    Refuse {
        /// The node.
        node: NodeId,
        /// The incarnation of the connection to close.
        incarnation: u64,
        /// Why, for people.
        reason: String,
    },
    /// Close the connection for now, and tell the node why ([`MemberMessage::NotYet`]): it may be
    /// made again.
    Postpone {
        /// The node.
        node: NodeId,
        /// The incarnation of the connection to close.
        incarnation: u64,
        /// Why, for people.
        reason: String,
    },
    /// A place of the list is filled, for the first time or anew: a process is on its way into the
    /// cluster that runs. It is a member only from an epoch on that has it, and it may go without ever
    /// being one, which is told only when the place is filled again. Whoever had the place has stopped;
    /// if it was a member, that was told before. Only where etcd decides.
    Listed {
        /// The place.
        node: NodeId,
        /// The name of the node.
        name: String,
        /// Where it listens.
        listen: String,
        /// Its share of memory, in bytes.
        memory_bytes: u64,
        /// Its process.
        incarnation: u64,
    },
    /// This node is a member: the cluster starts with the first epoch, or runs since before and has
    /// taken it in. Then this is the epoch in which it joined, and it is among its newcomers.
    BecameRunning(Epoch),
    /// A node is lost: end what depends on it. It may not know yet.
    PeerLost {
        /// The node.
        node: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// A node left of its own will.
    PeerLeft {
        /// The node.
        node: NodeId,
    },
    /// A lost node has certainly stopped, or a node left or joined: from now on these are the members.
    NewEpoch(Epoch),
    /// Ask etcd for a transaction, then say what it has: [`Said::Has`].
    Propose(Box<Proposal>),
    /// This node is no member any more and does nothing more in this cluster.
    Ended {
        /// Why.
        reason: EndReason,
    },
}

/// Where a node stands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Waits for the cluster to start, or to be taken in.
    Joining,
    /// A member.
    Running,
    /// A member that asked to go.
    Leaving {
        /// When it asked, in milliseconds.
        since_ms: u64,
    },
    /// No member any more.
    Ended {
        /// Why.
        reason: EndReason,
    },
}

/// Why a node is no member any more; displays as a message for its user.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Error)]
pub enum EndReason {
    /// It was asked to leave.
    #[error("this node left the cluster")]
    Left,
    /// It was asked to go, although others may have used what it had.
    #[error("it left while regions were in use")]
    Abandoned,
    /// Not all nodes came in time.
    #[error("waited {waited_ms} ms for all nodes; still missing: {missing}")]
    JoinTimeout {
        /// How long, in milliseconds.
        waited_ms: u64,
        /// Which, and why, for people.
        missing: String,
    },
    /// The deciding node doesn't hear this node, or this node doesn't hear it.
    #[error("this node can't reach the deciding node `{name}`: no answer for {silent_ms} ms")]
    Unreachable {
        /// The deciding node's name.
        name: String,
        /// Age of what it last confirmed to have heard, in milliseconds.
        silent_ms: u64,
    },
    /// The connection to the deciding node broke.
    #[error("this node lost its connection to the deciding node `{name}`: {why}")]
    Disconnected {
        /// The deciding node's name.
        name: String,
        /// Why, for people.
        why: String,
    },
    /// The deciding node has ended, and with it the cluster.
    #[error("the deciding node `{name}` has ended: {why}")]
    DecidingNodeEnded {
        /// Its name.
        name: String,
        /// Why, for people.
        why: String,
    },
    /// This process did not run for longer than the timeout.
    #[error("this node was stopped for {stopped_ms} ms; the others go on without it")]
    Stopped {
        /// How long, in milliseconds.
        stopped_ms: u64,
    },
    /// Another node told this one that it is out.
    #[error("node `{name}` refused this node: {reason}")]
    Refused {
        /// The other node's name.
        name: String,
        /// Its reason.
        reason: String,
    },
    /// The deciding node said something that can't follow what it said before.
    #[error("this node lost step with the deciding node `{name}`: {what}; report this as a bug")]
    LostStep {
        /// The deciding node's name.
        name: String,
        /// What doesn't fit.
        what: String,
    },
    /// etcd did not renew this node's lease in time.
    #[error(
        "this node can't reach etcd at {endpoints}: no lease for {silent_ms} ms ({why}); check \
         that etcd runs there, has a leader, and can be reached from this machine"
    )]
    EtcdUnreachable {
        /// Its addresses.
        endpoints: String,
        /// Age of the last request that renewed the lease, in milliseconds.
        silent_ms: u64,
        /// Why the last attempt failed, for people.
        why: String,
    },
    /// etcd dropped this node's lease.
    #[error(
        "etcd at {endpoints} has ended this node's lease, which was renewed last {silent_ms} ms \
         before: etcd stood still, or somebody revoked the lease, or etcd lost its data"
    )]
    LeaseEnded {
        /// Its addresses.
        endpoints: String,
        /// Age of the last request that renewed the lease, in milliseconds.
        silent_ms: u64,
    },
    /// The others declared this node lost.
    #[error("the others go on without this node: {reason}")]
    Excluded {
        /// Their reason.
        reason: String,
    },
    /// A node of the list ended before the cluster ran.
    #[error("node `{name}` ended while the cluster was starting; start all nodes again")]
    FormingFailed {
        /// Its name.
        name: String,
    },
    /// The cluster runs, and takes no node in.
    #[error("the cluster takes this node in no more: {reason}")]
    NotTakenIn {
        /// Why, for people.
        reason: String,
    },
    /// Something else than this cluster's nodes wrote the epoch key.
    #[error("the cluster's epoch key in etcd was changed by something else: {what}")]
    Overwritten {
        /// What doesn't fit.
        what: String,
    },
}
