//! The devices of every virtual machine, where they are, and what the guest is told of them.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_vcpu::acpi::{IoApic, MemoryRange, Platform, Register, SerialPort, Sleep, Vcpu};
use kvm_vcpu::boot::layout::{HOLE_START, IOAPIC_ADDRESS, Layout};
use kvm_vcpu::bus::{Bus, BusBuilder, Device, Immediate, Place, Range, Simple, Space};
use kvm_vcpu::chips::{ELCR_OFFSET, PIC_SLAVE_OFFSET, PINS, Pic};
use kvm_vcpu::devices::{
    AcpiReset, AcpiSleep, ByteSink, Clock as DeviceClock, DebugConsole, DebugExit, EventSink,
    FwCfg, FwCfgMachine, I8042, I8042_COMMAND_OFFSET, Line, MachineEvent, PORT_B_OFFSET, Pit,
    PmTimer, Rtc, RtcMemory, Serial, Width,
};
use kvm_vcpu::vm::RESET_REQUEST;

use super::api::{ConsoleSink, VmError};
use super::clock::Clock;
use super::core::Event;
use super::hub::{Hub, IoapicDevice};
use super::spec::{SpecError, VcpuSpec, VmSpec};
use super::virtio::{self, Host, Virtio};

/// Interrupt of the serial port, on the ISA bus and at the IOAPIC.
const SERIAL_IRQ: u32 = 4;
const SERIAL_PORT: u16 = 0x3f8;
const PM_TIMER_PORT: u16 = 0x608;
const SLEEP_CONTROL_PORT: u16 = 0x600;
const SLEEP_STATUS_PORT: u16 = 0x601;
/// Between the ports of PCI, and served with them.
const RESET_PORT: u16 = 0xcf9;
const RESET_VALUE: u8 = 0x06;
/// How far the memory of another node is, where 10 is that of the same: so far that Linux moves
/// tasks there only on request.
const NODE_DISTANCE: u8 = 40;

/// What the platform is built of.
pub(super) struct Parts<'a> {
    pub(super) spec: &'a VmSpec,
    pub(super) me: usize,
    pub(super) layout: &'a Layout,
    pub(super) hub: &'a Arc<Hub>,
    pub(super) clock: &'a Arc<Clock>,
    pub(super) events: &'a Sender<Event>,
    pub(super) console: Option<ConsoleSink>,
    pub(super) devices: Vec<(String, Arc<dyn Device>)>,
    pub(super) virtio: Host<'a>,
}

/// The way to the serial port.
#[derive(Clone, Default)]
pub(super) struct Console(Option<Arc<Immediate<Serial>>>);

impl Console {
    /// Gives the guest input, as far as the port has room for it; elsewhere than at the port's home,
    /// none. Returns how many bytes it took.
    pub(super) fn input(&self, bytes: &[u8]) -> usize {
        self.0.as_ref().map_or(0, |serial| serial.0.enqueue(bytes))
    }
}

/// Claims ranges for devices of the platform's home.
struct Claims<'a> {
    builder: BusBuilder,
    parts: &'a Parts<'a>,
}

impl Claims<'_> {
    fn at_home(&self) -> bool {
        self.parts.me == self.parts.spec.platform_home
    }

    /// Ports of a device, each range with the offset at which it begins in the device.
    fn ports(
        &mut self,
        ranges: &[(u16, u64, u64)],
        device: Arc<dyn Device>,
    ) -> Result<(), VmError> {
        for &(start, len, first_offset) in ranges {
            let range = Range { space: Space::Pio, start: start.into(), len };
            let place = match self.at_home() {
                true => Place::Local(Arc::clone(&device)),
                false => Place::Remote {
                    node: self.parts.spec.platform_home,
                    name: device.name().to_owned(),
                    doorbells: Vec::new(),
                },
            };
            self.claim(range, first_offset, place)?;
        }
        Ok(())
    }

    fn simple<D: Simple + 'static>(
        &mut self,
        ranges: &[(u16, u64, u64)],
        device: D,
    ) -> Result<(), VmError> {
        self.ports(ranges, Arc::new(Immediate(device)))
    }

    fn claim(&mut self, range: Range, first_offset: u64, place: Place) -> Result<(), VmError> {
        let claimed = self.builder.claim_at(range, first_offset, place);
        claimed.map(drop).map_err(|error| VmError::Spec(SpecError(error.to_string())))
    }
}

