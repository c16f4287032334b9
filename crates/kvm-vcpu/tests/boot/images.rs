//! Kernels made here, machines to load them into, and their memory read back.

use kvm_vcpu::boot::layout::Layout;
use kvm_vcpu::boot::{Boot, BootError, BootParams, File, load};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const RSDP: u64 = 0xe_0000;

/// A machine with zeroed memory.
pub(crate) struct Machine {
    pub(crate) layout: Layout,
    pub(crate) memory: GuestMemoryMmap,
}

impl Machine {
    pub(crate) fn new(ram: u64) -> Self {
        let layout = Layout::new(ram).unwrap();
        let ranges: Vec<_> = layout
            .ranges()
            .iter()
            .map(|range| (GuestAddress(range.start), range.len as usize))
            .collect();
        Self { layout, memory: GuestMemoryMmap::from_ranges(&ranges).unwrap() }
    }

    pub(crate) fn params<'a>(&'a self, kernel: &'a [u8]) -> BootParams<'a> {
        BootParams {
            format: None,
            kernel: File { name: "kernel.img", bytes: kernel },
            cmdline: "quiet",
            initrd: None,
            modules: &[],
            layout: &self.layout,
            rsdp: Some(RSDP),
            tsc_khz: None,
        }
    }

    pub(crate) fn load(&self, kernel: &[u8]) -> Result<Boot, BootError> {
        load(&self.memory, &self.params(kernel))
    }

    pub(crate) fn get<T: ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    pub(crate) fn u32(&self, at: u64) -> u64 {
        self.get::<u32>(at).into()
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(crate) fn string(&self, at: u64) -> String {
        let bytes = (at..).map(|at| self.get::<u8>(at)).take_while(|&byte| byte != 0);
        String::from_utf8(bytes.collect()).unwrap()
    }

    /// All memory below 2 MiB, to compare.
    pub(crate) fn low(&self) -> Vec<u8> {
        self.bytes(0, 2 << 20)
    }
}

/// A segment of an ELF to be made.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) virtual_start: u64,
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory_len: u64,
}

impl Segment {
    /// A load segment with its virtual address equal to the physical.
    pub(crate) fn load(start: u64, bytes: &[u8], memory_len: u64) -> Self {
        Self { kind: 1, virtual_start: start, start, bytes: bytes.to_vec(), memory_len }
    }

    /// A note segment with another note first, and then PVH's, whose value has `width` bytes.
    pub(crate) fn pvh_note(entry: u64, width: usize) -> Self {
        let mut bytes = Vec::new();
        for (kind, name, value) in [
            (1u32, &b"GNU\0"[..], &[1, 2, 3, 4, 5][..]),
            (18, &b"Xen\0"[..], &entry.to_le_bytes()[..width]),
        ] {
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend((value.len() as u32).to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(name);
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let memory_len = bytes.len() as u64;
        Self { kind: 4, virtual_start: 0, start: 0, bytes, memory_len }
    }
}

/// An ELF of either class.
pub(crate) fn elf(wide: bool, machine: u16, entry: u64, segments: &[Segment]) -> Vec<u8> {
    let (header_len, entry_len) = if wide { (64, 56) } else { (52, 32) };
    let mut file = b"\x7fELF".to_vec();
    file.extend([if wide { 2 } else { 1 }, 1, 1]);
    file.resize(16, 0);
    file.extend([2, 0]);
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    let address = |file: &mut Vec<u8>, value: u64| {
        file.extend(&value.to_le_bytes()[..if wide { 8 } else { 4 }]);
    };
    address(&mut file, entry);
    address(&mut file, header_len);
    address(&mut file, 0);
    file.extend(0u32.to_le_bytes());
    for half in [header_len as u16, entry_len as u16, segments.len() as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    assert_eq!(file.len() as u64, header_len);

    let mut offset = header_len + entry_len * segments.len() as u64;
    for segment in segments {
        file.extend(segment.kind.to_le_bytes());
        if wide {
            file.extend(7u32.to_le_bytes());
        }
        let len = segment.bytes.len() as u64;
        for value in [offset, segment.virtual_start, segment.start, len, segment.memory_len] {
            address(&mut file, value);
        }
        if !wide {
            file.extend(7u32.to_le_bytes());
        }
        address(&mut file, 4);
        offset += len;
    }
    segments.iter().for_each(|segment| file.extend(&segment.bytes));
    file
}

/// A PVH kernel of one segment at 2 MiB, with more memory than bytes.
pub(crate) fn pvh_kernel() -> Vec<u8> {
    let segments = [Segment::load(2 * MIB, b"pvh code", 0x3000), Segment::pvh_note(2 * MIB + 4, 8)];
    elf(true, 62, 0xffff_ffff_8100_0000, &segments)
}

/// A Multiboot header; the words after the checksum follow.
pub(crate) fn multiboot_header(flags: u32, more: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    [&[magic, flags, checksum], more].concat().iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The fields of a bzImage that tests change.
#[derive(Clone, Copy)]
pub(crate) struct BzImage {
    pub(crate) version: u16,
    pub(crate) loadflags: u8,
    pub(crate) xloadflags: u16,
    pub(crate) relocatable: u8,
    pub(crate) alignment: u32,
    pub(crate) pref_address: u64,
    pub(crate) init_size: u32,
    pub(crate) initrd_addr_max: u32,
    pub(crate) cmdline_size: u32,
}

impl Default for BzImage {
    fn default() -> Self {
        Self {
            version: 0x20f,
            loadflags: 1,
            xloadflags: 0x7f,
            relocatable: 1,
            alignment: 2 << 20,
            pref_address: 16 << 20,
            init_size: 4 << 20,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
        }
    }
}

impl BzImage {
    /// The code is 1024 bytes of `c`.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = vec![0; 2 * 512];
        let mut set = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        set(0x1f1, &[1]);
        set(0x1f4, &64u32.to_le_bytes());
        set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        set(0x202, b"HdrS");
        set(0x206, &self.version.to_le_bytes());
        set(0x211, &[self.loadflags]);
        set(0x22c, &self.initrd_addr_max.to_le_bytes());
        set(0x230, &self.alignment.to_le_bytes());
        set(0x234, &[self.relocatable]);
        set(0x236, &self.xloadflags.to_le_bytes());
        set(0x238, &self.cmdline_size.to_le_bytes());
        set(0x258, &self.pref_address.to_le_bytes());
        set(0x260, &self.init_size.to_le_bytes());
        // After the header's end: must not reach the zero page.
        set(0x26c, &[0xee; 16]);
        file.resize(file.len() + 1024, b'c');
        file
    }
}
