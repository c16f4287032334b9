//! The words of the design: nodes, pages, versions, ages.

use std::collections::BTreeMap;
use std::fmt;

/// Bytes in a page: the unit of coherence.
pub const PAGE_SIZE: usize = 4096;

/// Words of 8 bytes in a page.
pub const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// Most nodes in one cluster: what an inline [`NodeSet`] can name.
pub const NODES_MAX: usize = 64;

/// One giantvm process of a cluster, by its position in the cluster's list of nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u8);

impl NodeId {
    /// The node at position `index` of the cluster's list; `None` from [`NODES_MAX`] on.
    pub const fn new(index: usize) -> Option<Self> {
        if index < NODES_MAX { Some(Self(index as u8)) } else { None }
    }

    /// The position in the cluster's list.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of nodes, such as a page's copyset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeSet(u64);

impl NodeSet {
    /// The set without members.
    pub const EMPTY: Self = Self(0);

    /// The set with one member.
    pub fn only(node: NodeId) -> Self {
        Self(1 << node.0)
    }

    /// The first `nodes` nodes: all that a cluster of so many has.
    pub fn first(nodes: usize) -> Self {
        (0..nodes).filter_map(NodeId::new).collect()
    }

    /// The set whose member `i` is present when bit `i` is set; the form used on the wire.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Inverse of [`NodeSet::from_bits`].
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Adds `node`.
    pub fn insert(&mut self, node: NodeId) {
        self.0 |= 1 << node.0;
    }

    /// Removes `node`; says whether it was a member.
    pub fn remove(&mut self, node: NodeId) -> bool {
        let was = self.contains(node);
        self.0 &= !(1 << node.0);
        was
    }

    /// This set less `node`.
    pub fn without(mut self, node: NodeId) -> Self {
        self.remove(node);
        self
    }

    /// The members of this set and of `other`.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set less the members of `other`.
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The members that `other` has, too.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether `node` is a member.
    pub fn contains(self, node: NodeId) -> bool {
        self.0 & (1 << node.0) != 0
    }

    /// Whether there is no member.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of members.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether every member is one of the first `nodes` nodes.
    pub fn within(self, nodes: usize) -> bool {
        nodes >= NODES_MAX || self.0 >> nodes == 0
    }

    /// The members, lowest first.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let lowest = bits.trailing_zeros() as u8;
            bits &= bits - 1;
            Some(NodeId(lowest))
        })
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        let mut set = Self::EMPTY;
        nodes.into_iter().for_each(|node| set.insert(node));
        set
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Who belongs to the cluster from some moment on, until the next epoch begins.
///
/// A node's number may be given again: to the same node when it comes back, as a new process that has
/// nothing, or to another one. What an earlier process with that number had is lost.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Epoch {
    /// Its number. It rises whenever a node joins or goes, not always by one: a node may be told of
    /// several changes at once.
    pub number: u16,
    /// Who belongs to it.
    pub members: NodeSet,
    /// For members that were not there from the first epoch on: the number of the one in which they
    /// joined.
    pub joined: BTreeMap<NodeId, u16>,
}

impl Epoch {
    /// The first epoch of a cluster.
    pub fn first(number: u16, members: NodeSet) -> Self {
        Self { number, members, joined: BTreeMap::new() }
    }

    /// Members that joined after epoch `number`: who was told of that one last has not met them.
    pub fn joined_after(&self, number: u16) -> NodeSet {
        self.members
            .iter()
            .filter(|node| self.joined.get(node).is_some_and(|&joined| joined > number))
            .collect()
    }

    /// The member that has belonged to the cluster for longest; of several, that with the lowest number.
    pub fn eldest(&self) -> Option<NodeId> {
        let since = |node: &NodeId| self.joined.get(node).copied().unwrap_or_default();
        self.members.iter().min_by_key(|node| (since(node), *node))
    }

    /// Members that have joined with this epoch.
    pub fn newcomers(&self) -> NodeSet {
        self.joined_after(self.number.saturating_sub(1))
    }
}

/// Index of a page in its region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(pub u64);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A region of the cluster: the same number on every node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub u32);

/// What a fault asks for; ordered, so that `Write` includes `Read`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Access {
    /// To read.
    Read,
    /// To read and write.
    Write,
}

/// Counts the times that a page became `Modified` somewhere; 48 bits.
///
/// A version names the page's bytes: whoever holds the frame of the current version needs no data.
/// Version 0 is the zero page, which every node holds from the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

impl Version {
    /// The bytes of a page nobody has written: zero.
    pub const ZERO: Self = Self(0);
    /// The largest version: at a million transfers of one page a second, nine years of them.
    pub const MAX: Self = Self((1 << 48) - 1);

    /// A version from its number; `None` beyond 48 bits.
    pub const fn new(number: u64) -> Option<Self> {
        if number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// The number of this version.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The version after this one; saturates at [`Version::MAX`].
    pub const fn next(self) -> Self {
        if self.0 < Self::MAX.0 { Self(self.0 + 1) } else { self }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Seniority of an episode: a Lamport clock with the node as tie-break; smaller is older.
///
/// Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System", 1978.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Age {
    /// Lamport clock at which the episode began.
    pub clock: u64,
    /// The node on which it runs.
    pub node: NodeId,
}

impl Age {
    /// Whether this episode goes before `other`.
    pub fn older_than(self, other: Self) -> bool {
        self < other
    }
}

impl fmt::Debug for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}.{}", self.clock, self.node)
    }
}

/// A thread that faults: its kernel thread id, or a number of the engine's own for a hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ThreadId(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eldest_has_been_there_for_longest() {
        let node = |index| NodeId::new(index).unwrap();
        let mut epoch = Epoch::first(7, NodeSet::first(4));
        assert_eq!(epoch.eldest(), Some(node(0)));
        epoch.joined = BTreeMap::from([(node(0), 5), (node(2), 3)]);
        assert_eq!(epoch.eldest(), Some(node(1)));
        epoch.members = NodeSet::only(node(0)).union(NodeSet::only(node(2)));
        assert_eq!(epoch.eldest(), Some(node(2)));
        assert_eq!(Epoch::first(1, NodeSet::EMPTY).eldest(), None);
    }
}
