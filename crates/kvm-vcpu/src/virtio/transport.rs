//! A virtio device as a PCI function (section 4.1).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemoryMmap;

use super::chain::Broken;
use super::common::{COMMON_BYTES, Common, Effect};
use super::crew::{Begin, Crew, Job, Kick};
use super::interrupts::Interrupts;
use super::ring::Ring;
use crate::bus::Data;
use crate::devices::lock;
use crate::pci::{
    ConfigSpace, Function, Identity, MSIX_CAPABILITY, MSIX_ENTRY_BYTES, MemoryBar, MessageSink,
    register,
};

/// Bytes of a device's memory range.
pub const BAR_BYTES: u64 = 0x8000;

// Each part has pages of its own.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;
const PART_BYTES: u64 = 0x1000;
const TABLE_BYTES: u64 = 0x2000;

/// Offsets where a write is a doorbell: it may be posted.
pub const DOORBELLS: Range<u64> = NOTIFY..NOTIFY + PART_BYTES;

/// Bytes between the doorbells of two queues.
const NOTIFY_STRIDE: u32 = 4;
/// Queues that have a doorbell and a vector.
const QUEUES_MAX: usize = (TABLE_BYTES / MSIX_ENTRY_BYTES) as usize - 1;

const VENDOR: u16 = 0x1af4;
/// Device ids of the modern interface begin there (section 4.1.2.1).
const DEVICE_ID_BASE: u16 = 0x1040;
const REVISION: u8 = 1;

/// Vendor-specific capabilities (section 4.1.4).
const VENDOR_CAPABILITY: u8 = 0x09;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_CONFIG_ACCESS: u8 = 5;
/// Offsets in the capability for access through configuration space, from its start.
const ACCESS_BAR: usize = 4;
const ACCESS_OFFSET: usize = 8;
const ACCESS_LEN: usize = 12;
const ACCESS_DATA: usize = 16;

/// What a device is, apart from how it is reached.
pub struct Model {
    /// Its name in messages to people.
    pub(super) name: String,
    /// Its kind (section 5).
    pub(super) id: u16,
    /// Class, subclass and programming interface of PCI.
    pub(super) class: [u8; 3],
    /// Features of its kind; those of all devices are added.
    pub(super) features: u64,
    /// Its configuration, which the driver reads and does not write.
    pub(super) config: Vec<u8>,
    /// The largest size of each queue.
    pub(super) queues: Vec<u16>,
    /// Its threads.
    pub(super) jobs: Vec<Job>,
}

/// Registers that accesses of several threads change.
struct Registers {
    space: ConfigSpace,
    common: Common,
    /// Set to have the threads stop; there while they have the queues.
    running: Option<Arc<AtomicBool>>,
    /// A reset that waits for the threads to stop.
    resetting: bool,
    /// Told of a base address register that was moved.
    warned: bool,
}

/// A virtio device, its registers and its threads.
pub struct VirtioPci {
    name: String,
    features: u64,
    config: Vec<u8>,
    queues: Vec<u16>,
    registers: Mutex<Registers>,
    answers_in_memory: AtomicBool,
    /// The machine stops: nothing starts until it is reset.
    halted: AtomicBool,
    interrupts: Arc<Interrupts>,
    kicks: Vec<Kick>,
    memory: Arc<GuestMemoryMmap>,
    fresh: ConfigSpace,
    msix_at: usize,
    access_at: usize,
    crew: Crew,
}

