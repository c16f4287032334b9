//! Worlds whose survivors go on after losses, and what must hold of them.

use std::ops::Range;
use std::sync::Arc;

use dsm_core::protocol::Message;
use dsm_core::protocol::{PageState, Recover, Restored, Run};
use dsm_core::{Access, NodeId, Page, ThreadId};

use super::memory::Mapping;
use super::script::{
    Change, Config, Op, Use, access, hold, later_on, on, read, restore, walk, write, writes,
};
use super::world::{Envelope, HOLDS, Node, Stance, World};

impl World {
    /// Whether the node goes on, and has not been told of all losses.
    pub fn can_learn(&self, config: &Config, node: usize) -> bool {
        let node = &self.nodes[node];
        config.features.recover && node.alive && node.protocol.epoch() < u16::from(self.changes)
    }

    /// Whether the next change can happen. Only who is known by all to be lost is taken in again.
    pub fn can_change(&self, config: &Config) -> bool {
        let Some(change) = config.changes.get(usize::from(self.changes)) else { return false };
        let Change::Join(node) = *change else { return true };
        let before = &config.changes[..usize::from(self.changes)];
        let lost = before.iter().rposition(|it| *it == Change::Lose(node)).map_or(0, |at| at + 1);
        let knows = |it: &Arc<Node>| !it.alive || usize::from(it.protocol.epoch()) >= lost;
        self.nodes.iter().all(knows)
    }

    /// The next change happens.
    pub fn change(&mut self, config: &Config) {
        let change = config.changes[usize::from(self.changes)];
        self.changes += 1;
        match change {
            Change::Lose(node) => self.lose(config, node),
            // Its links are new.
            Change::Join(node) => self.network.retain(|e| e.from.index() != node),
        }
    }

    /// Of how many changes the node may have been told when it opens the region, if it has joined and is
    /// to.
    pub fn can_arrive(&self, config: &Config, index: usize) -> Range<u8> {
        let now = config.epoch(usize::from(self.changes));
        let joined = NodeId::new(index).and_then(|node| now.joined.get(&node).copied());
        match joined {
            Some(joined) if !self.nodes[index].alive => joined as u8..self.changes + 1,
            _ => 0..0,
        }
    }

    /// The node opens the region, which was there before.
    pub fn arrive(&mut self, config: &Config, index: usize, number: u8) -> Result<(), String> {
        let life = self.nodes[index].life + 1;
        let mut node = Node::new(config, index);
        node.life = life;
        self.nodes[index] = Arc::new(node);
        self.coverage.arrivals += 1;
        self.turn(config, index, &[], |protocol, fx| {
            protocol.arrive(0, &config.epoch(usize::from(number)), fx);
            Ok(())
        })?;
        let network = std::mem::take(&mut self.network);
        self.note_recoverable(config, network.iter());
        self.network = network;
        Ok(())
    }

    /// The node is told of changes up to this one.
    pub fn learn(&mut self, config: &Config, index: usize, number: u8) -> Result<(), String> {
        self.coverage.recoveries += 1;
        self.turn(config, index, &[], |protocol, fx| {
            protocol.change(&config.epoch(usize::from(number)), fx);
            Ok(())
        })?;
        // What would be dropped anyway is one state less to tell apart.
        let node = &self.nodes[index].protocol;
        self.network
            .retain(|e| e.to.index() != index || !node.ignores(e.from, e.epoch, &e.message));
        let network = std::mem::take(&mut self.network);
        self.note_recoverable(config, network.iter());
        self.network = network;
        Ok(())
    }

