//! The directory of regions, kept by the deciding node: names, sizes, numbers, named blocks.

use std::collections::BTreeMap;

use dsm_core::types::{NodeId, NodeSet, PAGE_SIZE, RegionId};

use super::config::NodeSpec;
use crate::control::RegionMessage;

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
    region: RegionId,
    bytes: u64,
    /// Does not count against what the nodes give.
    overcommit: bool,
    /// Nodes that have not opened it yet.
    missing: NodeSet,
    askers: Vec<Asker>,
    blocks: BTreeMap<String, Block>,
    next_offset: u64,
}

#[derive(Clone, Copy)]
struct Block {
    offset: u64,
    bytes: u64,
    align: u64,
}

/// All regions of the cluster.
pub(super) struct Directory {
    nodes: Vec<NodeSpec>,
    regions_max: usize,
    regions: BTreeMap<String, Entry>,
    /// Askers for regions that nobody has given a size yet.
    awaited: BTreeMap<String, Vec<Asker>>,
    last: u32,
    /// A node that has left.
    gone: Option<String>,
}

impl Directory {
    pub(super) fn new(nodes: Vec<NodeSpec>, workers: usize) -> Self {
        let regions_max = REGIONS_MAX.min(MAPPINGS_MAX / (workers + 1));
        Self {
            nodes,
            regions_max,
            regions: BTreeMap::new(),
            awaited: BTreeMap::new(),
            last: 0,
            gone: None,
        }
    }

    /// `from` asks for the region `name`; without `bytes` (0), for one that another node creates.
    pub(super) fn create(
        &mut self,
        from: NodeId,
        ticket: u64,
        name: &str,
        bytes: u64,
        overcommit: bool,
    ) -> Vec<Addressed> {
        let asker = (from, ticket);
        if let Some(entry) = self.regions.get_mut(name) {
            if bytes != 0 && bytes != entry.bytes {
                let have = entry.bytes;
                return vec![refused(
                    asker,
                    format!("region \"{name}\" exists with {have} bytes, not {bytes}"),
                )];
            }
            if entry.missing.is_empty() {
                return vec![created(asker, entry.region)];
            }
            entry.askers.push(asker);
            return Vec::new();
        }
        if bytes == 0 {
            self.awaited.entry(name.into()).or_default().push(asker);
            return Vec::new();
        }
        if let Err(reason) = self.check_new(name, bytes, overcommit) {
            return vec![refused(asker, reason)];
        }
        self.last += 1;
        let region = RegionId(self.last);
        let mut askers = self.awaited.remove(name).unwrap_or_default();
        askers.push(asker);
        let all: NodeSet = (0..self.nodes.len()).filter_map(NodeId::new).collect();
        let entry = Entry {
            region,
            bytes,
            overcommit,
            missing: all,
            askers,
            blocks: BTreeMap::new(),
            next_offset: 0,
        };
        self.regions.insert(name.into(), entry);
        let order = RegionMessage::Create {
            ticket: u64::from(region.0),
            region: Some(region),
            name: name.into(),
            bytes,
            overcommit,
        };
        all.iter().map(|node| (node, order.clone())).collect()
    }

