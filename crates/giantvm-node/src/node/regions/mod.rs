//! The directory of regions, kept by one node: names, sizes, numbers, named blocks.

mod takeover;

use std::collections::BTreeMap;

use dsm_core::types::{Epoch, NodeId, NodeSet, PAGE_SIZE, RegionId};

pub(super) use self::takeover::Catalogue;
use self::takeover::Gathering;
use super::config::{NodeSpec, list};
use crate::control::{RegionMessage, RegionOrigin};

/// Most regions of a cluster.
const REGIONS_MAX: usize = 256;
/// Most mappings that regions take at one node: a view of one stripe a worker, and an alias. A
/// process may have 65,530 of all kinds.
const MAPPINGS_MAX: usize = 4096;
/// Most named blocks of a region.
const BLOCKS_MAX: usize = 65_536;

/// A message and the node it is for.
pub(super) type Addressed = (NodeId, RegionMessage);

/// Who asked, and under which number.
type Asker = (NodeId, u64);

struct Entry {
    origin: RegionOrigin,
    /// Nodes that have not opened it yet, since it began.
    missing: NodeSet,
    /// Nodes that joined when it was there, and have not opened it yet.
    arriving: NodeSet,
    askers: Vec<Asker>,
    blocks: BTreeMap<String, Block>,
    next_offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Block {
    offset: u64,
    bytes: u64,
    align: u64,
}

impl Entry {
    /// Has a node open it in this epoch.
    fn order(&self, epoch: u16) -> RegionMessage {
        RegionMessage::Open { epoch, origin: self.origin.clone() }
    }
}

/// The shares of those nodes that are `members`; the others have none. All zero counts as all equal.
fn shares_of(members: NodeSet, shares: &[u64]) -> Vec<u64> {
    let even = shares.iter().all(|&share| share == 0);
    let share = |(node, &share): (usize, &u64)| {
        let member = NodeId::new(node).is_some_and(|node| members.contains(node));
        if member { share.max(even.into()) } else { 0 }
    };
    shares.iter().enumerate().map(share).collect()
}

/// All regions of the cluster.
pub(super) struct Directory {
    nodes: Vec<NodeSpec>,
    regions_max: usize,
    regions: BTreeMap<String, Entry>,
    /// Askers for regions that nobody has given a size yet.
    awaited: BTreeMap<String, Vec<Asker>>,
    last: u32,
    now: Epoch,
    /// What members have told so far, while this node takes the directory over.
    gathering: Option<Gathering>,
}

/// What a region is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    /// 0: as another node says.
    pub(super) bytes: u64,
    pub(super) overcommit: bool,
    pub(super) recover: bool,
}

impl Directory {
    pub(super) fn new(nodes: Vec<NodeSpec>, workers: usize, now: Epoch) -> Self {
        let regions_max = REGIONS_MAX.min(MAPPINGS_MAX / (workers + 1));
        Self {
            nodes,
            regions_max,
            regions: BTreeMap::new(),
            awaited: BTreeMap::new(),
            last: 0,
            now,
            gathering: None,
        }
    }

    /// A place of the list of nodes is filled, the next one or one whose node is gone.
    pub(super) fn list(&mut self, node: NodeId, spec: NodeSpec) {
        list(&mut self.nodes, node, spec);
    }

    /// `from` asks for a region; without a size, for one that another node creates.
    pub(super) fn create(
        &mut self,
        from: NodeId,
        ticket: u64,
        wanted: Wanted<'_>,
    ) -> Vec<Addressed> {
        let Wanted { name, bytes, overcommit, recover } = wanted;
        let asker = (from, ticket);
        if let Some(entry) = self.regions.get_mut(name) {
            if bytes != 0 && bytes != entry.origin.bytes {
                let have = entry.origin.bytes;
                return vec![refused(
                    asker,
                    format!("region \"{name}\" exists with {have} bytes, not {bytes}"),
                )];
            }
            if entry.missing.is_empty() && !entry.arriving.contains(from) {
                return vec![created(asker, entry.origin.region)];
            }
            entry.askers.push(asker);
            return Vec::new();
        }
        if bytes == 0 {
            self.awaited.entry(name.into()).or_default().push(asker);
            return Vec::new();
        }
        if let Err(reason) = self.check_new(wanted) {
            return vec![refused(asker, reason)];
        }
        let mut askers = self.awaited.remove(name).unwrap_or_default();
        askers.push(asker);
        let origin = RegionOrigin {
            region: RegionId(0),
            name: name.into(),
            bytes,
            overcommit,
            recover,
            since: 0,
            shares: Vec::new(),
        };
        let entry = Entry {
            origin,
            missing: NodeSet::EMPTY,
            arriving: NodeSet::EMPTY,
            askers,
            blocks: BTreeMap::new(),
            next_offset: 0,
        };
        self.regions.insert(name.into(), entry);
        self.order(name)
    }

