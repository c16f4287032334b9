//! What the protocol counts.

use crate::types::Page;

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// What has happened since the start; see `docs/operations.md`.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Counters {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// All counters with their names.
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }

            /// Adds those of another machine.
            pub fn merge(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }
        }
    };
}

counters! {
    /// Read faults that needed another node.
    read_faults,
    /// Write faults that needed another node's bytes or ownership.
    write_faults,
    /// Write faults of an owner or holder of a copy.
    upgrade_faults,
    /// Faults on memory that this node owned alone.
    local_faults,
    /// Faults on pages whose right sufficed: raced, or a frame that had been swapped out.
    spurious_faults,
    /// Pages received, with bytes and without.
    pages_received,
    /// Of these, those whose bytes were here already.
    received_without_data,
    /// Pages sent, with bytes and without.
    pages_sent,
    /// Of these, those without bytes.
    sent_without_data,
    /// Pages that left `Modified` with the bytes they had at entry.
    left_unchanged,
    /// Of these, those that another node had sent here for that.
    came_back_unchanged,
    /// Readers that were given ownership.
    migratory_grants,
    /// Pages that came along with a requested one.
    companions_received,
    /// Pages asked for along with another, but refused.
    companions_refused,
    /// Pages of this node's own whose copies were taken back along with another's.
    claimed_along,
    /// Blocks leased from their first owner.
    leases,
    /// Requests passed on to a later owner.
    forwards,
    /// Invalidations sent.
    invalidations_sent,
    /// Invalidations received.
    invalidations_received,
    /// Requests and invalidations that waited for a local episode.
    kept,
    /// Grants that an invalidation had overtaken.
    void_grants,
    /// Frames given back because memory was short, those of pages handed over not counted.
    evicted,
    /// Pages handed over to a node with room.
    handed_over,
    /// Times that a page found no frame, and waited for one.
    starved,
    /// Pages whose owner was lost, and which this node owns since, because it had a copy.
    pages_inherited,
    /// Pages of a lost node that nobody had touched, and which this node owns since.
    pages_adopted,
    /// Pages of which nothing was left after a loss.
    pages_lost,
    /// Lost pages that this node gave new content.
    pages_restored,
    /// Pages that came to be walk-shared at their home.
    walk_entered,
    /// Pages that came to be walk-shared at another node.
    walk_joined,
    /// Pages that a node shared no longer.
    walk_left,
    /// Pages that were walked by several nodes, but could not be proven to be page tables that walks
    /// leave as they are.
    walk_refused,
    /// Comparisons of all walk-shared pages with their twins.
    walk_flushes,
    /// Of these, those that found a store.
    walk_reports,
    /// Words that had changed.
    walk_words,
    /// Twins compared with those of the home.
    walk_audits,
    /// Messages sent.
    messages_sent,
}

/// Pages that another node sent here to be `Modified`, until they leave that state. For a counter only,
/// so not part of a machine's state either.
#[derive(Clone, Debug)]
pub(super) struct Arrivals(Vec<u64>);

impl Arrivals {
    /// None of so many pages.
    pub(super) fn new(pages: u64) -> Self {
        Self(vec![0; pages.div_ceil(u64::BITS.into()) as usize])
    }

    pub(super) fn insert(&mut self, page: Page) {
        if let Some(word) = self.0.get_mut((page.0 / 64) as usize) {
            *word |= 1 << (page.0 % 64);
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, page: Page) -> bool {
        let Some(word) = self.0.get_mut((page.0 / 64) as usize) else { return false };
        let bit = 1 << (page.0 % 64);
        std::mem::replace(word, *word & !bit) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_arrive_and_leave_one_by_one() {
        let mut arrivals = Arrivals::new(70);
        for page in [3, 64, 69] {
            arrivals.insert(Page(page));
        }
        arrivals.insert(Page(1000));
        let left: Vec<bool> = [3, 3, 65, 64, 69, 1000].map(|it| arrivals.remove(Page(it))).into();
        assert_eq!(left, [true, false, false, true, true, false]);
    }
}
