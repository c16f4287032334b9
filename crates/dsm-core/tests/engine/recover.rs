//! A node is lost, and the others go on.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Joined, Member, REGION, node};
use dsm_core::engine::{Engine, EngineConfig, EngineEvent, HoldError, RegionSpec, WaitMode};
use dsm_core::protocol::Features;
use dsm_core::types::{Access, Epoch, NodeSet, Page};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn start(nodes: usize, pages: u64, workers: usize) -> Option<Cluster> {
    start_with(nodes, pages, workers, false)
}

/// `zeros`: first touches are announced.
fn start_with(nodes: usize, pages: u64, workers: usize, zeros: bool) -> Option<Cluster> {
    start_limited(nodes, pages, workers, zeros, &|_| u64::MAX)
}

/// `frames`: how many each node gives.
pub(crate) fn start_limited(
    nodes: usize,
    pages: u64,
    workers: usize,
    zeros: bool,
    frames: &dyn Fn(usize) -> u64,
) -> Option<Cluster> {
    let how = (WaitMode::Adaptive, Joined::Sockets);
    Cluster::start_with(nodes, pages, workers, how, frames, &|engine, spec| {
        let features = Features { recover: true, zeros, ..spec.features };
        engine.open(&RegionSpec { features, ..spec.clone() }).unwrap();
    })
}

/// Tells a survivor that the first node is lost.
pub(crate) fn lose_first(member: &Member) {
    lose(member, &[0]);
}

/// Tells a survivor that these nodes are lost, each with an epoch of its own.
pub(crate) fn lose(member: &Member, lost: &[usize]) {
    let lost: NodeSet = lost.iter().map(|&index| node(index)).collect();
    let members = NodeSet::first(member.engine.config().nodes).minus(lost);
    member.engine.change(&Epoch::first(lost.len() as u16, members)).unwrap();
}

/// Waits until all workers of a survivor have settled. Returns the lost pages that they named.
pub(crate) fn settled(member: &Member, workers: usize) -> Vec<Range<Page>> {
    let lost = settled_in(1, member, workers);
    assert_eq!(lost, member.engine.lost_pages(REGION).unwrap());
    lost
}

