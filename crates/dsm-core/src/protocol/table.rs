//! What a node knows of each page, in 15 bytes, allocated when a lease block is first touched.

use super::recover::Recoverers;
use crate::types::{NODES_MAX, NodeId, NodeSet, Page, Version};

/// Ivy's page state at one node (Li and Hudak 1989, section 2.2; the field's name is MSI).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageState {
    /// Not accessible here.
    Invalid,
    /// Read-only here.
    Shared,
    /// Read-write here, and nowhere else accessible.
    Modified,
    /// Read-write here and at other nodes: see the module on walk-shared pages.
    WalkShared,
    /// All that there was of it is gone with a lost node, and it has not been restored. The same at all
    /// nodes.
    Lost,
}

/// A page as one node sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// The right of this node. An owner may be `Invalid`: it has the bytes, but has not used them.
    pub(super) state: PageState,
    /// The version of the bytes in this node's frame, whatever the state.
    pub(super) version: Version,
    /// Owner or not.
    pub(super) role: Role,
}

/// What a node is to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Answers for the page.
    Owner {
        /// The oldest version with the same bytes as [`Entry::version`]; in `Modified`, as the
        /// bytes at entry.
        same_since: Version,
        /// How sure it is that a reader goes on to write: 0 to 3.
        migratory: u8,
        /// Who else holds a copy; while `Modified`, nobody does, and the fingerprint of the bytes
        /// at entry stands here instead.
        sharing: Sharing,
    },
    /// Follows a hint. Hints only ever point to later owners, so following them ends.
    Holder {
        /// The probable owner.
        owner: NodeId,
        /// The version at which it became owner, or will when a grant under way arrives.
        owner_since: Version,
    },
}

/// The second word of an owner's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// The copyset, the owner excluded.
    Copies(NodeSet),
    /// `Modified`: fingerprint of the bytes at entry.
    Sole(u64),
}

impl Entry {
    /// The newest ownership this node knows of.
    pub(super) fn known(&self) -> Version {
        match self.role {
            Role::Owner { .. } => self.version,
            Role::Holder { owner_since, .. } => owner_since,
        }
    }

    /// Whether this node answers for the page.
    pub(super) fn is_owner(&self) -> bool {
        matches!(self.role, Role::Owner { .. })
    }

    /// Whether this node answers for the page, and no other has a copy.
    pub(super) fn is_alone(&self) -> bool {
        self.is_owner() && self.copyset().is_empty()
    }

    /// The copyset of an owner; empty elsewhere.
    pub(super) fn copyset(&self) -> NodeSet {
        match self.role {
            Role::Owner { sharing: Sharing::Copies(copyset), .. } => copyset,
            _ => NodeSet::EMPTY,
        }
    }
}

/// An [`Entry`] in 120 bits, so that with its directory a table stays below 16 bytes a page: 48 of
/// version, 64 that depend on the kind, 3 of kind, 2 of migratory score, 3 of how many versions the
/// bytes have been the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Packed([u8; 15]);

const SECOND_SHIFT: u32 = 48;
const KIND_SHIFT: u32 = 112;
const MIGRATORY_SHIFT: u32 = 115;
const DISTANCE_SHIFT: u32 = 117;
/// Beyond this many versions the distance saturates, which only sends bytes needlessly.
const DISTANCE_MAX: u64 = 7;
/// Where a holder's second part has the index of the probable owner.
const OWNER_SHIFT: u32 = 48;

const HOLDER_INVALID: u128 = 0;
const HOLDER_SHARED: u128 = 1;
const OWNER_INVALID: u128 = 2;
const OWNER_SHARED: u128 = 3;
const OWNER_MODIFIED: u128 = 4;
const HOLDER_WALK_SHARED: u128 = 5;
const OWNER_WALK_SHARED: u128 = 6;
const HOLDER_LOST: u128 = 7;

