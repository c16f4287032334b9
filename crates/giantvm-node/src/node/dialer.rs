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

/// A connection that stands.
pub(super) struct Connected {
    pub(super) peer: NodeId,
    pub(super) hello: Hello,
    pub(super) stream: Stream,
}

/// What a thread that connects needs.
pub(super) struct Dialer {
    pub(super) config: Arc<NodeConfig>,
    pub(super) local: Identity,
    pub(super) peer: NodeId,
    pub(super) address: Address,
    /// Pause between attempts while the other node is not there yet.
    pub(super) pause: Duration,
    pub(super) inbox: Inbox,
    pub(super) stop: Arc<AtomicBool>,
}

impl Dialer {
    /// Starts a thread that connects all channels to the peer, hands them to the driver, and says when
    /// it has ended. It ends early if another process answers than at first.
    pub(super) fn start(self) -> std::io::Result<()> {
        let name = format!("gvm-dial-{}", self.peer);
        let connect = move || {
            self.connect();
            self.inbox.send(ToDriver::DialEnded { peer: self.peer });
        };
        std::thread::Builder::new().name(name).spawn(connect).map(drop)
    }

    fn connect(&self) {
        let workers = (0..self.config.workers).map(|worker| Channel::Worker(worker as u8));
        let mut process = None;
        for channel in [Channel::Control, Channel::Vm].into_iter().chain(workers) {
            let Some((stream, answer)) = self.dial(channel) else { return };
            if *process.get_or_insert(answer.from.incarnation.0) != answer.from.incarnation.0 {
                return;
            }
            let (peer, hello) = (self.peer, Hello { channel, ..answer });
            let connected = Connected { peer, hello, stream };
            self.inbox.send(ToDriver::Connected(Box::new(connected)));
        }
    }

    fn dial(&self, channel: Channel) -> Option<(Stream, Hello)> {
        let hello = self.config.hello(self.local, self.peer, channel);
        while !self.stop.load(Ordering::Relaxed) {
            match dial(&self.address, &hello, Instant::now() + ATTEMPT, Options::default()) {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    let (peer, reason) = (self.peer, dsm_core::report::chain(&error));
                    self.inbox.send(ToDriver::DialFailed { peer, reason });
                    std::thread::sleep(self.pause);
                }
            }
        }
        None
    }
}
