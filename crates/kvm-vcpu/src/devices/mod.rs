//! The platform devices that kernels expect.
//!
//! Each is a [`Simple`](crate::bus::Simple) device with its state behind a small lock, which is
//! never held while it calls out: to its interrupt [`Line`], or a sink.
//!
//! [`PmTimer`] has no state and may be on every node ([`Place::Everywhere`](crate::bus::Place)); the
//! others have, and live on one node.

mod acpi_power;
mod debug;
mod fw_cfg;
mod host;
mod i8042;
mod pit;
mod pm_timer;
mod rtc;
mod serial;

pub use acpi_power::{AcpiReset, AcpiSleep};
pub use debug::{DebugConsole, DebugExit};
pub use fw_cfg::{FwCfg, FwCfgError, FwCfgMachine};
pub(crate) use host::lock;
pub use host::{ByteSink, Clock, EventSink, Line, MachineEvent};
pub use i8042::{I8042, I8042_COMMAND_OFFSET};
pub use pit::{PORT_B_OFFSET, Pit};
pub use pm_timer::{PmTimer, Width};
pub use rtc::{Rtc, RtcMemory};
pub use serial::{INPUT_MAX, Serial};
