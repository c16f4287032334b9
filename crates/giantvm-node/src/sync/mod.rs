//! Synchronisation objects: mutexes, read-write locks, barriers and counters between nodes.
//!
//! An object has a name and lives at one node, its home ([`home_of`]). All requests for it are
//! messages to the home, so that a lock costs one round trip and never touches a shared page.
//! [`SyncHome`] is what runs there: a request goes in, replies come out. [`SyncClient`] is what runs
//! at the node that asks.
//!
//! - **Who holds a lock** is a pair of node and ticket. A ticket is a number that the node chooses,
//!   different for each of its requests that may be open or holding; unlocking names the ticket of
//!   the request that locked. So any thread may hold and unlock, and nothing is held twice by
//!   mistake.
//! - **Order** is that of arrival. A waiting writer keeps later readers out; readers next to each
//!   other in the queue enter together. A try succeeds only where a wait would not have been needed.
//! - **An object exists only while it is used**: a lock while someone holds or awaits it, a barrier
//!   while someone waits, a counter while it isn't 0. A name that is not in use has no kind.
//! - **Giving up**: a waiter that no longer wants to wait sends [`SyncOp::Cancel`]. The answer says
//!   whether it was taken off the queue, or whether its own answer was already on its way. Answers
//!   to one node keep their order, so a grant is seen before the cancellation that came too late,
//!   and no lock leaks. Who does not even wait for that answer has the lock given back if it comes
//!   ([`SyncClient::give_up`]).
//!
//! # Who is there
//!
//! A change of the cluster's members is told to both parts of each of them, [`SyncClient::changed`]
//! and [`SyncHome::changed`], as an [`Epoch`]: nodes are lost, and nodes join. A lost node has
//! certainly stopped when that is told; until then, requests to it wait. A node may be told of
//! several changes at once. Each request carries the number of the epoch that its sender knew, and a
//! home that knows only an earlier one keeps it until it has caught up. So a home may get the
//! requests of a newcomer that it does not know of yet.
//!
//! **A number is used again** when a node comes back, or another in its place: as a process that has
//! nothing. What is sent says of which process it is by its epoch. A process knows no epoch from
//! before it joined, and the one before it none since. So a home takes no request of a process that
//! is gone, however late it comes, and a client no reply to one before it: replies have the
//! home's epoch. A home that was told of neither the loss nor the return, but of both at once, treats
//! the node as lost *and* as new.
//!
//! **Only nodes that were there from the first epoch on, without a break, are homes.** So no object moves
//! when a node joins, and nothing has to be handed over by one that works. Members that have an
//! entry in [`Epoch::joined`] are no homes; nor are listed ones that were not there at first.
//! When no home is left, requests end with [`SyncError::NoHome`], and what is locked can still be
//! unlocked.
//!
//! # Losses
//!
//! **Objects whose home is there.** Waiters of the lost node go. A lock that it held alone is
//! *abandoned*: the next holder is told so with its grant ([`Outcome::Abandoned`]), readers too until
//! one that is alone has been told. The lock is kept until then. Who waits at a barrier gets
//! [`SyncError::BarrierBroken`], whichever barrier it is: who would have come is not known here. So
//! does who began to wait before its node was told; its node keeps that answer until it has been, so
//! that waiting again makes sense. Counters keep their value.
//!
//! **Objects whose home is lost** move to the home that [`home_of`] names. Each member *reports*
//! to each home the locks that it holds and that moved there, and that this is all; then it sends its
//! lock requests that were not answered once more. A new home keeps what is asked for moved
//! objects until it has the reports of all members, installs who holds what, and serves. What was
//! under way to the lost home ends at the node that asked: an unlock is done, since the lock is not
//! reported; a cancelled waiter is cancelled, since it is not sent again; a barrier is broken; a
//! counter's operation ends with [`SyncError::ValueLost`], since nobody knows whether it was done. A
//! counter has no value until it is set. That cannot be told from a counter that nobody had used, so
//! this goes for those, too. Once set it stays in use, even at 0.
//!
//! A reader's report says whether it was told that the lock is abandoned: as long as it reads, nobody
//! was told who is alone. A moved lock that nobody reports may have been held by a lost node: its first holder is told that
//! it is abandoned, by the lost home. From then on the new home knows better. It remembers the names
//! of up to [`SYNC_OBJECTS_MAX`] such locks that are free; when there are more it forgets them all,
//! and their next holders are told once more.
//!
//! **More changes** are no different. A member may learn of two at once: its report is then for both,
//! and a home that gets it waits until it has been told of both. A new home that is lost before it
//! has rebuilt leaves nothing undone: what was sent to it was not answered, and what was reported is
//! still held.
//!
//! *No lock has two holders*: a home grants a lock of its own that a lost node held only when that has
//! stopped. It grants a moved one only when each member has told it what it holds; and a member
//! that has told takes no grant from the lost home any more. *Nothing hangs*: reports wait for
//! nothing but that the node is told of the change, and it is, or is lost itself.
//!
//! **Nodes that left** of their own will count as lost: what they kept moves, and a lock that one held is
//! abandoned.
//!
//! # Joins
//!
//! Locks and counters take no notice of a join. A newcomer [begins](SyncClient::begin) with the
//! report that it holds nothing, and reports at each change like all others, so that one rule is
//! enough for a rebuild: a home needs from each member a report that is not older than the last
//! change of homes that it was told of, and not newer than the last epoch that it was told of. It needs
//! none from before a member joined: one that holds nothing has nothing to say.
//!
//! **Barriers** go on through a join. A meeting of [`EVERY_NODE`] has as many parties as the home's epoch has
//! members at the moment when one comes; so who joins while some wait is waited for, and a meeting that is
//! complete before the home is told of the join is one without the newcomer, whose request it
//! keeps until then. A number of parties that was given stays. A wait that was sent before a join is as good
//! as one sent after it; only one from before the last loss is refused. A home knows that loss
//! by the epoch with which it was told. So one that is told of a loss and a later join at once also
//! refuses who knows of the loss only, and that one waits again.
//!
//! A node may join and be lost between two epochs that a home is told of. That home has seen no loss,
//! and ends no meeting; but who knew the node may count on it. So at each loss that a client is
//! told of it has homes take its waiters off barriers: where the home had ended the meeting, that
//! finds nothing.
//!
//! # Members that lie
//!
//! What a member can send is bounded: requests that wait by what it may have open, reports by what it may
//! hold. It can keep others waiting, with a lock that it holds or a report for an epoch that will not come,
//! until it is lost; then all that goes with it.
//!
//! [`Epoch`]: dsm_core::types::Epoch
//! [`Epoch::joined`]: dsm_core::types::Epoch::joined
//! [`SYNC_OBJECTS_MAX`]: crate::limits::SYNC_OBJECTS_MAX

