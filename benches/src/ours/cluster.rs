//! The nodes of one benchmark: processes of this executable, joined by sockets.

use std::env;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command as Process, Stdio};

use dsm_core::engine::WaitMode;

use super::control::{Answer, Command};
use super::node::{self, SUBCOMMAND};
use crate::channel::Channel;
use crate::error::BenchError;
use crate::floor::{Transport, connected_pair};
use crate::placement::Placement;

/// Nodes that are stopped unless they are asked something.
#[derive(Debug)]
pub(super) struct Cluster {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    process: Child,
    channel: Channel,
}

impl Cluster {
    /// Starts the nodes, joined each to each, with a region of `bytes`.
    pub(super) fn start(
        nodes: usize,
        transport: Transport,
        wait: WaitMode,
        placement: &Placement,
        bytes: u64,
    ) -> Result<Self, BenchError> {
        Self::start_limited(nodes, transport, wait, placement, bytes, |_| usize::MAX)
    }

    /// The same with nodes that give so many frames each.
    pub(super) fn start_limited(
        nodes: usize,
        transport: Transport,
        wait: WaitMode,
        placement: &Placement,
        bytes: u64,
        frames: impl Fn(usize) -> usize,
    ) -> Result<Self, BenchError> {
        let mut links: Vec<Vec<(usize, OwnedFd)>> = (0..nodes).map(|_| Vec::new()).collect();
        for first in 0..nodes {
            for second in first + 1..nodes {
                let (here, there) = connected_pair(transport)?;
                links[first].push((second, here));
                links[second].push((first, there));
            }
        }
        let mut members = Vec::new();
        for (index, links) in links.iter().enumerate() {
            let seat = placement.node(index, nodes).to_string();
            members.push(Member::start(index, nodes, wait, &seat, frames(index), links)?);
        }
        let mut cluster = Self { members };
        cluster.ask_all(&Command::Open { bytes })?;
        Ok(cluster)
    }

    /// Has `node` do something while the others only serve.
    pub(super) fn ask(&mut self, node: usize, command: &Command) -> Result<Vec<f64>, BenchError> {
        self.member(node)?.channel.send(command)?;
        self.member(node)?.answer()
    }

    /// Has every node do something at the same time; the answers in the order of the nodes.
    pub(super) fn ask_all(&mut self, command: &Command) -> Result<Vec<Vec<f64>>, BenchError> {
        self.ask_each(|_| command.clone())
    }

    /// The same with an order for each.
    pub(super) fn ask_each(
        &mut self,
        command: impl Fn(usize) -> Command,
    ) -> Result<Vec<Vec<f64>>, BenchError> {
        for (index, member) in self.members.iter_mut().enumerate() {
            member.channel.send(&command(index))?;
        }
        self.members.iter_mut().map(Member::answer).collect()
    }

    /// Has the first `count` nodes do something at the same time; the answers in the order of the nodes.
    pub(super) fn ask_first(
        &mut self,
        count: usize,
        command: &Command,
    ) -> Result<Vec<Vec<f64>>, BenchError> {
        let members = &mut self.members[..count];
        for member in &mut *members {
            member.channel.send(command)?;
        }
        members.iter_mut().map(Member::answer).collect()
    }

    /// Runs `turn` with the nodes awake; before and after it they are stopped.
    pub(super) fn awake<T>(
        &mut self,
        turn: impl FnOnce(&mut Self) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        self.signal(libc::SIGCONT)?;
        let result = turn(self)?;
        self.stop()?;
        Ok(result)
    }

    /// Stops the nodes until the next [`awake`](Self::awake).
    pub(super) fn stop(&mut self) -> Result<(), BenchError> {
        self.signal(libc::SIGSTOP)?;
        for member in &self.members {
            let mut status = 0;
            // SAFETY: our own child, and room for its status.
            let pid = unsafe { libc::waitpid(member.pid(), &raw mut status, libc::WUNTRACED) };
            if pid < 0 || !libc::WIFSTOPPED(status) {
                return Err(BenchError::Peer("ended by itself".into()));
            }
        }
        Ok(())
    }

    fn signal(&self, signal: libc::c_int) -> Result<(), BenchError> {
        for member in &self.members {
            // SAFETY: a signal to our own child, which has not been waited for to its end.
            if unsafe { libc::kill(member.pid(), signal) } != 0 {
                return Err(BenchError::last_os("stopping a node"));
            }
        }
        Ok(())
    }

    fn member(&mut self, node: usize) -> Result<&mut Member, BenchError> {
        self.members.get_mut(node).ok_or_else(|| BenchError::Peer(format!("{node} is not there")))
    }
}

impl Member {
    fn start(
        index: usize,
        nodes: usize,
        wait: WaitMode,
        cpus: &str,
        frames: usize,
        links: &[(usize, OwnedFd)],
    ) -> Result<Self, BenchError> {
        let (ours, theirs) = UnixStream::pair().map_err(BenchError::os("making a socket pair"))?;
        let program = env::current_exe().map_err(BenchError::os("finding this executable"))?;
        // Copies without close-on-exec, which this process closes again as soon as the node has them.
        let inherited = links
            .iter()
            .map(|(peer, link)| Ok((*peer, inheritable(link.as_raw_fd())?)))
            .collect::<Result<Vec<_>, BenchError>>()?;
        let process = Process::new(program)
            .arg(SUBCOMMAND)
            .args([index.to_string(), nodes.to_string()])
            .args([node::wait_name(wait), cpus, &frames.to_string()])
            .args(inherited.iter().map(|(peer, fd)| format!("{peer}:{}", fd.as_raw_fd())))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(BenchError::os("starting a node"))?;
        Ok(Self { process, channel: Channel::new(ours) })
    }

    fn pid(&self) -> libc::pid_t {
        self.process.id().cast_signed()
    }

    fn answer(&mut self) -> Result<Vec<f64>, BenchError> {
        match self.channel.receive::<Answer>()? {
            Some(Ok(values)) => Ok(values),
            Some(Err(error)) => Err(BenchError::Peer(format!("failed: {error}"))),
            None => Err(BenchError::Peer("has ended".into())),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself; a stopped process can be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn inheritable(fd: RawFd) -> Result<OwnedFd, BenchError> {
    // SAFETY: takes an integer, returns a new descriptor or -1.
    let copy = unsafe { libc::dup(fd) };
    if copy < 0 {
        return Err(BenchError::last_os("copying a descriptor"));
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