    /// Has all members open the region `name`, which begins now, under a number of its own.
    fn order(&mut self, name: &str) -> Vec<Addressed> {
        let members = self.now.members;
        let memory: Vec<u64> = self.nodes.iter().map(|node| node.memory_bytes).collect();
        let Some(entry) = self.regions.get_mut(name) else { return Vec::new() };
        self.last += 1;
        entry.missing = members;
        entry.origin.region = RegionId(self.last);
        (entry.origin.since, entry.origin.shares) = (self.now.number, shares_of(members, &memory));
        let order = entry.order(self.now.number);
        members.iter().map(|node| (node, order.clone())).collect()
    }

    /// Whether `node` is a member, as far as is known here.
    pub(super) fn has_member(&self, node: NodeId) -> bool {
        self.now.members.contains(node)
    }

    /// Nodes of the list that are no members.
    fn absent(&self) -> NodeSet {
        NodeSet::first(self.nodes.len()).minus(self.now.members)
    }

    fn specs(&self, nodes: NodeSet) -> impl Iterator<Item = &NodeSpec> {
        self.nodes.iter().enumerate().filter_map(move |(index, spec)| {
            NodeId::new(index).is_some_and(|node| nodes.contains(node)).then_some(spec)
        })
    }

    /// Why there can't be a region that does not recover from losses.
    fn needs_all(&self, name: &str) -> String {
        let gone: Vec<&str> = self.specs(self.absent()).map(|spec| spec.name.as_str()).collect();
        let gone = gone.join(", ");
        format!("region \"{name}\" needs every node of the list, and {gone} is not there")
    }

