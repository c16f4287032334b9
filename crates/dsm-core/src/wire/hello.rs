//! The handshake that opens every connection: one [`Hello`], one [`Answer`].

use std::fmt;

use zerocopy::byteorder::little_endian::U16;

use super::PROTOCOL_VERSION;
use super::layout::{RawAnswer, RawHello};
use crate::types::{NODES_MAX, NodeId, PAGE_SIZE};

/// Bytes of a [`Hello`]; the same in every version.
pub const HELLO_LEN: usize = size_of::<RawHello>();
/// Bytes of an [`Answer`]; the same in every version.
pub const ANSWER_LEN: usize = size_of::<RawAnswer>();
/// Most bytes of the reason in a [`Refusal`].
pub const REASON_MAX: usize = 120;
/// Opens every hello.
pub const MAGIC: [u8; 8] = *b"giantvm\0";
const ANSWER_MAGIC: [u8; 4] = *b"gvm?";
/// [`RawHello::channel`] of [`Channel::Control`].
const CHANNEL_CONTROL: u8 = 0xff;
const CHANNEL_STATUS: u8 = 0xfe;
const CHANNEL_VM: u8 = 0xfd;

/// Names a cluster; nodes of different clusters refuse each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// A number that a node draws at random when its process starts, never 0: it tells a restarted
/// node from one that was only cut off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Incarnation(pub u64);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Channel {
    /// Membership, synchronisation objects, control of regions.
    Control,
    /// The pages of the worker with this number, on both sides.
    Worker(u8),
    /// Interrupts, accesses to devices, and the time of a virtual machine.
    Vm,
    /// Asks for the node's status; the caller needs to be no node, and is told nothing else.
    Status,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Control => write!(f, "control channel"),
            Channel::Worker(worker) => write!(f, "channel of worker {worker}"),
            Channel::Vm => write!(f, "channel of the virtual machine"),
            Channel::Status => write!(f, "status channel"),
        }
    }
}

/// Who a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster that the node belongs to.
    pub cluster: ClusterId,
    /// The membership epoch that the node is in; 0 while it knows none yet.
    pub epoch: u64,
    /// The node.
    pub node: NodeId,
    /// Nodes in the cluster's list, 1 to 64.
    pub nodes: u8,
    /// Worker threads of every node of the cluster, 1 to 64.
    pub workers: u8,
    /// This process of the node.
    pub incarnation: Incarnation,
}

/// What each side says first: who it is, whom it means, and what the connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Who speaks.
    pub from: Identity,
    /// Whom it means to speak to.
    pub to: NodeId,
    /// What the connection is for.
    pub channel: Channel,
}

/// The answer of the node that was called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The connection stands; frames follow.
    Welcome(Hello),
    /// The connection ends here.
    Refusal(Refusal),
}

/// Why a handshake failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The field that does not fit.
    pub code: RefusalCode,
    /// The same for people, with both values; cut to [`REASON_MAX`] bytes on the wire.
    pub reason: String,
}

/// What does not fit in a handshake; the numbers are those on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum RefusalCode {
    /// Not a handshake of giantvm, or one with reserved bits set.
    Malformed = 1,
    /// Another version of the protocol.
    Protocol = 2,
    /// Another page size.
    PageSize = 3,
    /// Another cluster.
    Cluster = 4,
    /// Another number of nodes.
    Nodes = 5,
    /// Another number of workers.
    Workers = 6,
    /// A node that the cluster does not have, or the called node itself.
    Node = 7,
    /// The call was meant for another node.
    To = 8,
    /// A worker that nodes of the cluster do not have, or not the channel that was asked for.
    Channel = 9,
    /// Another membership epoch.
    Epoch = 10,
    /// No incarnation.
    Incarnation = 11,
    /// The called node does not want this peer; the reason is its own.
    NotAdmitted = 12,
}

impl RefusalCode {
    fn from_code(code: u8) -> Option<Self> {
        use RefusalCode::*;
        [
            Malformed,
            Protocol,
            PageSize,
            Cluster,
            Nodes,
            Workers,
            Node,
            To,
            Channel,
            Epoch,
            Incarnation,
            NotAdmitted,
        ]
        .into_iter()
        .find(|&known| known as u8 == code)
    }
}

impl Refusal {
    /// A refusal with this reason.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// `Ok` if `holds`, else a refusal.
fn ensure(holds: bool, code: RefusalCode, reason: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal::new(code, reason())) }
}

