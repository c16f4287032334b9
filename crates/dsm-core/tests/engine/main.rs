//! Real pages under several engines.

mod cluster;
mod evict;
mod recover;
mod restore;
mod walks;

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::{Cluster, Joined, Member, REGION};
use dsm_core::engine::{HoldError, WaitMode};
use dsm_core::types::{Access, Page};

#[test]
fn bytes_written_at_one_node_are_read_at_all() {
    let waits = [WaitMode::Blocking, WaitMode::Adaptive, WaitMode::Busy];
    let joined = [Joined::Sockets, Joined::InProcess];
    for (wait, joined) in waits.into_iter().flat_map(|wait| joined.map(|joined| (wait, joined))) {
        let Some(cluster) = Cluster::start_joined(3, 4096, 1, wait, joined) else { return };
        let [a, b, c] = &cluster.members[..] else { panic!() };
        a.write(3, 7);
        assert_eq!(b.read(3), 7);
        assert_eq!(c.read(3), 7);
        c.write(3, 8);
        assert_eq!((a.read(3), b.read(3), c.read(3)), (8, 8, 8));
        // Untouched memory of another node.
        assert_eq!(a.read(4000), 0);
        b.write(4001, 1);
        assert_eq!(a.read(4001), 1);
        assert!(cluster.members.iter().all(|member| member.events.lock().unwrap().is_empty()));
    }
}

#[test]
fn atomic_increments_of_all_nodes_add_up() {
    for (wait, workers) in [(WaitMode::Blocking, 1), (WaitMode::Adaptive, 2)] {
        let Some(cluster) = Cluster::start(3, 4096, workers, wait) else { return };
        let rounds = 200_000;
        std::thread::scope(|scope| {
            for member in &cluster.members {
                scope.spawn(move || {
                    for round in 0..rounds {
                        member.word(round % 3 * 1400, 0).fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        for member in &cluster.members {
            let sum: u64 = (0..3).map(|page| member.read(page * 1400)).sum();
            assert_eq!(sum, 3 * rounds);
        }
    }
}

#[test]
fn a_scan_goes_on_where_the_page_that_paces_it_was_here_before() {
    let Some(cluster) = Cluster::start(2, 4096, 1, WaitMode::Adaptive) else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    for page in 0..512 {
        a.write(page, page + 1);
    }
    // The first page of the first stretch that is read ahead of the scan below: 47 is where its second
    // full window begins.
    assert_eq!(b.read(47 + 16), 64);
    for page in 0..512 {
        assert_eq!(b.read(page), page + 1);
    }
    // The first of two scans may wait for what the second one is to find later.
    std::thread::scope(|scope| {
        for step in [1, 1, 2] {
            scope.spawn(move || {
                for page in (512..2048).step_by(step) {
                    assert_eq!(b.read(page), 0);
                }
            });
        }
    });
}

#[test]
fn scans_get_many_pages_with_one_request() {
    let Some(cluster) = Cluster::start(2, 4096, 1, WaitMode::Adaptive) else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    for page in 0..1024 {
        a.write(page, page + 1);
    }
    for page in 0..1024 {
        assert_eq!(b.read(page), page + 1);
    }
    let counters = b.engine.stats(REGION).unwrap().counters;
    assert!(counters.read_faults < 1024 / 8, "{counters:?}");
    assert!(counters.companions_received > 900, "{counters:?}");
}

#[test]
fn scans_that_run_into_each_other_go_on() {
    for round in 1..6 {
        let Some(cluster) = Cluster::start(2, 4096, 1, WaitMode::Adaptive) else { return };
        let [a, b] = &cluster.members[..] else { panic!() };
        for page in 0..2048 {
            a.write(page, page + round);
        }
        // The end of each is read ahead into the beginning of the next.
        std::thread::scope(|scope| {
            for part in 0..16 {
                scope.spawn(move || {
                    for page in part * 128..part * 128 + 128 {
                        assert_eq!(b.read(page), page + round);
                    }
                });
            }
        });
    }
}

#[test]
fn words_that_span_pages_are_updated_under_contention() {
    // Each unaligned access needs two pages at once, in one instruction.
    let Some(cluster) = Cluster::start(2, 16, 1, WaitMode::Adaptive) else { return };
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for member in &cluster.members {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                for _ in 0..300 {
                    let address = member.byte(0, 4092) as *const _ as *mut u64;
                    // SAFETY: eight bytes within the view's first two pages.
                    unsafe {
                        let value = address.read_unaligned();
                        address.write_unaligned(std::hint::black_box(value) | 1);
                    }
                }
            });
        }
    });
    assert_eq!(cluster.members[0].byte(0, 4092).load(Ordering::SeqCst), 1);
}

#[test]
fn held_pages_stay_until_released() {
    let Some(cluster) = Cluster::start(2, 4096, 2, WaitMode::Adaptive) else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    let second = Duration::from_secs(1);
    for page in 0..64 {
        a.write(page, 5);
    }
    let hold = b.engine.hold(REGION, Page(0)..Page(64), Access::Write, 30 * second).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| a.write(5, 6));
        // The writer's request has arrived when it is counted as kept.
        while b.engine.stats(REGION).unwrap().counters.kept == 0 {
            std::thread::yield_now();
        }
        assert_eq!(b.read(5), 5);
        assert!(!writer.is_finished());
        drop(hold);
        writer.join().unwrap();
    });
    assert_eq!(b.read(5), 6);
    let too_many = b.engine.hold(REGION, Page(0)..Page(5000), Access::Read, second);
    assert!(matches!(too_many, Err(HoldError::OutOfRange { pages: 4096, .. })));
}