impl Packed {
    fn new(entry: Entry) -> Self {
        let (kind, second, migratory, distance) = match entry.role {
            Role::Owner { same_since, migratory, sharing } => {
                let kind = match entry.state {
                    // A lost page has no owner.
                    PageState::Invalid | PageState::Lost => OWNER_INVALID,
                    PageState::Shared => OWNER_SHARED,
                    PageState::Modified => OWNER_MODIFIED,
                    PageState::WalkShared => OWNER_WALK_SHARED,
                };
                let second = match sharing {
                    Sharing::Copies(copyset) => copyset.bits(),
                    Sharing::Sole(fingerprint) => fingerprint,
                };
                let distance = entry.version.get().saturating_sub(same_since.get());
                (kind, second, migratory.min(3), distance.min(DISTANCE_MAX))
            }
            Role::Holder { owner, owner_since } => {
                let kind = match entry.state {
                    PageState::Invalid => HOLDER_INVALID,
                    // Only an owner is ever `Modified`.
                    PageState::Shared | PageState::Modified => HOLDER_SHARED,
                    PageState::WalkShared => HOLDER_WALK_SHARED,
                    PageState::Lost => HOLDER_LOST,
                };
                (kind, (owner.index() as u64) << OWNER_SHIFT | owner_since.get(), 0, 0)
            }
        };
        let bits = u128::from(entry.version.get())
            | u128::from(second) << SECOND_SHIFT
            | kind << KIND_SHIFT
            | u128::from(migratory) << MIGRATORY_SHIFT
            | u128::from(distance) << DISTANCE_SHIFT;
        let mut bytes = [0; 15];
        bytes.copy_from_slice(&bits.to_le_bytes()[..15]);
        Self(bytes)
    }

    fn entry(self) -> Entry {
        let mut bytes = [0; 16];
        bytes[..15].copy_from_slice(&self.0);
        let bits = u128::from_le_bytes(bytes);
        let version = version(bits as u64);
        let second = (bits >> SECOND_SHIFT) as u64;
        let kind = bits >> KIND_SHIFT & 7;
        let state = match kind {
            HOLDER_SHARED | OWNER_SHARED => PageState::Shared,
            OWNER_MODIFIED => PageState::Modified,
            HOLDER_WALK_SHARED | OWNER_WALK_SHARED => PageState::WalkShared,
            HOLDER_LOST => PageState::Lost,
            _ => PageState::Invalid,
        };
        let owned =
            matches!(kind, OWNER_INVALID | OWNER_SHARED | OWNER_MODIFIED | OWNER_WALK_SHARED);
        let role = if owned {
            let distance = (bits >> DISTANCE_SHIFT) as u64;
            Role::Owner {
                same_since: self::version(version.get().saturating_sub(distance)),
                migratory: (bits >> MIGRATORY_SHIFT) as u8 & 3,
                sharing: match state {
                    PageState::Modified => Sharing::Sole(second),
                    _ => Sharing::Copies(NodeSet::from_bits(second)),
                },
            }
        } else {
            Role::Holder {
                owner: NodeId::new((second >> OWNER_SHIFT) as usize).unwrap_or(NODE_ZERO),
                owner_since: self::version(second),
            }
        };
        Entry { state, version, role }
    }
}

/// The version in the lowest 48 bits of `bits`.
fn version(bits: u64) -> Version {
    Version::new(bits & Version::MAX.get()).unwrap_or_default()
}

const NODE_ZERO: NodeId = match NodeId::new(0) {
    Some(node) => node,
    None => unreachable!(),
};

/// Which node owns a page that nobody has touched: each node a contiguous range.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Homes {
    /// First page after the range of node `i`.
    pub(super) ends: Vec<u64>,
}

