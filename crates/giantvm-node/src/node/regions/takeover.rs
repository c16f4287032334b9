//! How the directory goes to another node when the one that kept it is gone.
//!
//! It goes to the eldest member ([`Epoch::eldest`]). What the old one answered, who asked for it knows: each
//! node keeps that in its [`Catalogue`]. The new one asks all members ([`RegionMessage::Tell`]) and puts
//! together what they tell:
//!
//! - A region that all have is there. The old directory told nobody of a region that not all had opened; so
//!   one that some lack is closed, and whoever waits for it asks again.
//! - A node that joined after a region had begun may lack it still: it is ordered to open it.
//! - Named blocks are where those say who were told. One that only lost nodes knew of is forgotten.
//!
//! Until all have told, questions wait. A further epoch begins it anew.

use std::collections::BTreeMap;

use dsm_core::types::{Epoch, NodeId, NodeSet, RegionId};

use super::{Addressed, Block, Directory, Entry};
use crate::control::{RegionMessage, RegionOrigin};
use crate::node::config::NodeSpec;

/// What one node was told of regions.
#[derive(Default)]
pub(in crate::node) struct Catalogue {
    regions: BTreeMap<RegionId, (RegionOrigin, BTreeMap<String, Block>)>,
    /// The highest number of a region so far.
    last: u32,
}

impl Catalogue {
    /// A region is open here.
    pub(in crate::node) fn opened(&mut self, origin: RegionOrigin) {
        self.last = self.last.max(origin.region.0);
        self.regions.insert(origin.region, (origin, BTreeMap::new()));
    }

    /// It is open no more.
    pub(in crate::node) fn closed(&mut self, region: RegionId) {
        self.regions.remove(&region);
    }

    /// The directory has answered `asked`, if that asks for a block.
    pub(in crate::node) fn allocated(&mut self, asked: &RegionMessage, offset: u64) {
        if let RegionMessage::Allocate { region, name, bytes, align, .. } = asked
            && let Some((_, blocks)) = self.regions.get_mut(region)
        {
            blocks.insert(name.clone(), Block { offset, bytes: *bytes, align: *align });
        }
    }

    /// All of it, for the node that asked in this epoch.
    pub(in crate::node) fn tell(&self, epoch: u16) -> Vec<RegionMessage> {
        let mut told = Vec::new();
        for (origin, blocks) in self.regions.values() {
            told.push(RegionMessage::Has { epoch, origin: origin.clone() });
            told.extend(blocks.iter().map(|(name, block)| RegionMessage::HasBlock {
                epoch,
                region: origin.region,
                name: name.clone(),
                offset: block.offset,
                bytes: block.bytes,
                align: block.align,
            }));
        }
        told.push(RegionMessage::HasAll { epoch, last: self.last });
        told
    }
}

/// What members have told so far.
pub(super) struct Gathering {
    /// Who has not told all yet.
    missing: NodeSet,
    last: u32,
    found: BTreeMap<RegionId, Found>,
}

struct Found {
    origin: RegionOrigin,
    holders: NodeSet,
    blocks: BTreeMap<String, Block>,
}

impl Gathering {
    fn of(members: NodeSet) -> Self {
        Self { missing: members, last: 0, found: BTreeMap::new() }
    }
}

impl Directory {
    /// The directory at a node that takes it over in epoch `now`, and what it asks.
    pub(in crate::node) fn take_over(
        nodes: Vec<NodeSpec>,
        workers: usize,
        now: Epoch,
    ) -> (Self, Vec<Addressed>) {
        let mut this = Self::new(nodes, workers, now);
        let asks = this.gather();
        (this, asks)
    }

    /// Whether members have yet to tell what they have: until then, questions wait.
    pub(in crate::node) fn is_gathering(&self) -> bool {
        self.gathering.is_some()
    }

    /// Asks all members anew.
    pub(super) fn gather(&mut self) -> Vec<Addressed> {
        self.gathering = Some(Gathering::of(self.now.members));
        let epoch = self.now.number;
        self.now.members.iter().map(|node| (node, RegionMessage::Tell { epoch })).collect()
    }

