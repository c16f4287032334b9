//! QEMU's firmware configuration (docs/specs/fw_cfg in QEMU) by ports: the selector at 0x510, the
//! data at 0x511. Read-only, without DMA.

use std::sync::{Arc, Mutex};

use super::host::lock;
use crate::bus::{Data, Simple};

/// Offset of the selector, written with 2 bytes.
const SELECTOR: u64 = 0;

const SIGNATURE: u16 = 0x0000;
const ID: u16 = 0x0001;
const RAM_SIZE: u16 = 0x0003;
const NB_CPUS: u16 = 0x0005;
const MAX_CPUS: u16 = 0x000f;
const FILE_DIR: u16 = 0x0019;
const FIRST_FILE: u16 = 0x0020;
/// Selectors from here on mean something else.
const AFTER_LAST_FILE: u16 = 0x4000;
const NAME_MAX: usize = 55;

/// ID: the traditional interface, no DMA.
const FEATURES: u32 = 1;

/// What it tells of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FwCfgMachine {
    /// vCPUs that are there at the start.
    pub cpus: u16,
    /// vCPUs that there may ever be.
    pub cpus_max: u16,
    /// Bytes of guest memory.
    pub ram_bytes: u64,
}

/// Why a file cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// Bad name.
    #[error("fw_cfg file name {0:?} is not 1 to 55 bytes without NUL: choose another")]
    Name(String),
    /// Name taken.
    #[error("fw_cfg has a file {0} already: name each once")]
    Duplicate(String),
    /// Too long.
    #[error("fw_cfg file {name} has {len} bytes, more than 4 GiB - 1: pass it another way")]
    Size {
        /// The file.
        name: String,
        /// Its bytes.
        len: usize,
    },
    /// No selector left.
    #[error("fw_cfg has no room for file {0}: it holds 16352")]
    Full(String),
}

/// The device.
#[derive(Debug)]
pub struct FwCfg {
    machine: FwCfgMachine,
    /// By name, and so by selector.
    files: Vec<(String, Arc<[u8]>)>,
    cursor: Mutex<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    item: Arc<[u8]>,
    /// Bytes read of it.
    at: usize,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { item: Arc::from(*b"QEMU"), at: 0 }
    }
}

impl Cursor {
    fn next(&mut self) -> u8 {
        let byte = self.item.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        byte.unwrap_or(0)
    }
}

impl FwCfg {
    /// Tells of `machine`, and holds `files` (a name such as `opt/org.example/key`, and contents).
    ///
    /// # Errors
    ///
    /// If a name is bad or there twice, or a file does not fit the format.
    pub fn new(
        machine: FwCfgMachine,
        files: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<Self, FwCfgError> {
        let mut all: Vec<(String, Arc<[u8]>)> = Vec::new();
        for (name, bytes) in files {
            if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
                return Err(FwCfgError::Name(name));
            }
            if u32::try_from(bytes.len()).is_err() {
                return Err(FwCfgError::Size { name, len: bytes.len() });
            }
            if all.len() >= usize::from(AFTER_LAST_FILE - FIRST_FILE) {
                return Err(FwCfgError::Full(name));
            }
            all.push((name, bytes.into()));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(pair) = all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(FwCfgError::Duplicate(pair[0].0.clone()));
        }
        Ok(Self { machine, files: all, cursor: Mutex::default() })
    }

    /// What a selector chooses; nothing for those that are unknown.
    fn item(&self, selector: u16) -> Arc<[u8]> {
        match selector {
            SIGNATURE => Arc::from(*b"QEMU"),
            ID => Arc::from(FEATURES.to_le_bytes()),
            RAM_SIZE => Arc::from(self.machine.ram_bytes.to_le_bytes()),
            NB_CPUS => Arc::from(self.machine.cpus.to_le_bytes()),
            MAX_CPUS => Arc::from(self.machine.cpus_max.to_le_bytes()),
            FILE_DIR => self.directory(),
            _ => {
                let index = selector.checked_sub(FIRST_FILE).map(usize::from);
                let file = index.and_then(|index| self.files.get(index));
                file.map(|(_, bytes)| Arc::clone(bytes)).unwrap_or_default()
            }
        }
    }

    /// Big-endian, unlike the rest: a count, then size, selector, 2 reserved bytes and 56 of name.
    fn directory(&self) -> Arc<[u8]> {
        let mut bytes = Vec::from((self.files.len() as u32).to_be_bytes());
        for (selector, (name, file)) in (FIRST_FILE..).zip(&self.files) {
            bytes.extend((file.len() as u32).to_be_bytes());
            bytes.extend(selector.to_be_bytes());
            bytes.extend([0; 2]);
            bytes.extend(name.bytes().chain(std::iter::repeat(0)).take(NAME_MAX + 1));
        }
        bytes.into()
    }
}

impl Simple for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    /// The next bytes of the item, zeros after its end; at either port, as in QEMU.
    fn read(&self, offset: u64, len: usize) -> Data {
        let mut cursor = lock(&self.cursor);
        Data::gather(offset, len, |_| cursor.next())
    }

    fn write(&self, offset: u64, data: Data) {
        if offset == SELECTOR && data.len() == 2 {
            let item = self.item(data.to_u64() as u16);
            *lock(&self.cursor) = Cursor { item, at: 0 };
        }
    }

    fn reset(&self) {
        *lock(&self.cursor) = Cursor::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: FwCfgMachine = FwCfgMachine { cpus: 3, cpus_max: 8, ram_bytes: 5 << 30 };

    fn read(device: &FwCfg, selector: u16, len: usize) -> Vec<u8> {
        device.write(0, Data::from_u64(selector.into(), 2));
        (0..len).map(|_| device.read(1, 1).to_u64() as u8).collect()
    }

    #[test]
    fn tells_of_the_machine() {
        let device = FwCfg::new(MACHINE, []).unwrap();
        assert_eq!(read(&device, 0, 6), b"QEMU\0\0");
        assert_eq!(read(&device, 1, 4), [1, 0, 0, 0]);
        assert_eq!(read(&device, 3, 8), (5u64 << 30).to_le_bytes());
        assert_eq!(read(&device, 5, 2), [3, 0]);
        assert_eq!(read(&device, 0xf, 2), [8, 0]);
        assert_eq!(read(&device, 0x19, 5), [0; 5]);
        assert_eq!(read(&device, 0xffff, 2), [0; 2]);
    }

    #[test]
    fn files_are_found_by_the_directory() {
        let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
        let files = [file("opt/b", b"second"), file("opt/a", b"first")];
        let device = FwCfg::new(MACHINE, files).unwrap();
        let directory = read(&device, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        for (entry, name, bytes) in [(0, "opt/a", "first"), (1, "opt/b", "second")] {
            let entry = &directory[4 + entry * 64..][..64];
            assert_eq!(entry[..4], (bytes.len() as u32).to_be_bytes());
            assert_eq!(entry[8..][..6], *format!("{name}\0").as_bytes());
            let selector = u16::from_be_bytes([entry[4], entry[5]]);
            assert_eq!(read(&device, selector, bytes.len()), bytes.as_bytes());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refuse = |names: &[&str]| {
            let files = names.iter().map(|name| ((*name).to_owned(), vec![]));
            FwCfg::new(MACHINE, files.collect::<Vec<_>>()).unwrap_err()
        };
        assert!(matches!(refuse(&[""]), FwCfgError::Name(_)));
        assert!(matches!(refuse(&[&"x".repeat(56)]), FwCfgError::Name(_)));
        assert_eq!(refuse(&["a", "b", "a"]), FwCfgError::Duplicate("a".to_owned()));
    }
}