impl Homes {
    /// Spreads `pages` over the nodes in proportion to `shares`, in whole lease blocks.
    ///
    /// All shares zero counts as all equal.
    pub fn spread(pages: u64, lease_pages: u64, shares: &[u64]) -> Self {
        let blocks = u128::from(pages.div_ceil(lease_pages));
        let total: u128 = shares.iter().map(|&share| u128::from(share)).sum();
        let equal = total == 0;
        let total = if equal { shares.len() as u128 } else { total };
        let mut sum = 0u128;
        let ends = shares
            .iter()
            .map(|&share| {
                sum += if equal { 1 } else { u128::from(share) };
                let end = (blocks * sum).div_ceil(total) as u64 * lease_pages;
                end.min(pages)
            })
            .collect();
        Self { ends }
    }

    /// The first owner of `page`.
    pub fn of(&self, page: Page) -> NodeId {
        let index = self.ends.partition_point(|&end| end <= page.0);
        NodeId::new(index.min(self.ends.len().saturating_sub(1))).unwrap_or(NODE_ZERO)
    }
}

/// All pages of a region at one node.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Table {
    pub(super) me: NodeId,
    pages: u64,
    pub(super) lease_pages: u64,
    pub(super) homes: Homes,
    /// By lease block; absent until this node learns something of one of its pages.
    pub(super) blocks: Vec<Option<Box<[Packed]>>>,
    /// By lease block: [`Origin::code`].
    origins: Vec<u8>,
    /// By lease block: whether a first touch of it has been announced.
    pub(super) touched: Vec<bool>,
    /// Where hints lead since the last loss.
    pub(super) recoverers: Option<Recoverers>,
    /// This node joined when the region was there: it is the first owner of nothing.
    late: bool,
}

impl Table {
    pub(super) fn new(me: NodeId, pages: u64, lease_pages: u64, homes: Homes) -> Self {
        let blocks = pages.div_ceil(lease_pages) as usize;
        let (origins, touched) = (vec![Origin::Home.code(); blocks], vec![false; blocks]);
        let blocks = vec![None; blocks];
        Self {
            me,
            pages,
            lease_pages,
            homes,
            blocks,
            origins,
            touched,
            recoverers: None,
            late: false,
        }
    }

    /// This node has just joined: pages that count as its own by their number are not, and it does not
    /// know which blocks have been touched.
    pub(super) fn arrive(&mut self, as_first: bool) {
        self.late = !as_first;
        self.touched.fill(true);
    }

