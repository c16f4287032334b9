//! One end of a socket between the measuring process and a process it has started: lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BenchError;

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Channel {
    lines: BufReader<UnixStream>,
}

impl Channel {
    pub(crate) fn new(socket: impl Into<OwnedFd>) -> Self {
        Self { lines: BufReader::new(UnixStream::from(socket.into())) }
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<(), BenchError> {
        let mut line = serde_json::to_vec(message)
            .map_err(|error| BenchError::Peer(format!("can't be told anything: {error}")))?;
        line.push(b'\n');
        self.lines.get_mut().write_all(&line).map_err(BenchError::os("telling a node"))
    }

    /// The next message; none at the end of the stream.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BenchError> {
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
