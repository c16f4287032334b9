//! Random histories of larger worlds, replayable from a seed.
//!
//! `GIANTVM_SEED=n` plays the one schedule of that seed; `GIANTVM_SCHEDULES=n` sets how many.

mod support;

use std::time::Instant;

use dsm_core::protocol::Features;
use dsm_core::{Access, Page};
use support::coverage::Coverage;
use support::script::{Change, Config, Op, PLAIN, Script, Use};
use support::simulate::{Pace, Random, simulate};

/// Most pages that an episode keeps: the protocol's own bound.
const EPISODE_PAGES: usize = 32;

const EVENTS_MAX: usize = 2_000_000;

#[test]
fn random_schedules_end_and_are_right() {
    if let Some(seed) = number("GIANTVM_SEED") {
        let (config, pace) = world(seed);
        println!("{config:#?}\n{pace:?}");
        let coverage = play(seed);
        return println!("seed {seed}: {coverage}");
    }
    let schedules = number("GIANTVM_SCHEDULES").unwrap_or(20_000);
    let start = Instant::now();
    let mut all = Coverage::default();
    for seed in 0..schedules {
        all.sum(&play(seed));
    }
    println!(
        "{schedules} schedules in {:.1} s, {:.2} messages a fault: {all}",
        start.elapsed().as_secs_f32(),
        all.messages as f64 / all.faults as f64
    );
    if schedules >= 1000 {
        let unused: Vec<_> = all.rows().iter().filter(|row| row.1 == 0).map(|row| row.0).collect();
        assert!(unused.is_empty(), "never happened: {unused:?}");
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn play(seed: u64) -> Coverage {
    let (config, pace) = world(seed);
    match simulate(&config, pace, seed, EVENTS_MAX) {
        Ok(coverage) => coverage,
        Err(what) => panic!("{what}\nreplay with GIANTVM_SEED={seed} ({})", config.name),
    }
}

/// The world of a seed: mostly small ones, since those have the rare interleavings.
fn world(seed: u64) -> (Config, Pace) {
    let mut random = Random(seed ^ 0x6769_616e_7476_6d00);
    let nodes = match random.below(200) {
        0 => 64,
        1..5 => 16,
        5..40 => 4 + random.below(5),
        _ => 2 + random.below(3),
    } as usize;
    let many = random.one_in(6);
    let limited = nodes <= 8 && random.one_in(8);
    let many = many || limited;
    let pages = if limited {
        48 + random.below(48)
    } else if many {
        16 + random.below(48)
    } else {
        1 + random.below(6)
    };
    let shares = (0..nodes).map(|_| random.below(3)).collect::<Vec<_>>();
    let threads = nodes + random.below(nodes as u64 + 1) as usize;
    let ops = if nodes > 16 { 3 } else { 3 + random.below(6) as usize };
    let style = random.below(6);
    let scripts = (0..threads)
        .map(|thread| Script {
            node: thread % nodes,
            life: 0,
            ops: (0..ops).map(|at| op(&mut random, style, pages, at as u64)).collect(),
        })
        .collect();
    let mut config = Config::new(&format!("{nodes} nodes, style {style}"), &shares, pages, scripts);
    config.features = features(&mut random);
    config.lease_pages = [1, 2, 4, 16][random.below(4) as usize];
    config.fifo = random.one_in(2);
    config.calm = random.one_in(3);
    if random.one_in(2) {
        config.evictions = 10_000;
    }
    if limited {
        // No frame more than there are pages, but for what an episode keeps.
        config.share = (pages as usize).div_ceil(nodes);
        config.capacity = config.share + EPISODE_PAGES + 1;
    }
    if !limited && random.one_in(4) {
        share_tables(&mut config, &mut random);
    } else if nodes > 1 && random.one_in(if only_losses() { 1 } else { 3 }) {
        lose(&mut config, &mut random);
    }
    let pace = Pace {
        latency_max: [3, 10, 100][random.below(3) as usize],
        slow_one_in: [2, 8, 1000][random.below(3) as usize],
        run_max: [2, 20, 100][random.below(3) as usize],
        quiet_after: [1, 30, 300][random.below(3) as usize],
        loss_at: 500,
        evict_one_in: [1, 4, 30][random.below(3) as usize],
    };
    (config, pace)
}

/// Whether all worlds are to have losses from which survivors recover, as far as they can have.
fn only_losses() -> bool {
    std::env::var_os("GIANTVM_LOSSES").is_some()
}

/// Has one node be lost, or several if the others go on.
fn lose(config: &mut Config, random: &mut Random) {
    let nodes = config.nodes();
    config.features.recover = only_losses() || !random.one_in(3);
    config.features.zeros = config.features.recover && random.one_in(2);
    if config.features.recover && !random.one_in(3) {
        restore(config, random);
    }
    let most = if config.features.recover { (nodes - 1).min(3) } else { 1 };
    let count = if random.one_in(3) { 1 + random.below(most as u64) as usize } else { 1 };
    let lost: Vec<usize> =
        random.some(count, nodes as u64).into_iter().map(|node| node as usize).collect();
    config.changes = lost.iter().map(|&node| Change::Lose(node)).collect();
    if config.features.recover {
        join(config, &lost, random);
    }
    if config.share < usize::MAX {
        // The pages have room at the survivors.
        config.share = (config.pages as usize).div_ceil(nodes - count);
        config.capacity = config.share + EPISODE_PAGES + 1;
    }
}

/// Has some of the lost nodes come back, and some that were not there at first join.
fn join(config: &mut Config, lost: &[usize], random: &mut Random) {
    let mut joining = Vec::new();
    for node in 0..config.nodes() {
        let late = !lost.contains(&node) && random.one_in(config.nodes() as u64);
        // Somebody was there from the beginning, and always is.
        let absent = (0..config.nodes()).filter(|it| lost.contains(it) || joining.contains(it));
        if late && absent.count() + 1 < config.nodes() {
            config.scripts.iter_mut().filter(|it| it.node == node).for_each(|it| it.life = 1);
            joining.push(node);
        } else if lost.contains(&node) && !random.one_in(3) {
            joining.push(node);
            let ops = config.scripts.iter().find(|it| it.node == node).map(|it| it.ops.clone());
            config.scripts.push(Script { node, life: 1, ops: ops.unwrap_or_default() });
        }
    }
    for node in joining {
        let lost = config.changes.iter().position(|it| *it == Change::Lose(node));
        let earliest = lost.map_or(0, |at| at + 1);
        let at = earliest + random.below((config.changes.len() - earliest) as u64 + 1) as usize;
        config.changes.insert(at, Change::Join(node));
    }
}

/// Has some nodes give pages that are lost new content, and then use them.
fn restore(config: &mut Config, random: &mut Random) {
    for node in 0..config.nodes() {
        if random.one_in(2) {
            continue;
        }
        let mut ops = Vec::new();
        for _ in 0..2 + random.below(6) {
            let page = random.below(config.pages);
            let end = (page / config.lease_pages + 1) * config.lease_pages;
            let pages = 1 + random.below(end.min(config.pages) - page);
            ops.push(Op::Restore(Page(page), pages as u32));
            if random.one_in(3) {
                ops.push(Op::Access(vec![(Page(page), any_use(random))]));
            }
        }
        config.scripts.push(Script { node, life: 0, ops });
    }
}

/// Has the first pages be page tables. Two nodes store to them, each to a word of its own.
fn share_tables(config: &mut Config, random: &mut Random) {
    let tables = 1 + random.below(config.pages.min(4));
    config.tables = (0..tables).collect();
    config.features.walk_shared = Some(random.below(3) as u8);
    config.fifo = true;
    let is_table = |page: &Page| page.0 < tables;
    for Script { node, ops, .. } in &mut config.scripts {
        for op in ops {
            match op {
                Op::Hold(pages, _) => pages.retain(|page| !is_table(page)),
                Op::Prefetch(_) | Op::Restore(..) => {}
                Op::Access(uses) => {
                    for (_, how) in uses.iter_mut().filter(|(page, _)| is_table(page)) {
                        *how = match (*how, *node) {
                            (Use::Write, 0) if random.one_in(6) => Use::Spoil,
                            (Use::Write, 0..2) => Use::Store(*node as u16),
                            (Use::Write, _) => Use::Walk,
                            (how, _) => how,
                        };
                    }
                }
            }
        }
    }
}

fn features(random: &mut Random) -> Features {
    if random.one_in(8) {
        return PLAIN;
    }
    Features {
        lease: !random.one_in(4),
        fault_around: !random.one_in(4),
        convoys: !random.one_in(4),
        migratory: !random.one_in(4),
        unchanged: !random.one_in(4),
        check: true,
        walks_write: random.one_in(4),
        walk_shared: None,
        recover: false,
        zeros: false,
    }
}

fn op(random: &mut Random, style: u64, pages: u64, at: u64) -> Op {
    let page = Page(random.below(pages));
    match (style, random.below(12)) {
        (_, 0) => {
            let count = 1 + random.below(4) as usize;
            let access = if random.one_in(2) { Access::Read } else { Access::Write };
            Op::Hold(random.some(count, pages).into_iter().map(Page).collect(), access)
        }
        (_, 1) => Op::Prefetch(random.some(8, pages).into_iter().map(Page).collect()),
        // A scan.
        (0, _) => Op::Access(vec![(Page((page.0 / 8 + at) % pages), Use::Read)]),
        // Data that moves from node to node: read, then written.
        (1, _) => {
            let how = if at.is_multiple_of(2) { Use::Read } else { Use::Write };
            Op::Access(vec![(Page((at / 2) % pages), how)])
        }
        // Instructions that need twelve pages, or all there are.
        (2, _) => several(random, 12, pages),
        (3, _) => several(random, 2, pages),
        _ => Op::Access(vec![(page, any_use(random))]),
    }
}

fn several(random: &mut Random, count: usize, pages: u64) -> Op {
    let pages = random.some(count, pages);
    Op::Access(pages.into_iter().map(|page| (Page(page), any_use(random))).collect())
}

fn any_use(random: &mut Random) -> Use {
    [Use::Read, Use::Write, Use::Walk][random.below(3) as usize]
}
