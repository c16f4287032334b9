//! The processes that run a guest, and what is said to them.

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Turns;
use super::registers::BATCH_MAX;
use crate::channel::Channel;
use crate::error::BenchError;
use crate::sample::Sampler;

/// What a process tells of a batch.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    /// Microseconds of each sample.
    times: Vec<f64>,
    /// What the guest computed.
    sums: Vec<u32>,
}

type Answer = Result<Batch, String>;

/// A running guest: the process of its first vCPU is told what to measure, the others serve.
pub(crate) struct Guest {
    members: Vec<Member>,
    sums: Vec<u32>,
}

struct Member {
    process: Child,
    channel: Channel,
}

impl Guest {
    /// Starts a process of this executable for each specification.
    pub(crate) fn start<T: Serialize>(subcommand: &str, specs: &[T]) -> Result<Self, BenchError> {
        let members = specs.iter().map(|spec| Member::start(subcommand, spec));
        Ok(Self { members: members.collect::<Result<_, _>>()?, sums: Vec::new() })
    }

    /// What the guest has computed in the last batch.
    pub(crate) fn sums(&self) -> &[u32] {
        &self.sums
    }
}

impl Member {
    fn start(subcommand: &str, spec: &impl Serialize) -> Result<Self, BenchError> {
        let (ours, theirs) = UnixStream::pair().map_err(BenchError::os("making a socket pair"))?;
        let program = env::current_exe().map_err(BenchError::os("finding this executable"))?;
        let spec = serde_json::to_string(spec)
            .map_err(|error| BenchError::Peer(format!("can't be told anything: {error}")))?;
        let process = Command::new(program)
            .args([subcommand, &spec])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(BenchError::os("starting a virtual machine's process"))?;
        Ok(Self { process, channel: Channel::new(ours) })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Sampler for Guest {
    /// Microseconds of the guest's time.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
        let ended = || BenchError::Peer("has ended".into());
        let first = self.members.first_mut().ok_or_else(ended)?;
        let mut times = Vec::with_capacity(count);
        while times.len() < count {
            first.channel.send(&BATCH_MAX.min(count - times.len()))?;
            match first.channel.receive::<Answer>()?.ok_or_else(ended)? {
                Ok(batch) => {
                    times.extend(batch.times);
                    self.sums = batch.sums;
                }
                Err(error) => return Err(BenchError::Peer(format!("failed: {error}"))),
            }
        }
        Ok(times)
    }
}

/// The other side: runs the batches that standard input asks for, until its end. `prepare` comes
/// before each; the guest's TSC counts `khz` thousand ticks a second.
pub(crate) fn serve(
    turns: &Turns,
    khz: u32,
    mut prepare: impl FnMut(u32) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    let mut channel = Channel::new(input.map_err(BenchError::os("taking the orders"))?);
    let us = |cycles: u32| f64::from(cycles) * 1e3 / f64::from(khz.max(1));
    while let Some(count) = channel.receive::<u32>()? {
        let told = prepare(count).and_then(|()| turns.run(count));
        let answer: Answer = match told {
            Ok(told) => {
                Ok(Batch { times: told.samples.into_iter().map(us).collect(), sums: told.sums })
            }
            Err(error) => Err(error.to_string()),
        };
        channel.send(&answer)?;
    }
    Ok(())
}