    /// `from` has told something of what it has. Orders follow when it was the last to tell all.
    pub(in crate::node) fn told(&mut self, from: NodeId, message: RegionMessage) -> Vec<Addressed> {
        let now = self.now.number;
        let Some(gathering) = self.gathering.as_mut().filter(|it| it.missing.contains(from)) else {
            return Vec::new();
        };
        match message {
            RegionMessage::Has { epoch, origin } if epoch == now => {
                let region = origin.region;
                let new = || Found { origin, holders: NodeSet::EMPTY, blocks: BTreeMap::new() };
                gathering.found.entry(region).or_insert_with(new).holders.insert(from);
            }
            RegionMessage::HasBlock { epoch, region, name, offset, bytes, align }
                if epoch == now =>
            {
                if let Some(found) = gathering.found.get_mut(&region) {
                    found.blocks.insert(name, Block { offset, bytes, align });
                }
            }
            RegionMessage::HasAll { epoch, last } if epoch == now => {
                gathering.last = gathering.last.max(last);
                gathering.missing.remove(from);
                if gathering.missing.is_empty()
                    && let Some(gathering) = self.gathering.take()
                {
                    return self.put_together(gathering);
                }
            }
            // Told in an earlier epoch: it will be told again.
            _ => {}
        }
        Vec::new()
    }

