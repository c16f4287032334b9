//! The block device (section 5.2) over a raw file or a block device of the host.

mod image;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::chain::{Broken, Chain};
use super::crew::{Rings, Worker};
use super::transport::Model;
pub use image::{Disk, DiskError};
use image::{SECTOR_BYTES, SECTOR_SHIFT};

const QUEUE_SIZE: u16 = 128;
/// Header and status take a descriptor each.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes that go between file and guest at a time.
const PIECE_BYTES: usize = 128 << 10;
/// Requests until the thread looks whether it is to stop.
const BURST: usize = 16;

/// Kind, reserved, sector.
const HEADER_BYTES: usize = 16;

/// Bytes of the configuration up to the block size (section 5.2.4).
const CONFIG_BYTES: usize = 24;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_BLK_SIZE: usize = 20;

const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

impl Disk {
    /// The device; `name` is also the serial number that the guest sees.
    pub fn model(self, name: &str) -> Model {
        let mut config = vec![0; CONFIG_BYTES];
        config[..8].copy_from_slice(&self.sectors().to_le_bytes());
        config[CONFIG_SEG_MAX..CONFIG_SEG_MAX + 4].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        let size = &mut config[CONFIG_BLK_SIZE..CONFIG_BLK_SIZE + 4];
        size.copy_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
        let mut features =
            1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.is_read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        let block = Block { disk: self, id, buffer: vec![0; PIECE_BYTES] };
        Model {
            name: name.to_owned(),
            id: VIRTIO_ID_BLOCK as u16,
            class: [0x01, 0x80, 0x00],
            features,
            config,
            queues: vec![QUEUE_SIZE],
            jobs: vec![(Box::new(block), vec![0])],
        }
    }
}

struct Block {
    disk: Disk,
    id: [u8; ID_BYTES],
    /// Files never see the guest's memory.
    buffer: Vec<u8>,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Ok,
    Error,
    Unsupported,
}

impl From<std::io::Result<()>> for Status {
    fn from(result: std::io::Result<()>) -> Self {
        if result.is_ok() { Self::Ok } else { Self::Error }
    }
}

impl Worker for Block {
    fn serve(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        match rings.first_mut() {
            Some(Some(ring)) => ring.each(BURST, |chain| self.answer(chain)),
            _ => Ok(false),
        }
    }
}

impl Block {
    fn answer(&mut self, chain: &mut Chain) -> Result<u32, Broken> {
        let mut header = [0; HEADER_BYTES];
        if chain.read(&mut header)? < HEADER_BYTES {
            return Err(Broken::new("sent a request to a disk without a header"));
        }
        let Some(status_at) = chain.take_last() else {
            return Err(Broken::new("sent a request to a disk without room for its status"));
        };
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let status = match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => self.read(chain, sector)?,
            VIRTIO_BLK_T_OUT => self.write(chain, sector)?,
            VIRTIO_BLK_T_FLUSH => self.disk.flush().into(),
            VIRTIO_BLK_T_GET_ID => {
                chain.write(&self.id)?;
                Status::Ok
            }
            _ => Status::Unsupported,
        };
        let status = match status {
            Status::Ok => VIRTIO_BLK_S_OK,
            Status::Error => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        chain.put(&[status as u8], status_at)?;
        Ok(chain.written())
    }

    /// The byte at which a request begins, if the disk has all of it.
    fn place(&self, sector: u64, len: usize) -> Option<u64> {
        let sectors = len as u64 >> SECTOR_SHIFT;
        let whole = (len as u64).is_multiple_of(SECTOR_BYTES);
        let end = sector.checked_add(sectors)?;
        // No overflow: the disk's length in bytes is a u64.
        (whole && end <= self.disk.sectors()).then_some(sector << SECTOR_SHIFT)
    }

    fn read(&mut self, chain: &mut Chain, sector: u64) -> Result<Status, Broken> {
        let Some(mut at) = self.place(sector, chain.writable()) else { return Ok(Status::Error) };
        while chain.writable() > 0 {
            let piece = &mut self.buffer[..chain.writable().min(PIECE_BYTES)];
            if self.disk.read(piece, at).is_err() {
                return Ok(Status::Error);
            }
            at += chain.write(piece)? as u64;
        }
        Ok(Status::Ok)
    }

    fn write(&mut self, chain: &mut Chain, sector: u64) -> Result<Status, Broken> {
        let Some(mut at) = self.place(sector, chain.readable()) else { return Ok(Status::Error) };
        if self.disk.is_read_only() {
            return Ok(Status::Error);
        }
        while chain.readable() > 0 {
            let len = chain.read(&mut self.buffer)?;
            if self.disk.write(&self.buffer[..len], at).is_err() {
                return Ok(Status::Error);
            }
            at += len as u64;
        }
        Ok(Status::Ok)
    }
}
