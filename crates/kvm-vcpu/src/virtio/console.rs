//! The console device (section 5.3) with one port: bytes to and from the host.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::chain::Broken;
use super::crew::{Kick, Rings, Worker};
use super::ring::Ring;
use super::transport::Model;
use crate::devices::{ByteSink, lock};

const QUEUE_SIZE: u16 = 64;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Bytes that wait for the guest, at most.
const INPUT_MAX: usize = 64 << 10;
/// Bytes that are passed on at a time.
const PIECE_BYTES: usize = 4096;
/// Requests until the thread looks whether it is to stop.
const BURST: usize = 64;

/// The way into a console; clones lead to the same.
#[derive(Clone)]
pub struct ConsoleInput {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    wake: Kick,
}

impl ConsoleInput {
    /// Gives the guest input; says how much of it there was room for.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut waiting = lock(&self.bytes);
            let taken = bytes.len().min(INPUT_MAX.saturating_sub(waiting.len()));
            waiting.extend(&bytes[..taken]);
            taken
        };
        self.wake.kick();
        taken
    }
}

/// A console whose output goes to `output`, on a thread of the device, and the way into it.
///
/// # Errors
/// If the host has no event descriptor left.
pub fn console(name: &str, output: Arc<dyn ByteSink>) -> std::io::Result<(Model, ConsoleInput)> {
    let input = ConsoleInput { bytes: Arc::default(), wake: Kick::new()? };
    let port = Port { input: input.clone(), output };
    let model = Model {
        name: name.to_owned(),
        id: VIRTIO_ID_CONSOLE as u16,
        class: [0x07, 0x80, 0x00],
        features: 0,
        // Columns, rows, ports, emergency write: none of them is offered.
        config: vec![0; 12],
        queues: vec![QUEUE_SIZE; 2],
        jobs: vec![(Box::new(port), vec![RECEIVE, TRANSMIT])],
    };
    Ok((model, input))
}

struct Port {
    input: ConsoleInput,
    output: Arc<dyn ByteSink>,
}

impl Port {
    fn receive(&self, ring: &mut Ring) -> Result<bool, Broken> {
        let mut count = 0;
        while count < BURST && !lock(&self.input.bytes).is_empty() {
            let Some(mut chain) = ring.pop()? else {
                // Kicked from now on, when there are buffers.
                if ring.rest()? {
                    continue;
                }
                break;
            };
            let bytes: Vec<u8> = {
                let mut waiting = lock(&self.input.bytes);
                let len = waiting.len().min(chain.writable()).min(PIECE_BYTES);
                waiting.drain(..len).collect()
            };
            chain.write(&bytes)?;
            ring.push(chain.head(), chain.written())?;
            count += 1;
        }
        if count > 0 {
            ring.signal()?;
        }
        Ok(count == BURST)
    }

    fn transmit(&self, ring: &mut Ring) -> Result<bool, Broken> {
        ring.each(BURST, |chain| {
            let mut piece = [0; PIECE_BYTES];
            while chain.readable() > 0 {
                let len = chain.read(&mut piece)?;
                self.output.put(&piece[..len]);
            }
            Ok(0)
        })
    }
}

impl Worker for Port {
    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.input.wake.as_fd())
    }

    fn serve(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        let [receive, transmit] = &mut rings[..] else { return Ok(false) };
        let mut more = false;
        if let Some(ring) = receive {
            more |= self.receive(ring)?;
        }
        if let Some(ring) = transmit {
            more |= self.transmit(ring)?;
        }
        Ok(more)
    }
}
