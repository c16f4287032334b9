//! Pages are lost with a node, and get new content.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::cluster::{Cluster, Member, REGION, node};
use super::recover::{MINUTE, lose, lose_first, names, settled, settled_in, start, start_limited};
use dsm_core::engine::{HoldError, RestoreError};
use dsm_core::types::{Access, PAGE_SIZE, Page, RegionId};

/// What the word at `index` of a page has after a restore with this mark.
fn word(mark: u64, page: u64, index: usize) -> u64 {
    mark << 32 | page << 12 | index as u64
}

/// Content of pages.
fn content(mark: u64, pages: Range<u64>) -> Vec<u8> {
    let words = |page| (0..PAGE_SIZE / 8).map(move |index| word(mark, page, index));
    pages.flat_map(words).flat_map(u64::to_le_bytes).collect()
}

fn restore(member: &Member, mark: u64, pages: Range<u64>) -> Result<(), RestoreError> {
    member.engine.restore(REGION, Page(pages.start), &content(mark, pages))
}

/// Which mark the pages have, all of them the same, at this node.
fn mark(member: &Member, pages: Range<u64>) -> u64 {
    let mark = member.read(pages.start) >> 32;
    for page in pages {
        for index in [0, 7, 511] {
            let found = member.word(page, index).load(Ordering::SeqCst);
            assert_eq!(found, word(mark, page, index), "page {page}, word {index}");
        }
    }
    mark
}

/// The first node of three is lost, with pages 0 to 2559. With two workers, a stripe ends at 2048.
fn lost(workers: usize) -> Option<Cluster> {
    let mut cluster = start(3, 4096, workers)?;
    let [a, b, c] = &cluster.members[..] else { panic!() };
    // Old bytes at survivors, of different versions.
    for page in [0, 700, 1100, 2000, 2100] {
        a.write(page, 1);
        assert_eq!(b.read(page), 1);
        a.write(page, 2);
        assert_eq!((b.read(page), c.read(page)), (2, 2));
        a.write(page, 3);
    }
    drop(cluster.members.remove(0));
    let [b, c] = &cluster.members[..] else { panic!() };
    lose_first(b);
    lose_first(c);
    let lost = settled(b, workers);
    assert_eq!(lost, settled(c, workers));
    for page in 0..2560 {
        assert!(names(&lost, page), "page {page} is not among {lost:?}");
    }
    Some(cluster)
}

/// Touches a page so that it is poisoned.
fn poison(member: &Member, page: u64) {
    let hold = member.engine.hold(REGION, Page(page)..Page(page + 1), Access::Write, MINUTE);
    assert_eq!(hold.err(), Some(HoldError::Lost));
}

#[test]
fn lost_pages_get_new_content() {
    for workers in [1, 2] {
        let Some(cluster) = lost(workers) else { return };
        let [b, c] = &cluster.members[..] else { panic!() };
        for page in [0, 600, 1999, 2000, 2001, 2047, 2048, 2100] {
            poison(b, page);
            poison(c, page);
        }
        assert_eq!(restore(c, 5, 2000..2300), Ok(()));
        let both = || [b, c].map(|member| member.engine.lost_pages(REGION).unwrap());
        let [left, others] = both();
        assert_eq!(left, others);
        assert!(!(2000..2300).any(|page| names(&left, page)), "{left:?}");
        assert!((0..2000).chain(2300..2560).all(|page| names(&left, page)), "{left:?}");
        assert_eq!((mark(b, 2000..2300), mark(c, 2000..2300)), (5, 5));
        for page in [2000, 2048, 2299] {
            b.write(page, page);
            assert_eq!(c.read(page), page);
            c.write(page, page + 1);
            assert_eq!(b.read(page), page + 1);
        }
        // Not all of these are lost: nothing changes.
        for (pages, page) in [(2000..2001, 2000), (1900..2100, 2000), (2299..2400, 2299)] {
            for member in [b, c] {
                let refused = Err(RestoreError::NotLost { page, restored: 0 });
                assert_eq!(restore(member, 6, pages.clone()), refused);
            }
        }
        assert_eq!(both(), [left.clone(), left]);
        assert_eq!(restore(b, 7, 0..2000), Ok(()));
        assert_eq!((mark(c, 0..2000), mark(b, 0..2000)), (7, 7));
        assert_eq!((b.read(2000), c.read(3000)), (2001, 0));
        let restored = |of: &Member| of.engine.stats(REGION).unwrap().counters.pages_restored;
        assert_eq!((restored(b), restored(c)), (2000, 300));
    }
}

