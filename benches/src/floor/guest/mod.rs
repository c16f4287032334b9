//! Floors of virtual machines: a minimal program around `KVM_RUN`.
//!
//! It runs the same guest as giantvm does, on memory of its own, with local APICs in the kernel and
//! nothing else: no stand-ins, no devices but what this guest asks, no protocol. What leaves the machine
//! goes one way only:
//!
//! | role | what it does |
//! |---|---|
//! | local | nothing leaves |
//! | device | an access asks a peer process; a thread takes the answer and wakes the vCPU's |
//! | interrupt | a port write wakes a second thread, which sends a message; the peer's machine is given an interrupt |
//! | fault | a page that is not here: request, 4 KiB reply, install |

mod bell;
mod machine;
mod platform;
pub mod program;
mod roles;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Transport;
use crate::error::BenchError;
use crate::guest::Guest;
use crate::placement::CpuSet;

/// What leaves the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Nothing.
    Local,
    /// Accesses to a device.
    Device,
    /// Interrupts.
    Interrupt,
    /// Faults of the given kind.
    Fault {
        /// To write.
        write: bool,
    },
}

/// A floor's virtual machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// What leaves it.
    pub(crate) role: Role,
    /// The guest.
    pub(crate) image: PathBuf,
    /// Its command line.
    pub(crate) cmdline: String,
    /// Where each vCPU runs; other threads are where the first one is.
    pub(crate) cpus: Vec<CpuSet>,
    /// To the peer.
    pub(crate) transport: Transport,
    /// Where the peer runs.
    pub(crate) peer_cpus: CpuSet,
}

/// Starts it.
pub(crate) fn start(spec: Spec) -> Result<Guest, BenchError> {
    Guest::start(program::SUBCOMMAND, &[spec])
}