/// Who answers which ports and addresses at this node.
pub(super) fn build(parts: Parts<'_>) -> Result<(Bus, Console, Virtio), VmError> {
    let mut claims = Claims { builder: BusBuilder::new(), parts: &parts };
    let clock = Arc::clone(parts.clock);
    let clock: Arc<dyn DeviceClock> = Arc::new(move || clock.now_ns());
    let events = parts.events.clone();
    let sink: Arc<dyn EventSink> = Arc::new(move |event: MachineEvent| {
        let _ = events.send(Event::Machine(event));
    });
    let output: Arc<dyn ByteSink> = match &parts.console {
        Some(console) => {
            let console = Arc::clone(console);
            Arc::new(move |bytes: &[u8]| console(bytes))
        }
        None => Arc::new(|_: &[u8]| {}),
    };
    let hub = Arc::clone(parts.hub);
    let line: Arc<dyn Line> = Arc::new(move |high: bool| hub.set_line(SERIAL_IRQ, high));
    let serial = Arc::new(Immediate(Serial::new("COM1", line, Arc::clone(&output))));
    claims.ports(&[(SERIAL_PORT, 8, 0)], Arc::<Immediate<Serial>>::clone(&serial))?;
    claims.simple(&[(0xe9, 1, 0)], DebugConsole::new(output))?;
    claims.simple(&[(0xf4, 4, 0)], DebugExit::new(Arc::clone(&sink)))?;
    let i8042 = I8042::new(Arc::clone(&sink));
    claims.simple(&[(0x60, 1, 0), (0x64, 1, I8042_COMMAND_OFFSET)], i8042)?;
    claims.simple(&[(0x40, 4, 0), (0x61, 1, PORT_B_OFFSET)], Pit::new(Arc::clone(&clock)))?;
    let above_4g = parts.layout.ram().saturating_sub(HOLE_START);
    let memory = RtcMemory { below_4g: parts.layout.low_end(), above_4g };
    claims.simple(&[(0x70, 2, 0)], Rtc::new(epoch_s(), memory, Arc::clone(&clock)))?;
    let cpus = parts.spec.vcpus.len() as u16;
    let machine = FwCfgMachine { cpus, cpus_max: cpus, ram_bytes: parts.spec.ram_bytes };
    let fw_cfg = FwCfg::new(machine, []).map_err(|e| VmError::Spec(SpecError(e.to_string())))?;
    claims.simple(&[(0x510, 2, 0)], fw_cfg)?;
    let reset = Arc::new(AcpiReset::new(RESET_VALUE, Arc::clone(&sink)));
    let (functions, virtio) = virtio::build(&parts.virtio, reset)?;
    for (range, place) in functions {
        claims.claim(range, 0, place)?;
    }
    claims.simple(&[(SLEEP_CONTROL_PORT, 2, 0)], AcpiSleep::new(Arc::clone(&sink)))?;
    // A boot processor that got an INIT writes its accumulator there, whatever that holds.
    claims.simple(&[(RESET_REQUEST, 1, 0)], ResetRequest(sink))?;
    let pic = Pic::new();
    claims.simple(&[(0x20, 2, 0), (0xa0, 2, PIC_SLAVE_OFFSET), (0x4d0, 2, ELCR_OFFSET)], pic)?;
    let timer = Arc::new(Immediate(PmTimer::new(Width::Bits32, clock)));
    let range = Range { space: Space::Pio, start: PM_TIMER_PORT.into(), len: 4 };
    claims.claim(range, 0, Place::Everywhere(timer))?;
    ioapic(&mut claims)?;
    own_devices(&mut claims)?;
    let console = Console(claims.at_home().then_some(serial));
    Ok((claims.builder.build(), console, virtio))
}

fn ioapic(claims: &mut Claims<'_>) -> Result<(), VmError> {
    let range = Range { space: Space::Mmio, start: IOAPIC_ADDRESS.into(), len: 0x1000 };
    let place = if claims.at_home() {
        Place::Local(Arc::new(IoapicDevice(Arc::clone(claims.parts.hub))))
    } else {
        let node = claims.parts.spec.platform_home;
        Place::Remote { node, name: "IOAPIC".into(), doorbells: Vec::new() }
    };
    claims.claim(range, 0, place)
}

