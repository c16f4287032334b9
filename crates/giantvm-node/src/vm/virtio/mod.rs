//! The PCI bus of every virtual machine, and the virtio devices on it.
//!
//! A device lives at its home: its configuration space (4 KiB of ECAM), its memory range and its threads.
//! Other nodes forward accesses there; a doorbell is posted. The host bridge and the ports 0xcf8 to
//! 0xcff live at the platform's home, which asks the home of the function that the address names.

mod spec;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dsm_core::pages::sigbus::survive_lost_memory;
use dsm_core::report::chain;
use dsm_core::types::NodeId;
use kvm_vcpu::acpi::{Ecam, PciHost};
use kvm_vcpu::boot::layout::{ECAM_START, PCI_MEMORY_LEN, PCI_MEMORY_START};
use kvm_vcpu::bus::{Access, Device, Immediate, Place, Range, Reply, Simple};
use kvm_vcpu::chips::Message;
use kvm_vcpu::pci::{
    Absent, CONFIG_PORTS, CONFIG_PORTS_START, ConfigPorts, ConfigWindow, ECAM_FUNCTION_BYTES,
    Function, HostBridge, MemoryWindow, absent_ranges, config_range, ecam_offset,
};
use kvm_vcpu::virtio::{
    BAR_BYTES, Begin, ConsoleInput, DOORBELLS, Disk, Model, Tap, VirtioPci, console, net, rng,
};
use kvm_vcpu::vm::Ram;

use super::api::{ConsoleSink, VmError};
use super::hub::Hub;
use super::spec::VmSpec;
pub use spec::{VirtioKind, VirtioSpec};
pub(super) use spec::{agreed, check};

/// The last device that there may be has its memory within the bridge's window.
const _: () = assert!((spec::DEVICES_MAX as u64 + 1) * BAR_BYTES <= PCI_MEMORY_LEN);

/// What the guest is told of the bus.
pub(super) fn host() -> PciHost {
    PciHost {
        ecam: Ecam { base: ECAM_START, bus_first: 0, bus_last: 0 },
        memory_start: PCI_MEMORY_START as u32,
        memory_len: PCI_MEMORY_LEN as u32,
    }
}

/// The virtio devices of this node.
#[derive(Default)]
pub(super) struct Virtio {
    devices: Vec<Arc<VirtioPci>>,
    consoles: Vec<(String, ConsoleInput)>,
}

impl Virtio {
    /// Has all threads of devices let go of the guest's memory until a reset; returns at once.
    pub(super) fn halt(&self) {
        self.devices.iter().for_each(|device| device.halt());
    }

    /// Waits until they have; says whether it was in time.
    pub(super) fn wait_quiet(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let left = || until.saturating_duration_since(Instant::now());
        self.devices.iter().all(|device| device.wait_quiet(left()))
    }

    /// Ends the threads, and with them the use of files and taps.
    pub(super) fn close(&self) {
        self.devices.iter().for_each(|device| device.close());
    }

    /// The way into a console of this node.
    pub(super) fn console(&self, name: &str) -> Option<&ConsoleInput> {
        self.consoles.iter().find(|(it, _)| it == name).map(|(_, input)| input)
    }
}

/// What devices are made with.
pub(super) struct Host<'a> {
    pub(super) spec: &'a VmSpec,
    pub(super) me: usize,
    /// The name of this node.
    pub(super) name: &'a str,
    pub(super) ram: &'a Ram,
    pub(super) hub: &'a Arc<Hub>,
    /// Set before the guest's memory is lost with a node.
    pub(super) lost: &'a Arc<AtomicBool>,
    /// Where the output of this node's consoles goes.
    pub(super) consoles: &'a [(String, ConsoleSink)],
}

/// A range and who answers there.
pub(super) type Claim = (Range, Place);

/// Who answers an access to a function's configuration space.
enum Home {
    Here(Arc<dyn Device>),
    There(NodeId),
}

/// Makes the bus and this node's devices; `reset` is the register at port 0xcf9.
pub(super) fn build(
    host: &Host<'_>,
    reset: Arc<dyn Simple>,
) -> Result<(Vec<Claim>, Virtio), VmError> {
    let mut bus = BusPlan { host, claims: Vec::new(), homes: Vec::new() };
    let mut virtio = Virtio::default();
    let bridge = |_: u64| -> Result<Arc<dyn Function>, VmError> { Ok(Arc::new(HostBridge::new())) };
    bus.add("PCI host bridge", host.spec.platform_home, false, bridge)?;
    for device in &host.spec.virtio {
        bus.add(&device.name, device.home, true, |address| {
            let function = open(host, device, address, &mut virtio)
                .map_err(|reason| host.failed(format!("{}: {reason}", device.title())))?;
            Ok(function)
        })?;
    }
    let devices: Vec<u8> = (0..bus.homes.len() as u8).collect();
    let absent: Arc<dyn Device> = Arc::new(Immediate(Absent));
    for range in absent_ranges(&devices) {
        bus.claims.push((range, Place::Everywhere(Arc::clone(&absent))));
    }
    bus.add_ports(reset);
    Ok((bus.claims, virtio))
}