    /// Whether this node is the first owner of `page`.
    pub(super) fn is_first(&self, page: Page) -> bool {
        self.homes.of(page) == self.me && !self.late
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// The first page of the lease block of `page`.
    pub(super) fn block_start(&self, page: Page) -> Page {
        Page(page.0 - page.0 % self.lease_pages)
    }

    /// The pages of the lease block that starts at `start`.
    pub(super) fn block_pages(&self, start: Page) -> std::ops::Range<Page> {
        start..Page((start.0 + self.lease_pages).min(self.pages))
    }

    fn block_of(&self, page: Page) -> usize {
        (page.0 / self.lease_pages) as usize
    }

    /// Whether nothing is known here of any page of this block, but who its first owner is.
    pub(super) fn is_untouched(&self, page: Page) -> bool {
        let block = self.block_of(page);
        self.blocks[block].is_none() && self.origin(page) == Origin::Home
    }

    /// Records that `node` leased the untouched block of `page`.
    pub(super) fn lease(&mut self, page: Page, node: NodeId) {
        self.set_origin(page, Origin::Leased(node));
    }

    pub(super) fn get(&self, page: Page) -> Entry {
        let block = self.block_of(page);
        match &self.blocks[block] {
            Some(entries) => entries[(page.0 % self.lease_pages) as usize].entry(),
            None => self.initial(page),
        }
    }

    /// Whether this node may read `page`; not beyond the region.
    pub(super) fn is_readable(&self, page: Page) -> bool {
        let state = |page| self.get(page).state;
        page.0 < self.pages && !matches!(state(page), PageState::Invalid | PageState::Lost)
    }

    pub(super) fn put(&mut self, page: Page, entry: Entry) {
        let block = self.block_of(page);
        let at = (page.0 % self.lease_pages) as usize;
        if let Some(entries) = &mut self.blocks[block] {
            entries[at] = Packed::new(entry);
            return;
        }
        let first = self.block_start(page);
        // The initial entries of a block differ only by page, and not even by that.
        let mut entries =
            vec![Packed::new(self.initial(first)); self.lease_pages as usize].into_boxed_slice();
        entries[at] = Packed::new(entry);
        self.blocks[block] = Some(entries);
    }

    /// A page of which this node has heard nothing.
    fn initial(&self, page: Page) -> Entry {
        let (state, version) = (PageState::Invalid, Version::ZERO);
        let hint = |owner, owner_since| Role::Holder { owner, owner_since };
        let home = self.homes.of(page);
        let recoverer = self.recoverer(page).filter(|&recoverer| recoverer != self.me);
        match self.origin(page) {
            Origin::Home if self.is_first(page) => Self::untouched(Version::ZERO),
            Origin::Leased(owner) if owner == self.me => Self::untouched(LEASE_VERSION),
            Origin::Adopted => Self::untouched(LEASE_VERSION),
            Origin::Leased(owner) => Entry { state, version, role: hint(owner, LEASE_VERSION) },
            Origin::Pointed(owner) => Entry { state, version, role: hint(owner, version) },
            Origin::Home | Origin::Given => {
                Entry { state, version, role: hint(recoverer.unwrap_or(home), version) }
            }
            Origin::Lost => Entry { state: PageState::Lost, version, role: hint(home, version) },
        }
    }

    fn untouched(version: Version) -> Entry {
        let (same_since, sharing) = (Version::ZERO, Sharing::Copies(NodeSet::EMPTY));
        let role = Role::Owner { same_since, migratory: 0, sharing };
        Entry { state: PageState::Invalid, version, role }
    }

    /// Where the pages are of a lease block of which no single page is known.
    pub(super) fn origin(&self, page: Page) -> Origin {
        Origin::of_code(self.origins[self.block_of(page)])
    }

    pub(super) fn set_origin(&mut self, page: Page, origin: Origin) {
        let block = self.block_of(page);
        self.origins[block] = origin.code();
    }

    /// Bytes of metadata allocated.
    pub(super) fn allocated_bytes(&self) -> u64 {
        let touched = self.blocks.iter().flatten().count() as u64;
        let directory = (size_of::<Option<Box<[Packed]>>>() + 2) as u64 * self.blocks.len() as u64;
        touched * self.lease_pages * size_of::<Packed>() as u64 + directory
    }
}

/// Where the pages of a lease block are, as far as a node knows that knows of no single one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// At their first owner.
    Home,
    /// At the node that leased the block.
    Leased(NodeId),
    /// At the node that a survivor, ruling after a loss, found them at.
    Pointed(NodeId),
    /// This node, their first owner, gave them away before the last loss.
    Given,
    /// Here: their first owner was lost, and nobody has touched them.
    Adopted,
    /// Nowhere.
    Lost,
}

/// Codes of [`Origin`]: that of a lease is the node's index plus this.
const LEASED: u8 = 1;
const POINTED: u8 = LEASED + NODES_MAX as u8;
const GIVEN: u8 = POINTED + NODES_MAX as u8;
const ADOPTED: u8 = GIVEN + 1;
const LOST: u8 = ADOPTED + 1;

impl Origin {
    fn code(self) -> u8 {
        match self {
            Self::Home => 0,
            Self::Leased(node) => LEASED + node.index() as u8,
            Self::Pointed(node) => POINTED + node.index() as u8,
            Self::Given => GIVEN,
            Self::Adopted => ADOPTED,
            Self::Lost => LOST,
        }
    }

    fn of_code(code: u8) -> Self {
        let node = |first: u8| NodeId::new((code - first).into()).unwrap_or(NODE_ZERO);
        match code {
            0 => Self::Home,
            LEASED..POINTED => Self::Leased(node(LEASED)),
            POINTED..GIVEN => Self::Pointed(node(POINTED)),
            GIVEN => Self::Given,
            ADOPTED => Self::Adopted,
            _ => Self::Lost,
        }
    }
}

