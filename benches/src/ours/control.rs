//! What the measuring process says to a node, and what the node answers: lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// An order to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Command {
    /// Have a new region of so many bytes, in place of the one before. Answer: seconds it took.
    Open { bytes: u64 },
    /// Touch pages `0..count`, one word of each. Answer: microseconds, of each touch or in all.
    Touch { store: bool, order: Order, count: usize, each: bool },
    /// Add one to the first word whenever it has this parity. Answer: when, in microseconds.
    TakeTurns { parity: u64, turns: usize },
    /// Bytes of metadata of the region.
    Metadata,
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

/// One end of the socket between the measuring process and a node.
#[derive(Debug)]
pub(super) struct Channel {
    lines: BufReader<UnixStream>,
}

impl Channel {
    pub(super) fn new(socket: impl Into<OwnedFd>) -> Self {
        Self { lines: BufReader::new(UnixStream::from(socket.into())) }
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<(), BenchError> {
        let mut line = serde_json::to_vec(message)
            .map_err(|error| BenchError::Peer(format!("can't be told anything: {error}")))?;
        line.push(b'\n');
        self.lines.get_mut().write_all(&line).map_err(BenchError::os("telling a node"))
    }

    /// The next message; none at the end of the stream.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BenchError> {
        let mut line = String::new();
        let got = self.lines.read_line(&mut line).map_err(BenchError::os("hearing a node"))?;
        if got == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line)
            .map(Some)
            .map_err(|error| BenchError::Peer(format!("said {line:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