impl Host<'_> {
    fn failed(&self, reason: String) -> VmError {
        VmError::Start { node: self.name.to_owned(), reason }
    }
}

/// The bus while it is put together, device after device.
struct BusPlan<'a> {
    host: &'a Host<'a>,
    claims: Vec<Claim>,
    homes: Vec<Home>,
}

impl BusPlan<'_> {
    /// Adds the next device, made by `make` where it lives, which is told where its memory is.
    fn add(
        &mut self,
        name: &str,
        home: usize,
        has_memory: bool,
        make: impl FnOnce(u64) -> Result<Arc<dyn Function>, VmError>,
    ) -> Result<(), VmError> {
        let number = self.homes.len() as u8;
        let config = config_range(number);
        let memory = Range::memory(PCI_MEMORY_START + u64::from(number) * BAR_BYTES, BAR_BYTES);
        if home != self.host.me {
            let node = NodeId::new(home);
            let node = node.ok_or_else(|| self.host.failed("too many nodes".into()))?;
            self.homes.push(Home::There(node));
            let there = |doorbells| Place::Remote { node: home, name: name.to_owned(), doorbells };
            self.claims.push((config, there(Vec::new())));
            if has_memory {
                self.claims.push((memory, there(vec![DOORBELLS])));
            }
            return Ok(());
        }
        let function = make(memory.start)?;
        let window: Arc<dyn Device> = Arc::new(Immediate(ConfigWindow(Arc::clone(&function))));
        self.homes.push(Home::Here(Arc::clone(&window)));
        self.claims.push((config, Place::Local(window)));
        if has_memory {
            let window: Arc<dyn Device> = Arc::new(Immediate(MemoryWindow(function)));
            self.claims.push((memory, Place::Local(window)));
        }
        Ok(())
    }

    fn add_ports(&mut self, reset: Arc<dyn Simple>) {
        let range = Range::ports(CONFIG_PORTS_START, CONFIG_PORTS as u16);
        let home = self.host.spec.platform_home;
        if home != self.host.me {
            let name = "PCI configuration ports".to_owned();
            self.claims.push((range, Place::Remote { node: home, name, doorbells: Vec::new() }));
            return;
        }
        let (homes, hub) = (std::mem::take(&mut self.homes), Arc::clone(self.host.hub));
        let route = move |access: Access, reply: Reply| route(&homes, &hub, access, reply);
        let ports: Arc<dyn Device> = Arc::new(ConfigPorts::new(Arc::new(route), reset));
        self.claims.push((range, Place::Local(ports)));
    }
}

/// Leads an access to configuration space, by its offset in ECAM, to the function's home.
fn route(homes: &[Home], hub: &Hub, access: Access, reply: Reply) {
    let offset = access.offset();
    let device = offset / ecam_offset(1);
    let at = offset % ecam_offset(1);
    match homes.get(device as usize) {
        // Of a device's eight functions, there is the first.
        Some(_) if at >= ECAM_FUNCTION_BYTES => {}
        Some(Home::Here(device)) => device.access(access.at(at), reply),
        Some(Home::There(node)) => hub.ask(*node, access.at(ECAM_START + offset), reply),
        None => {}
    }
}

/// Opens what a device of this node needs of the host, and makes it.
fn open(
    host: &Host<'_>,
    device: &VirtioSpec,
    address: u64,
    virtio: &mut Virtio,
) -> Result<Arc<dyn Function>, String> {
    let name = &device.name;
    let model: Model = match &device.kind {
        VirtioKind::Disk { path, read_only } => {
            Disk::open(path, *read_only).map_err(|error| chain(&error))?.model(name)
        }
        VirtioKind::Net { tap, queues, .. } => {
            let tap = Tap::open(tap, *queues).map_err(|error| chain(&error))?;
            net(name, tap, device.mac(&host.spec.name))
        }
        VirtioKind::Console => {
            let given = host.consoles.iter().find(|(it, _)| it == name);
            let output = given.map(|(_, output)| Arc::clone(output));
            let sink = move |bytes: &[u8]| {
                if let Some(output) = &output {
                    output(bytes);
                }
            };
            let (model, input) = console(name, Arc::new(sink)).map_err(|e| e.to_string())?;
            virtio.consoles.push((name.clone(), input));
            model
        }
        VirtioKind::Rng => rng(name),
    };
    let memory = Arc::new(host.ram.memory().clone());
    let hub = Arc::clone(host.hub);
    let sink = Arc::new(move |message: Message| hub.message(message));
    // A thread that waits for a page when a node is lost ends as an error of its device, not of this process.
    let lost = Arc::clone(host.lost);
    let begin: Begin = Arc::new(move || survive_lost_memory(Arc::clone(&lost)));
    let device = VirtioPci::new(model, address, memory, sink, &begin);
    let device = device.map_err(|error| error.to_string())?;
    let device = Arc::new(device);
    virtio.devices.push(Arc::clone(&device));
    Ok(device)
}
