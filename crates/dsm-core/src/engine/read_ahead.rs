//! Long scans: pages asked for before the scan needs them, so that it does not wait for each window.
//!
//! The protocol's fault-around brings a scan 16 pages with each fault, and the scan waits for every
//! window. Once its windows are full, pages further ahead are prefetched in *stretches*. The first page
//! of each, its milestone, is fetched but not mapped: the scan's fault on it costs no message, and says that it
//! is time to ask for the next stretch while there is one left to read.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::protocol::COMPANIONS_MAX;
use crate::types::{Access, Page, ThreadId};

/// Pages of the first stretch; each is twice as long as the one before.
const STRETCH_MIN: u64 = 32;
/// Most pages of a stretch: 1 MiB, several times what a round trip carries.
const STRETCH_MAX: u64 = 256;
/// Scans followed at a time; beyond, all are learned anew.
const SCANS_MAX: usize = 64;
/// Full windows of fault-around that make a scan a long one.
const FULL_WINDOWS: u32 = 2;

/// Pages that are to be fetched, but not mapped when they come.
#[derive(Default)]
pub(super) struct Milestones(BTreeSet<Page>);

impl Milestones {
    /// Whether `page` is one; it is left out once.
    pub(super) fn take(&mut self, page: Page) -> bool {
        self.0.remove(&page)
    }
}

/// One thread's scan.
struct Scan {
    /// The page of the last fault.
    last: Page,
    /// The next fault of a scan is this far from the last: the protocol's window and one.
    step: u64,
    /// Full windows seen in a row.
    full: u32,
    /// Where the last stretch begins, once there is one.
    milestone: Page,
    /// The first page that has not been asked for; not after `milestone` while there is no stretch.
    end: Page,
    stretch: u64,
}

impl Scan {
    fn new(page: Page) -> Self {
        Self { last: page, step: 1, full: 0, milestone: page, end: page, stretch: STRETCH_MIN }
    }
}

/// The long scans among a stripe's faults.
pub(super) struct ReadAhead {
    served: Range<Page>,
    on: bool,
    scans: HashMap<ThreadId, Scan>,
    milestones: Milestones,
}

impl ReadAhead {
    pub(super) fn new(served: Range<Page>, on: bool) -> Self {
        Self { served, on, scans: HashMap::new(), milestones: Milestones::default() }
    }

    pub(super) fn set_on(&mut self, on: bool) {
        self.on = on;
        self.scans.clear();
        self.milestones.0.clear();
    }

    pub(super) fn forget(&mut self, thread: ThreadId) {
        self.scans.remove(&thread);
    }

    /// The pages to leave out; none most of the time.
    pub(super) fn milestones(&mut self) -> Option<&mut Milestones> {
        Some(&mut self.milestones).filter(|milestones| !milestones.0.is_empty())
    }

    /// `thread` faulted on `page`. Returns the pages to prefetch.
    pub(super) fn fault(
        &mut self,
        thread: ThreadId,
        page: Page,
        access: Access,
    ) -> Option<Range<Page>> {
        // Whoever waits for it needs it mapped.
        self.milestones.take(page);
        if !self.on || access != Access::Read {
            return None;
        }
        if self.scans.len() >= SCANS_MAX && !self.scans.contains_key(&thread) {
            self.scans.clear();
        }
        let scan = self.scans.entry(thread).or_insert_with(|| Scan::new(page));
        if scan.end > scan.milestone && (scan.last..=scan.end).contains(&page) {
            scan.last = page;
            if page < scan.milestone {
                return None;
            }
            // The milestone may have been here before, and mapped: then the scan found the end without it.
            let first = scan.end.max(Page(page.0 + 1));
            return Self::next(scan, first, &self.served, &mut self.milestones);
        }
        let distance = page.0.wrapping_sub(scan.last.0);
        let window = COMPANIONS_MAX as u64 + 1;
        if distance != scan.step {
            *scan = Scan { step: if distance == 1 { 2 } else { 1 }, ..Scan::new(page) };
            return None;
        }
        scan.last = page;
        scan.full = if scan.step == window { scan.full + 1 } else { 0 };
        scan.step = (scan.step * 2).min(window);
        if scan.full < FULL_WINDOWS {
            return None;
        }
        // The window of this very fault comes first.
        let first = Page(page.0 + window);
        Self::next(scan, first, &self.served, &mut self.milestones)
    }

