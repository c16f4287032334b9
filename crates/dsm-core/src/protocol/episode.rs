//! Holds ordered by age: which pages a thread has gathered, and against whom it keeps them.
//!
//! One instruction can need a dozen pages at once. A thread's faults up to the instruction's end
//! form an *episode*, whose age goes with its requests. The rule is wound-wait (Rosenkrantz,
//! Stearns and Lewis, "System Level Concurrency Control for Distributed Database Systems", TODS
//! 3(2), 1978): a page is kept against younger episodes until this one ends, and given to older
//! ones at once, except while this one is about to run and waits for nothing.

use std::collections::BTreeMap;

use crate::types::{Access, Age, Page, ThreadId};

/// Most pages that one episode of a thread keeps: more than any instruction needs.
const PAGES_MAX: usize = 32;

/// Where a thread stands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    /// Blocked on a fault.
    Waiting { page: Page, access: Access },
    /// Has what it waited for, and is not known to have run since.
    Resuming,
    /// Has run since its last fault.
    Running,
    /// A hold that still lacks these pages.
    Gathering { missing: Vec<Page>, access: Access },
    /// A hold that has all its pages, and keeps them against everyone.
    Held,
}

/// The faults of one thread from its first until it has run for a while without another, or a hold.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Episode {
    age: Age,
    phase: Phase,
    /// Pages gathered, with the access used.
    pages: Vec<(Page, Access)>,
}

/// All episodes of a node.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Episodes {
    by_thread: BTreeMap<ThreadId, Episode>,
    /// Pages that episodes have let go to make room for others.
    let_go: Vec<Page>,
}

/// What became of a hold when a page changed hands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Rewant {
    pub(super) page: Page,
    pub(super) access: Access,
    pub(super) age: Age,
}

impl Episodes {
    /// The thread waits for `page`. Continues its episode, or opens one of the age that `open`
    /// gives. Returns the age, and whether the thread was keeping pages against older episodes.
    pub(super) fn fault(
        &mut self,
        thread: ThreadId,
        page: Page,
        access: Access,
        open: impl FnOnce() -> Age,
    ) -> (Age, bool) {
        let waiting = Phase::Waiting { page, access };
        match self.by_thread.get_mut(&thread) {
            Some(episode) => {
                let kept = episode.phase == Phase::Resuming;
                episode.phase = waiting;
                (episode.age, kept)
            }
            None => {
                let age = open();
                self.by_thread.insert(thread, Episode { age, phase: waiting, pages: Vec::new() });
                (age, false)
            }
        }
    }

    /// Opens a hold of `pages`, all missing at first and no two the same.
    pub(super) fn hold(
        &mut self,
        thread: ThreadId,
        pages: &[Page],
        access: Access,
        age: Age,
        ready: &mut Vec<ThreadId>,
    ) {
        let mut phase = Phase::Gathering { missing: pages.to_vec(), access };
        if pages.is_empty() {
            phase = Phase::Held;
            ready.push(thread);
        }
        self.by_thread.insert(thread, Episode { age, phase, pages: Vec::new() });
    }

    /// `page` is accessible here: whoever waited for it goes on. Holds that became complete are
    /// added to `ready`.
    pub(super) fn satisfied(&mut self, page: Page, right: Access, ready: &mut Vec<ThreadId>) {
        for (&thread, episode) in &mut self.by_thread {
            match &mut episode.phase {
                Phase::Waiting { page: waits, access } if *waits == page && *access <= right => {
                    episode.phase = Phase::Resuming;
                    // A reader that was given the page to write is expected to write it: for a copy
                    // to another reader it would lose that right before it has used it.
                    self.let_go.extend(episode.keep(page, right));
                }
                Phase::Gathering { missing, access } if *access <= right => {
                    let Some(at) = missing.iter().position(|&waits| waits == page) else {
                        continue;
                    };
                    missing.swap_remove(at);
                    episode.pages.push((page, *access));
                    if missing.is_empty() {
                        episode.phase = Phase::Held;
                        ready.push(thread);
                    }
                }
                _ => {}
            }
        }
    }

