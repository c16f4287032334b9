//! The bus in use: finds who answers, without a lock.

use std::fmt;
use std::ops;
use std::sync::Arc;

use super::unclaimed::Counter;
use super::{Access, Device, Range, Reply, Space, Unclaimed};

/// A range and who answers in it.
pub(super) struct Claim {
    pub(super) range: Range,
    pub(super) first_offset: u64,
    pub(super) target: Target,
}

/// Who answers.
pub(super) enum Target {
    Here(Arc<dyn Device>),
    There { node: usize, name: String, doorbells: Box<[ops::Range<u64>]> },
}

impl Claim {
    pub(super) fn name(&self) -> &str {
        match &self.target {
            Target::Here(device) => device.name(),
            Target::There { name, .. } => name,
        }
    }

    fn hit(&self, address: u64) -> Hit<'_> {
        // No overflow: the builder refuses offsets that would.
        let offset = self.first_offset + (address - self.range.start);
        match &self.target {
            Target::Here(device) => Hit::Local { device, offset },
            Target::There { node, doorbells, .. } => {
                let doorbell = doorbells.iter().any(|range| range.contains(&offset));
                Hit::Remote { node: *node, offset, doorbell }
            }
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Here(device) => write!(f, "{}: {}", self.range, device.name()),
            Target::There { node, name, .. } => write!(f, "{}: {name} on node {node}", self.range),
        }
    }
}

/// Who answers an access.
#[derive(Clone, Copy)]
pub enum Hit<'a> {
    /// A device here.
    Local {
        /// The device.
        device: &'a Arc<dyn Device>,
        /// Offset within it.
        offset: u64,
    },
    /// A device of another node.
    Remote {
        /// That node.
        node: usize,
        /// Offset within the device.
        offset: u64,
        /// Whether a write here is posted.
        doorbell: bool,
    },
    /// A port access that more than one claim, or one and nobody, answer: what the processor's bus
    /// does is one access a byte, lowest port first, each found by itself.
    Bytes,
}

impl fmt::Debug for Hit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { device, offset } => write!(f, "Local({} {offset:#x})", device.name()),
            Self::Remote { node, offset, doorbell } => {
                write!(f, "Remote(node {node} {offset:#x} doorbell {doorbell})")
            }
            Self::Bytes => f.write_str("Bytes"),
        }
    }
}

/// Who answers which ports and addresses, the same map on all nodes but for what is local.
///
/// - An access that lies within one claim goes there whole. The device decides what a width means;
///   those made of byte registers (CMOS, serial, PIT) take a wide access as bytes, lowest first.
/// - A *port* access that leaves a claim is split into bytes ([`Hit::Bytes`]): `out 0x70, ax` writes
///   0x70 and then 0x71, whether or not they are one device.
/// - A *memory* access that leaves a claim is answered by nobody: a PCI device would not either.
/// - Where nobody answers, reads find all ones and writes vanish; [`unclaimed`](Self::unclaimed)
///   counts them.
#[derive(Debug)]
pub struct Bus {
    ports: Box<[Claim]>,
    memory: Box<[Claim]>,
    counter: Counter,
}

impl Bus {
    pub(super) fn new(ports: Box<[Claim]>, memory: Box<[Claim]>) -> Self {
        Self { ports, memory, counter: Counter::default() }
    }

    /// Who answers an access of `len` bytes at `address`; `None` if nobody does, and then
    /// [`nobody`](Self::nobody) is to be told.
    pub fn find(&self, space: Space, address: u64, len: usize) -> Option<Hit<'_>> {
        let first = self.claim_of(space, address);
        if let Some(claim) = first.filter(|claim| claim.range.contains(address, len)) {
            return Some(claim.hit(address));
        }
        if space != Space::Pio || len < 2 {
            return None;
        }
        let mut rest = (0..len.min(8) as u64).filter_map(|i| address.checked_add(i));
        rest.any(|port| self.claim_of(space, port).is_some()).then_some(Hit::Bytes)
    }

    /// All claims: the range, the device's name, and the node to be asked where it is another one.
    pub fn claims(&self) -> impl Iterator<Item = (Range, &str, Option<usize>)> {
        self.ports.iter().chain(&self.memory).map(|claim| {
            let node = match claim.target {
                Target::Here(_) => None,
                Target::There { node, .. } => Some(node),
            };
            (claim.range, claim.name(), node)
        })
    }

    /// Counts an access that nobody answers. Its offset is its address.
    pub fn nobody(&self, space: Space, access: &Access) {
        self.counter.count(space, access);
    }

    /// Accesses that nobody answered, of this node's vCPUs and of those it served.
    pub fn unclaimed(&self) -> Unclaimed {
        self.counter.get()
    }

    /// Does what a vCPU of another node asks of a device here. The access's offset is its address.
    ///
    /// Where no device of this node answers, the reply is all ones: the nodes' maps differ, or the
    /// other node is faulty. It is counted as unclaimed.
    pub fn serve(&self, space: Space, access: Access, reply: Reply) {
        match self.find(space, access.offset(), access.len()) {
            Some(Hit::Local { device, offset }) => device.access(access.at(offset), reply),
            _ => self.nobody(space, &access),
        }
    }

    /// Brings every device of this node into the state after power-on, each once.
    pub fn reset(&self) {
        let mut done: Vec<&Arc<dyn Device>> = Vec::new();
        for claim in self.ports.iter().chain(&self.memory) {
            let Target::Here(device) = &claim.target else { continue };
            if !done.iter().any(|other| Arc::ptr_eq(other, device)) {
                device.reset();
                done.push(device);
            }
        }
    }

    fn claim_of(&self, space: Space, address: u64) -> Option<&Claim> {
        let claims = match space {
            Space::Pio => &self.ports,
            Space::Mmio => &self.memory,
        };
        let after = claims.partition_point(|claim| claim.range.start <= address);
        let claim = claims.get(after.checked_sub(1)?)?;
        claim.range.contains(address, 1).then_some(claim)
    }
}