/// A lease is the first change of hands of its pages.
pub(super) const LEASE_VERSION: Version = Version::ZERO.next();

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: usize) -> NodeId {
        NodeId::new(index).unwrap()
    }

    #[test]
    fn entries_survive_packing() {
        let version = Version::new(0x1234_5678_9abc).unwrap();
        let owner_since = Version::MAX;
        for state in [PageState::Invalid, PageState::Shared, PageState::WalkShared] {
            for role in [
                Role::Holder { owner: node(63), owner_since },
                Role::Owner {
                    same_since: Version::new(version.get() - DISTANCE_MAX).unwrap(),
                    migratory: 3,
                    sharing: Sharing::Copies(NodeSet::from_bits(u64::MAX)),
                },
            ] {
                let entry = Entry { state, version, role };
                assert_eq!(Packed::new(entry).entry(), entry);
            }
        }
        let role = Role::Holder { owner: node(3), owner_since };
        let entry = Entry { state: PageState::Lost, version, role };
        assert_eq!(Packed::new(entry).entry(), entry);
        let role =
            Role::Owner { same_since: version, migratory: 1, sharing: Sharing::Sole(u64::MAX) };
        let entry = Entry { state: PageState::Modified, version, role };
        assert_eq!(Packed::new(entry).entry(), entry);
    }

    #[test]
    fn origins_survive_packing() {
        let nodes = [node(0), node(63)];
        let of_nodes = nodes.into_iter().flat_map(|it| [Origin::Leased(it), Origin::Pointed(it)]);
        for origin in of_nodes.chain([Origin::Home, Origin::Given, Origin::Adopted, Origin::Lost]) {
            assert_eq!(Origin::of_code(origin.code()), origin);
        }
    }

    #[test]
    fn bytes_unchanged_for_more_than_seven_versions_count_as_changed_later() {
        let version = Version::new(1000).unwrap();
        let role = Role::Owner {
            same_since: Version::ZERO,
            migratory: 0,
            sharing: Sharing::Copies(NodeSet::EMPTY),
        };
        let packed = Packed::new(Entry { state: PageState::Shared, version, role }).entry();
        let Role::Owner { same_since, .. } = packed.role else { panic!() };
        assert_eq!(same_since.get(), 993);
    }

    #[test]
    fn homes_follow_the_shares_in_whole_blocks() {
        let homes = Homes::spread(4096, 512, &[1, 2, 1]);
        assert_eq!(homes.of(Page(0)), node(0));
        assert_eq!(homes.of(Page(1023)), node(0));
        assert_eq!(homes.of(Page(1024)), node(1));
        assert_eq!(homes.of(Page(3071)), node(1));
        assert_eq!(homes.of(Page(4095)), node(2));
        let small = Homes::spread(3, 512, &[0, 0]);
        assert_eq!(small.of(Page(2)), node(0));
        // A node without a share owns nothing.
        let unequal = Homes::spread(1024, 512, &[0, 1]);
        assert_eq!(unequal.of(Page(0)), node(1));
    }

    #[test]
    fn a_table_allocates_by_block() {
        let homes = Homes::spread(1 << 20, 512, &[1, 1]);
        let mut table = Table::new(node(0), 1 << 20, 512, homes);
        let empty = table.allocated_bytes();
        let mut entry = table.get(Page(700));
        entry.state = PageState::Shared;
        table.put(Page(700), entry);
        assert_eq!(table.allocated_bytes() - empty, 512 * 15);
        assert!(table.is_untouched(Page(0)));
        assert!(!table.is_untouched(Page(512)));
        assert_eq!(table.get(Page(701)).state, PageState::Invalid);
        assert_eq!(table.get(Page(700)).state, PageState::Shared);
    }
}