impl VirtioPci {
    /// A device whose memory range is at `address`, a multiple of [`BAR_BYTES`]. Its threads call `begin`
    /// first. When the machine loses memory, they have to be told before ([`halt`](Self::halt)): they
    /// then pass on nothing that they read.
    ///
    /// # Errors
    /// If a thread can't be started.
    pub fn new(
        model: Model,
        address: u64,
        memory: Arc<GuestMemoryMmap>,
        sink: Arc<dyn MessageSink>,
        begin: &Begin,
    ) -> std::io::Result<Self> {
        let Model { name, id, class, features, config, mut queues, jobs } = model;
        queues.truncate(QUEUES_MAX);
        let interrupts = Arc::new(Interrupts::new(queues.len(), sink));
        let kicks = queues.iter().map(|_| Kick::new()).collect::<std::io::Result<Vec<_>>>()?;
        let crew = Crew::new(&name, jobs, &kicks, &interrupts, begin)?;
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE_ID_BASE + id,
            revision: REVISION,
            class,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE_ID_BASE + id,
        };
        let bar = MemoryBar { address, len: BAR_BYTES };
        let mut fresh = ConfigSpace::new(&identity, Some(bar));
        let (msix_at, access_at) = add_capabilities(&mut fresh, &interrupts, config.len());
        let features = features | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
        let registers = Registers {
            space: fresh.clone(),
            common: Common::new(features, &queues),
            running: None,
            resetting: false,
            warned: false,
        };
        Ok(Self {
            name,
            features,
            config,
            queues,
            registers: Mutex::new(registers),
            answers_in_memory: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            interrupts,
            kicks,
            memory,
            fresh,
            msix_at,
            access_at,
            crew,
        })
    }

    /// Has its threads let go of the guest's memory, for good or until a reset; returns at once.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
        let mut registers = lock(&self.registers);
        self.stop(&mut registers);
    }

    /// Waits until they have; says whether it was in time.
    pub fn wait_quiet(&self, timeout: Duration) -> bool {
        self.crew.wait_quiet(timeout)
    }

    /// Ends its threads, for good, and lets go of what it uses of the host.
    pub fn close(&self) {
        self.halt();
        self.crew.close();
    }

    fn stop(&self, registers: &mut Registers) {
        if let Some(stop) = registers.running.take() {
            stop.store(true, Ordering::SeqCst);
            self.crew.stop();
        }
    }

    /// Ends a reset once the threads have stopped.
    fn settle(&self, registers: &mut Registers) {
        if registers.resetting && self.crew.is_quiet() {
            registers.resetting = false;
            registers.common = Common::new(self.features, &self.queues);
            self.interrupts.reset();
        }
    }

    fn start(&self, registers: &mut Registers) {
        if self.halted.load(Ordering::SeqCst) || !registers.space.is_bus_master() {
            return self.interrupts.break_device(false);
        }
        let stop = Arc::new(AtomicBool::new(false));
        match self.rings(&registers.common, &stop) {
            Ok(rings) => {
                registers.running = Some(stop);
                self.crew.start(registers.common.features(), rings);
            }
            Err(broken) => {
                log::warn!("{}: {broken}; the device waits for its reset", self.name);
                self.interrupts.break_device(true);
            }
        }
    }

    fn rings(&self, common: &Common, stop: &Arc<AtomicBool>) -> Result<Vec<Option<Ring>>, Broken> {
        let event_idx = common.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let ring = |(index, setup): (usize, &super::common::QueueSetup)| {
            let ring = setup.enabled.then(|| {
                let (memory, stop) = (Arc::clone(&self.memory), Arc::clone(stop));
                let interrupts = Arc::clone(&self.interrupts);
                Ring::new(index as u16, setup, event_idx, memory, interrupts, stop)
            });
            ring.transpose()
        };
        common.queues().iter().enumerate().map(ring).collect()
    }

    fn write_common(&self, offset: u64, data: Data) {
        let mut registers = lock(&self.registers);
        self.settle(&mut registers);
        if registers.resetting {
            return;
        }
        match registers.common.write(&self.interrupts, offset, data) {
            Effect::None => {}
            Effect::Start => self.start(&mut registers),
            Effect::Reset => {
                self.stop(&mut registers);
                registers.resetting = true;
                self.settle(&mut registers);
            }
        }
    }

    fn part_read(&self, offset: u64, len: usize) -> Data {
        match offset {
            COMMON..ISR => {
                let mut registers = lock(&self.registers);
                self.settle(&mut registers);
                registers.common.read(&self.interrupts, offset, len)
            }
            ISR => Data::from_u64(self.interrupts.take_isr().into(), len),
            DEVICE..NOTIFY => {
                let byte = |at: u64| self.config.get((at - DEVICE) as usize).copied();
                Data::gather(offset, len, |at| byte(at).unwrap_or(0))
            }
            TABLE..PENDING => self.interrupts.msix.read_table(offset - TABLE, len),
            PENDING..BAR_BYTES => self.interrupts.msix.read_pending(offset - PENDING, len),
            _ => Data::from_u64(0, len),
        }
    }

    fn part_write(&self, offset: u64, data: Data) {
        match offset {
            COMMON..ISR => self.write_common(offset, data),
            NOTIFY..TABLE => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_STRIDE);
                if let Some(kick) = self.kicks.get(queue as usize) {
                    kick.kick();
                }
            }
            TABLE..PENDING => self.interrupts.msix.write_table(offset - TABLE, data),
            _ => {}
        }
    }

    /// The access that the capability in configuration space stands for (section 4.1.4.9).
    fn window(&self, space: &ConfigSpace) -> Option<(u64, usize)> {
        let at = self.access_at;
        let offset = u64::from(space.u32(at + ACCESS_OFFSET));
        let len = space.u32(at + ACCESS_LEN);
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len.into());
        let exists = space.read((at + ACCESS_BAR) as u64, 1).to_u64() == 0 && offset < BAR_BYTES;
        (fits && exists).then_some((offset, len as usize))
    }

    /// Whether an access to configuration space touches the data of that capability.
    fn touches_window(&self, offset: u64, len: usize) -> bool {
        let data = (self.access_at + ACCESS_DATA) as u64;
        offset < data + 4 && data < offset.saturating_add(len as u64)
    }

    /// Does what follows from a new value of the command register or of MSI-X' control.
    fn obey_config(&self, registers: &mut Registers) {
        let space = &registers.space;
        let control = space.u16(self.msix_at + 2);
        let bus_master = space.is_bus_master();
        self.answers_in_memory.store(space.answers_in_memory(), Ordering::SeqCst);
        let has_memory = space.u16(register::COMMAND) & register::COMMAND_MEMORY != 0;
        if has_memory && !space.is_in_place() && !registers.warned {
            registers.warned = true;
            log::warn!(
                "{}: the guest has moved its memory range, which can't move; boot Linux without \
                 pci=realloc and pci=nocrs",
                self.name
            );
        }
        self.interrupts.msix.set_control(control, bus_master);
        // A kernel that starts another takes bus mastering away to have devices leave its memory.
        if !bus_master && registers.running.is_some() {
            self.stop(registers);
            self.interrupts.break_device(false);
        }
    }
}

