//! The IOAPIC: Intel 82093AA, version 0x20 (with the EOI register of later chipsets), as a machine
//! without I/O. Accesses, line changes and EOIs go in, messages and route changes come out.
//!
//! As KVM's and QEMU's, and unlike the chip:
//!
//! - A line's level is logical: `true` means asserted. The polarity bit is kept for the guest to
//!   read, and has no effect; guests set it from tables whose idea of the wires nobody models.
//! - Messages are accepted at once: the delivery status bit reads 0, and the arbitration id is 0.
//! - NMI, SMI, INIT and ExtINT are edges whatever the trigger bit says (the manual demands edge
//!   for all but NMI, which it treats so): no EOI would ever clear their remote IRR.
//! - ExtINT is not delivered: it asks the 8259 for a vector, and ours never has one.

mod entry;

use entry::Entry;

use super::{Message, Route};
use crate::bus::Data;

/// Number of interrupt pins.
pub const PINS: usize = 24;

/// Offsets of the registers that the processor sees.
const INDEX: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Offset of the EOI register, in which a vector is written (version 0x20 and later).
pub const EOI_REGISTER: u64 = 0x40;

/// Registers behind the window.
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_ENTRIES: u8 = 0x10;
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

/// What is to be done. In order: a route is in force before its first message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoapicAction {
    /// Send this interrupt.
    Deliver {
        /// From this pin.
        pin: usize,
        /// The interrupt.
        message: Message,
    },
    /// From now on interrupts of this pin go another way. The guest's write that did it must not
    /// complete before every node knows.
    RouteChanged {
        /// Which.
        pin: usize,
        /// Where they go; `None` if they go nowhere. A pin that is only masked keeps its route: the
        /// EOI of its last interrupt may still be on its way.
        route: Option<Route>,
    },
}

/// The state of the chip.
#[derive(Clone, Debug)]
pub struct Ioapic {
    index: u8,
    id: u8,
    pins: [Pin; PINS],
}

#[derive(Clone, Copy, Default, Debug)]
struct Pin {
    entry: Entry,
    asserted: bool,
    route: Option<Route>,
}

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Ioapic {
    /// The chip after power-on: all pins masked, all lines low.
    pub fn new() -> Self {
        Self { index: 0, id: 0, pins: [Pin::default(); PINS] }
    }

    /// Back to the state after power-on. Lines stay as the devices hold them.
    pub fn reset(&mut self) -> Vec<IoapicAction> {
        let mut actions = Vec::new();
        (self.index, self.id) = (0, 0);
        for (pin, state) in self.pins.iter_mut().enumerate() {
            state.entry = Entry::default();
            state.announce(pin, None, &mut actions);
        }
        actions
    }

    /// The guest reads `len` bytes at `offset`.
    pub fn read(&self, offset: u64, len: usize) -> Data {
        let value = match offset {
            INDEX => u32::from(self.index),
            WINDOW => self.register(self.index),
            _ => 0,
        };
        Data::from_u64(u64::from(value), len)
    }

    /// The guest writes `data` at `offset`. The window and the EOI register take 4 bytes; other
    /// widths are ignored, but for 8, of which the low half counts.
    pub fn write(&mut self, offset: u64, data: Data) -> Vec<IoapicAction> {
        let value = data.to_u64() as u32;
        let wide = data.len() >= 4;
        match offset {
            INDEX if !data.is_empty() => self.index = value as u8,
            WINDOW if wide => return self.set_register(self.index, value),
            EOI_REGISTER if wide => return self.eoi(value as u8),
            _ => {}
        }
        Vec::new()
    }

    /// A device asserts its line, or lets it go. Pins that do not exist are ignored.
    pub fn set_line(&mut self, pin: usize, asserted: bool) -> Vec<IoapicAction> {
        let mut actions = Vec::new();
        let Some(state) = self.pins.get_mut(pin) else { return actions };
        let rises = asserted && !state.asserted;
        state.asserted = asserted;
        //= 82093AA 3.2.4: edges on a masked pin are ignored, neither delivered nor held pending
        if rises && !state.entry.is_level() && !state.entry.is_masked() {
            state.deliver(pin, &mut actions);
        }
        state.serve_level(pin, &mut actions);
        actions
    }

    /// A local APIC has ended the interrupt with this level-triggered vector.
    pub fn eoi(&mut self, vector: u8) -> Vec<IoapicAction> {
        let mut actions = Vec::new();
        for (pin, state) in self.pins.iter_mut().enumerate() {
            if state.entry.remote_irr() && state.entry.vector() == vector {
                state.entry.set_remote_irr(false);
                state.serve_level(pin, &mut actions);
            }
        }
        actions
    }

    /// Where the interrupts of a pin go, as last announced.
    pub fn route(&self, pin: usize) -> Option<Route> {
        self.pins.get(pin)?.route
    }

    /// Whether a pin waits for an EOI.
    pub fn remote_irr(&self, pin: usize) -> bool {
        self.pins.get(pin).is_some_and(|state| state.entry.remote_irr())
    }

    fn register(&self, register: u8) -> u32 {
        match register {
            REG_ID => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            REG_ARBITRATION => 0,
            _ => match entry_of(register).and_then(|(pin, high)| Some((self.pins.get(pin)?, high)))
            {
                Some((state, high)) => state.entry.half(high),
                None => 0,
            },
        }
    }

    fn set_register(&mut self, register: u8, value: u32) -> Vec<IoapicAction> {
        let mut actions = Vec::new();
        if register == REG_ID {
            self.id = (value >> 24) as u8 & 0x0f;
        } else if let Some((pin, high)) = entry_of(register)
            && let Some(state) = self.pins.get_mut(pin)
        {
            state.entry.set_half(high, value);
            if !state.entry.is_masked() {
                let route = state.entry.message().map(Route::from);
                state.announce(pin, route, &mut actions);
            }
            state.serve_level(pin, &mut actions);
        }
        actions
    }
}

impl Pin {
    /// Delivers what a level-triggered pin asks for, unless it is masked or waits for an EOI.
    fn serve_level(&mut self, pin: usize, actions: &mut Vec<IoapicAction>) {
        let entry = &mut self.entry;
        if self.asserted && entry.is_level() && !entry.is_masked() && !entry.remote_irr() {
            entry.set_remote_irr(true);
            self.deliver(pin, actions);
        }
    }

    fn deliver(&self, pin: usize, actions: &mut Vec<IoapicAction>) {
        let message = self.entry.message();
        actions.extend(message.map(|message| IoapicAction::Deliver { pin, message }));
    }

    fn announce(&mut self, pin: usize, route: Option<Route>, actions: &mut Vec<IoapicAction>) {
        if self.route != route {
            self.route = route;
            actions.push(IoapicAction::RouteChanged { pin, route });
        }
    }
}

/// The pin whose entry a register is half of, and whether it is the upper one.
fn entry_of(register: u8) -> Option<(usize, bool)> {
    let n = register.checked_sub(REG_ENTRIES)?;
    Some((usize::from(n / 2), n % 2 == 1))
}

#[cfg(test)]
mod tests;
