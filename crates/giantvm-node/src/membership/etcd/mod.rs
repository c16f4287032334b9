//! The other way to decide: etcd keeps one key, the **epoch key**, and each node a lease.
//!
//! The epoch key's value is a [`Record`]: the nodes in order, and what became of each. It is changed
//! only by transactions that compare its revision, so every node sees one sequence of records. Any
//! node may propose the next; whoever is first wins, and the others look again. About what became of
//! members, no node has more to say than another.
//!
//! # The way of a node
//!
//! It takes a lease, puts a key of its own under it, and [`Forming`] brings it into a list. Then
//! [`EtcdMembership`] goes the way that [the static machine](crate::membership) goes: *Joining* until
//! everyone is connected with everyone, when the first to know it writes that the cluster has
//! started, or until it has joined one that has; *Running*; perhaps *Leaving*, until its own
//! transaction says that it left; *Ended*.
//!
//! # Joining a cluster that runs
//!
//! 1. **Joining**: the eldest member sees the key of a process that is not listed, and lists
//!    it. It gets the place that its name had, or that of another node that is gone, or a new one. The
//!    transaction compares that the newcomer's key is there, and that of who had the place is not.
//! 2. **Member**: all that are listed connect with it. It waits until each live member has said in a
//!    heartbeat that it has the connection too, and until no member is lost but not removed. Then it
//!    makes itself a member, with a new epoch, in a transaction that compares that all their keys and
//!    its own are there. Nobody else does: so what follows the last record in which it was joining is
//!    its own, and the epoch that it begins with is known even if it reads only later ones.
//!
//! Only the *eldest* member takes newcomers in: of the members, lost ones included, the one that has
//! been one for longest, and of those that were there from the start the one with the lowest number.
//! The record shows who that is, and it stays so until it has left or was removed: a newcomer's epoch
//! is later than that of all who are there. Then it is the next one, which goes on where the last one
//! was: who is listed and not yet a member need not be listed again. If the eldest is lost, nobody is
//! listed until it is removed. Its place is given again like any other, to itself too: it is then the
//! youngest.
//!
//! Two nodes that have read different records may both think that they are the eldest. Only who has
//! read the latest record can change it, since the transaction compares the revision; and that record
//! has one eldest. What the other one proposes is not carried out.
//!
//! There is no way in where a member has said that it can't have newcomers
//! ([`Machine::close`](crate::membership::Machine::close)), which it writes as [`Record::closed`]; where
//! too many have come and gone; and where no member that is not lost has its key any more: then the
//! cluster is over. All of this is seen in the record and the keys, by those who come ([`Forming`]) and
//! those who are on their way, so that nobody has to be asked. A newcomer that is a member before
//! `closed` is written is one: to close is in force only with the record.
//!
//! A newcomer whose key is gone before it is a member is **gone**, which needs no epoch: nobody used
//! anything of it.
//!
//! The record can be read late, but not in ways that mix two processes up:
//!
//! - A place is given again only when every live member has said in a heartbeat that it knows the
//!   epoch without the process that had it. So a member has always been told what became of it.
//! - A newcomer may call before the one that it calls has read that it is listed. Such a connection is
//!   kept, and nothing is said on it, until a record lists it or a timeout is over.
//! - What one newcomer says to another, or to a member, can end neither: only etcd's word can.
//! - Whoever reads a record and then a later one is told of what it missed as if one thing had come
//!   after the other: losses, then [`NewEpoch`](crate::membership::Action::NewEpoch), then the loss of
//!   those who have joined and were lost since.
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
//! A place that is given again changes nothing in this: a process is known by its name and lease, and
//! only one that has certainly stopped loses its place.
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
//! A newcomer has a lease and this right from the beginning, before it is a member. Since it becomes
//! one only while its key is there, it is no exception to what was said.
//!
//! What nobody may do is delete a running node's key or revoke its lease from outside.
//!
//! # What the driver owes
//!
//! What [the static machine](crate::membership) is owed, and with each process that is
//! [`Listed`](crate::membership::Action::Listed) a connection: who has the higher number calls, and as
//! long as the other one is [missing](crate::membership::Verdict::missing) it calls again. That a newcomer
//! is gone before it was a member shows there too. Between two processes with the same number, the end
//! of the first one's connection is told before the second one's.

mod forming;
mod joining;
mod machine;
mod member;
mod record;

pub use forming::{Announcement, Forming, Next, Present, Proposal, Settings, View};
pub use machine::{EtcdMembership, Lease};
pub use record::{Listed, Record, RecordError, Standing};