impl Hello {
    /// The hello as it is sent.
    pub fn to_bytes(&self) -> [u8; HELLO_LEN] {
        zerocopy::transmute!(self.to_raw())
    }

    fn to_raw(self) -> RawHello {
        RawHello {
            magic: MAGIC,
            protocol: PROTOCOL_VERSION.into(),
            node: self.from.node.index() as u8,
            nodes: self.from.nodes,
            workers: self.from.workers,
            channel: match self.channel {
                Channel::Control => CHANNEL_CONTROL,
                Channel::Worker(worker) => worker,
                Channel::Status => CHANNEL_STATUS,
                Channel::Vm => CHANNEL_VM,
            },
            to: self.to.index() as u8,
            reserved_a: 0,
            cluster: self.from.cluster.0,
            epoch: self.from.epoch.into(),
            incarnation: self.from.incarnation.0.into(),
            page_size: (PAGE_SIZE as u32).into(),
            reserved_b: [0; 76],
        }
    }

    /// Reads a hello; [`Hello::check`] then says whether it fits.
    ///
    /// # Errors
    /// Bytes that are no hello of this version, as a refusal that can be sent back.
    pub fn parse(bytes: &[u8; HELLO_LEN]) -> Result<Self, Refusal> {
        Self::from_raw(&zerocopy::transmute!(*bytes))
    }

    fn from_raw(raw: &RawHello) -> Result<Self, Refusal> {
        ensure(raw.magic == MAGIC, RefusalCode::Malformed, || {
            "this is a giantvm node, and what was sent is no giantvm handshake".into()
        })?;
        let theirs = raw.protocol.get();
        ensure(theirs == PROTOCOL_VERSION, RefusalCode::Protocol, || {
            format!("protocol version {theirs} does not match version {PROTOCOL_VERSION}")
        })?;
        let reserved = raw.reserved_b.iter().fold(raw.reserved_a, |all, byte| all | byte);
        ensure(reserved == 0, RefusalCode::Malformed, || {
            "reserved bytes of the handshake are not zero".into()
        })?;
        let theirs = raw.page_size.get();
        ensure(theirs as usize == PAGE_SIZE, RefusalCode::PageSize, || {
            format!("page size {theirs} does not match {PAGE_SIZE}")
        })?;
        ensure((1..=NODES_MAX).contains(&raw.nodes.into()), RefusalCode::Nodes, || {
            format!("{} nodes is outside 1 to {NODES_MAX}", raw.nodes)
        })?;
        let channel = match raw.channel {
            CHANNEL_CONTROL => Channel::Control,
            CHANNEL_STATUS => Channel::Status,
            CHANNEL_VM => Channel::Vm,
            worker => Channel::Worker(worker),
        };
        let node = |index: u8, code| {
            NodeId::new(index.into()).filter(|node| node.index() < raw.nodes.into()).ok_or_else(
                || Refusal::new(code, format!("node {index} is beyond the {} nodes", raw.nodes)),
            )
        };
        Ok(Self {
            from: Identity {
                cluster: ClusterId(raw.cluster),
                epoch: raw.epoch.get(),
                node: node(raw.node, RefusalCode::Node)?,
                nodes: raw.nodes,
                workers: raw.workers,
                incarnation: Incarnation(raw.incarnation.get()),
            },
            to: node(raw.to, RefusalCode::To)?,
            channel,
        })
    }

