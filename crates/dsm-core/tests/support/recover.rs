//! Worlds whose survivors go on after losses, and what must hold of them.

use std::sync::Arc;

use dsm_core::protocol::{Message, Mutation};
use dsm_core::protocol::{PageState, Recover};
use dsm_core::{Access, NodeId, NodeSet, Page, ThreadId};

use super::script::{Config, Use, access, hold, on, read, walk, write, writes};
use super::world::{Envelope, HOLDS, Node, World};

impl World {
    /// Whether the node goes on, and has not been told of all losses.
    pub fn can_learn(&self, config: &Config, node: usize) -> bool {
        let node = &self.nodes[node];
        let told = usize::from(node.protocol.epoch());
        config.features.recover && node.alive && told < usize::from(self.losses)
    }

    /// The node is told of the next loss.
    pub fn learn(&mut self, config: &Config, index: usize) -> Result<(), String> {
        let epoch = self.nodes[index].protocol.epoch() + 1;
        let lost = NodeId::new(config.losses[usize::from(epoch) - 1]).ok_or("harness: no node")?;
        self.coverage.recoveries += 1;
        self.turn(config, index, &[], |protocol, fx| {
            protocol.lost(NodeSet::only(lost), epoch, fx);
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
        if (0..config.nodes()).any(|node| self.can_learn(config, node)) {
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
        let noted = nodes().filter(|node| node.protocol.was_touched(page)).count();
        match noted {
            _ if lost || !config.features.zeros => Some(false),
            // The first touch was not through: who has noted it, takes the page for lost.
            0 => Some(true),
            some if some == nodes().count() => Some(false),
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

/// Whether a mistake of this kind shows only where survivors go on.
pub fn is_of_recovery(mutation: Mutation) -> bool {
    format!("{mutation:?}").starts_with("Recover")
}

/// The worlds, each with the events that it is there for (rows of [`super::coverage::Coverage`]).
pub fn configs() -> Vec<(Config, &'static str)> {
    let mut configs = one_page();
    configs.extend(frames());
    configs.extend(several_pages());
    configs.extend(untouched());
    configs.extend(several_losses());
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