    /// When all survivors have been told of all losses so far: which pages must be recovered, given
    /// what is under way. All others must not be.
    pub fn note_recoverable<'a>(
        &mut self,
        config: &Config,
        network: impl Iterator<Item = &'a Arc<Envelope>>,
    ) {
        let late = |node| self.can_learn(config, node) || !self.can_arrive(config, node).is_empty();
        if (0..config.nodes()).any(late) {
            return;
        }
        let mut recoverable: Vec<Option<bool>> =
            (0..config.pages).map(|page| self.is_recoverable(config, Page(page))).collect();
        let survives = |node: NodeId| self.nodes[node.index()].alive;
        for envelope in network.filter(|e| survives(e.from) && survives(e.to)) {
            for page in (0..config.pages).map(Page) {
                if self.gives(config, envelope, page).is_some() {
                    recoverable[page.0 as usize] = Some(true);
                }
            }
        }
        self.recoverable = recoverable;
    }

    /// Whether what is at survivors must, or must not, be enough to have `page` again.
    fn is_recoverable(&self, config: &Config, page: Page) -> Option<bool> {
        let nodes = || self.nodes.iter().filter(|node| node.alive);
        let has =
            |node: &Arc<Node>| node.protocol.owns(page) || node.memory.allows(page, Access::Read);
        if nodes().any(has) {
            return Some(true);
        }
        let lost = nodes().any(|node| node.protocol.state(page) == PageState::Lost);
        // Who has just joined does not rule.
        let newcomers = config.epoch(usize::from(self.changes)).newcomers();
        let rules = |index: usize| NodeId::new(index).is_some_and(|it| !newcomers.contains(it));
        let all = self.nodes.iter().enumerate();
        let rulers = || all.clone().filter(|(index, node)| node.alive && rules(*index));
        let noted = rulers().filter(|(_, node)| node.protocol.was_touched(page)).count();
        match noted {
            _ if lost || !config.features.zeros => Some(false),
            // The first touch was not through: who has noted it, takes the page for lost.
            0 => Some(true),
            some if some == rulers().count() => Some(false),
            _ => None,
        }
    }

    /// What came with the recovery, for people.
    pub fn count_recovery(&mut self, envelope: &Envelope) {
        let epoch = self.nodes[envelope.to.index()].protocol.epoch();
        let entered = matches!(envelope.message, Message::Recover(Recover::Entered { .. }));
        self.coverage.absorbed +=
            u64::from(envelope.epoch < epoch && envelope.message.gives_ownership());
        self.coverage.entered_early += u64::from(entered && envelope.epoch > epoch);
    }

    /// All is over, and nobody was lost: all know the same of first touches.
    pub fn check_touches(&self, config: &Config) -> Result<(), String> {
        for page in (0..config.pages).map(Page) {
            let nodes = self.nodes.iter().filter(|node| node.alive);
            let mut told = nodes.map(|node| node.protocol.was_touched(page));
            let first = told.next();
            if told.any(|told| Some(told) != first) {
                return Err(format!("touches: not all know the same of {page:?}"));
            }
        }
        Ok(())
    }

    /// All is over: no page is lost that could be recovered, no other one is there, and who asks for
    /// a page finds its owner.
    pub fn check_recovered(&self, config: &Config) -> Result<(), String> {
        for page in (0..config.pages).map(Page) {
            let survivor = self.nodes.iter().position(|node| node.alive).unwrap_or_default();
            let is_lost = |node: usize| self.nodes[node].protocol.state(page) == PageState::Lost;
            let there = self.recoverable[page.0 as usize].unwrap_or(!is_lost(survivor));
            for (index, _) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
                if is_lost(index) == there {
                    let what = if there { "lost without need" } else { "there without proof" };
                    return Err(format!("recovery: {page:?} is {what} at node {index}"));
                }
                if there {
                    self.check_path(page, index)?;
                }
            }
        }
        Ok(())
    }

    fn check_path(&self, page: Page, start: usize) -> Result<(), String> {
        let mut at = start;
        let mut path = Vec::new();
        for _ in 0..=self.nodes.len() {
            let node = &self.nodes[at];
            let Some((owner, _)) = node.protocol.probable_owner(page) else { return Ok(()) };
            path.push((at, node.protocol.probable_owner(page)));
            if !node.alive {
                break;
            }
            at = owner.index();
        }
        Err(format!("recovery: hints to {page:?} do not end at its owner: {path:?}"))
    }

    /// A thread has ended: nothing waits for what it had gathered.
    pub fn bury(&mut self, config: &Config, index: usize) -> Result<(), String> {
        self.kill(index);
        if !config.features.recover {
            return Ok(());
        }
        self.turn(config, config.scripts[index].node, &[], |protocol, fx| {
            protocol.thread_gone(ThreadId(index as u32), fx);
            protocol.thread_quiet(ThreadId(index as u32 + HOLDS), fx);
            Ok(())
        })
    }
}

