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

/// Words of a page that belong to each of three nodes.
const WORDS: usize = 170;

/// Words that a node wrote have what it wrote last; those of others, something that they wrote.
fn visit(member: &Member, node: usize, page: u64, last: &mut u64) {
    for other in 0..3 {
        for word in (0..WORDS).map(|word| other * WORDS + word) {
            let found = member.word(page, word).load(Ordering::SeqCst);
            let tag = page << 8 | other as u64;
            let possible = found == 0 || found >> 32 == tag;
            assert!(possible, "node {node}, page {page}, word {word}: {found:#x}");
            if other == node {
                assert_eq!(found & 0xffff_ffff, *last, "node {node}, page {page}, word {word}");
            }
        }
    }
    *last += 1;
    for word in (0..WORDS).map(|word| node * WORDS + word) {
        let value = (page << 8 | node as u64) << 32 | *last;
        member.word(page, word).store(value, Ordering::SeqCst);
    }
}

#[test]
fn a_region_that_takes_the_shares_of_all_nodes_is_used_by_all() {
    const SHARE: u64 = 1024;
    const PAGES: u64 = 3 * SHARE;
    for (workers, visits) in [(1, 3000), (2, 3000)] {
        let start =
            Cluster::start_limited(3, PAGES, workers, WaitMode::Adaptive, Joined::Sockets, &|_| {
                SHARE
            });
        let Some(cluster) = start else { return };
        let most: Vec<_> = (0..3).map(|_| std::sync::atomic::AtomicU64::new(0)).collect();
        let running = std::sync::atomic::AtomicUsize::new(3);
        std::thread::scope(|scope| {
            for (node, member) in cluster.members.iter().enumerate() {
                let running = &running;
                scope.spawn(move || {
                    let mut last = vec![0; PAGES as usize];
                    let random = pages(node as u64 + 1, PAGES).take(visits);
                    for page in (0..PAGES).chain(random).chain(0..PAGES) {
                        visit(member, node, page, &mut last[page as usize]);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            while running.load(Ordering::SeqCst) > 0 {
                for (member, most) in cluster.members.iter().zip(&most) {
                    // Without its link, a node would wait for ever.
                    let events = member.events.lock().unwrap();
                    if !events.is_empty() {
                        println!("{events:?}");
                        std::process::abort();
                    }
                    drop(events);
                    most.fetch_max(frames(member).1, Ordering::SeqCst);
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let mut moved = 0;
        for (member, most) in cluster.members.iter().zip(most) {
            let most = most.into_inner();
            let counters = member.engine.stats(REGION).unwrap().counters;
            assert!(most <= SHARE + BEYOND * workers as u64, "{most} frames, {counters:?}");
            println!("{workers} workers: at most {most} of {SHARE} frames, {counters:?}");
            assert!(member.events.lock().unwrap().is_empty());
            moved += counters.handed_over;
        }
        assert!(moved > 100, "pages were to move to nodes with room, and {moved} did");
    }
}