#[test]
fn a_hold_that_cannot_be_gathered_times_out() {
    let Some(cluster) = Cluster::start(2, 64, 1, WaitMode::Adaptive) else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    let pages = Page(0)..Page(2);
    let hold =
        a.engine.hold(REGION, pages.clone(), Access::Write, Duration::from_secs(30)).unwrap();
    let second = b.engine.hold(REGION, pages.clone(), Access::Read, Duration::from_millis(50));
    assert_eq!(second.err(), Some(HoldError::TimedOut));
    drop(hold);
    b.engine.hold(REGION, pages, Access::Read, Duration::from_secs(30)).unwrap();
}

#[test]
fn prefetched_pages_are_read_without_a_fault() {
    let Some(cluster) = Cluster::start(2, 256, 1, WaitMode::Adaptive) else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    for page in 0..64 {
        a.write(page, 9);
    }
    // The first touch leases nothing here: the block is not untouched any more.
    assert_eq!(b.read(100), 0);
    let received = || b.engine.stats(REGION).unwrap().counters.pages_received;
    let all = received() + 64;
    // Pages that the writer may still be using are refused, so it may take more than one attempt.
    while received() < all {
        b.engine.prefetch(REGION, Page(0)..Page(64));
    }
    let before = b.engine.stats(REGION).unwrap().counters.read_faults;
    for page in 0..64 {
        assert_eq!(b.read(page), 9);
    }
    assert_eq!(b.engine.stats(REGION).unwrap().counters.read_faults, before);
}

#[test]
fn a_page_migrates_only_if_its_readers_go_on_to_write() {
    let Some(cluster) = Cluster::start(2, 16, 1, WaitMode::Adaptive) else { return };
    let [a, b] = &cluster.members[..] else { panic!() };
    let granted = || {
        let counters = |member: &Member| member.engine.stats(REGION).unwrap().counters;
        counters(a).migratory_grants + counters(b).migratory_grants
    };
    let mut value = 0;
    let mut update = |member: &Member, page| {
        value = member.read(page) + 1;
        member.write(page, value);
    };
    // Page 1 goes back and forth; of page 0, each second reader leaves it to the owner to write on.
    for page in [0, 1] {
        a.write(page, 1);
        for _ in 0..20 {
            update(b, page);
            update(a, page);
            if page == 0 {
                b.read(page);
                a.write(page, 1);
            }
        }
        assert_eq!(granted() > 0, page == 1, "page {page}");
    }
}
