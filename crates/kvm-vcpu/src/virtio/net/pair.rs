//! A receive queue and a transmit queue, and the thread that serves them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::control;
use super::tap::{HEADER_BYTES, PACKET_BYTES_MAX, Tap};
use crate::virtio::chain::{Broken, Chain};
use crate::virtio::crew::{Rings, Worker};
use crate::virtio::ring::Ring;

/// Packets of one direction until the other has its turn.
const BURST: usize = 64;
/// Where in a packet's header the driver finds over how many buffers it is spread.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

pub(super) struct Pair {
    tap: Arc<Tap>,
    index: u16,
    /// A packet may be spread over several buffers.
    merges: bool,
    /// A packet to the guest, with its header; taps never see the guest's memory.
    incoming: Vec<u8>,
    /// Bytes of a packet in there that waits for buffers; 0 is none.
    waiting: usize,
    /// A packet from the guest.
    outgoing: Vec<u8>,
}

impl Pair {
    pub(super) fn new(tap: Arc<Tap>, index: u16) -> Self {
        let packet = || vec![0; PACKET_BYTES_MAX];
        Self { tap, index, merges: false, incoming: packet(), waiting: 0, outgoing: packet() }
    }

    fn receive(&mut self, ring: &mut Ring) -> Result<bool, Broken> {
        let mut count = 0;
        while count < BURST {
            if self.waiting == 0 {
                self.waiting = self.tap.receive(self.index, &mut self.incoming);
            }
            if self.waiting == 0 {
                break;
            }
            let Some(buffers) = self.buffers(ring)? else { break };
            self.deliver(ring, buffers)?;
            self.waiting = 0;
            count += 1;
        }
        if count > 0 {
            ring.signal()?;
        }
        Ok(count == BURST)
    }

    /// Buffers for the packet that waits. Too few stay where they are, and a kick tells of more.
    fn buffers(&self, ring: &mut Ring) -> Result<Option<Vec<Chain>>, Broken> {
        let (mut buffers, mut room) = (Vec::new(), 0);
        while room < self.waiting && (self.merges || buffers.is_empty()) {
            let Some(chain) = ring.pop()? else {
                // Before the others are put back: the driver is to kick for what comes after them.
                if ring.rest()? {
                    continue;
                }
                ring.put_back(buffers.len());
                return Ok(None);
            };
            if chain.writable() < HEADER_BYTES {
                return Err(Broken::new("gave a buffer too small for the header of a packet"));
            }
            room += chain.writable();
            buffers.push(chain);
        }
        Ok(Some(buffers))
    }

    fn deliver(&mut self, ring: &mut Ring, buffers: Vec<Chain>) -> Result<(), Broken> {
        let count = buffers.len() as u16;
        self.incoming[NUM_BUFFERS].copy_from_slice(&count.to_le_bytes());
        let mut at = 0;
        for mut chain in buffers {
            at += chain.write(&self.incoming[at..self.waiting])?;
            // A packet that is too long for a driver that can't merge arrives cut off, and is dropped
            // there for its checksum; the driver asked for none that long.
            ring.push(chain.head(), chain.written())?;
        }
        Ok(())
    }

    fn transmit(&mut self, ring: &mut Ring) -> Result<bool, Broken> {
        ring.each(BURST, |chain| {
            let len = chain.read(&mut self.outgoing)?;
            if len < HEADER_BYTES {
                return Err(Broken::new("sent a packet without its header"));
            }
            // What is longer than any packet is none.
            if chain.readable() == 0 {
                self.tap.send(self.index, &self.outgoing[..len]);
            }
            Ok(0)
        })
    }
}

impl Worker for Pair {
    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.tap.queue(self.index)
    }

    fn start(&mut self, features: u64) {
        self.merges = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.waiting = 0;
        if self.index == 0 {
            self.tap.prepare(features);
        }
    }

    fn serve(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        let mut more = false;
        if let Some(Some(ring)) = rings.get_mut(2) {
            let tap = &self.tap;
            more |= ring.each(BURST, |chain| control::obey(tap, chain))?;
        }
        if let Some(Some(ring)) = rings.get_mut(1) {
            more |= self.transmit(ring)?;
        }
        if let Some(Some(ring)) = rings.get_mut(0) {
            more |= self.receive(ring)?;
        }
        Ok(more)
    }
}