#[test]
fn what_cannot_be_restored_is_refused() {
    let Some(cluster) = lost(1) else { return };
    let b = &cluster.members[0];
    let page = vec![1; PAGE_SIZE];
    let restore = |first, data: &[u8]| b.engine.restore(REGION, Page(first), data);
    assert_eq!(restore(0, &[]), Err(RestoreError::Length { bytes: 0 }));
    assert_eq!(restore(0, &page[1..]), Err(RestoreError::Length { bytes: 4095 }));
    let beyond = RestoreError::OutOfRange { start: 4096, end: 4097, pages: 4096 };
    assert_eq!(restore(4096, &page), Err(beyond));
    assert!(matches!(restore(u64::MAX, &page), Err(RestoreError::OutOfRange { .. })));
    assert_eq!(restore(4095, &page), Err(RestoreError::NotLost { page: 4095, restored: 0 }));
    let unknown = b.engine.restore(RegionId(9), Page(0), &page);
    assert_eq!(unknown, Err(RestoreError::Stopped));
    b.engine.end().unwrap();
    assert_eq!(restore(0, &page), Err(RestoreError::Ended));
}

#[test]
fn of_two_that_restore_a_page_one_does() {
    let mut won = [0, 0];
    for workers in [1, 2] {
        let Some(cluster) = lost(workers) else { return };
        let [b, c] = &cluster.members[..] else { panic!() };
        for first in (0..2400).step_by(150) {
            let pages = first..first + 150;
            let results = std::thread::scope(|scope| {
                let other = scope.spawn(|| restore(c, 2, pages.clone()));
                [restore(b, 1, pages.clone()), other.join().unwrap()]
            });
            let refused = Err(RestoreError::NotLost { page: first, restored: 0 });
            let winner = results.iter().position(Result::is_ok).unwrap();
            assert_eq!(results[1 - winner], refused);
            won[winner] += 1;
            let mark = [b, c].map(|member| mark(member, pages.clone()));
            assert_eq!(mark, [winner as u64 + 1; 2]);
        }
    }
    println!("of two that restored the same pages, each won so often: {won:?}");
}

#[test]
fn restores_of_one_node_take_turns_and_programs_use_the_pages() {
    let Some(cluster) = lost(2) else { return };
    let [b, c] = &cluster.members[..] else { panic!() };
    std::thread::scope(|scope| {
        for part in 0..8 {
            let member = [b, c][part as usize % 2];
            scope.spawn(move || {
                let pages = part * 320..part * 320 + 320;
                assert_eq!(restore(member, part + 1, pages.clone()), Ok(()));
                assert_eq!((mark(b, pages.clone()), mark(c, pages)), (part + 1, part + 1));
            });
        }
    });
    assert!(!names(&b.engine.lost_pages(REGION).unwrap(), 0));
}

#[test]
fn a_restore_waits_until_a_loss_is_settled() {
    for ends in [false, true] {
        let Some(mut cluster) = start(3, 4096, 1) else { return };
        drop(cluster.members.remove(0));
        let [b, c] = &cluster.members[..] else { panic!() };
        lose_first(b);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let restoring = scope.spawn(|| {
                let result = restore(b, 3, 0..10);
                done.store(true, Ordering::SeqCst);
                result
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!done.load(Ordering::SeqCst), "restored before the other survivor was told");
            if ends {
                b.engine.end().unwrap();
                assert_eq!(restoring.join().unwrap(), Err(RestoreError::Ended));
            } else {
                lose_first(c);
                assert_eq!(restoring.join().unwrap(), Ok(()));
                assert_eq!(mark(c, 0..10), 3);
            }
        });
    }
}

