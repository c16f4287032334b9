//! The interrupt chips that KVM leaves to userspace: IOAPIC and 8259.

mod ioapic;
mod message;
mod pic;

pub use ioapic::{EOI_REGISTER, Ioapic, IoapicAction, PINS};
pub use message::{Message, Route};
pub use pic::{ELCR_OFFSET, PIC_SLAVE_OFFSET, Pic};
