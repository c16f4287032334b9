//! The bytes of a file, read with care, and what they seem to be.

use super::elf;
use super::error::Fault;
use super::linux;

/// `len` bytes at `at`, or what is missing.
pub(super) fn slice<'a>(bytes: &'a [u8], at: u64, len: u64, what: &str) -> Result<&'a [u8], Fault> {
    let end = at.saturating_add(len);
    let range = usize::try_from(at).ok().zip(usize::try_from(end).ok());
    range.and_then(|(at, end)| bytes.get(at..end)).ok_or_else(|| Fault::Truncated {
        what: what.to_owned(),
        end,
        len: bytes.len() as u64,
    })
}

/// The two bytes at `at`, little-endian.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

/// The four bytes at `at`, little-endian.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The eight bytes at `at`, little-endian.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Beginnings of files that people take for kernels.
const MAGICS: [(&[u8], &str); 15] = [
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"\x04\x22\x4d\x18", "an LZ4 file: unpack it first"),
    (b"\x02\x21\x4c\x18", "an LZ4 file: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"PK\x03\x04", "a zip file"),
    (b"07070", "a cpio archive, such as an initrd"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"!<arch>\n", "an archive of object files or a Debian package"),
    (b"\xd0\x0d\xfe\xed", "a device tree"),
    (b"\xfe\xed\xfa", "a Mach-O file"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    (b"#!", "a script"),
    (b"MZ", "a PE file (an EFI or Windows program)"),
];

/// Says what a file is, as far as its first bytes tell, and how long it is.
pub(super) fn describe(bytes: &[u8]) -> String {
    let len = bytes.len();
    if len == 0 {
        return "an empty file".to_owned();
    }
    if bytes.starts_with(elf::MAGIC) {
        return format!("{} of {len} bytes", elf::describe(bytes));
    }
    // Before the magics: it may be a program of EFI as well.
    if linux::is_linux(bytes) {
        return format!("a Linux kernel of {len} bytes with a setup header (bzImage or zImage)");
    }
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return format!("{what} ({len} bytes)");
    }
    if u16_at(bytes, 510) == Some(0xaa55) {
        return format!("a boot sector or disk image of {len} bytes");
    }
    let first: Vec<_> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("a file of {len} bytes that begins with {}", first.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_take_for_kernels_is_told_apart() {
        assert_eq!(describe(b""), "an empty file");
        assert_eq!(describe(b"\x1f\x8b\x08"), "a gzip file: unpack it first (3 bytes)");
        assert_eq!(describe(b"hi"), "a file of 2 bytes that begins with 68 69");
        let mut sector = [0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(describe(&sector), "a boot sector or disk image of 512 bytes");
    }

    #[test]
    fn reads_beyond_the_end_find_nothing() {
        assert_eq!(u16_at(&[1], 0), None);
        assert_eq!(u32_at(&[1, 2, 3, 4, 5], 1), Some(0x0504_0302));
        assert_eq!(u64_at(&[0; 8], usize::MAX), None);
        assert!(slice(&[0; 8], u64::MAX, 2, "x").is_err());
        assert_eq!(slice(&[0; 8], 8, 0, "x").unwrap(), b"");
    }
}
