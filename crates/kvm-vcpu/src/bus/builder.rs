//! The bus while it is put together.

use std::fmt;
use std::ops;
use std::sync::Arc;

use super::map::{Bus, Claim, Target};
use super::{BusError, Device, Range, Space};

/// Where the device of a range is.
pub enum Place {
    /// Here.
    Local(Arc<dyn Device>),
    /// On another node, which must be asked.
    Remote {
        /// That node.
        node: usize,
        /// The device's name in messages to people.
        name: String,
        /// Offsets at which a write may go on before it has taken effect.
        doorbells: Vec<ops::Range<u64>>,
    },
    /// On every node: each computes the answer by itself, from what all nodes have in common.
    Everywhere(Arc<dyn Device>),
}

impl Place {
    fn name(&self) -> &str {
        match self {
            Self::Local(device) | Self::Everywhere(device) => device.name(),
            Self::Remote { name, .. } => name,
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(device) => write!(f, "Local({})", device.name()),
            Self::Remote { node, name, .. } => write!(f, "Remote({name} on node {node})"),
            Self::Everywhere(device) => write!(f, "Everywhere({})", device.name()),
        }
    }
}

/// Collects claims and refuses those that cannot be.
#[derive(Debug, Default)]
pub struct BusBuilder {
    /// Ordered by start.
    ports: Vec<Claim>,
    /// Ordered by start.
    memory: Vec<Claim>,
}

impl BusBuilder {
    /// A bus where nobody answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `range` to what is at `place`; its first address is the device's offset 0.
    ///
    /// # Errors
    ///
    /// If the range is empty, does not exist, or is in part someone else's.
    pub fn claim(&mut self, range: Range, place: Place) -> Result<&mut Self, BusError> {
        self.claim_at(range, 0, place)
    }

    /// Gives `range` to what is at `place`; its first address is the device's offset
    /// `first_offset`. For a device with registers in several ranges.
    ///
    /// # Errors
    ///
    /// As [`claim`](Self::claim), and if the offsets overflow.
    pub fn claim_at(
        &mut self,
        range: Range,
        first_offset: u64,
        place: Place,
    ) -> Result<&mut Self, BusError> {
        let name = || place.name().to_owned();
        if range.len == 0 {
            return Err(BusError::Empty { name: name(), start: range.start });
        }
        if range.last().is_none() {
            return Err(BusError::Beyond { name: name(), range });
        }
        if first_offset.checked_add(range.len).is_none() {
            return Err(BusError::Offset { name: name(), range, first_offset });
        }
        let claims = match range.space {
            Space::Pio => &mut self.ports,
            Space::Mmio => &mut self.memory,
        };
        if let Some(other) = claims.iter().find(|claim| claim.range.overlaps(&range)) {
            return Err(BusError::Overlap {
                name: name(),
                range,
                other: other.name().to_owned(),
                other_range: other.range,
            });
        }
        let at = claims.partition_point(|claim| claim.range.start < range.start);
        let target = match place {
            Place::Local(device) | Place::Everywhere(device) => Target::Here(device),
            Place::Remote { node, name, doorbells } => {
                Target::There { node, name, doorbells: doorbells.into() }
            }
        };
        claims.insert(at, Claim { range, first_offset, target });
        Ok(self)
    }

    /// The bus, which does not change any more.
    pub fn build(self) -> Bus {
        Bus::new(self.ports.into(), self.memory.into())
    }
}