/// The program's devices: here the ones of this node, elsewhere the others.
fn own_devices(claims: &mut Claims<'_>) -> Result<(), VmError> {
    let parts = claims.parts;
    for device in &parts.spec.devices {
        let mut offset = 0;
        for range in &device.ranges {
            let place = if device.home == parts.me {
                let given = parts.devices.iter().find(|(name, _)| *name == device.name);
                let (_, given) = given.ok_or_else(|| {
                    let name = &device.name;
                    let what = format!("device {name:?} lives on this node, but was not given");
                    VmError::Spec(SpecError(what))
                })?;
                Place::Local(Arc::clone(given))
            } else {
                Place::Remote {
                    node: device.home,
                    name: device.name.clone(),
                    doorbells: device.doorbells.clone(),
                }
            };
            claims.claim(*range, offset, place)?;
            offset += range.len;
        }
    }
    Ok(())
}

/// A boot processor that begins after a reset asks for one of the whole machine.
struct ResetRequest(Arc<dyn EventSink>);

impl Simple for ResetRequest {
    fn name(&self) -> &str {
        "reset request"
    }

    fn read(&self, _: u64, len: usize) -> kvm_vcpu::bus::Data {
        kvm_vcpu::bus::Data::all_ones(len)
    }

    fn write(&self, _: u64, _: kvm_vcpu::bus::Data) {
        self.0.event(MachineEvent::Reset);
    }

    fn reset(&self) {}
}

/// The host's date, as far as the guest's clock of CMOS goes.
fn epoch_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u32::try_from(now.as_secs()).unwrap_or(u32::MAX))
}

/// What ACPI says of the machine: RAM in equal shares, in the order of nodes that have vCPUs.
///
/// A guest that is told the rate of its time-stamp counter (`knows_rate`) learns of no PM timer: Linux
/// would measure the rate once more with it, by exits, and where one takes longer than it allows it
/// would try for ever, and have neither timers of high resolution nor processors that idle without
/// ticks.
pub(super) fn describe(vcpus: &[VcpuSpec], layout: &Layout, knows_rate: bool) -> Platform {
    let mut nodes: Vec<usize> = vcpus.iter().map(|vcpu| vcpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let domain = |node: usize| nodes.iter().position(|&other| other == node).unwrap_or(0) as u32;
    let vcpus = vcpus
        .iter()
        .enumerate()
        .map(|(id, vcpu)| Vcpu { apic_id: id as u32, node: domain(vcpu.node) });
    /// Shares begin at multiples of this: what the guest maps at a time is one node's.
    const ALIGN: u64 = 128 << 20;
    let share = layout.ram().div_ceil(nodes.len() as u64).next_multiple_of(ALIGN);
    let mut memory = Vec::new();
    for domain in 0..nodes.len() as u64 {
        let start = domain * share;
        let len = share.min(layout.ram().saturating_sub(start));
        for range in layout.ranges_of(start, len) {
            memory.push(MemoryRange { start: range.start, len: range.len, node: domain as u32 });
        }
    }
    Platform {
        vcpus: vcpus.collect(),
        memory,
        node_distance: NODE_DISTANCE,
        ioapic: Some(IoApic { id: 0, address: IOAPIC_ADDRESS, gsi_base: 0, overrides: Vec::new() }),
        pic: false,
        serial: Some(SerialPort { port: SERIAL_PORT, irq: SERIAL_IRQ }),
        i8042: true,
        rtc: true,
        pm_timer_port: (!knows_rate).then_some(PM_TIMER_PORT),
        pci: Some(virtio::host()),
        reset: Register { port: RESET_PORT, value: RESET_VALUE },
        sleep: Sleep { control_port: SLEEP_CONTROL_PORT, status_port: SLEEP_STATUS_PORT },
        devices: Vec::new(),
    }
}

/// The serial port's pin is one of the IOAPIC's.
const _: () = assert!((SERIAL_IRQ as usize) < PINS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_the_rate_has_no_timer_to_measure_it_with() {
        let layout = Layout::new(1 << 30).unwrap();
        let vcpus = [VcpuSpec { node: 0, pin: None }];
        assert_eq!(describe(&vcpus, &layout, true).pm_timer_port, None);
        assert_eq!(describe(&vcpus, &layout, false).pm_timer_port, Some(PM_TIMER_PORT));
    }
}
