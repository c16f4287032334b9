//! What a region's memory did: counters, latencies, contended pages.

use std::collections::HashMap;

use crate::protocol::Counters;
use crate::types::Page;

/// Why a fault took time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FaultKind {
    /// A page that another node owns was read.
    Read,
    /// A page that another node owns was written.
    Write,
    /// A page with a copy here was written.
    Upgrade,
    /// Memory that nobody else held.
    Local,
}

impl FaultKind {
    /// All kinds, in the order of [`RegionStats::latency`].
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Upgrade, Self::Local];

    /// Lower-case name, as in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Upgrade => "upgrade",
            Self::Local => "local",
        }
    }
}

/// Eight buckets per doubling: percentiles are right to 9 %.
const SUB_BITS: u32 = 3;
const BUCKETS: usize = 40 << SUB_BITS;

/// A histogram of times in nanoseconds, from the fault's arrival at the worker to the page's
/// installation.
#[derive(Clone, Debug)]
pub struct Latency {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    total_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, total_ns: 0 }
    }
}

impl Latency {
    pub(super) fn record(&mut self, time_ns: u64) {
        self.buckets[bucket(time_ns)] += 1;
        self.count += 1;
        self.total_ns = self.total_ns.saturating_add(time_ns);
    }

    /// Number of faults.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean time in microseconds; 0 without faults.
    pub fn mean_us(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.total_ns as f64 / self.count as f64 / 1e3 }
    }

    /// The time in microseconds that `percent` of the faults did not exceed; 0 without faults.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        let rank = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_ns(index) as f64 / 1e3;
            }
        }
        0.0
    }

    fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets.iter()).for_each(|(to, from)| *to += from);
        self.count += other.count;
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
    }
}

fn bucket(time_ns: u64) -> usize {
    if time_ns < 1 << SUB_BITS {
        return time_ns as usize;
    }
    let doubling = time_ns.ilog2() - SUB_BITS;
    let within = time_ns >> doubling & ((1 << SUB_BITS) - 1);
    (((u64::from(doubling) + 1) << SUB_BITS | within) as usize).min(BUCKETS - 1)
}

/// Largest time of a bucket.
fn upper_ns(index: usize) -> u64 {
    let (doubling, within) = (index >> SUB_BITS, (index & ((1 << SUB_BITS) - 1)) as u64);
    match doubling {
        0 => within,
        _ => (((1 << SUB_BITS) + within + 1) << (doubling - 1)) - 1,
    }
}

/// Most pages counted. Beyond it all lose as much as the lesser half of them has (Misra and Gries,
/// "Finding Repeated Elements", 1982, in batches): what comes back often stays, a scan passes through.
const CONTENDED_MAX: usize = 1024;

/// Counts how often pages left this node; of many pages, the counts are lower bounds.
#[derive(Clone, Default, Debug)]
pub(super) struct Contended {
    counts: HashMap<Page, u64>,
}

impl Contended {
    pub(super) fn left(&mut self, page: Page) {
        if let Some(count) = self.counts.get_mut(&page) {
            *count += 1;
            return;
        }
        if self.counts.len() >= CONTENDED_MAX {
            self.make_room();
        }
        self.counts.insert(page, 1);
    }

    fn make_room(&mut self) {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let middle = counts.len() / 2;
        let (_, &mut median, _) = counts.select_nth_unstable(middle);
        self.counts.retain(|_, count| {
            *count = count.saturating_sub(median);
            *count > 0
        });
    }

    fn top(&self, most: usize) -> Vec<(Page, u64)> {
        let mut pages: Vec<_> = self.counts.iter().map(|(&page, &count)| (page, count)).collect();
        pages.sort_unstable_by_key(|&(page, count)| (std::cmp::Reverse(count), page));
        pages.truncate(most);
        pages
    }
}

/// What one region's memory did on this node.
#[derive(Clone, Default, Debug)]
pub struct RegionStats {
    /// The protocol's counters.
    pub counters: Counters,
    /// Times by [`FaultKind::ALL`].
    pub latency: [Latency; 4],
    /// Pages that left this node most often, with how often; at most ten.
    pub contended: Vec<(Page, u64)>,
    /// Bytes of metadata.
    pub metadata_bytes: u64,
    /// Frames that the region has here.
    pub frames: u64,
    /// Holds that are complete or gathering.
    pub holds: u64,
    /// Pages of these.
    pub pages_held: u64,
    /// Holds that were released because their time was up.
    pub holds_expired: u64,
    /// Times that a worker went to sleep in the kernel.
    pub sleeps: u64,
    /// Thread clocks looked at, because a page was wanted by two.
    pub contentions: u64,
    /// Pages that are walk-shared now.
    pub walk_shared: u64,
    /// Whether the region has ended because a node was lost.
    pub ended: bool,
}

impl RegionStats {
    pub(super) fn set_contended(&mut self, contended: &Contended) {
        self.contended = contended.top(10);
    }

    /// Adds the statistics of another worker.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counters.merge(&other.counters);
        self.latency.iter_mut().zip(&other.latency).for_each(|(to, from)| to.merge(from));
        self.contended.extend(&other.contended);
        self.contended.sort_unstable_by_key(|&(page, count)| (std::cmp::Reverse(count), page));
        self.contended.truncate(10);
        self.metadata_bytes += other.metadata_bytes;
        self.frames += other.frames;
        self.holds += other.holds;
        self.pages_held += other.pages_held;
        self.holds_expired += other.holds_expired;
        self.sleeps += other.sleeps;
        self.contentions += other.contentions;
        self.walk_shared += other.walk_shared;
        self.ended |= other.ended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_one_bucket() {
        let mut latency = Latency::default();
        (1..=1000u64).for_each(|us| latency.record(us * 1000));
        for percent in [50.0, 90.0, 99.0] {
            let exact = percent * 10.0;
            let found = latency.percentile_us(percent);
            assert!((exact..exact * 1.13).contains(&found), "p{percent}: {found}");
        }
        assert_eq!(latency.count(), 1000);
        assert!((latency.mean_us() - 500.5).abs() < 0.1);
    }

    #[test]
    fn buckets_are_contiguous() {
        for time in (0..100_000u64).chain([u64::MAX]) {
            let index = bucket(time);
            assert!(time <= upper_ns(index) || index == BUCKETS - 1);
            assert!(index == 0 || time > upper_ns(index - 1));
        }
    }

    #[test]
    fn the_most_contended_pages_survive_a_flood_of_others() {
        let mut contended = Contended::default();
        for round in 0..5000u64 {
            contended.left(Page(1));
            contended.left(Page(2));
            contended.left(Page(1000 + round));
            contended.left(Page(1));
        }
        let top = contended.top(2);
        assert_eq!((top[0].0, top[1].0), (Page(1), Page(2)));
        assert!(contended.counts.len() <= CONTENDED_MAX);
    }
}