mod client;
mod home;
mod known;
mod lock;
mod message;
mod objects;
mod wire;

use dsm_core::types::{NodeId, NodeSet};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use client::{ClientOutput, SyncClient, ToHome};
pub use home::SyncHome;
pub use message::{
    EVERY_NODE, Held, Hold, Kind, NameError, Outcome, SyncError, SyncName, SyncOp, SyncReply,
    SyncReport, SyncRequest,
};

/// The home of the object `name` in a cluster whose starting list has `nodes` nodes (1 to 64), of
/// which those of `lost` were not members at some time, even if they are back.
///
/// The same on every node and in every version: XXH3 (64 bits, seed 0) of the name's bytes, scaled
/// to the number of nodes by taking the high half of their product. If that node is lost: of all that
/// are not, the one for which XXH3 of the name, with one more than the node's position as the seed, is
/// highest, so that an object moves only when its home is lost.
/// `None` if there is no node.
pub fn home_of(name: &SyncName, nodes: usize, lost: NodeSet) -> Option<NodeId> {
    let bytes = name.as_str().as_bytes();
    let index = (u128::from(xxh3_64(bytes)) * nodes as u128) >> 64;
    let first = if nodes == 0 { None } else { NodeId::new(index as usize) };
    first.filter(|home| !lost.contains(*home)).or_else(|| {
        let survivors = NodeSet::first(nodes).minus(lost).iter();
        survivors.max_by_key(|node| (xxh3_64_with_seed(bytes, node.index() as u64 + 1), *node))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SyncName {
        SyncName::new(text).unwrap()
    }

    fn set(nodes: &[usize]) -> NodeSet {
        nodes.iter().map(|&index| NodeId::new(index).unwrap()).collect()
    }

    #[test]
    fn home_is_part_of_the_wire_format() {
        // Computed once; another value would split objects between versions.
        let home = |text: &str, lost| home_of(&name(text), 64, lost).unwrap().index();
        let homes = |lost| ["a", "lock", "barrier/1"].map(|text| home(text, lost));
        assert_eq!(homes(NodeSet::EMPTY), [57, 3, 9]);
        assert_eq!(homes(set(&[57, 3, 9])), [44, 23, 7]);
    }

    #[test]
    fn homes_spread_over_all_nodes() {
        for nodes in 1..=64 {
            let mut count = vec![0u32; nodes];
            for i in 0..200 * nodes {
                let home = home_of(&name(&format!("object-{i}")), nodes, NodeSet::EMPTY);
                count[home.unwrap().index()] += 1;
            }
            assert!(count.iter().all(|&c| (100..300).contains(&c)), "{nodes}: {count:?}");
        }
    }

    #[test]
    fn objects_move_only_from_lost_homes_and_spread_over_the_survivors() {
        let mut count = [0u32; 5];
        for i in 0..5000 {
            let name = name(&format!("object-{i}"));
            let homes = [&[][..], &[1], &[1, 3], &[1, 3, 4]]
                .map(|lost| (lost, home_of(&name, 5, set(lost)).unwrap()));
            for (before, after) in homes.iter().zip(&homes[1..]) {
                assert!(!after.0.contains(&after.1.index()));
                let stays = !after.0.contains(&before.1.index());
                assert_eq!(stays, before.1 == after.1, "{name}: {homes:?}");
            }
            count[homes[1].1.index()] += 1;
        }
        assert!(count[1] == 0);
        assert!([0, 2, 3, 4].iter().all(|&i| (1100..1400).contains(&count[i])), "{count:?}");
        assert_eq!(home_of(&name("a"), 2, set(&[0, 1])), None);
        assert_eq!(home_of(&name("a"), 0, NodeSet::EMPTY), None);
    }
}
