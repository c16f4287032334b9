//! The entropy device (section 5.4): fills buffers with random bytes of the host.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::chain::{Broken, Chain};
use super::crew::{Rings, Worker};
use super::transport::Model;

const QUEUE_SIZE: u16 = 64;
/// Most that one request gets: a driver asks again, and the host's entropy is not for one guest.
const REQUEST_BYTES_MAX: usize = 4096;
/// Requests until the thread looks whether it is to stop.
const BURST: usize = 16;

/// A source of random numbers.
pub fn rng(name: &str) -> Model {
    Model {
        name: name.to_owned(),
        id: VIRTIO_ID_RNG as u16,
        class: [0x00, 0xff, 0x00],
        features: 0,
        config: Vec::new(),
        queues: vec![QUEUE_SIZE],
        jobs: vec![(Box::new(Rng), vec![0])],
    }
}

struct Rng;

impl Worker for Rng {
    fn serve(&mut self, rings: &mut Rings) -> Result<bool, Broken> {
        match rings.first_mut() {
            Some(Some(ring)) => ring.each(BURST, fill),
            _ => Ok(false),
        }
    }
}

fn fill(chain: &mut Chain) -> Result<u32, Broken> {
    let mut bytes = vec![0; chain.writable().min(REQUEST_BYTES_MAX)];
    let mut len = 0;
    while len < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[len..], rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => len += more,
            Err(rustix::io::Errno::INTR) => {}
            // What there is not can't be given; a driver takes less than it asked for.
            Err(_) => break,
        }
    }
    chain.write(&bytes[..len])?;
    Ok(chain.written())
}