/// As above, after the loss with this number; some pages may have been restored since.
pub(crate) fn settled_in(number: u16, member: &Member, workers: usize) -> Vec<Range<Page>> {
    let until = Instant::now() + MINUTE;
    loop {
        let events = member.events.lock().unwrap().clone();
        let recovered: Vec<_> = events
            .into_iter()
            .filter_map(|event| match event {
                EngineEvent::Recovered { region: REGION, epoch, lost } => {
                    (epoch == number).then_some(lost)
                }
                EngineEvent::LinkFailed { .. } => None,
                other => panic!("{other:?}"),
            })
            .collect();
        if recovered.len() == workers {
            let mut lost: Vec<_> = recovered.into_iter().flatten().collect();
            lost.sort_by_key(|range| range.start);
            return lost;
        }
        assert!(Instant::now() < until, "not settled: {recovered:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(crate) fn names(lost: &[Range<Page>], page: u64) -> bool {
    lost.iter().any(|range| range.contains(&Page(page)))
}

#[test]
fn a_node_that_comes_back_has_the_latest_bytes_and_takes_pages() {
    for workers in [1, 2] {
        let Some(mut cluster) = start_with(3, 4096, workers, true) else { return };
        let [a, b, c] = &cluster.members[..] else { panic!() };
        // The first three of eight blocks begin at the first node.
        a.write(0, 1);
        a.write(1, 2);
        assert_eq!((b.read(1), c.read(1)), (2, 2));
        drop(cluster.members.remove(0));
        let mut epoch = Epoch::first(1, NodeSet::first(3).without(node(0)));
        for member in &cluster.members {
            member.engine.change(&epoch).unwrap();
        }
        for member in &cluster.members {
            assert_eq!(settled(member, workers), [Page(0)..Page(1), Page(2)..Page(512)]);
        }
        cluster.members[0].write(512, 5);
        cluster.members[1].write(3000, 6);
        // It opens the region before all others know that it has joined, and after some do.
        (epoch.number, epoch.members) = (2, NodeSet::first(3));
        epoch.joined.insert(node(0), 2);
        cluster.members[1].engine.change(&epoch).unwrap();
        let features = Features { recover: true, zeros: true, ..Features::default() };
        let open = |engine: &Engine, spec: &RegionSpec| {
            engine.change(&epoch).unwrap();
            engine.open(&RegionSpec { since: Some(0), features, ..spec.clone() }).unwrap();
        };
        let config = EngineConfig { workers, ..EngineConfig::new(node(0), 3) };
        let again = Member::start(config, 4096, &open, Joined::Sockets, &cluster.members).unwrap();
        cluster.members[0].engine.change(&epoch).unwrap();
        let [b, c] = &cluster.members[..] else { panic!() };
        for member in [&again, b, c] {
            let lost = settled_in(2, member, workers);
            assert_eq!(lost, [Page(0)..Page(1), Page(2)..Page(512)]);
        }
        // Copies that outlived it, what others wrote since, and what nobody has touched.
        assert_eq!((again.read(1), again.read(512), again.read(3000)), (2, 5, 6));
        assert_eq!((again.read(1024), again.read(4095)), (0, 0));
        for page in [1, 512, 1024, 3000, 4095] {
            again.write(page, page + 10);
            assert_eq!((b.read(page), c.read(page)), (page + 10, page + 10));
        }
        let hold = again.engine.hold(REGION, Page(0)..Page(2), Access::Read, MINUTE);
        assert_eq!(hold.err(), Some(HoldError::Lost));
    }
}

#[test]
fn survivors_have_the_latest_bytes_or_know_that_they_are_lost() {
    for workers in [1, 2] {
        let Some(mut cluster) = start(3, 4096, workers) else { return };
        // Of eight blocks, the first three begin at the first node, the last two at the third.
        let [a, b, c] = &cluster.members[..] else { panic!() };
        let (leased, read, written) = (0..100u64, 512..612u64, 612..712u64);
        for page in leased.clone() {
            b.write(page, page + 1);
        }
        for page in read.clone().chain(written.clone()) {
            a.write(page, page + 1);
        }
        for page in read.clone() {
            assert_eq!(b.read(page), page + 1);
        }
        // The reader may have been given some of these, too.
        for page in written.clone() {
            a.write(page, page + 2);
        }
        c.write(4000, 7);
        // Written by a survivor, then by the lost node; and untouched at a survivor.
        c.write(2000, 1);
        a.write(2000, 2);
        drop(cluster.members.remove(0));
        let [b, c] = &cluster.members[..] else { panic!() };
        lose_first(c);
        lose_first(b);
        let lost = settled(b, workers);
        assert_eq!(lost, settled(c, workers));
        for page in written.clone().chain([2000]).chain(1024..1536) {
            assert!(names(&lost, page), "page {page} is not among {lost:?}");
        }
        for page in leased.clone().chain(read.clone()).chain([4000]) {
            assert!(!names(&lost, page), "page {page} is among {lost:?}");
        }
        for page in leased.chain(read) {
            assert_eq!(c.read(page), page + 1);
            c.write(page, page + 3);
            assert_eq!(b.read(page), page + 3);
        }
        assert_eq!((b.read(4000), b.read(2500), c.read(100)), (7, 0, 0));
        for member in [b, c] {
            let hold = member.engine.hold(REGION, Page(611)..Page(613), Access::Read, MINUTE);
            assert_eq!(hold.err(), Some(HoldError::Lost));
        }
    }
}

#[test]
fn untouched_memory_of_a_lost_node_stays_zero() {
    for workers in [1, 2] {
        let Some(mut cluster) = start_with(3, 8192, workers, true) else { return };
        // The first six blocks begin at the first node. It gives one away and touches another.
        let [a, b, _] = &cluster.members[..] else { panic!() };
        b.write(0, 1);
        a.write(600, 1);
        drop(cluster.members.remove(0));
        let [b, c] = &cluster.members[..] else { panic!() };
        lose_first(b);
        lose_first(c);
        let lost = settled(b, workers);
        assert_eq!(
            (&lost[..], &settled(c, workers)[..]),
            (&[Page(512)..Page(1024)][..], &lost[..])
        );
        assert_eq!(c.read(0), 1);
        for page in 1024..3072 {
            assert_eq!(b.read(page), 0);
            c.write(page, page);
            assert_eq!(b.read(page), page);
        }
        let adopted = |member: &Member| member.engine.stats(REGION).unwrap().counters.pages_adopted;
        assert_eq!(adopted(b) + adopted(c), 2048);
    }
}

/// Adds to words of pages, each while its page is held, until all are lost or the node is out.
fn add(member: &Member, pages: &[u64], sums: &[AtomicU64], seed: u64, over: &AtomicBool) {
    let mut state = seed;
    while !over.load(Ordering::SeqCst) {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let at = (state >> 33) as usize % pages.len();
        let range = Page(pages[at])..Page(pages[at] + 1);
        match member.engine.hold(REGION, range, Access::Write, MINUTE) {
            Ok(hold) => {
                member.word(pages[at], 0).fetch_add(1, Ordering::SeqCst);
                sums[at].fetch_add(1, Ordering::SeqCst);
                drop(hold);
            }
            Err(HoldError::Lost) => {}
            Err(HoldError::Ended) => return,
            Err(error) => panic!("page {}: {error}", pages[at]),
        }
    }
}

#[test]
fn nothing_is_old_when_a_node_is_lost_under_load() {
    const ROUNDS: u64 = 12;
    let (mut kept, mut gone) = (0, 0);
    for round in 0..ROUNDS {
        let workers = 1 + round as usize % 2;
        let Some(cluster) = start_with(3, 4096, workers, round % 4 > 1) else { return };
        let [a, b, c] = &cluster.members[..] else { panic!() };
        let pages: Vec<u64> = (0..32).map(|number| number * 127).collect();
        let sums: Vec<AtomicU64> = pages.iter().map(|_| AtomicU64::new(0)).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (number, member) in [a, b, c].into_iter().enumerate() {
                let (pages, sums, over) = (&pages, &sums, &over);
                scope.spawn(move || add(member, pages, sums, round * 3 + number as u64, over));
            }
            std::thread::sleep(Duration::from_micros(20_000 + round * 777));
            a.engine.detach(node(1));
            a.engine.detach(node(2));
            lose_first(b);
            std::thread::sleep(Duration::from_micros(round * 300));
            lose_first(c);
            a.engine.end().unwrap();
            let lost = settled(b, workers);
            assert_eq!(lost, settled(c, workers));
            std::thread::sleep(Duration::from_millis(10));
            over.store(true, Ordering::SeqCst);
        });
        let lost = b.engine.lost_pages(REGION).unwrap();
        for (page, sum) in pages.iter().zip(&sums) {
            if names(&lost, *page) {
                gone += 1;
                continue;
            }
            kept += 1;
            let sum = sum.load(Ordering::SeqCst);
            assert_eq!((b.read(*page), c.read(*page)), (sum, sum), "page {page}");
        }
    }
    println!("{ROUNDS} losses under load: {kept} pages kept, {gone} lost");
    assert!(kept > 0 && gone > 0);
}

#[test]
#[ignore = "measures how long a recovery takes"]
fn recovery_takes_time_with_the_pages_that_were_touched() {
    for pages in [10_000, 100_000, 400_000] {
        let Some(mut cluster) = start(3, 512 * 1024, 1) else { return };
        let [a, b, _] = &cluster.members[..] else { panic!() };
        // Every other page, so that no two are one run.
        for page in (0..pages).map(|page| page * 512 * 1024 / pages) {
            a.write(page, page + 1);
            assert_eq!(b.read(page), page + 1);
        }
        drop(cluster.members.remove(0));
        let [b, c] = &cluster.members[..] else { panic!() };
        let begin = Instant::now();
        lose_first(b);
        lose_first(c);
        let (one, other) = (settled(b, 1), settled(c, 1));
        let took = begin.elapsed();
        assert_eq!(one, other);
        let inherited = b.engine.stats(REGION).unwrap().counters.pages_inherited;
        println!("{pages} pages: {took:?}, {inherited} inherited, {} runs lost", one.len());
    }
}
