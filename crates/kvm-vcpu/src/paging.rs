//! Page tables of x86-64, as far as others than the processor need to read them (Intel SDM vol. 3,
//! chapter 5; AMD APM vol. 2, chapter 5).

use kvm_bindings::kvm_sregs;

/// Entries of a table.
pub const ENTRIES: usize = 512;

pub(crate) const PRESENT: u64 = 1 << 0;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
/// In a table of level 2 or 3: the entry maps a large page and names no table.
pub(crate) const LARGE: u64 = 1 << 7;
/// The physical address that an entry or CR3 names.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
pub(crate) const EFER_LMA: u64 = 1 << 10;

/// The table at which a processor begins its walks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Root {
    /// Its physical address.
    pub address: u64,
    /// Its level: 4, or 5 with five-level paging.
    pub level: u8,
}

impl Root {
    /// That of a processor in 64-bit mode; none in other modes, whose tables differ.
    pub fn of(sregs: &kvm_sregs) -> Option<Self> {
        let long =
            sregs.cr0 & CR0_PG != 0 && sregs.cr4 & CR4_PAE != 0 && sregs.efer & EFER_LMA != 0;
        let level = if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        long.then_some(Self { address: sregs.cr3 & ADDRESS, level })
    }

    /// The same in a word that is never 0.
    pub(crate) fn pack(self) -> u64 {
        self.address | u64::from(self.level)
    }

    /// What [`Root::pack`] made; none of 0.
    pub(crate) fn unpack(word: u64) -> Option<Self> {
        (word != 0).then_some(Self { address: word & ADDRESS, level: (word & 7) as u8 })
    }
}

/// The physical address of the table that an entry of a table of this level names, if it does.
pub fn names_table(level: u8, entry: u64) -> Option<u64> {
    let table = level > 1 && entry & PRESENT != 0 && !is_large(level, entry);
    table.then_some(entry & ADDRESS)
}

/// Whether these are the entries of a table in which a walk has nothing to set: each that is present
/// has the mark of being accessed, and the dirty mark where it lets programs write. An empty table is
/// none: as well it may be something else.
pub fn walks_store_nothing(level: u8, entries: &[u64; ENTRIES]) -> bool {
    let present = || entries.iter().filter(|entry| *entry & PRESENT != 0);
    let settled = |entry: u64| {
        let maps_page = level == 1 || is_large(level, entry);
        let clean = maps_page && entry & WRITABLE != 0 && entry & DIRTY == 0;
        entry & ACCESSED != 0 && !clean
    };
    present().next().is_some() && present().all(|&entry| settled(entry))
}

fn is_large(level: u8, entry: u64) -> bool {
    (2..=3).contains(&level) && entry & LARGE != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: u64 = 0x1234_5000 | PRESENT | ACCESSED | WRITABLE;
    const PAGE: u64 = TABLE | DIRTY;

    fn with(entry: u64) -> [u64; ENTRIES] {
        let mut entries = [0; ENTRIES];
        entries[7] = entry;
        entries
    }

    #[test]
    fn a_root_is_that_of_64_bit_mode() {
        let on = kvm_sregs {
            cr0: CR0_PG | 1,
            cr3: 0x1234_5018,
            cr4: CR4_PAE,
            efer: EFER_LMA,
            ..Default::default()
        };
        let root = Root { address: 0x1234_5000, level: 4 };
        assert_eq!(Root::of(&on), Some(root));
        let five = kvm_sregs { cr4: CR4_PAE | CR4_LA57, ..on };
        assert_eq!(Root::of(&five), Some(Root { level: 5, ..root }));
        for off in
            [kvm_sregs { cr0: 1, ..on }, kvm_sregs { cr4: 0, ..on }, kvm_sregs { efer: 0, ..on }]
        {
            assert_eq!(Root::of(&off), None);
        }
    }

    #[test]
    fn a_packed_root_comes_back() {
        for root in [Root { address: 0, level: 4 }, Root { address: ADDRESS, level: 5 }] {
            assert_eq!(Root::unpack(root.pack()), Some(root));
        }
        assert_eq!(Root::unpack(0), None);
    }

    #[test]
    fn an_entry_names_a_table_unless_it_maps_a_page() {
        assert_eq!(names_table(4, TABLE), Some(0x1234_5000));
        assert_eq!(names_table(1, TABLE), None);
        assert_eq!(names_table(4, TABLE & !PRESENT), None);
        for level in [2, 3] {
            assert_eq!(names_table(level, TABLE | LARGE), None);
            assert_eq!(names_table(level, TABLE), Some(0x1234_5000));
        }
        // The bit that no-execute and keys take are no address.
        assert_eq!(names_table(2, TABLE | 1 << 63 | 1 << 59), Some(0x1234_5000));
    }

    #[test]
    fn a_walk_stores_where_a_mark_is_missing() {
        assert!(walks_store_nothing(1, &with(PAGE)));
        assert!(!walks_store_nothing(1, &with(PAGE & !ACCESSED)));
        assert!(!walks_store_nothing(1, &with(PAGE & !DIRTY)), "a store through it sets the mark");
        assert!(walks_store_nothing(1, &with(PAGE & !DIRTY & !WRITABLE)), "nobody can store");
        assert!(walks_store_nothing(2, &with(TABLE)), "tables have no dirty mark");
        assert!(!walks_store_nothing(2, &with(TABLE | LARGE)));
        assert!(walks_store_nothing(2, &with(PAGE | LARGE)));
        assert!(!walks_store_nothing(2, &with(TABLE & !ACCESSED)));
    }

    #[test]
    fn what_is_not_present_is_of_no_interest_but_alone_no_table() {
        let swapped_out = 0xdead_0000 | DIRTY;
        let mut entries = with(PAGE);
        entries[9] = swapped_out;
        assert!(walks_store_nothing(1, &entries));
        assert!(!walks_store_nothing(1, &with(swapped_out)));
        assert!(!walks_store_nothing(4, &[0; ENTRIES]));
    }
}