    fn put_together(&mut self, gathering: Gathering) -> Vec<Addressed> {
        let mut out = Vec::new();
        self.last = gathering.last;
        for (region, Found { origin, holders, blocks }) in gathering.found {
            let lacking = self.now.members.minus(holders);
            if !lacking.minus(self.now.joined_after(origin.since)).is_empty() {
                let close = RegionMessage::Close { region };
                out.extend(holders.iter().map(|node| (node, close.clone())));
                continue;
            }
            let end = |block: &Block| block.offset.saturating_add(block.bytes);
            let next_offset = blocks.values().map(end).max().unwrap_or(0);
            let name = origin.name.clone();
            let entry = Entry {
                origin,
                missing: NodeSet::EMPTY,
                arriving: lacking,
                askers: Vec::new(),
                blocks,
                next_offset,
            };
            let order = entry.order(self.now.number);
            out.extend(lacking.iter().map(|node| (node, order.clone())));
            self.regions.insert(name, entry);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::Wanted;
    use super::*;

    const PAGE: u64 = 4096;

    fn node(index: usize) -> NodeId {
        NodeId::new(index).unwrap()
    }

    fn origin(region: u32, name: &str) -> RegionOrigin {
        RegionOrigin {
            region: RegionId(region),
            name: name.into(),
            bytes: 4 * PAGE,
            overcommit: false,
            recover: true,
            since: 1,
            shares: vec![1, 1, 1],
        }
    }

    /// Nodes 1 and 2, after node 0 is gone.
    fn epoch(number: u16) -> Epoch {
        Epoch::first(number, NodeSet::first(3).without(node(0)))
    }

    fn take_over(now: &Epoch) -> Directory {
        let spec = |name: &str| NodeSpec {
            name: name.into(),
            address: String::new(),
            memory_bytes: 1 << 20,
            late: false,
        };
        let nodes = vec![spec("a"), spec("b"), spec("c")];
        let (directory, asks) = Directory::take_over(nodes, 1, now.clone());
        let ask = RegionMessage::Tell { epoch: now.number };
        let asked: Vec<_> = now.members.iter().map(|node| (node, ask.clone())).collect();
        assert_eq!(asks, asked);
        directory
    }

    /// Has a node tell all; the orders that follow.
    fn tell(
        directory: &mut Directory,
        from: usize,
        what: &Catalogue,
        epoch: u16,
    ) -> Vec<Addressed> {
        let told = what.tell(epoch).into_iter();
        told.flat_map(|message| directory.told(node(from), message)).collect()
    }

    fn allocate(region: u32, name: &str) -> RegionMessage {
        RegionMessage::Allocate {
            ticket: 7,
            region: RegionId(region),
            name: name.into(),
            bytes: PAGE,
            align: PAGE,
        }
    }

    fn create(directory: &mut Directory, from: usize, name: &str) -> Vec<Addressed> {
        let wanted = Wanted { name, bytes: 4 * PAGE, overcommit: false, recover: true };
        directory.create(node(from), 9, wanted)
    }

    #[test]
    fn what_all_have_is_there_with_the_blocks_that_any_was_told_of() {
        let (mut one, mut two) = (Catalogue::default(), Catalogue::default());
        for it in [&mut one, &mut two] {
            it.opened(origin(3, "r"));
        }
        one.allocated(&allocate(3, "x"), 0);
        two.allocated(&allocate(3, "y"), 2 * PAGE);
        let mut directory = take_over(&epoch(5));
        assert_eq!(tell(&mut directory, 1, &one, 5), []);
        assert!(directory.is_gathering());
        assert_eq!(tell(&mut directory, 2, &two, 5), []);
        assert!(!directory.is_gathering());
        let there = RegionMessage::Created { ticket: 9, region: RegionId(3) };
        assert_eq!(create(&mut directory, 2, "r"), [(node(2), there)]);
        let mut place = |name| directory.allocate(node(1), 7, RegionId(3), name, PAGE, PAGE).1;
        let at = |offset| RegionMessage::Allocated { ticket: 7, offset };
        assert_eq!(["x", "y", "new"].map(&mut place), [at(0), at(2 * PAGE), at(3 * PAGE)]);
        // Its number has not been used.
        let orders = create(&mut directory, 1, "next");
        let is_new = |(_, order): &Addressed| {
            matches!(order, RegionMessage::Open { origin, .. }
                if (origin.region, origin.since) == (RegionId(4), 5))
        };
        assert!(orders.len() == 2 && orders.iter().all(is_new), "{orders:?}");
    }

    #[test]
    fn what_some_lack_is_closed_and_its_number_not_used_again() {
        let (mut one, two) = (Catalogue::default(), Catalogue::default());
        one.opened(origin(3, "half"));
        let mut directory = take_over(&epoch(5));
        tell(&mut directory, 2, &two, 5);
        let close = RegionMessage::Close { region: RegionId(3) };
        assert_eq!(tell(&mut directory, 1, &one, 5), [(node(1), close)]);
        let orders = create(&mut directory, 1, "half");
        let [(_, RegionMessage::Open { origin, .. }), _] = &orders[..] else {
            panic!("{orders:?}")
        };
        assert_eq!(origin.region, RegionId(4));
    }

    #[test]
    fn who_joined_later_is_ordered_to_open_what_it_lacks() {
        let mut now = epoch(5);
        now.joined.insert(node(2), 4);
        let mut one = Catalogue::default();
        one.opened(origin(3, "r"));
        let mut directory = take_over(&now);
        tell(&mut directory, 1, &one, 5);
        let orders = tell(&mut directory, 2, &Catalogue::default(), 5);
        let order = RegionMessage::Open { epoch: 5, origin: origin(3, "r") };
        assert_eq!(orders, [(node(2), order)]);
        assert_eq!(create(&mut directory, 2, "r"), []);
        let there = RegionMessage::Created { ticket: 9, region: RegionId(3) };
        assert_eq!(directory.opened(node(2), RegionId(3)), [(node(2), there)]);
    }

    #[test]
    fn a_further_epoch_begins_anew() {
        let mut one = Catalogue::default();
        one.opened(origin(3, "r"));
        let mut directory = take_over(&epoch(5));
        tell(&mut directory, 1, &one, 5);
        let alone = Epoch::first(6, NodeSet::only(node(1)));
        assert_eq!(directory.changed(&alone), [(node(1), RegionMessage::Tell { epoch: 6 })]);
        // Told before it knew of that.
        assert_eq!(tell(&mut directory, 1, &one, 5), []);
        assert!(directory.is_gathering());
        tell(&mut directory, 1, &one, 6);
        assert!(!directory.is_gathering());
        assert_eq!(create(&mut directory, 1, "r").len(), 1);
    }
}
