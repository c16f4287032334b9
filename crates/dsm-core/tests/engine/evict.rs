//! Nodes with less memory than what they use.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::sync::atomic::{AtomicBool, Ordering};

use super::cluster::{Cluster, Joined, Member, REGION};
use dsm_core::engine::WaitMode;
use dsm_core::types::{Access, PAGE_SIZE, Page};

/// Frames beyond its share that a worker may have: what one turn brings, and what threads that run
/// keep.
const BEYOND: u64 = 512;

/// The frames of a member, by its own count and by the kernel's.
fn frames(member: &Member) -> (u64, u64) {
    let counted = member.engine.stats(REGION).unwrap().frames;
    (counted, member.memory.resident().unwrap() / PAGE_SIZE as u64)
}

/// What the word of a page has.
fn value(page: u64, word: usize) -> u64 {
    (page << 16) + word as u64 + 1
}

/// A cheap sequence that visits pages in no order.
fn pages(seed: u64, pages: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % pages
    })
}

#[test]
fn copies_that_are_not_used_make_room_for_others() {
    const PAGES: u64 = 12 * 512;
    const SHARE: u64 = PAGES / 3;
    for workers in [1, 2] {
        let limits = |node| if node == 0 { u64::MAX } else { SHARE };
        let start =
            Cluster::start_limited(2, PAGES, workers, WaitMode::Adaptive, Joined::Sockets, &limits);
        let Some(cluster) = start else { return };
        let [a, b] = &cluster.members[..] else { panic!() };
        for page in 0..PAGES {
            for word in [0, 511] {
                a.word(page, word).store(value(page, word), Ordering::SeqCst);
            }
        }
        let most = std::sync::atomic::AtomicU64::new(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    most.fetch_max(frames(b).1, Ordering::SeqCst);
                }
            });
            let scan = 0..PAGES;
            for page in scan.chain(pages(7, PAGES).take(20_000)) {
                for word in [0, 511] {
                    let found = b.word(page, word).load(Ordering::SeqCst);
                    assert_eq!(found, value(page, word), "page {page}");
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        let most = most.into_inner();
        assert!(most <= SHARE + BEYOND * workers as u64, "{most} frames, the share is {SHARE}");
        let (counted, kernel) = frames(b);
        assert_eq!(counted, kernel, "counted, and as the kernel says");
        let counters = b.engine.stats(REGION).unwrap().counters;
        assert!(counters.evicted > PAGES, "{counters:?}");
        assert_eq!(frames(a).0, frames(a).1);
    }
}

#[test]
fn pages_in_use_stay_and_cost_no_message() {
    const SHARE: u64 = 512;
    let limits = |node| if node == 0 { u64::MAX } else { SHARE };
    let start = Cluster::start_limited(2, 4096, 1, WaitMode::Adaptive, Joined::Sockets, &limits);
    let Some(cluster) = start else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    (0..4096).for_each(|page| a.write(page, page + 1));
    let received = || b.engine.stats(REGION).unwrap().counters.pages_received;
    let hot = 0..64;
    hot.clone().for_each(|page| assert_eq!(b.read(page), page + 1));
    let before = received();
    let cold: Vec<u64> = pages(3, 4096 - 64).map(|page| page + 64).take(3000).collect();
    for &page in &cold {
        assert_eq!(b.read(page), page + 1);
        for page in hot.clone() {
            assert_eq!(b.read(page), page + 1);
        }
    }
    // All that came were cold pages: none came twice without having been used in between.
    let counters = b.engine.stats(REGION).unwrap().counters;
    assert!(counters.evicted > 1000, "{counters:?}");
    assert!(received() - before <= cold.len() as u64 + 64, "{counters:?}");
}

#[test]
fn held_frames_stay() {
    const SHARE: u64 = 256;
    let limits = |node| if node == 0 { u64::MAX } else { SHARE };
    let start = Cluster::start_limited(2, 2048, 1, WaitMode::Adaptive, Joined::Sockets, &limits);
    let Some(cluster) = start else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    (0..2048).for_each(|page| a.write(page, page + 1));
    let minute = std::time::Duration::from_secs(60);
    let hold = b.engine.hold(REGION, Page(100)..Page(200), Access::Read, minute).unwrap();
    for page in pages(5, 2048).take(4000) {
        assert_eq!(b.read(page), page + 1);
    }
    let before = b.engine.stats(REGION).unwrap();
    for page in 100..200 {
        assert_eq!(b.read(page), page + 1);
    }
    let after = b.engine.stats(REGION).unwrap();
    let faults = |stats: &dsm_core::engine::RegionStats| {
        stats.counters.read_faults + stats.counters.spurious_faults
    };
    assert_eq!(faults(&before), faults(&after), "held pages were not mapped any more");
    assert!(after.counters.evicted > 1000);
    drop(hold);
}

#[test]
fn memory_that_was_only_read_is_given_back_by_its_owner() {
    const SHARE: u64 = 256;
    let limits = |_| SHARE;
    let start = Cluster::start_limited(2, 4096, 1, WaitMode::Adaptive, Joined::Sockets, &limits);
    let Some(cluster) = start else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    for round in 0..3 {
        for page in 0..4096 {
            let expected = if round > 0 && page % 64 == 0 { page + 1 } else { 0 };
            assert_eq!(a.read(page), expected);
            if page % 64 == 0 {
                a.write(page, page + 1);
            }
        }
    }
    assert_eq!(b.read(64), 65);
    let (counted, kernel) = frames(a);
    assert_eq!(counted, kernel);
    assert!(counted <= SHARE + BEYOND, "{counted}");
}
