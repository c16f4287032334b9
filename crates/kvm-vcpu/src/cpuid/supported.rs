//! What one node's KVM supports, as it crosses the network.

use kvm_bindings::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_CPUID_FLAG_STATE_READ_NEXT, KVM_CPUID_FLAG_STATEFUL_FUNC,
    kvm_cpuid_entry2,
};

/// The CPUID leaves that one node's KVM can give to a guest (`KVM_GET_SUPPORTED_CPUID`).
///
/// On the wire: a version byte, the number of entries (u16), then for each entry function, index,
/// flags, EAX, EBX, ECX and EDX (u32 each); all little-endian.
#[derive(Clone, PartialEq, Debug)]
pub struct Supported(Vec<kvm_cpuid_entry2>);

/// Why entries are not a processor's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The other side speaks another version of this format.
    #[error(
        "CPUID in format {found}, this build reads {}: run the same giantvm everywhere",
        Supported::VERSION
    )]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Not as long as it says.
    #[error("CPUID message of {found} bytes, its entries need {expected}")]
    Length {
        /// Bytes of the message.
        found: usize,
        /// Bytes that its header and entries take.
        expected: usize,
    },
    /// More entries than KVM itself takes.
    #[error("{found} CPUID entries, at most {} make sense", Supported::ENTRIES_MAX)]
    TooMany {
        /// Entries.
        found: usize,
    },
    /// A leaf is there twice.
    #[error("CPUID leaf {function:#x}, index {index}, is there twice")]
    Duplicate {
        /// EAX.
        function: u32,
        /// ECX.
        index: u32,
    },
    /// A flag that KVM doesn't define.
    #[error("CPUID leaf {function:#x}, index {index}, has unknown flags {flags:#x}")]
    Flags {
        /// EAX.
        function: u32,
        /// ECX.
        index: u32,
        /// The flags.
        flags: u32,
    },
    /// Leaf 0, the vendor's name, is missing.
    #[error("CPUID without leaf 0")]
    NoVendor,
}

const HEADER_LEN: usize = 3;
const ENTRY_LEN: usize = 28;

impl Supported {
    /// The version of the format.
    pub const VERSION: u8 = 1;
    /// Most entries (KVM's own limit, `KVM_MAX_CPUID_ENTRIES` in the kernel).
    pub const ENTRIES_MAX: usize = 256;

    /// Checks what KVM, or another node, says.
    ///
    /// # Errors
    /// Too many entries, unknown flags, a leaf twice, or no leaf 0.
    pub fn new(entries: Vec<kvm_cpuid_entry2>) -> Result<Self, DecodeError> {
        const FLAGS: u32 = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            | KVM_CPUID_FLAG_STATEFUL_FUNC
            | KVM_CPUID_FLAG_STATE_READ_NEXT;
        if entries.len() > Self::ENTRIES_MAX {
            return Err(DecodeError::TooMany { found: entries.len() });
        }
        if let Some(e) = entries.iter().find(|e| e.flags & !FLAGS != 0) {
            let (function, index, flags) = (e.function, e.index, e.flags);
            return Err(DecodeError::Flags { function, index, flags });
        }
        let mut names: Vec<_> = entries.iter().map(|e| (e.function, e.index)).collect();
        names.sort_unstable();
        let twice = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b);
        if let Some((&(function, index), _)) = twice {
            return Err(DecodeError::Duplicate { function, index });
        }
        if names.first() != Some(&(0, 0)) {
            return Err(DecodeError::NoVendor);
        }
        Ok(Self(entries))
    }

    /// The leaves.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.0
    }

    /// As bytes for other nodes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.0.len() * ENTRY_LEN);
        bytes.push(Self::VERSION);
        // `new` has checked that there are few.
        bytes.extend((self.0.len() as u16).to_le_bytes());
        for e in &self.0 {
            for word in [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes
    }

    /// From another node's bytes.
    ///
    /// # Errors
    /// Anything but what [`Supported::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let short = DecodeError::Length { found: bytes.len(), expected: HEADER_LEN };
        let (&version, rest) = bytes.split_first().ok_or(short)?;
        if version != Self::VERSION {
            return Err(DecodeError::Version { found: version });
        }
        let (count, entries) = rest.split_first_chunk::<2>().ok_or(short)?;
        let count = usize::from(u16::from_le_bytes(*count));
        if count > Self::ENTRIES_MAX {
            return Err(DecodeError::TooMany { found: count });
        }
        if entries.len() != count * ENTRY_LEN {
            let expected = HEADER_LEN + count * ENTRY_LEN;
            return Err(DecodeError::Length { found: bytes.len(), expected });
        }
        let (entries, _) = entries.as_chunks::<ENTRY_LEN>();
        Self::new(entries.iter().map(decode_entry).collect())
    }
}

fn decode_entry(bytes: &[u8; ENTRY_LEN]) -> kvm_cpuid_entry2 {
    let (words, _) = bytes.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let mut next = || words.next().unwrap_or_default();
    kvm_cpuid_entry2 {
        function: next(),
        index: next(),
        flags: next(),
        eax: next(),
        ebx: next(),
        ecx: next(),
        edx: next(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, flags: 1, eax: 0x8765_4321, ..Default::default() }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let supported = Supported::new(vec![entry(0, 0), entry(4, 0), entry(4, 1)]).unwrap();
        assert_eq!(Supported::decode(&supported.encode()), Ok(supported));
    }

    #[test]
    fn wrong_bytes_are_refused_with_what_is_wrong() {
        let good = Supported::new(vec![entry(0, 0)]).unwrap().encode();
        let decode = |bytes: &[u8]| Supported::decode(bytes).unwrap_err();
        assert_eq!(decode(&[]), DecodeError::Length { found: 0, expected: 3 });
        assert_eq!(decode(&[9, 0, 0]), DecodeError::Version { found: 9 });
        assert_eq!(decode(&[1, 0, 0]), DecodeError::NoVendor);
        assert_eq!(decode(&[1, 1, 1]), DecodeError::TooMany { found: 257 });
        assert_eq!(decode(&good[..30]), DecodeError::Length { found: 30, expected: 31 });
        let longer = [&good[..], &[0]].concat();
        assert_eq!(decode(&longer), DecodeError::Length { found: 32, expected: 31 });
        let twice = [&[1, 2, 0], &good[3..], &good[3..]].concat();
        assert_eq!(decode(&twice), DecodeError::Duplicate { function: 0, index: 0 });
        let mut flags = good;
        flags[11] = 0x80;
        assert_eq!(decode(&flags), DecodeError::Flags { function: 0, index: 0, flags: 0x80 });
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            let mut bytes = bytes;
            if valid && bytes.len() >= 3 {
                bytes[0] = Supported::VERSION;
                bytes[1] = ((bytes.len() - 3) / ENTRY_LEN) as u8;
                bytes[2] = 0;
                bytes.truncate(3 + (bytes.len() - 3) / ENTRY_LEN * ENTRY_LEN);
            }
            if let Ok(supported) = Supported::decode(&bytes) {
                prop_assert_eq!(supported.encode(), bytes);
            }
        }
    }
}
