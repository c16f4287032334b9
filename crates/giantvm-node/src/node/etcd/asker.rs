//! The thread that reads what etcd has, and writes what the node wants written.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Order;
use super::client::Client;
use super::lease::Keeper;
use crate::membership::Said;
use crate::membership::etcd::{Announcement, Proposal};
use crate::node::driver::{Inbox, ToDriver};
use crate::node::outrank;

/// The thread; it ends, and gives the lease back, when nobody can order anything any more.
pub(super) struct Asker {
    client: Client,
    keeper: Keeper,
    inbox: Inbox,
    orders: Receiver<Order>,
    /// When the latest renewal that counts was sent.
    renewed_ms: Option<u64>,
}

/// What is to be written.
enum Wish {
    Announce(String, Announcement),
    Propose(Box<Proposal>),
}

impl Asker {
    pub(super) fn start(
        client: Client,
        keeper: Keeper,
        inbox: Inbox,
        orders: Receiver<Order>,
        heartbeat: Duration,
    ) -> std::io::Result<JoinHandle<()>> {
        let asker = Self { client, keeper, inbox, orders, renewed_ms: None };
        std::thread::Builder::new().name("gvm-etcd".into()).spawn(move || asker.run(heartbeat))
    }

    fn run(mut self, heartbeat: Duration) {
        let mut next = Instant::now();
        loop {
            let order = self.orders.recv_timeout(next.saturating_duration_since(Instant::now()));
            let mut wish = match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            // Each wish follows from what etcd had; only the latest can still follow.
            while let Ok(order) = self.orders.try_recv() {
                wish = self.obey(order).or(wish);
            }
            if wish.is_some() || Instant::now() >= next {
                next = Instant::now() + heartbeat;
                self.ask(wish);
            }
        }
        self.keeper.resign();
    }

    fn obey(&self, order: Order) -> Option<Wish> {
        match order {
            Order::Announce(name, says) => Some(Wish::Announce(name, says)),
            Order::Propose(proposal) => Some(Wish::Propose(proposal)),
            Order::Outrank => {
                self.keeper.outrank();
                outrank();
                None
            }
        }
    }

    /// Writes what is wanted, and reads what etcd has then.
    fn ask(&mut self, wish: Option<Wish>) {
        let written = match wish {
            Some(Wish::Announce(name, says)) => {
                self.client.announce(&name, self.keeper.lease(), &says)
            }
            Some(Wish::Propose(proposal)) => self.client.propose(&proposal),
            None => Ok(()),
        };
        // A renewal counts if it was granted before a read that is answered in the same term.
        let granted = self.keeper.granted();
        match written.and_then(|()| self.client.look()) {
            Ok((view, term)) => {
                let counts = granted.filter(|it| it.term == term).map(|it| it.sent_ms);
                if let Some(sent_ms) = counts.filter(|sent_ms| Some(*sent_ms) > self.renewed_ms) {
                    self.renewed_ms = counts;
                    self.tell(Said::Renewed { sent_ms });
                }
                self.tell(Said::Has(view));
            }
            Err(why) => self.tell(Said::Failed { why }),
        }
    }

    fn tell(&self, said: Said) {
        self.inbox.send(ToDriver::Etcd(said));
    }
}
