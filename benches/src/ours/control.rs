//! What the measuring process says to a node, and what the node answers.

use serde::{Deserialize, Serialize};

/// An order to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    /// Have a new region of so many bytes, in place of the one before. Answer: seconds it took.
    Open { bytes: u64 },
    /// Touch pages `0..count`, one word of each. Answer: microseconds, of each touch or in all.
    Touch { store: bool, order: Order, count: usize, each: bool },
    /// Add one to the first word whenever it has this parity. Answer: when, in microseconds.
    TakeTurns { parity: u64, turns: usize },
    /// The last node is lost: go on without it. Answer: microseconds until the region has settled.
    Lose,
    /// Bytes of metadata of the region.
    Metadata,
    /// Write a word of each page, in an order of its own, `rounds` times. Answer: the most bytes of
    /// memory that the region took meanwhile, as the kernel counts them.
    Rewrite { count: usize, rounds: usize },
}

/// The order in which pages are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Ascending.
    Ascending,
    /// That of [`page_order`](crate::floor::page_order) over so many pages.
    Shuffled(usize),
}

/// A node's answer.
pub(super) type Answer = Result<Vec<f64>, String>;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::channel::Channel;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        let command =
            Command::Touch { store: true, order: Order::Shuffled(9), count: 3, each: true };
        a.send(&command).unwrap();
        assert_eq!(b.receive::<Command>().unwrap(), Some(command));
        b.send(&Answer::Ok(vec![1.5])).unwrap();
        assert_eq!(a.receive::<Answer>().unwrap(), Some(Ok(vec![1.5])));
        drop(b);
        assert_eq!(a.receive::<Answer>().unwrap(), None);
    }
}