impl World {
    /// Whether the next step of a thread can be tried: pages are restored one at a time at a node, when
    /// no loss is being settled, and where there are frames for them.
    pub fn may_attempt(&self, config: &Config, thread: usize) -> bool {
        let (script, next) = (&config.scripts[thread], usize::from(self.threads[thread].next));
        let node = &self.nodes[script.node];
        if !node.alive || node.life != script.life {
            return false;
        }
        let Some(Op::Restore(_, pages)) = script.ops.get(next) else { return true };
        let room = config.capacity.saturating_sub(node.memory.count());
        node.protocol.may_restore() && room >= *pages as usize
    }

    /// The thread has pages restored with a value that nothing has stored before.
    pub fn begin_restore(&mut self, config: &Config, index: usize, run: Run) -> Result<(), String> {
        let thread = &mut self.threads[index];
        thread.stance = Stance::Restoring;
        let value = (index as u64 + 1) << 16 | (u64::from(thread.next) + 1);
        let node = config.scripts[index].node;
        Arc::make_mut(&mut self.nodes[node]).memory.staged = Some(value);
        self.turn(config, node, &[], |protocol, fx| {
            protocol.restore(run, fx);
            Ok(())
        })
    }

    /// What a node was to restore is in force, or is not to be.
    pub fn end_restore(
        &mut self,
        config: &Config,
        node: usize,
        outcome: Restored,
    ) -> Result<(), String> {
        let waits = |index: &usize| {
            config.scripts[*index].node == node && self.threads[*index].stance == Stance::Restoring
        };
        let index = (0..self.threads.len()).find(waits).ok_or("harness: nobody restores")?;
        let thread = &mut self.threads[index];
        thread.stance = Stance::Free;
        let Op::Restore(first, pages) = config.scripts[index].ops[usize::from(thread.next)] else {
            return Err("harness: what was to be restored?".to_owned());
        };
        // A node that was told of a further loss has other things to do before it asks again.
        thread.next += u8::from(outcome != Restored::Interrupted);
        let pages = first..Run { first, pages }.end();
        match outcome {
            Restored::Done => {
                self.coverage.restored += 1;
                return self.check_restored(pages);
            }
            Restored::NotLost(page) => {
                self.coverage.not_lost += 1;
                let there = |node: &Arc<Node>| node.protocol.state(page) != PageState::Lost;
                let known = self.nodes.iter().any(|node| node.alive && there(node));
                // Who rules on it may restore it, and have told nobody yet, or be lost since.
                let mut others = self.threads.iter().map(|thread| thread.stance);
                let restores = others.any(|stance| stance == Stance::Restoring) || self.changes > 1;
                if !known && !restores || !pages.contains(&page) {
                    return Err(format!("restore: {page:?} is lost, but is refused as if not"));
                }
            }
            Restored::Interrupted => self.coverage.interrupted += 1,
        }
        Ok(())
    }

    /// The content of `pages` is in force: nobody takes one of them for lost.
    fn check_restored(&mut self, pages: Range<Page>) -> Result<(), String> {
        for page in (pages.start.0..pages.end.0).map(Page) {
            for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
                let lost = node.protocol.state(page) == PageState::Lost;
                if lost || node.memory.mapping(page) == Mapping::Poisoned {
                    return Err(format!("restore: {page:?} is still lost at node {index}"));
                }
            }
            self.recoverable[page.0 as usize] = Some(true);
        }
        Ok(())
    }
}

/// The worlds, each with the events that it is there for (rows of [`super::coverage::Coverage`]).
pub fn configs() -> Vec<(Config, &'static str)> {
    let mut configs = one_page();
    configs.extend(frames());
    configs.extend(several_pages());
    configs.extend(untouched());
    configs.extend(several_losses());
    configs.extend(restores());
    configs.extend(restores_and_losses());
    configs.extend(joins());
    configs
}