    /// Whether the peer that said this and the node `local` may talk.
    ///
    /// Epochs are compared when both sides know one: a node that joins knows none.
    ///
    /// # Errors
    /// The first field that does not fit, with both values.
    pub fn check(&self, local: &Identity) -> Result<(), Refusal> {
        if self.channel == Channel::Status {
            return Ok(());
        }
        let from = &self.from;
        ensure(from.cluster == local.cluster, RefusalCode::Cluster, || {
            format!("cluster {} does not match cluster {}", from.cluster, local.cluster)
        })?;
        ensure(from.nodes == local.nodes, RefusalCode::Nodes, || {
            format!("a cluster of {} nodes does not match one of {}", from.nodes, local.nodes)
        })?;
        ensure(from.workers == local.workers, RefusalCode::Workers, || {
            format!("{} workers do not match {} workers", from.workers, local.workers)
        })?;
        ensure(from.node != local.node, RefusalCode::Node, || {
            format!("the caller says it is node {}, and so is node {}", from.node, local.node)
        })?;
        ensure(self.to == local.node, RefusalCode::To, || {
            format!("the call is for node {}, but this is node {}", self.to, local.node)
        })?;
        if let Channel::Worker(worker) = self.channel {
            ensure(worker < local.workers, RefusalCode::Channel, || {
                format!("channel of worker {worker}, but there are {} workers", local.workers)
            })?;
        }
        let unknown = from.epoch == 0 || local.epoch == 0;
        ensure(unknown || from.epoch == local.epoch, RefusalCode::Epoch, || {
            format!("membership epoch {} does not match epoch {}", from.epoch, local.epoch)
        })?;
        ensure(from.incarnation.0 != 0, RefusalCode::Incarnation, || {
            "incarnation 0 names no process".into()
        })
    }

    /// Whether `self` is an answer to the hello `asked`: it comes from the node that was called, on
    /// the channel that was asked for, and passes [`Hello::check`].
    ///
    /// # Errors
    /// The first field that does not fit, with both values.
    pub fn check_answer(&self, asked: &Hello) -> Result<(), Refusal> {
        self.check(&asked.from)?;
        if (self.channel, asked.channel) == (Channel::Status, Channel::Status) {
            return Ok(());
        }
        ensure(self.from.node == asked.to, RefusalCode::Node, || {
            format!("node {} answers a call for node {}", self.from.node, asked.to)
        })?;
        ensure(self.channel == asked.channel, RefusalCode::Channel, || {
            format!("the answer is for the {}, not the {}", self.channel, asked.channel)
        })
    }
}

impl Answer {
    /// The answer as it is sent; a longer reason is cut to [`REASON_MAX`] bytes, and control
    /// characters in it become spaces.
    pub fn to_bytes(&self) -> [u8; ANSWER_LEN] {
        let mut raw: RawAnswer = zerocopy::FromZeros::new_zeroed();
        raw.magic = ANSWER_MAGIC;
        match self {
            Answer::Welcome(hello) => raw.hello = hello.to_raw(),
            Answer::Refusal(Refusal { code, reason }) => {
                let mut reason = reason.replace(char::is_control, " ");
                reason.truncate(reason.floor_char_boundary(REASON_MAX));
                let reason = reason.as_bytes();
                raw.code = *code as u8;
                raw.reason_len = reason.len() as u8;
                raw.reason[..reason.len()].copy_from_slice(reason);
            }
        }
        zerocopy::transmute!(raw)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Bytes that are no answer of this version, as the refusal to go on.
    pub fn parse(bytes: &[u8; ANSWER_LEN]) -> Result<Self, Refusal> {
        let malformed = |reason: &str| Refusal::new(RefusalCode::Malformed, reason);
        let raw: RawAnswer = zerocopy::transmute!(*bytes);
        if raw.magic != ANSWER_MAGIC {
            return Err(malformed("the answer is not from a giantvm node"));
        }
        if raw.reserved != U16::ZERO {
            return Err(malformed("reserved bytes of the answer are not zero"));
        }
        if raw.code == 0 {
            if raw.reason_len != 0 || raw.reason != [0; REASON_MAX] {
                return Err(malformed("a welcome that gives a reason"));
            }
            return Hello::from_raw(&raw.hello).map(Answer::Welcome);
        }
        let code = RefusalCode::from_code(raw.code)
            .ok_or_else(|| malformed("a refusal with an unknown code"))?;
        let (reason, padding) = raw
            .reason
            .split_at_checked(raw.reason_len.into())
            .ok_or_else(|| malformed("a refusal whose reason is too long"))?;
        let hello: [u8; HELLO_LEN] = zerocopy::transmute!(raw.hello);
        if padding.iter().chain(&hello).any(|&byte| byte != 0) {
            return Err(malformed("unused bytes of a refusal are not zero"));
        }
        let reason =
            str::from_utf8(reason).map_err(|_| malformed("a refusal whose reason is not UTF-8"))?;
        // Printed as it is, a reason could carry terminal escapes into a log.
        if reason.contains(|c: char| c.is_control()) {
            return Err(malformed("a refusal whose reason has control characters"));
        }
        Ok(Answer::Refusal(Refusal { code, reason: reason.into() }))
    }
}