    /// What follows `page` in the last stretch of a scan. The protocol asks for none of it while it
    /// is finding out whether untouched memory can be had by the block.
    pub(super) fn rest(&self, thread: ThreadId, page: Page) -> Option<Range<Page>> {
        let scan = self.scans.get(&thread).filter(|scan| scan.milestone <= page)?;
        let first = Page(page.0 + 1);
        (first < scan.end).then_some(first..scan.end)
    }

    fn next(
        scan: &mut Scan,
        first: Page,
        served: &Range<Page>,
        milestones: &mut Milestones,
    ) -> Option<Range<Page>> {
        let end = Page(first.0.saturating_add(scan.stretch).min(served.end.0));
        if first >= end {
            return None;
        }
        (scan.milestone, scan.end) = (first, end);
        scan.stretch = (scan.stretch * 2).min(STRETCH_MAX);
        milestones.0.insert(first);
        Some(first..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: ThreadId = ThreadId(1);

    fn read_ahead() -> ReadAhead {
        ReadAhead::new(Page(0)..Page(1000), true)
    }

    fn run(ahead: &mut ReadAhead, faults: &[u64]) -> Vec<Option<(u64, u64)>> {
        let fault = |&page: &u64| {
            ahead.fault(T, Page(page), Access::Read).map(|range| (range.start.0, range.end.0))
        };
        faults.iter().map(fault).collect()
    }

    #[test]
    fn a_scan_with_full_windows_is_read_ahead_in_growing_stretches() {
        let mut ahead = read_ahead();
        assert!(run(&mut ahead, &[10, 11, 13, 17, 25, 41]).iter().all(Option::is_none));
        assert_eq!(run(&mut ahead, &[57]), [Some((73, 105))]);
        // A page of the window, then the milestone, then within the stretch.
        assert_eq!(run(&mut ahead, &[60, 73, 80]), [None, Some((105, 169)), None]);
        assert_eq!(run(&mut ahead, &[105]), [Some((169, 297))]);
    }

    #[test]
    fn what_was_not_asked_for_can_be_asked_for_again() {
        let mut ahead = read_ahead();
        run(&mut ahead, &[10, 11, 13, 17, 25, 41, 57]);
        assert_eq!(ahead.rest(T, Page(60)), None);
        assert_eq!(ahead.rest(T, Page(80)), Some(Page(81)..Page(105)));
        assert_eq!(ahead.rest(T, Page(104)), None);
        assert_eq!(ahead.rest(ThreadId(2), Page(80)), None);
    }

    #[test]
    fn a_scan_that_finds_no_fault_at_a_milestone_goes_on_after_the_page_it_waits_for() {
        let mut ahead = read_ahead();
        assert_eq!(run(&mut ahead, &[10, 11, 13, 17, 25, 41, 57]).last(), Some(&Some((73, 105))));
        assert_eq!(run(&mut ahead, &[105]), [Some((106, 170))]);
        assert!(!ahead.milestones().unwrap().take(Page(105)));
    }

    #[test]
    fn random_and_strided_access_is_not_read_ahead() {
        let mut ahead = read_ahead();
        let strided: Vec<u64> = (0..60).map(|step| 3 * step).collect();
        assert!(run(&mut ahead, &strided).iter().all(Option::is_none));
        assert!(run(&mut ahead, &[900, 5, 77, 13, 600]).iter().all(Option::is_none));
    }

    #[test]
    fn stretches_end_with_the_stripe() {
        let mut ahead = ReadAhead::new(Page(0)..Page(80), true);
        run(&mut ahead, &[10, 11, 13, 17, 25, 41]);
        assert_eq!(run(&mut ahead, &[57, 73]), [Some((73, 80)), None]);
    }

    #[test]
    fn a_milestone_is_left_out_once_unless_someone_waits_for_it() {
        let mut ahead = read_ahead();
        run(&mut ahead, &[10, 11, 13, 17, 25, 41, 57]);
        assert!(ahead.milestones().unwrap().take(Page(73)));
        assert!(ahead.milestones().is_none());
        run(&mut ahead, &[73]);
        ahead.fault(ThreadId(2), Page(105), Access::Write);
        assert!(ahead.milestones().is_none());
    }
}
