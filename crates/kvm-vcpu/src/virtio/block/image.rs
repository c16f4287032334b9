//! The file behind a disk.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

pub(super) const SECTOR_SHIFT: u32 = 9;
/// The unit of a disk's size.
pub(super) const SECTOR_BYTES: u64 = 1 << SECTOR_SHIFT;

/// Why a file can't be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is none.
    #[error("there is no {0}; make a disk with: truncate -s 8G {0}", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// This process may not write it.
    #[error(
        "{} can't be written; have the disk read-only, or allow this user to write the file",
        path.display()
    )]
    ReadOnly {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It can't be opened or asked.
    #[error("{} can't be opened", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is no file.
    #[error("{} is neither a file nor a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Someone else has it.
    #[error(
        "{} is in use by another program or disk; end that one, or have all of its disks read-only",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// It has no whole sectors.
    #[error(
        "{0} has {len} bytes, but a disk has a multiple of 512; make it longer with: truncate -s %512 \
         {0}",
        path.display()
    )]
    Size {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
}

/// A raw file or block device as a disk, locked against other programs that lock it (`flock`).
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// Opens and locks it: for this disk alone, or for any number of read-only ones.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let path = path.to_owned();
        let opened = OpenOptions::new().read(true).write(!read_only).open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(source) => return Err(why_not(path, read_only, source)),
        };
        let asked = file.metadata();
        let kind = match asked {
            Ok(metadata) => metadata.file_type(),
            Err(source) => return Err(DiskError::Open { path, source }),
        };
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind { path });
        }
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse { path }),
            Err(TryLockError::Error(error)) => {
                log::warn!(
                    "{} can't be locked ({error}): nothing keeps two machines from writing it",
                    path.display()
                );
            }
        }
        // A block device's metadata does not tell.
        let len = match file.seek(SeekFrom::End(0)) {
            Ok(len) => len,
            Err(source) => return Err(DiskError::Open { path, source }),
        };
        if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::Size { path, len });
        }
        Ok(Self { file, sectors: len >> SECTOR_SHIFT, read_only })
    }

    /// Its size.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it can't be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn read(&self, to: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(to, at)
    }

    pub(super) fn write(&self, from: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(from, at)
    }

    /// What was written before survives a loss of power.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }
}

fn why_not(path: PathBuf, read_only: bool, source: io::Error) -> DiskError {
    match source.kind() {
        ErrorKind::NotFound => DiskError::Missing { path },
        ErrorKind::IsADirectory => DiskError::Kind { path },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem if !read_only => {
            DiskError::ReadOnly { path, source }
        }
        _ => DiskError::Open { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("giantvm-disk-{}-{name}", std::process::id()))
    }

    fn disk(name: &str, len: u64) -> PathBuf {
        let path = place(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let error = Disk::open(&place("missing"), false).unwrap_err();
        assert!(matches!(error, DiskError::Missing { .. }));
        assert!(error.to_string().contains("truncate -s 8G /"), "{error}");
    }

    #[test]
    fn only_whole_sectors_are_a_disk() {
        for len in [0, 511, 513] {
            let path = disk(&format!("size-{len}"), len);
            let error = Disk::open(&path, true).unwrap_err();
            assert!(matches!(error, DiskError::Size { len: is, .. } if is == len), "{error}");
            assert!(error.to_string().contains("multiple of 512"), "{error}");
            std::fs::remove_file(path).unwrap();
        }
        let path = disk("size", 1024);
        assert_eq!(Disk::open(&path, true).unwrap().sectors(), 2);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let path = disk("lock", 512);
        let first = Disk::open(&path, true).unwrap();
        let second = Disk::open(&path, true).unwrap();
        let error = Disk::open(&path, false).unwrap_err();
        assert!(matches!(error, DiskError::InUse { .. }) && error.to_string().contains("in use"));
        drop((first, second));
        let writer = Disk::open(&path, false).unwrap();
        assert!(matches!(Disk::open(&path, true), Err(DiskError::InUse { .. })));
        drop(writer);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn other_things_than_files_are_refused() {
        let error = Disk::open(Path::new("/tmp"), false).unwrap_err();
        assert!(matches!(error, DiskError::Kind { .. }), "{error}");
        let error = Disk::open(Path::new("/dev/null"), false).unwrap_err();
        assert!(matches!(error, DiskError::Kind { .. }), "{error}");
    }

    #[test]
    fn a_file_that_can_not_be_written_says_what_to_do() {
        // Root may write every file, but no kernel lets anyone write there.
        let error = Disk::open(Path::new("/proc/version"), false).unwrap_err();
        assert!(matches!(error, DiskError::ReadOnly { .. } | DiskError::Open { .. }), "{error}");
        let denied = io::Error::from(ErrorKind::PermissionDenied);
        let error = why_not(place("denied"), false, denied);
        assert!(error.to_string().contains("have the disk read-only"), "{error}");
    }
}