    fn check_new(&self, wanted: Wanted<'_>) -> Result<(), String> {
        let Wanted { name, bytes, overcommit, recover } = wanted;
        if !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(format!("region \"{name}\": {bytes} bytes is no multiple of {PAGE_SIZE}"));
        }
        if !recover && !self.absent().is_empty() {
            return Err(self.needs_all(name));
        }
        if self.regions.len() >= self.regions_max {
            let most = self.regions_max;
            return Err(format!(
                "{most} regions are open, and more are not allowed; use one for more"
            ));
        }
        let origins = self.regions.values().map(|entry| &entry.origin);
        let counted = origins.filter(|origin| !origin.overcommit);
        let used: u128 = counted.map(|origin| u128::from(origin.bytes)).sum();
        let room: u128 =
            self.specs(self.now.members).map(|node| u128::from(node.memory_bytes)).sum();
        if !overcommit && used + u128::from(bytes) > room {
            let shares: Vec<String> = self
                .specs(self.now.members)
                .map(|node| format!("{} gives {}", node.name, node.memory_bytes))
                .collect();
            return Err(format!(
                "region \"{name}\" needs {bytes} bytes, {used} are in use, and the nodes together \
                 give {room} ({}); raise `memory`, or open it with overcommit",
                shares.join(", ")
            ));
        }
        Ok(())
    }

    /// `from` has opened `region`.
    pub(super) fn opened(&mut self, from: NodeId, region: RegionId) -> Vec<Addressed> {
        let mut entries = self.regions.values_mut();
        let Some(entry) = entries.find(|entry| entry.origin.region == region) else {
            return Vec::new();
        };
        let all = entry.missing.remove(from) && entry.missing.is_empty();
        let it = entry.arriving.remove(from);
        let there = |(node, _): &mut Asker| all || it && *node == from;
        entry.askers.extract_if(.., there).map(|asker| created(asker, region)).collect()
    }

    /// `from` can't open `region`: nobody gets it.
    pub(super) fn failed(&mut self, from: NodeId, ticket: u64, reason: &str) -> Vec<Addressed> {
        let name = self
            .regions
            .iter()
            .find(|(_, entry)| u64::from(entry.origin.region.0) == ticket)
            .map(|(name, _)| name.clone());
        let Some(entry) = name.and_then(|name| self.regions.remove(&name)) else {
            return Vec::new();
        };
        let node = self.nodes.get(from.index()).map_or("?", |node| node.name.as_str());
        let reason = format!("node {node} can't open it: {reason}");
        let close = RegionMessage::Close { region: entry.origin.region };
        let mut out: Vec<Addressed> =
            self.now.members.iter().map(|node| (node, close.clone())).collect();
        out.extend(entry.askers.into_iter().map(|asker| refused(asker, reason.clone())));
        out
    }

    /// Nodes were lost, left or joined. Who asked and is gone gets no answer. Regions that not all have
    /// opened are opened anew, since all must open one in the same epoch; the others are opened by those
    /// that have joined.
    pub(super) fn changed(&mut self, epoch: &Epoch) -> Vec<Addressed> {
        let before = std::mem::replace(&mut self.now, epoch.clone());
        if self.gathering.is_some() {
            return self.gather();
        }
        let (members, joined) = (epoch.members, epoch.joined_after(before.number));
        let there = |(node, _): &Asker| members.contains(*node) && !joined.contains(*node);
        self.awaited.values_mut().for_each(|askers| askers.retain(there));
        let mut out = Vec::new();
        let mut again = Vec::new();
        for (name, entry) in &mut self.regions {
            entry.askers.retain(there);
            if !entry.missing.is_empty() {
                let close = RegionMessage::Close { region: entry.origin.region };
                out.extend(members.iter().map(|node| (node, close.clone())));
                again.push((name.clone(), entry.origin.recover));
                continue;
            }
            // An order of an earlier epoch may not have been carried out.
            entry.arriving = entry.arriving.intersection(members).union(joined);
            let order = entry.order(epoch.number);
            out.extend(entry.arriving.iter().map(|node| (node, order.clone())));
        }
        for (name, recover) in again {
            if recover {
                out.extend(self.order(&name));
            } else if let Some(entry) = self.regions.remove(&name) {
                let reason = self.needs_all(&name);
                out.extend(entry.askers.into_iter().map(|it| refused(it, reason.clone())));
            }
        }
        out
    }

    /// Where the named block is; the first to ask places it.
    pub(super) fn allocate(
        &mut self,
        from: NodeId,
        ticket: u64,
        region: RegionId,
        name: &str,
        bytes: u64,
        align: u64,
    ) -> Addressed {
        let asker = (from, ticket);
        let entry = self.regions.iter_mut().find(|(_, entry)| entry.origin.region == region);
        let Some((region_name, entry)) = entry else {
            return refused(asker, "the region is closed".into());
        };
        if let Some(block) = entry.blocks.get(name) {
            if (block.bytes, block.align) != (bytes, align) {
                let Block { bytes: have, align: aligned, .. } = *block;
                return refused(
                    asker,
                    format!(
                        "block \"{name}\" of region \"{region_name}\" exists with {have} bytes \
                         aligned to {aligned}, not {bytes} aligned to {align}"
                    ),
                );
            }
            return (from, RegionMessage::Allocated { ticket, offset: block.offset });
        }
        let offset = match align {
            0 => None,
            _ => entry.next_offset.checked_next_multiple_of(align),
        };
        let end = offset.and_then(|offset| offset.checked_add(bytes));
        let (Some(offset), Some(end)) = (offset, end.filter(|&end| end <= entry.origin.bytes))
        else {
            let left = entry.origin.bytes.saturating_sub(entry.next_offset);
            return refused(
                asker,
                format!(
                    "{NO_ROOM} \"{name}\" ({bytes} bytes) in region \"{region_name}\", which has \
                     {left} left"
                ),
            );
        };
        if entry.blocks.len() >= BLOCKS_MAX {
            return refused(asker, format!("region \"{region_name}\" has {BLOCKS_MAX} blocks"));
        }
        entry.next_offset = end;
        entry.blocks.insert(name.into(), Block { offset, bytes, align });
        (from, RegionMessage::Allocated { ticket, offset })
    }
}

/// How a refusal for lack of room begins; `allocate`'s callers tell it from other mistakes.
pub(super) const NO_ROOM: &str = "no room for block";

fn created((node, ticket): Asker, region: RegionId) -> Addressed {
    (node, RegionMessage::Created { ticket, region })
}

