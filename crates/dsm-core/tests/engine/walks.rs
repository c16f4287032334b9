//! Walk-shared pages on real memory.
//!
//! The threads store to them as processors do to page tables, and take the pages for walks by
//! storing what is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dsm_core::engine::{Engine, EngineEvent, Frames, PageTables, RegionSpec, WaitMode};
use dsm_core::protocol::WalkTable;
use dsm_core::types::{PAGE_WORDS, Page};

use super::cluster::{Cluster, Joined, Member, REGION};

/// Two tables, of which the second links the first, and a page of data.
const CHILD: u64 = 0;
const PARENT: u64 = 1;
const FLAG: u64 = 2;
/// A word that no page table has.
const UNFIT: u64 = 1 << 63;

/// Takes the first two pages for page tables, unless they have a word that none has.
struct Tables;

impl PageTables for Tables {
    fn find(&self, page: Page, _: bool, _: &Frames<'_>) -> Option<WalkTable> {
        (page.0 < FLAG).then_some(WalkTable { level: 1, link: None })
    }

    fn stands(&self, _: Page, _: WalkTable, _: &Frames<'_>) -> Option<bool> {
        Some(true)
    }

    fn fits(&self, _: u8, entries: &[u64; PAGE_WORDS]) -> bool {
        entries.iter().all(|&entry| entry & UNFIT == 0)
    }
}

fn tables() -> Arc<dyn PageTables> {
    Arc::new(Tables)
}

fn open(engine: &Engine, spec: &RegionSpec) {
    engine.open(spec).unwrap();
    assert!(engine.share_walked(REGION, 1, &tables()).unwrap());
}

fn start(nodes: usize, open: &dyn Fn(&Engine, &RegionSpec)) -> Option<Cluster> {
    let how = (WaitMode::Adaptive, Joined::Sockets);
    Cluster::start_with(nodes, 16, 1, how, &|_| u64::MAX, open)
}

impl Member {
    /// Needs the right to write the page, and changes nothing.
    fn walk(&self, page: u64) {
        self.word(page, PAGE_WORDS - 1).swap(0, Ordering::SeqCst);
    }

    fn walk_shared(&self) -> u64 {
        self.engine.stats(REGION).unwrap().walk_shared
    }
}

/// Walks both tables at all nodes until all share them.
fn share(cluster: &Cluster) {
    let end = Instant::now() + Duration::from_secs(30);
    while cluster.members.iter().any(|member| member.walk_shared() < 2) {
        assert!(Instant::now() < end, "the tables are not shared");
        for member in &cluster.members {
            member.walk(CHILD);
            member.walk(PARENT);
        }
    }
}

/// One node changes the child, then the parent, then raises a flag in an ordinary page; the others
/// look at the flag or at the parent. Returns how often one saw less than it had to.
fn stale(cluster: &Cluster, rounds: u64) -> u64 {
    let [writer, readers @ ..] = &cluster.members[..] else { panic!() };
    let end = Instant::now() + Duration::from_secs(120);
    let wait = |look: &dyn Fn() -> bool| {
        while !look() {
            assert!(Instant::now() < end, "a store does not arrive");
            std::hint::spin_loop();
        }
    };
    let mut stale = 0;
    for round in 1..=rounds {
        writer.word(CHILD, 7).store(round, Ordering::SeqCst);
        writer.word(PARENT, 9).store(round, Ordering::SeqCst);
        let reader = &readers[round as usize % readers.len()];
        if round % 2 == 0 {
            writer.write(FLAG, round);
            wait(&|| reader.read(FLAG) >= round);
            stale += u64::from(reader.word(PARENT, 9).load(Ordering::SeqCst) < round);
        } else {
            wait(&|| reader.word(PARENT, 9).load(Ordering::SeqCst) >= round);
        }
        stale += u64::from(reader.word(CHILD, 7).load(Ordering::SeqCst) < round);
        // Those that leave because they change often come back.
        if round % 8 == 0 {
            cluster.members.iter().for_each(|member| {
                member.walk(CHILD);
                member.walk(PARENT);
            });
        }
    }
    stale
}

fn events(cluster: &Cluster) -> Vec<EngineEvent> {
    cluster.members.iter().flat_map(|member| member.events.lock().unwrap().clone()).collect()
}

#[test]
fn shared_tables_are_walked_without_faults() {
    let Some(cluster) = start(3, &open) else { return };
    share(&cluster);
    let faults = |member: &Member| {
        let counters = member.engine.stats(REGION).unwrap().counters;
        counters.write_faults + counters.upgrade_faults
    };
    let before: Vec<u64> = cluster.members.iter().map(faults).collect();
    for _ in 0..100 {
        cluster.members.iter().for_each(|member| {
            member.walk(CHILD);
            member.walk(PARENT);
        });
    }
    let after: Vec<u64> = cluster.members.iter().map(faults).collect();
    assert_eq!(before, after);
    assert!(events(&cluster).is_empty(), "{:?}", events(&cluster));
}

#[test]
fn stores_to_shared_tables_are_seen_before_later_ones() {
    for nodes in [2, 3] {
        let Some(cluster) = start(nodes, &open) else { return };
        share(&cluster);
        assert_eq!(stale(&cluster, 400), 0);
        let told = cluster.members[0].engine.stats(REGION).unwrap().counters;
        assert!(told.walk_reports > 0, "{told:?}");
        assert!(events(&cluster).is_empty(), "{:?}", events(&cluster));
    }
}

