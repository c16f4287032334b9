//! The control queue (section 5.1.6.5): how many pairs of queues are in use.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::Tap;
use crate::virtio::chain::{Broken, Chain};

/// Class, command, and two bytes of data.
const COMMAND_BYTES: usize = 4;

/// Obeys a command.
pub(super) fn obey(tap: &Tap, chain: &mut Chain) -> Result<u32, Broken> {
    let mut command = [0; COMMAND_BYTES];
    let len = chain.read(&mut command)?;
    let [class, code, low, high] = command;
    let set_pairs = (class.into(), code.into())
        == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
        && len == COMMAND_BYTES;
    let done = set_pairs && tap.use_queues(u16::from_le_bytes([low, high])).is_ok();
    let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
    if chain.write(&[answer as u8])? == 0 {
        return Err(Broken::new("sent a network command without room for the answer"));
    }
    Ok(chain.written())
}