    /// This node lost its right to `page`, or (`left` is `Read`) only that to write it. Holds that
    /// were still gathering want it again.
    pub(super) fn lost(&mut self, page: Page, left: Option<Access>, rewant: &mut Vec<Rewant>) {
        for episode in self.by_thread.values_mut() {
            let before = episode.pages.len();
            episode.pages.retain(|&(kept, access)| kept != page || Some(access) <= left);
            if episode.pages.len() == before {
                continue;
            }
            if let Phase::Gathering { missing, access } = &mut episode.phase {
                missing.push(page);
                rewant.push(Rewant { page, access: *access, age: episode.age });
            }
        }
    }

    /// `page` will never be accessible again: ends the episodes that wait for it, since neither the
    /// instruction nor the hold will go on. Returns the threads of the holds.
    pub(super) fn give_up(&mut self, page: Page) -> Vec<ThreadId> {
        let mut holds = Vec::new();
        let let_go = &mut self.let_go;
        self.by_thread.retain(|&thread, episode| {
            let waits = match &episode.phase {
                Phase::Waiting { page: waits, .. } => *waits == page,
                Phase::Gathering { missing, .. } => {
                    let waits = missing.contains(&page);
                    holds.extend(waits.then_some(thread));
                    waits
                }
                _ => false,
            };
            if waits {
                let_go.extend(episode.pages.iter().map(|&(page, _)| page));
            }
            !waits
        });
        holds
    }

    /// The pages let go since the last call: requests for them may be waiting.
    pub(super) fn take_let_go(&mut self) -> Vec<Page> {
        std::mem::take(&mut self.let_go)
    }

    /// Whether some episode keeps `page` against a request of this access and age.
    pub(super) fn keeps(&self, page: Page, access: Access, age: Age) -> bool {
        self.keepers(page, access, age).next().is_some()
    }

    /// The threads that keep `page` against a request of this access and age.
    pub(super) fn keepers(
        &self,
        page: Page,
        access: Access,
        age: Age,
    ) -> impl Iterator<Item = ThreadId> {
        self.by_thread.iter().filter_map(move |(&thread, episode)| {
            // Readers do not disturb readers.
            let conflicts = episode
                .pages
                .iter()
                .any(|&(kept, used)| kept == page && used.max(access) == Access::Write);
            let keeps = match episode.phase {
                Phase::Held | Phase::Resuming => true,
                _ => episode.age.older_than(age),
            };
            (conflicts && keeps).then_some(thread)
        })
    }

    /// Whether a complete hold has `page`: nothing takes that away.
    pub(super) fn holds(&self, page: Page) -> bool {
        self.by_thread.values().any(|episode| {
            episode.phase == Phase::Held && episode.pages.iter().any(|&(held, _)| held == page)
        })
    }

    /// Whether some episode has gathered `page`, in a way that conflicts with `access`.
    pub(super) fn gathered(&self, page: Page, access: Access) -> bool {
        let pages = self.by_thread.values().flat_map(|episode| &episode.pages);
        pages.into_iter().any(|&(kept, used)| kept == page && used.max(access) == Access::Write)
    }

    /// Whether the thread is blocked on a fault.
    pub(super) fn is_waiting(&self, thread: ThreadId) -> bool {
        let phase = self.by_thread.get(&thread).map(|episode| &episode.phase);
        matches!(phase, Some(Phase::Waiting { .. }))
    }