#[test]
fn a_node_is_lost_while_pages_are_restored() {
    const ROUNDS: u64 = 12;
    let mut midway = 0;
    for round in 0..ROUNDS {
        let workers = 1 + round as usize % 2;
        let Some(mut cluster) = start(4, 4096, workers) else { return };
        // Two blocks of eight are its own; it takes two more, so that both stripes have some.
        cluster.members[0].write(1500, 1);
        cluster.members[0].write(2100, 1);
        drop(cluster.members.remove(0));
        let [b, c, d] = &cluster.members[..] else { panic!() };
        for member in [b, c, d] {
            lose_first(member);
        }
        let lost = settled(b, workers);
        assert!(names(&lost, 0) && names(&lost, 1500) && names(&lost, 2100));
        // One restores from the start, the other, which is lost, the rest.
        std::thread::scope(|scope| {
            let mine = scope.spawn(|| restore(b, 1, 0..1024));
            let other = scope.spawn(|| restore(d, 2, 1024..1536));
            std::thread::sleep(Duration::from_micros(round * 150));
            for peer in [1, 2] {
                d.engine.detach(node(peer));
            }
            midway += u64::from(!mine.is_finished());
            for member in [c, b] {
                lose(member, &[0, 3]);
                std::thread::sleep(Duration::from_micros(round * 100));
            }
            assert_eq!(mine.join().unwrap(), Ok(()));
            d.engine.end().unwrap();
            let _ = other.join().unwrap();
        });
        for member in [b, c] {
            settled_in(2, member, workers);
        }
        let lost = b.engine.lost_pages(REGION).unwrap();
        assert_eq!(lost, c.engine.lost_pages(REGION).unwrap());
        assert_eq!((mark(c, 0..1024), mark(b, 0..1024)), (1, 1));
        // What the lost node had restored is lost with it.
        assert!((1024..1536).all(|page| names(&lost, page)), "{lost:?}");
        assert_eq!(restore(c, 4, 1024..1536), Ok(()));
        assert_eq!((mark(b, 1024..1536), mark(c, 1024..1536)), (4, 4));
    }
    println!("{ROUNDS} losses, {midway} of them before all pages were restored");
}

#[test]
fn restored_pages_move_to_where_memory_is() {
    let Some(mut cluster) = start_limited(3, 8192, 1, false, &|node| match node {
        1 => 600,
        _ => u64::MAX,
    }) else {
        return;
    };
    drop(cluster.members.remove(0));
    let [b, c] = &cluster.members[..] else { panic!() };
    lose_first(b);
    lose_first(c);
    settled(b, 1);
    assert_eq!(restore(b, 9, 0..2560), Ok(()));
    let frames = b.engine.stats(REGION).unwrap().frames;
    assert!(frames <= 600 + 512, "{frames} frames");
    assert_eq!((mark(c, 0..2560), mark(b, 0..2560)), (9, 9));
}

#[test]
#[ignore = "takes as long as a hold may"]
fn a_full_cluster_restores_what_it_has_room_for() {
    let Some(mut cluster) = start_limited(3, 8192, 1, false, &|_| 600) else { return };
    drop(cluster.members.remove(0));
    let [b, c] = &cluster.members[..] else { panic!() };
    lose_first(b);
    lose_first(c);
    settled(b, 1);
    let Err(RestoreError::Full { restored }) = restore(b, 9, 0..2560) else { panic!() };
    assert!((1000..2560).contains(&restored), "{restored} pages");
    let lost = b.engine.lost_pages(REGION).unwrap();
    assert_eq!(lost, c.engine.lost_pages(REGION).unwrap());
    assert!(lost[0].start == Page(restored), "{lost:?}");
}