#[test]
fn tables_are_shared_when_another_node_asks_to_write_them() {
    // They need not come back unchanged before.
    let open = |engine: &Engine, spec: &RegionSpec| {
        engine.open(spec).unwrap();
        engine.share_walked(REGION, u8::MAX, &tables()).unwrap();
    };
    let Some(cluster) = start(3, &open) else { return };
    let [home, others @ ..] = &cluster.members[..] else { panic!() };
    // One that the home has, and one that it is offered.
    home.walk(CHILD);
    others[0].walk(PARENT);
    for page in [CHILD, PARENT, FLAG] {
        cluster.members.iter().for_each(|member| member.walk(page));
    }
    let shared: Vec<u64> = cluster.members.iter().map(Member::walk_shared).collect();
    assert_eq!(shared, [2, 2, 2]);
}

#[test]
#[cfg(feature = "mutations")]
fn without_a_flush_stores_are_missed() {
    use dsm_core::protocol::Mutation;
    let open = |engine: &Engine, spec: &RegionSpec| {
        engine.open_mutated(spec, Mutation::WalkWithoutWaiting).unwrap();
        engine.share_walked(REGION, 1, &tables()).unwrap();
    };
    let Some(cluster) = start(3, &open) else { return };
    share(&cluster);
    assert!(stale(&cluster, 2000) > 0, "nobody has noticed");
}

#[test]
fn stores_of_several_nodes_to_one_table_all_count() {
    let Some(cluster) = start(3, &open) else { return };
    share(&cluster);
    std::thread::scope(|scope| {
        for (index, member) in cluster.members.iter().enumerate() {
            scope.spawn(move || {
                for round in 1..=300 {
                    member.word(CHILD, index).store(round, Ordering::SeqCst);
                    // A fault, and so a flush, now and then.
                    member.word(FLAG, index).fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    for member in &cluster.members {
        let end = Instant::now() + Duration::from_secs(30);
        for index in 0..cluster.members.len() {
            while member.word(CHILD, index).load(Ordering::SeqCst) != 300 {
                assert!(Instant::now() < end, "a store is lost");
            }
        }
    }
    assert!(events(&cluster).is_empty(), "{:?}", events(&cluster));
}

#[test]
fn a_page_that_is_no_table_any_more_is_an_ordinary_page() {
    let Some(cluster) = start(3, &open) else { return };
    share(&cluster);
    cluster.members[2].word(CHILD, 5).store(UNFIT | 1, Ordering::SeqCst);
    cluster.members[2].write(FLAG, 1);
    let end = Instant::now() + Duration::from_secs(30);
    while cluster.members[1].read(FLAG) != 1 {
        assert!(Instant::now() < end, "a store does not arrive");
    }
    assert_eq!(cluster.members[1].word(CHILD, 5).load(Ordering::SeqCst), UNFIT | 1);
    // What several nodes change at once must not get lost now.
    std::thread::scope(|scope| {
        for member in &cluster.members {
            scope.spawn(move || {
                for _ in 0..200 {
                    member.word(CHILD, 6).fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(cluster.members[0].word(CHILD, 6).load(Ordering::SeqCst), 600);
    assert!(cluster.members.iter().all(|member| member.walk_shared() == 1));
    assert!(events(&cluster).is_empty(), "{:?}", events(&cluster));
}

#[test]
fn one_word_changed_at_two_nodes_ends_the_region() {
    let Some(cluster) = start(2, &open) else { return };
    let end = Instant::now() + Duration::from_secs(60);
    let mut value = 0;
    while events(&cluster).is_empty() {
        assert!(Instant::now() < end, "nobody has noticed");
        std::thread::scope(|scope| {
            for member in &cluster.members {
                value += 1;
                let value = value;
                scope.spawn(move || {
                    member.walk(CHILD);
                    member.word(CHILD, 3).store(value, Ordering::SeqCst);
                });
            }
        });
    }
    let told = format!("{:?}", events(&cluster));
    assert!(told.contains("word 3 of page 0"), "{told}");
}

#[test]
fn other_ways_than_pages_wait_for_a_flush_in_order() {
    let Some(cluster) = start(2, &open) else { return };
    share(&cluster);
    let [a, b] = &cluster.members[..] else { panic!() };
    assert!(a.engine.must_flush());
    for round in 1..=100 {
        let (calls, called) = std::sync::mpsc::channel();
        a.word(CHILD, 7).store(round, Ordering::SeqCst);
        for number in 0..3 {
            let calls = calls.clone();
            a.engine.flush(REGION, Box::new(move || calls.send(number).unwrap()));
        }
        let order: Vec<i32> = (0..3).map(|_| called.recv().unwrap()).collect();
        assert_eq!(order, [0, 1, 2]);
        assert_eq!(b.word(CHILD, 7).load(Ordering::SeqCst), round);
    }
    // A node without walk-shared pages has nothing to wait for.
    let Some(plain) = Cluster::start(2, 16, 1, WaitMode::Adaptive) else { return };
    assert!(!plain.members[0].engine.must_flush());
}

#[test]
fn several_workers_share_no_tables() {
    let Some(cluster) = Cluster::start(2, 4096, 2, WaitMode::Adaptive) else { return };
    assert!(!cluster.members[0].engine.share_walked(REGION, 1, &tables()).unwrap());
}