    fn check_new(&self, name: &str, bytes: u64, overcommit: bool) -> Result<(), String> {
        if !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(format!("region \"{name}\": {bytes} bytes is no multiple of {PAGE_SIZE}"));
        }
        if let Some(gone) = &self.gone {
            return Err(format!(
                "region \"{name}\" needs every node of the list, and {gone} has left the cluster"
            ));
        }
        if self.regions.len() >= self.regions_max {
            let most = self.regions_max;
            return Err(format!(
                "{most} regions are open, and more are not allowed; use one for more"
            ));
        }
        let counted = self.regions.values().filter(|entry| !entry.overcommit);
        let used: u128 = counted.map(|entry| u128::from(entry.bytes)).sum();
        let room: u128 = self.nodes.iter().map(|node| u128::from(node.memory_bytes)).sum();
        if !overcommit && used + u128::from(bytes) > room {
            let shares: Vec<String> = self
                .nodes
                .iter()
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
        let Some(entry) = self.regions.values_mut().find(|entry| entry.region == region) else {
            return Vec::new();
        };
        entry.missing.remove(from);
        if !entry.missing.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut entry.askers).into_iter().map(|asker| created(asker, region)).collect()
    }

    /// `from` can't open `region`: nobody gets it.
    pub(super) fn failed(&mut self, from: NodeId, ticket: u64, reason: &str) -> Vec<Addressed> {
        let name = self
            .regions
            .iter()
            .find(|(_, entry)| u64::from(entry.region.0) == ticket)
            .map(|(name, _)| name.clone());
        let Some(entry) = name.and_then(|name| self.regions.remove(&name)) else {
            return Vec::new();
        };
        let node = self.nodes.get(from.index()).map_or("?", |node| node.name.as_str());
        let reason = format!("node {node} can't open it: {reason}");
        let close = RegionMessage::Close { region: entry.region };
        let all = (0..self.nodes.len()).filter_map(NodeId::new);
        let mut out: Vec<Addressed> = all.map(|node| (node, close.clone())).collect();
        out.extend(entry.askers.into_iter().map(|asker| refused(asker, reason.clone())));
        out
    }

    /// `node` has left: no region can be opened any more, and those who wait for one learn it.
    pub(super) fn node_left(&mut self, node: NodeId) -> Vec<Addressed> {
        let name = self.nodes.get(node.index()).map_or("?", |node| node.name.as_str());
        let reason = format!("node {name} has left the cluster");
        self.gone = Some(name.to_owned());
        let awaited = std::mem::take(&mut self.awaited).into_values().flatten();
        awaited.map(|asker| refused(asker, reason.clone())).collect()
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
        let entry = self.regions.iter_mut().find(|(_, entry)| entry.region == region);
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
        let (Some(offset), Some(end)) = (offset, end.filter(|&end| end <= entry.bytes)) else {
            let left = entry.bytes - entry.next_offset;
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
        };
        Directory::new(vec![spec("a"), spec("b")], 1)
    }

    #[test]
    fn a_region_is_there_when_all_nodes_have_opened_it() {
        let mut directory = directory();
        // The one that gives no size waits for the one that does.
        assert_eq!(directory.create(node(1), 7, "r", 0, false), []);
        let orders = directory.create(node(0), 3, "r", 8192, false);
        assert_eq!(orders.len(), 2);
        let region = RegionId(1);
        assert_eq!(directory.opened(node(1), region), []);
        let answers = directory.opened(node(0), region);
        assert_eq!(answers, [created((node(1), 7), region), created((node(0), 3), region)]);
        assert_eq!(directory.create(node(1), 8, "r", 8192, false), [created((node(1), 8), region)]);
        let other = directory.create(node(1), 9, "r", 4096, false);
        assert!(matches!(&other[..], [(_, RegionMessage::Refused { ticket: 9, .. })]));
    }

    #[test]
    fn more_than_the_nodes_give_needs_overcommit() {
        let mut directory = directory();
        let refusal = directory.create(node(0), 1, "r", 4 << 20, false);
        let [(_, RegionMessage::Refused { reason, .. })] = &refusal[..] else { panic!() };
        assert!(reason.contains("a gives 1048576, b gives 1048576"), "{reason}");
        assert_eq!(directory.create(node(0), 1, "r", 4 << 20, true).len(), 2);
    }

    #[test]
    fn a_node_that_cannot_open_a_region_closes_it_for_all() {
        let mut directory = directory();
        directory.create(node(0), 1, "r", 4096, false);
        directory.opened(node(0), RegionId(1));
        let answers = directory.failed(node(1), 1, "no memory");
        assert_eq!(answers.len(), 3);
        let Some((_, RegionMessage::Refused { reason, .. })) = answers.last() else { panic!() };
        assert_eq!(reason, "node b can't open it: no memory");
        // The name is free again.
        assert_eq!(directory.create(node(0), 2, "r", 4096, false).len(), 2);
    }

    #[test]
    fn overcommitted_regions_leave_room_for_others() {
        let mut directory = directory();
        directory.create(node(0), 1, "huge", 1 << 40, true);
        assert_eq!(directory.create(node(0), 2, "r", 1 << 20, false).len(), 2);
    }

    #[test]
    fn many_workers_leave_fewer_mappings_for_regions() {
        let Directory { nodes, .. } = directory();
        let mut directory = Directory::new(nodes, 64);
        let refused = (0..64).position(|number| {
            let out = directory.create(node(0), number, &format!("r{number}"), 4096, false);
            matches!(out[..], [(_, RegionMessage::Refused { .. })])
        });
        assert_eq!(refused, Some(MAPPINGS_MAX / 65));
    }

    #[test]
    fn who_waits_for_a_region_learns_that_a_node_has_left() {
        let mut directory = directory();
        assert_eq!(directory.create(node(0), 1, "r", 0, false), []);
        let refusals = directory.node_left(node(1));
        assert_eq!(refusals, [refused((node(0), 1), "node b has left the cluster".into())]);
        let late = directory.create(node(0), 2, "r", 4096, false);
        assert!(matches!(&late[..], [(_, RegionMessage::Refused { ticket: 2, .. })]));
    }

    #[test]
    fn blocks_are_aligned_and_the_same_for_all() {
        let mut directory = directory();
        directory.create(node(0), 1, "r", 1 << 14, false);
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
