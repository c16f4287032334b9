//! Connects to the nodes earlier in the list, as often as it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dsm_core::transport::{Address, Options, Stream, dial};
use dsm_core::types::NodeId;
use dsm_core::wire::{Channel, Hello, Identity};

use super::config::NodeConfig;
use super::driver::{Inbox, ToDriver};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between attempts while the other node is not there yet.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection that stands.
pub(super) struct Connected {
    pub(super) peer: NodeId,
    pub(super) hello: Hello,
    pub(super) stream: Stream,
}

/// Starts a thread that connects all channels to `peer` and hands them to the driver.
pub(super) fn start(
    config: &Arc<NodeConfig>,
    local: Identity,
    peer: NodeId,
    address: Address,
    inbox: Inbox,
    stop: Arc<AtomicBool>,
) -> std::io::Result<()> {
    let config = Arc::clone(config);
    let connect = move || {
        let workers = (0..config.workers).map(|worker| Channel::Worker(worker as u8));
        for channel in [Channel::Control, Channel::Vm].into_iter().chain(workers) {
            let hello = config.hello(local, peer, channel);
            loop {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                match dial(&address, &hello, Instant::now() + ATTEMPT, Options::default()) {
                    Ok((stream, answer)) => {
                        let hello = Hello { channel, ..answer };
                        let connected = Connected { peer, hello, stream };
                        inbox.send(ToDriver::Connected(Box::new(connected)));
                        break;
                    }
                    Err(error) => {
                        let reason = dsm_core::report::chain(&error);
                        inbox.send(ToDriver::DialFailed { peer, reason });
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
    };
    std::thread::Builder::new().name(format!("gvm-dial-{peer}")).spawn(connect).map(drop)
}
