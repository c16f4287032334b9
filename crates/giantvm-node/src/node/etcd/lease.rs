//! The thread that keeps a node's lease.
//!
//! It does nothing else, and has connections of its own: a renewal waits for no transaction and no
//! read. Those have to wait for etcd's disk, several times over while nodes form a cluster, and the
//! sum could be longer than the lease although every answer comes in time.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, Renewal, Term};
use crate::membership::Said;
use crate::node::driver::{Inbox, ToDriver, lock, now_ms};
use crate::node::outrank;

/// The latest renewal that etcd granted.
#[derive(Clone, Copy)]
pub(super) struct Granted {
    /// When it was asked for, in milliseconds of this node's clock.
    pub(super) sent_ms: u64,
    /// The term in which it was granted.
    pub(super) term: Term,
}

/// The thread, as the one that asks sees it.
pub(super) struct Keeper {
    lease: u64,
    granted: Arc<Mutex<Option<Granted>>>,
    outranks: Sender<()>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Keeps `lease` alive, once a heartbeat.
    pub(super) fn start(
        client: Client,
        lease: u64,
        inbox: Inbox,
        heartbeat: Duration,
    ) -> std::io::Result<Self> {
        let granted = Arc::new(Mutex::new(None));
        let (outranks, orders) = mpsc::channel();
        let work = Work { client, lease, inbox, granted: Arc::clone(&granted) };
        let thread = std::thread::Builder::new()
            .name("gvm-lease".into())
            .spawn(move || work.run(heartbeat, &orders))?;
        Ok(Self { lease, granted, outranks, thread })
    }

    /// The lease's number.
    pub(super) fn lease(&self) -> u64 {
        self.lease
    }

    /// The latest renewal.
    pub(super) fn granted(&self) -> Option<Granted> {
        *lock(&self.granted)
    }

    /// Lets the thread go before threads of programs and guests.
    pub(super) fn outrank(&self) {
        let _ = self.outranks.send(()); // it ends only when it is told to
    }

    /// Gives the lease back, and the keys under it.
    pub(super) fn resign(self) {
        drop(self.outranks);
        if self.thread.join().is_err() {
            log::error!("the thread that keeps the lease in etcd has panicked");
        }
    }
}

struct Work {
    client: Client,
    lease: u64,
    inbox: Inbox,
    granted: Arc<Mutex<Option<Granted>>>,
}

impl Work {
    fn run(mut self, heartbeat: Duration, orders: &Receiver<()>) {
        let mut next = Instant::now();
        loop {
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(()) => {
                    outrank();
                }
                Err(RecvTimeoutError::Timeout) => {
                    next = Instant::now() + heartbeat;
                    self.renew();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Err(why) = self.client.revoke(self.lease) {
            log::info!("this node's lease in etcd ends by itself: it can't be given back: {why}");
        }
    }

    fn renew(&mut self) {
        let sent_ms = now_ms();
        match self.client.renew(self.lease) {
            Ok(Renewal::Granted(term)) => *lock(&self.granted) = Some(Granted { sent_ms, term }),
            Ok(Renewal::Ended) => self.tell(Said::LeaseEnded),
            Err(why) => self.tell(Said::NotRenewed { why }),
        }
    }

    fn tell(&self, said: Said) {
        self.inbox.send(ToDriver::Etcd(said));
    }
}
