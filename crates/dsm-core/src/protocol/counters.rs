//! What the protocol counts.

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