/// Larger ones, which take minutes and gigabytes.
pub fn larger() -> Vec<Config> {
    let operations = |name: &str| {
        let scripts = vec![
            on(0, &[read(0), write(0)]),
            on(1, &[read(0), write(0)]),
            on(2, &[write(0), read(0)]),
        ];
        Config::new(&format!("3 nodes, 1 page, {name}"), &[1, 0, 0], 1, scripts)
    };
    let frames = || {
        let scripts = vec![on(0, &[write(0)]), on(1, &[read(0), walk(0)]), on(2, &[read(0)])];
        let world = Config::new("3 nodes, more frames go", &[1, 0, 0], 1, scripts);
        world.with(|features| features.unchanged = true).evicting(2)
    };
    let leases = || {
        let scripts =
            vec![on(1, &[write(0), read(1)]), on(2, &[read(0), write(3)]), on(0, &[read(2)])];
        Config::new("more leases", &[1, 1, 0], 4, scripts).lease(2)
    };
    let mut configs = each_lost(leases);
    configs.extend(each_lost(frames));
    configs.extend(each_lost(|| operations("2 operations")));
    let join = |name: &str, scripts| Config::new(name, &[1, 0, 0], 1, scripts);
    let first = vec![on(0, &[write(0)]), on(1, &[read(0)]), later_on(2, &[write(0), read(0)])];
    configs.push(join("a node joins", first.clone()).joining(2));
    configs.push(join("a first touch, a node joins", first).announcing().joining(2));
    let comes = vec![on(0, &[read(0)]), on(1, &[write(0)]), later_on(1, &[read(0), write(0)])];
    configs.push(join("a node comes back", comes).recovering(&[1]).joining(1));
    let owner = vec![on(0, &[write(0)]), on(1, &[read(0)]), later_on(0, &[read(0), write(0)])];
    configs.push(join("a first owner comes back", owner).recovering(&[0]).joining(0));
    let other = || vec![on(1, &[read(0)]), later_on(2, &[write(0)])];
    configs.push(join("a node joins, the owner is lost", other()).joining(2).losing(0));
    configs.push(join("a node joins and is lost", other()).joining(2).losing(2));
    let zeros = join("zeros, a node joins, the owner is lost", other()).announcing();
    configs.push(zeros.joining(2).losing(0));
    configs
}

/// `of` for the loss of each of three nodes, at any moment.
fn each_lost(of: impl Fn() -> Config) -> Vec<Config> {
    (0..3)
        .map(|lost| {
            let config = of();
            let name = format!("{}, node {lost} is lost", config.name);
            Config { name, ..config }.recovering(&[lost])
        })
        .collect()
}