fn refused((node, ticket): Asker, reason: String) -> Addressed {
    (node, RegionMessage::Refused { ticket, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: usize) -> NodeId {
        NodeId::new(index).unwrap()
    }

    fn directory() -> Directory {
        let spec = |name: &str| NodeSpec {
            name: name.into(),
            address: String::new(),
            memory_bytes: 1 << 20,
            late: false,
        };
        Directory::new(vec![spec("a"), spec("b")], 1, Epoch::first(1, NodeSet::first(2)))
    }

    fn without_b() -> Epoch {
        Epoch::first(2, NodeSet::only(node(0)))
    }

    /// The second node joins with epoch `number`.
    fn with_b(number: u16) -> Epoch {
        let mut epoch = Epoch::first(number, NodeSet::first(2));
        epoch.joined.insert(node(1), number);
        epoch
    }

    fn open(name: &str, number: u32, epoch: u16, since: u16, shares: [u64; 2]) -> RegionMessage {
        let origin = RegionOrigin {
            region: RegionId(number),
            name: name.into(),
            bytes: 4096,
            overcommit: false,
            recover: true,
            since,
            shares: shares.to_vec(),
        };
        RegionMessage::Open { epoch, origin }
    }

    fn wanted(name: &str, bytes: u64) -> Wanted<'_> {
        Wanted { name, bytes, overcommit: false, recover: true }
    }

    fn overcommitted(name: &str, bytes: u64) -> Wanted<'_> {
        Wanted { overcommit: true, ..wanted(name, bytes) }
    }

    #[test]
    fn who_is_no_member_has_no_share_of_new_regions() {
        assert_eq!(shares_of(NodeSet::first(3), &[1, 2, 3]), [1, 2, 3]);
        let members = NodeSet::first(3).without(node(1));
        assert_eq!(shares_of(members, &[1, 2, 3]), [1, 0, 3]);
        // All shares zero counts as all equal.
        assert_eq!(shares_of(members, &[0, 0, 0]), [1, 0, 1]);
    }

    #[test]
    fn a_region_is_there_when_all_nodes_have_opened_it() {
        let mut directory = directory();
        // The one that gives no size waits for the one that does.
        assert_eq!(directory.create(node(1), 7, wanted("r", 0)), []);
        let orders = directory.create(node(0), 3, wanted("r", 8192));
        assert_eq!(orders.len(), 2);
        let region = RegionId(1);
        assert_eq!(directory.opened(node(1), region), []);
        let answers = directory.opened(node(0), region);
        assert_eq!(answers, [created((node(1), 7), region), created((node(0), 3), region)]);
        assert_eq!(
            directory.create(node(1), 8, wanted("r", 8192)),
            [created((node(1), 8), region)]
        );
        let other = directory.create(node(1), 9, wanted("r", 4096));
        assert!(matches!(&other[..], [(_, RegionMessage::Refused { ticket: 9, .. })]));
    }

    #[test]
    fn more_than_the_nodes_give_needs_overcommit() {
        let mut directory = directory();
        let refusal = directory.create(node(0), 1, wanted("r", 4 << 20));
        let [(_, RegionMessage::Refused { reason, .. })] = &refusal[..] else { panic!() };
        assert!(reason.contains("a gives 1048576, b gives 1048576"), "{reason}");
        assert_eq!(directory.create(node(0), 1, overcommitted("r", 4 << 20)).len(), 2);
    }

    #[test]
    fn a_node_that_cannot_open_a_region_closes_it_for_all() {
        let mut directory = directory();
        directory.create(node(0), 1, wanted("r", 4096));
        directory.opened(node(0), RegionId(1));
        let answers = directory.failed(node(1), 1, "no memory");
        assert_eq!(answers.len(), 3);
        let Some((_, RegionMessage::Refused { reason, .. })) = answers.last() else { panic!() };
        assert_eq!(reason, "node b can't open it: no memory");
        // The name is free again.
        assert_eq!(directory.create(node(0), 2, wanted("r", 4096)).len(), 2);
    }

    #[test]
    fn overcommitted_regions_leave_room_for_others() {
        let mut directory = directory();
        directory.create(node(0), 1, overcommitted("huge", 1 << 40));
        assert_eq!(directory.create(node(0), 2, wanted("r", 1 << 20)).len(), 2);
    }

    #[test]
    fn many_workers_leave_fewer_mappings_for_regions() {
        let Directory { nodes, now, .. } = directory();
        let mut directory = Directory::new(nodes, 64, now);
        let refused = (0..64).position(|number| {
            let out = directory.create(node(0), number, wanted(&format!("r{number}"), 4096));
            matches!(out[..], [(_, RegionMessage::Refused { .. })])
        });
        assert_eq!(refused, Some(MAPPINGS_MAX / 65));
    }

    #[test]
    fn a_region_that_not_all_have_opened_is_opened_anew_by_those_that_are_left() {
        let mut directory = directory();
        directory.create(node(1), 7, wanted("r", 4096));
        directory.create(node(0), 3, wanted("r", 4096));
        assert_eq!(directory.opened(node(0), RegionId(1)), []);
        let out = directory.changed(&without_b());
        let close = RegionMessage::Close { region: RegionId(1) };
        let open = open("r", 2, 2, 2, [1 << 20, 0]);
        assert_eq!(out, [(node(0), close), (node(0), open)]);
        // What is said of the number before counts no more, and who is gone gets no answer.
        assert_eq!(directory.opened(node(0), RegionId(1)), []);
        assert_eq!(directory.opened(node(0), RegionId(2)), [created((node(0), 3), RegionId(2))]);
    }

    #[test]
    fn regions_after_a_loss_have_the_room_of_those_that_are_left() {
        let mut directory = directory();
        assert_eq!(directory.create(node(0), 1, wanted("awaited", 0)), []);
        assert_eq!(directory.changed(&without_b()), []);
        let refusal = directory.create(node(0), 2, wanted("r", 2 << 20));
        let [(_, RegionMessage::Refused { reason, .. })] = &refusal[..] else { panic!() };
        assert!(reason.contains("give 1048576 (a gives 1048576)"), "{reason}");
        let machine = Wanted { recover: false, ..wanted("vm:x", 4096) };
        let refusal = directory.create(node(0), 3, machine);
        let [(_, RegionMessage::Refused { reason, .. })] = &refusal[..] else { panic!() };
        assert!(reason.contains("needs every node of the list, and b is not there"), "{reason}");
        assert_eq!(directory.create(node(0), 4, wanted("awaited", 4096)).len(), 1);
        let both = [created((node(0), 1), RegionId(1)), created((node(0), 4), RegionId(1))];
        assert_eq!(directory.opened(node(0), RegionId(1)), both);
    }

    #[test]
    fn who_joins_opens_what_is_there_until_it_has() {
        let mut directory = directory();
        directory.changed(&without_b());
        directory.create(node(0), 1, wanted("old", 4096));
        directory.opened(node(0), RegionId(1));
        directory.create(node(0), 2, wanted("half", 4096));
        let out = directory.changed(&with_b(3));
        let half = open("half", 3, 3, 3, [1 << 20, 1 << 20]);
        let close = RegionMessage::Close { region: RegionId(2) };
        assert_eq!(
            out,
            [
                (node(0), close.clone()),
                (node(1), close),
                (node(1), open("old", 1, 3, 2, [1 << 20, 0])),
                (node(0), half.clone()),
                (node(1), half),
            ]
        );
        // It is lost before it says so, comes back, and is asked again; then no more.
        directory.opened(node(0), RegionId(3));
        directory.opened(node(1), RegionId(3));
        directory.changed(&Epoch::first(4, NodeSet::only(node(0))));
        let out = directory.changed(&with_b(5));
        assert_eq!(out.len(), 2);
        assert_eq!(out[1], (node(1), open("old", 1, 5, 2, [1 << 20, 0])));
        // Until it has opened a region, it gets no answer; others do.
        assert_eq!(directory.create(node(1), 9, wanted("old", 0)), []);
        let there = |asker| created(asker, RegionId(1));
        assert_eq!(directory.create(node(0), 8, wanted("old", 0)), [there((node(0), 8))]);
        assert_eq!(directory.opened(node(1), RegionId(1)), [there((node(1), 9))]);
        directory.opened(node(1), RegionId(3));
        let mut next = with_b(5);
        next.number = 6;
        assert_eq!(directory.changed(&next), []);
    }

    #[test]
    fn blocks_are_aligned_and_the_same_for_all() {
        let mut directory = directory();
        directory.create(node(0), 1, wanted("r", 1 << 14));
        let mut place = |from, name: &str, bytes, align| {
            directory.allocate(node(from), 5, RegionId(1), name, bytes, align).1
        };
        let at = |offset| RegionMessage::Allocated { ticket: 5, offset };
        assert_eq!(place(0, "x", 100, 4096), at(0));
        assert_eq!(place(1, "y", 4096, 4096), at(4096));
        assert_eq!(place(1, "x", 100, 4096), at(0));
        assert!(matches!(place(1, "x", 101, 4096), RegionMessage::Refused { .. }));
        assert!(matches!(place(1, "z", 1 << 14, 1), RegionMessage::Refused { .. }));
        assert!(matches!(place(1, "w", u64::MAX, 1 << 63), RegionMessage::Refused { .. }));
        assert!(matches!(place(1, "v", 1, 0), RegionMessage::Refused { .. }));
    }
}
