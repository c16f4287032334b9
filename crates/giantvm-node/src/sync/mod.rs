//! Synchronisation objects: mutexes, read-write locks, barriers and counters between nodes.
//!
//! An object has a name and lives at one node, its home ([`home_of`]). All requests for it are
//! messages to the home, so that a lock costs one round trip and never touches a shared page.
//! [`SyncHome`] is what runs there: a request goes in, replies come out.
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
//!   and no lock leaks.
//! - **Lost nodes**: for now a lost node ends the cluster's regions, so every waiter is told
//!   [`SyncError::PeerLost`], and so is every later request.

mod home;
mod lock;
mod message;
mod wire;

use dsm_core::types::NodeId;
use xxhash_rust::xxh3::xxh3_64;

pub use home::SyncHome;
pub use message::{Kind, NameError, Outcome, SyncError, SyncName, SyncOp, SyncReply, SyncRequest};

/// The home of the object `name` in a cluster whose list has `nodes` nodes (1 to 64).
///
/// The same on every node and in every version: XXH3 (64 bits, seed 0) of the name's bytes, scaled
/// to the number of nodes by taking the high half of their product. It depends on the cluster's list
/// only, not on who is a member at the moment: an object never moves. `None` if there are no nodes.
pub fn home_of(name: &SyncName, nodes: usize) -> Option<NodeId> {
    let hash = u128::from(xxh3_64(name.as_str().as_bytes()));
    let index = (hash * nodes as u128) >> 64;
    if nodes == 0 { None } else { NodeId::new(index as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_part_of_the_wire_format() {
        // Computed once; another value would split objects between versions.
        let home = |name: &str| home_of(&SyncName::new(name).unwrap(), 64).unwrap().index();
        assert_eq!([home("a"), home("lock"), home("barrier/1")], [57, 3, 9]);
    }

    #[test]
    fn homes_spread_over_all_nodes() {
        for nodes in 1..=64 {
            let mut count = vec![0u32; nodes];
            for i in 0..200 * nodes {
                let name = SyncName::new(&format!("object-{i}")).unwrap();
                count[home_of(&name, nodes).unwrap().index()] += 1;
            }
            assert!(count.iter().all(|&c| (100..300).contains(&c)), "{nodes}: {count:?}");
        }
    }
}