/// `of` for the loss of each of three nodes, with what is to happen then.
fn each(of: impl Fn() -> Config, exercises: [&'static str; 3]) -> Vec<(Config, &'static str)> {
    each_lost(of).into_iter().zip(exercises).collect()
}

fn one_page() -> Vec<(Config, &'static str)> {
    each(
        || {
            let scripts = vec![on(0, &[write(0)]), on(1, &[read(0)]), on(2, &[read(0), write(0)])];
            Config::new("3 nodes, 1 page", &[1, 0, 0], 1, scripts)
        },
        [
            "recoveries inherited lost-pages poisoned entered-early deferred",
            "recoveries absorbed deferred hurry-inv",
            "recoveries inherited lost-pages poisoned void",
        ],
    )
}

fn frames() -> Vec<(Config, &'static str)> {
    let mut configs = each(
        || {
            let scripts = vec![on(0, &[write(0)]), on(1, &[read(0), walk(0)])];
            let world = Config::new("3 nodes, frames go", &[1, 0, 0], 1, scripts);
            world.with(|features| features.unchanged = true).evicting(2)
        },
        [
            "recoveries evicted-copies inherited lost-pages poisoned no-data",
            "recoveries evicted-copies lost-pages",
            "recoveries evicted-copies absorbed no-data",
        ],
    );
    configs.extend(each(
        || {
            let scripts = vec![on(0, &[write(0)]), on(2, &[read(0), write(0)])];
            Config::new("3 nodes, a page moves", &[1, 0, 0], 1, scripts).handing_over(1)
        },
        [
            "recoveries moved inherited lost-pages",
            "recoveries moved inherited absorbed",
            "recoveries moved absorbed",
        ],
    ));
    configs
}

fn several_pages() -> Vec<(Config, &'static str)> {
    let mut configs = each(
        || {
            let both = access(&[(1, Use::Read), (0, Use::Write)]);
            let scripts =
                vec![on(0, &[both]), on(1, &[writes(&[0, 1])]), on(2, &[read(0), read(1)])];
            Config::new("3 nodes, 2 pages", &[1, 1, 0], 2, scripts).fifo()
        },
        [
            "recoveries kept inherited handed-over",
            "recoveries kept inherited handed-over",
            "recoveries kept absorbed handed-over",
        ],
    );
    configs.extend(each(
        || {
            let scripts = vec![on(1, &[write(0), read(1)]), on(2, &[read(0), write(3)])];
            Config::new("leases", &[1, 1, 0], 4, scripts).lease(2)
        },
        [
            "recoveries leases lost-pages",
            "recoveries leases lost-pages absorbed",
            "recoveries leases absorbed",
        ],
    ));
    configs.extend(each(
        || {
            let scripts = vec![
                on(1, &[hold(&[0, 1], Access::Write)]),
                on(2, &[hold(&[0, 1], Access::Read), read(0)]),
                on(0, &[write(1)]),
            ];
            Config::new("holds", &[1, 0, 0], 2, scripts).fifo()
        },
        [
            "recoveries holds companions poisoned",
            "recoveries holds companions poisoned",
            "recoveries holds companions absorbed",
        ],
    ));
    configs
}

/// First touches are announced: what nobody has touched stays zero.
fn untouched() -> Vec<(Config, &'static str)> {
    let mut configs = each(
        || {
            let scripts = vec![on(0, &[write(0)]), on(1, &[read(0)]), on(2, &[write(0)])];
            Config::new("first touches", &[1, 0, 0], 1, scripts).announcing()
        },
        ["recoveries adopted inherited lost-pages", "recoveries absorbed", "recoveries lost-pages"],
    );
    configs.extend(each(
        || {
            let scripts = vec![on(1, &[write(0), read(1)]), on(2, &[read(2), write(3)])];
            Config::new("leases announced", &[1, 1, 0], 4, scripts).lease(2).announcing()
        },
        [
            "recoveries adopted leases",
            "recoveries adopted leases lost-pages",
            "recoveries leases lost-pages",
        ],
    ));
    let scripts = || vec![on(1, &[write(0)]), on(2, &[write(0)])];
    let twice = |name: &str, lost: &[usize]| {
        Config::new(name, &[1, 0, 0], 1, scripts()).announcing().recovering(lost)
    };
    configs.push((twice("who adopts is lost", &[0, 2]), "recoveries adopted lost-pages"));
    configs.push((twice("who adopts is not lost", &[0, 1]), "recoveries adopted"));
    let scripts = vec![on(0, &[write(0)])];
    let four = Config::new("4 nodes, who has noted it is lost", &[1, 0, 0, 0], 1, scripts);
    configs.push((four.announcing().recovering(&[0, 2]), "recoveries adopted lost-pages"));
    configs
}

fn several_losses() -> Vec<(Config, &'static str)> {
    let three = |name: &str, lost: &[usize]| {
        let scripts = vec![on(0, &[write(0)]), on(1, &[read(0)]), on(2, &[write(0)])];
        Config::new(name, &[1, 0, 0], 1, scripts).recovering(lost)
    };
    let four = |name: &str, lost: &[usize]| {
        let scripts = vec![on(1, &[read(0)]), on(3, &[write(0)])];
        Config::new(name, &[1, 0, 0, 0], 1, scripts).recovering(lost)
    };
    vec![
        (three("3 nodes, two are lost", &[0, 1]), "recoveries inherited lost-pages"),
        (three("3 nodes, two others are lost", &[2, 0]), "recoveries inherited"),
        (four("4 nodes, node 0 is lost", &[0]), "recoveries inherited lost-pages"),
        (four("4 nodes, two are lost", &[0, 3]), "recoveries inherited lost-pages"),
    ]
}

/// Lost pages get new content, at any time.
fn restores() -> Vec<(Config, &'static str)> {
    let one = |name: &str, shares: &[u64], scripts| Config::new(name, shares, 1, scripts);
    let lost = |config: Config| config.recovering(&[0]);
    let two = vec![on(1, &[restore(0), write(0)]), on(2, &[restore(0), read(0)])];
    let racing = vec![on(1, &[restore(0)]), on(2, &[restore(0)]), on(2, &[read(0)])];
    let used = vec![on(0, &[write(0), write(0)]), on(2, &[read(0), read(0)]), on(1, &[restore(0)])];
    let given = vec![on(0, &[write(0)]), on(1, &[restore(0), read(0)]), on(2, &[restore(0)])];
    let alone = vec![on(0, &[write(0)]), on(1, &[read(0), restore(0), write(0)])];
    let blocks = |first: u32| {
        let ops = [Op::Restore(Page(0), first), read(1)];
        vec![on(1, &ops), on(2, &[restore(1), write(0)])]
    };
    let of_blocks = |name: &str, first| Config::new(name, &[1, 0, 0], 2, blocks(first)).lease(2);
    let evicted = vec![on(1, &[restore(0), write(0)]), on(2, &[read(0)])];
    let touched = vec![on(0, &[write(0)]), on(1, &[restore(0), read(0)]), on(2, &[restore(0)])];
    vec![
        (lost(one("two restore a page", &[1, 0, 0], two)), "restored not-lost lost-pages"),
        (lost(one("two restore, one reads", &[1, 0, 0], racing)), "restored not-lost poisoned"),
        (lost(one("a page that was used is restored", &[1, 0, 0], used)), "restored inherited"),
        (lost(one("its first owner restores a page", &[0, 1, 0], given)), "restored not-lost"),
        (lost(one("the only survivor restores", &[1, 0], alone)), "restored"),
        (lost(of_blocks("a part of a block is restored", 1)), "restored"),
        (lost(of_blocks("a block is restored", 2)), "restored not-lost"),
        (
            lost(one("a page is restored, frames go", &[1, 0, 0], evicted)).evicting(2),
            "restored evicted",
        ),
        (
            lost(one("a touched page is restored", &[1, 0, 0], touched)).announcing(),
            "restored adopted lost-pages",
        ),
    ]
}

/// The same, with a further loss at any moment.
fn restores_and_losses() -> Vec<(Config, &'static str)> {
    let two = || vec![on(1, &[restore(0)]), on(2, &[restore(0), read(0)])];
    let one = || vec![on(1, &[restore(0), write(0)]), on(2, &[read(0)])];
    let given = || vec![on(0, &[write(0)]), on(1, &[restore(0)]), on(2, &[read(0)])];
    let four = || vec![on(1, &[restore(0)]), on(2, &[read(0)])];
    let race = vec![on(1, &[restore(0)]), on(2, &[restore(0)])];
    let config = |name: &str, shares: &[u64], scripts, lost: &[usize]| {
        Config::new(name, shares, 1, scripts).recovering(lost)
    };
    vec![
        (config("who restores is lost", &[1, 0, 0], two(), &[0, 1]), "restored interrupted"),
        (
            config("another who restores is lost", &[1, 0, 0], two(), &[0, 2]),
            "restored interrupted",
        ),
        (config("who is told is lost", &[1, 0, 0], one(), &[0, 2]), "restored interrupted"),
        (config("a first owner restores, a loss", &[0, 1, 0], given(), &[0, 2]), "restored"),
        (config("a first owner is told, a loss", &[0, 0, 1], given(), &[0, 1]), "restored"),
        (
            config("4 nodes, who restores is lost", &[1, 0, 0, 0], four(), &[0, 1]),
            "restored lost-pages inherited",
        ),
        (
            config("4 nodes, who is told is lost", &[1, 0, 0, 0], four(), &[0, 3]),
            "restored interrupted",
        ),
        (
            config("4 nodes, two restore, one is lost", &[1, 0, 0, 0], race, &[0, 2]),
            "restored not-lost interrupted",
        ),
        (
            config("first touches, a loss while restoring", &[1, 0, 0], one(), &[0, 2])
                .announcing(),
            "restored",
        ),
    ]
}

/// Nodes join: for the first time, or after they were lost.
fn joins() -> Vec<(Config, &'static str)> {
    let config = |name: &str, shares: &[u64], scripts| Config::new(name, shares, 1, scripts);
    let first = || vec![on(0, &[write(0)]), later_on(2, &[write(0), read(0)])];
    let comes = || vec![on(1, &[write(0)]), later_on(1, &[read(0), write(0)])];
    let owner = || vec![on(0, &[write(0)]), on(1, &[read(0)]), later_on(0, &[write(0)])];
    let alone = || vec![on(0, &[write(0)]), on(1, &[write(0)]), later_on(1, &[read(0)])];
    let other = || vec![on(0, &[write(0)]), later_on(1, &[read(0), write(0)])];
    let touched = || vec![later_on(0, &[read(0)])];
    let leases = || {
        let scripts = vec![on(1, &[write(0), read(2)]), later_on(0, &[write(1)])];
        Config::new("leases, a first owner comes back", &[1, 1], 4, scripts).lease(2)
    };
    let restored = || vec![on(1, &[restore(0)]), later_on(0, &[read(0), restore(0)])];
    let again = |config: Config, node| config.recovering(&[node]).joining(node);
    vec![
        (config("a node joins", &[1, 0, 0], first()).joining(2), "recoveries arrivals"),
        (
            config("a first touch, a node joins", &[1, 0, 0], first()).announcing().joining(2),
            "recoveries arrivals",
        ),
        (
            again(config("a node comes back", &[1, 0, 0], comes()), 1),
            "recoveries arrivals lost-pages",
        ),
        (
            again(config("a first owner comes back to one", &[0, 1], alone()), 1),
            "arrivals lost-pages",
        ),
        (
            again(config("a first owner of zeros comes back", &[1, 0], owner()), 0).announcing(),
            "arrivals adopted inherited lost-pages",
        ),
        (again(leases(), 0), "arrivals leases lost-pages"),
        (again(leases(), 0).announcing(), "arrivals leases adopted lost-pages"),
        (
            again(config("who comes back restores", &[1, 0], restored()), 0),
            "arrivals restored not-lost",
        ),
        (
            config("a node joins, the owner is lost", &[1, 0], other()).joining(1).losing(0),
            "arrivals inherited lost-pages",
        ),
        (
            config("a node joins and is lost", &[1, 0], other()).joining(1).losing(1),
            "arrivals recoveries",
        ),
        (
            config("zeros, a node joins, the owner is lost", &[1, 0], other())
                .announcing()
                .joining(1)
                .losing(0),
            "arrivals adopted lost-pages",
        ),
        (
            config("zeros, who adopts is lost after a join", &[1, 0, 0], touched())
                .announcing()
                .recovering(&[0])
                .joining(0)
                .losing(1),
            "arrivals adopted lost-pages",
        ),
        (
            Config::new("zeros, a loss and a join at once", &[1, 0, 0], 2, vec![on(1, &[read(1)])])
                .announcing()
                .recovering(&[0])
                .joining(2),
            "arrivals adopted",
        ),
        (
            Config::new("zeros, a node joins", &[1, 0], 2, vec![on(0, &[write(0)])])
                .announcing()
                .joining(1),
            "arrivals",
        ),
        (
            again(config("a page moves, a node comes back", &[1, 0], owner()), 0).handing_over(1),
            "arrivals moved",
        ),
    ]
}
