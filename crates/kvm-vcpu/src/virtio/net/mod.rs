//! The network device (section 5.1) over a tap of the host, with any number of queue pairs.

mod address;
mod control;
mod pair;
mod tap;

use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::crew::Job;
use super::transport::Model;
pub use address::{MacAddress, MacError};
use pair::Pair;
pub use tap::{Tap, TapError};

const QUEUE_SIZE: u16 = 128;
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Address, status, queue pairs (section 5.1.4).
const CONFIG_BYTES: usize = 10;

/// What the host's kernel does for a packet on its way to the guest, and for one from there.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6;

/// A network interface whose packets go through `tap`, with a pair of queues and a thread for each of
/// the tap's.
pub fn net(name: &str, tap: Tap, mac: MacAddress) -> Model {
    let pairs = tap.queues();
    let mut features = OFFLOADS
        | 1 << VIRTIO_NET_F_MAC
        | 1 << VIRTIO_NET_F_STATUS
        | 1 << VIRTIO_NET_F_MRG_RXBUF
        | 1 << VIRTIO_NET_F_CTRL_VQ;
    if pairs > 1 {
        features |= 1 << VIRTIO_NET_F_MQ;
    }
    let mut config = Vec::with_capacity(CONFIG_BYTES);
    config.extend(mac.0);
    config.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    config.extend(pairs.to_le_bytes());

    let tap = Arc::new(tap);
    let mut queues = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
    queues.push(CONTROL_QUEUE_SIZE);
    let job = |index: u16| {
        let mut queues = vec![2 * index, 2 * index + 1];
        // The control queue is served beside the first pair, the only one that is always used.
        if index == 0 {
            queues.push(2 * pairs);
        }
        let pair: Job = (Box::new(Pair::new(Arc::clone(&tap), index)), queues);
        pair
    };
    Model {
        name: name.to_owned(),
        id: VIRTIO_ID_NET as u16,
        class: [0x02, 0x00, 0x00],
        features,
        config,
        queues,
        jobs: (0..pairs).map(job).collect(),
    }
}

#[cfg(test)]
mod tests;