    /// The thread has run since its last fault: older episodes need not wait for it any more.
    /// Returns its pages.
    pub(super) fn ran(&mut self, thread: ThreadId) -> Vec<Page> {
        match self.by_thread.get_mut(&thread) {
            Some(episode) if episode.phase == Phase::Resuming => {
                episode.phase = Phase::Running;
                episode.pages.iter().map(|&(page, _)| page).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Ends the episode. Returns its pages.
    pub(super) fn end(&mut self, thread: ThreadId) -> Vec<Page> {
        let ended = self.by_thread.remove(&thread);
        ended.map_or(Vec::new(), |episode| episode.pages.iter().map(|&(page, _)| page).collect())
    }

    /// The threads that have episodes.
    pub(super) fn threads(&self) -> impl Iterator<Item = ThreadId> {
        self.by_thread.keys().copied()
    }

    /// The pages that `thread` has gathered.
    pub(super) fn pages(&self, thread: ThreadId) -> Vec<Page> {
        self.by_thread
            .get(&thread)
            .map_or(Vec::new(), |episode| episode.pages.iter().map(|&(page, _)| page).collect())
    }

    /// Pages that a hold still lacks.
    pub(super) fn missing(&self, thread: ThreadId) -> Vec<Page> {
        match self.by_thread.get(&thread).map(|episode| &episode.phase) {
            Some(Phase::Gathering { missing, .. }) => missing.clone(),
            _ => Vec::new(),
        }
    }
}

impl Episode {
    /// Gathers `page`; returns the page that it lets go for it, if it has too many.
    fn keep(&mut self, page: Page, access: Access) -> Option<Page> {
        if let Some(kept) = self.pages.iter_mut().find(|(kept, _)| *kept == page) {
            kept.1 = kept.1.max(access);
            return None;
        }
        let full = self.pages.len() == PAGES_MAX;
        let oldest = full.then(|| self.pages.remove(0).0);
        self.pages.push((page, access));
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn age(clock: u64) -> Age {
        Age { clock, node: NodeId::new(0).unwrap() }
    }

    #[test]
    fn pages_are_kept_against_the_young_and_given_to_the_old() {
        let (mut episodes, thread) = (Episodes::default(), ThreadId(1));
        let (first, second) = (Page(1), Page(2));
        episodes.fault(thread, first, Access::Write, || age(5));
        episodes.satisfied(first, Access::Write, &mut Vec::new());
        // About to run: kept even against an older one.
        assert!(episodes.keeps(first, Access::Write, age(1)));
        episodes.fault(thread, second, Access::Read, || unreachable!());
        assert!(!episodes.keeps(first, Access::Write, age(1)));
        assert!(episodes.keeps(first, Access::Write, age(9)));
        episodes.satisfied(second, Access::Read, &mut Vec::new());
        // A page that was only read is no obstacle to a reader.
        assert!(!episodes.keeps(second, Access::Read, age(9)));
        assert!(episodes.keeps(second, Access::Write, age(9)));
        assert_eq!(episodes.ran(thread), [first, second]);
        assert!(!episodes.keeps(first, Access::Read, age(1)));
        assert!(episodes.keeps(first, Access::Read, age(9)));
        episodes.end(thread);
        assert!(!episodes.keeps(first, Access::Read, age(9)));
    }

    #[test]
    fn a_hold_gathers_again_what_it_loses_and_then_keeps_it() {
        let (mut episodes, thread) = (Episodes::default(), ThreadId(7));
        let pages = [Page(1), Page(2)];
        let (mut ready, mut rewant) = (Vec::new(), Vec::new());
        episodes.hold(thread, &pages, Access::Write, age(5), &mut ready);
        episodes.satisfied(Page(1), Access::Write, &mut ready);
        assert!(!episodes.keeps(Page(1), Access::Read, age(1)));
        episodes.lost(Page(1), Some(Access::Read), &mut rewant);
        assert_eq!(rewant, [Rewant { page: Page(1), access: Access::Write, age: age(5) }]);
        episodes.satisfied(Page(1), Access::Read, &mut ready);
        episodes.satisfied(Page(2), Access::Write, &mut ready);
        assert!(ready.is_empty());
        episodes.satisfied(Page(1), Access::Write, &mut ready);
        assert_eq!(ready, [thread]);
        assert!(episodes.keeps(Page(2), Access::Read, age(1)));
    }

    #[test]
    fn a_hold_of_nothing_is_complete() {
        let (mut episodes, mut ready) = (Episodes::default(), Vec::new());
        episodes.hold(ThreadId(7), &[], Access::Read, age(5), &mut ready);
        assert_eq!(ready, [ThreadId(7)]);
    }
}