impl Function for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn config_read(&self, offset: u64, len: usize) -> Data {
        let window = {
            let registers = lock(&self.registers);
            let window =
                self.touches_window(offset, len).then(|| self.window(&registers.space)).flatten();
            if window.is_none() {
                return registers.space.read(offset, len);
            }
            window
        };
        let read = window.map_or(Data::all_ones(0), |(at, len)| self.part_read(at, len));
        let data_at = (self.access_at + ACCESS_DATA) as u64;
        let registers = lock(&self.registers);
        Data::gather(offset, len, |at| {
            let byte = at.checked_sub(data_at).and_then(|at| read.bytes().get(at as usize));
            byte.copied().unwrap_or_else(|| registers.space.read(at, 1).to_u64() as u8)
        })
    }

    fn config_write(&self, offset: u64, data: Data) {
        let window = {
            let mut registers = lock(&self.registers);
            registers.space.write(offset, data);
            self.obey_config(&mut registers);
            let touches = self.touches_window(offset, data.len());
            touches.then(|| self.window(&registers.space)).flatten().map(|(at, len)| {
                let data_at = (self.access_at + ACCESS_DATA) as u64;
                (at, registers.space.read(data_at, len))
            })
        };
        if let Some((at, data)) = window {
            self.part_write(at, data);
        }
    }

    fn memory_read(&self, offset: u64, len: usize) -> Data {
        match self.answers_in_memory.load(Ordering::SeqCst) {
            true => self.part_read(offset, len),
            false => Data::all_ones(len),
        }
    }

    fn memory_write(&self, offset: u64, data: Data) {
        if self.answers_in_memory.load(Ordering::SeqCst) {
            self.part_write(offset, data);
        }
    }

    fn reset(&self) {
        let mut registers = lock(&self.registers);
        self.stop(&mut registers);
        registers.space = self.fresh.clone();
        registers.resetting = true;
        registers.warned = false;
        self.settle(&mut registers);
        self.answers_in_memory.store(false, Ordering::SeqCst);
        self.interrupts.msix.reset();
        self.halted.store(false, Ordering::SeqCst);
    }
}

/// Adds what says where in memory the parts are; says at which offsets MSI-X and the access through
/// configuration space have theirs.
fn add_capabilities(
    space: &mut ConfigSpace,
    interrupts: &Interrupts,
    config_len: usize,
) -> (usize, usize) {
    let part = |kind: u8, more: u8, offset: u64, len: usize| {
        // The capability's length, kind, memory range, id and padding; where, and how long.
        let mut body = vec![16 + more, kind, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body
    };
    let (body, writable) = interrupts.msix.capability(TABLE as u32, PENDING as u32);
    let msix_at = space.add_capability(MSIX_CAPABILITY, &body, &writable);
    let common = part(CAP_COMMON, 0, COMMON, COMMON_BYTES);
    space.add_capability(VENDOR_CAPABILITY, &common, &[]);
    let mut notify = part(CAP_NOTIFY, 4, NOTIFY, PART_BYTES as usize);
    notify.extend(NOTIFY_STRIDE.to_le_bytes());
    space.add_capability(VENDOR_CAPABILITY, &notify, &[]);
    space.add_capability(VENDOR_CAPABILITY, &part(CAP_ISR, 0, ISR, 1), &[]);
    if config_len > 0 {
        space.add_capability(VENDOR_CAPABILITY, &part(CAP_DEVICE, 0, DEVICE, config_len), &[]);
    }
    let mut access = part(CAP_CONFIG_ACCESS, 4, 0, 0);
    access.extend([0; 4]);
    let mut writable = [0; 18];
    // Memory range, offset, length and data are the driver's.
    writable[ACCESS_BAR - 2] = 0xff;
    writable[ACCESS_OFFSET - 2..].fill(0xff);
    let access_at = space.add_capability(VENDOR_CAPABILITY, &access, &writable);
    // Six capabilities of at most 20 bytes fit behind the header.
    (msix_at.map_or(0, usize::from), access_at.map_or(0, usize::from))
}
