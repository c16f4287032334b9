//! All vCPUs of the virtual machine, at one node.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API,
    KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQ_ROUTING_MSI,
    KVM_MSR_EXIT_REASON_FILTER, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_DISABLE_EXITS_HLT, KvmIrqRouting, Msrs, kvm_cpuid_entry2,
    kvm_enable_cap, kvm_irq_routing_entry, kvm_mp_state, kvm_msi, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use super::errors::KvmError;
use super::gate::{Gate, Order};
use super::kick::{self, Kick};
use super::outside::{Interrupt, Outside, Registers, VcpuId};
use super::private::{self, Private};
use super::ram::Ram;
use super::run_page::RunPage;
use super::system::Kvm;
use super::tsc::{TscBoard, TscSetting};
use super::{real, stand_in};
use crate::paging::Root;

/// IA32_APIC_BASE (SDM vol. 3, 11.4.4).
pub(super) const MSR_APIC_BASE: u32 = 0x1b;
/// Its bits for the APIC being on, and in x2APIC mode.
pub(super) const APIC_X2APIC: u64 = 0xc00;
/// Its bit that marks the boot processor.
pub(super) const APIC_BSP: u64 = 0x100;
/// Its address, and nothing else.
const APIC_ADDRESS: u64 = 0xfee0_0000;

/// Pins of the IOAPIC; KVM watches the ends of interrupts of these GSIs.
const PINS: u64 = 24;
/// KVM's own limit for GSIs.
const GSIS_MAX: usize = 4096;

// Delivery modes and triggers of an MSI (SDM vol. 3, 11.11.2), and of the interrupt command.
const MODE_NMI: u32 = 4 << 8;
const MODE_INIT: u32 = 5 << 8;
const MODE_STARTUP: u32 = 6 << 8;
const LEVEL: u32 = 1 << 15 | 1 << 14;

/// Where a vCPU runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// On this node; otherwise it has a stand-in here.
    pub here: bool,
    /// The processor of this host that its thread stays on.
    pub pin: Option<usize>,
}

/// Sets the state in which the boot processor begins, from that after a reset.
pub type BootState = Box<dyn FnOnce(&mut kvm_regs, &mut kvm_sregs) + Send>;

/// What a machine is made of.
pub struct MachineConfig {
    /// All vCPUs; vCPU `i` has x2APIC id `i`, and the first one boots.
    pub vcpus: Vec<Placement>,
    /// The CPUID of each of them.
    pub cpuid: Vec<Vec<kvm_cpuid_entry2>>,
    /// The guest's memory.
    pub ram: Ram,
    /// How the guest's time-stamp counter is made of this host's.
    pub tsc: TscSetting,
    /// How the first vCPU begins, if it is here.
    pub boot: Option<BootState>,
}

/// What a vCPU's thread and its machine share.
pub(super) struct Seat {
    pub(super) vcpu: VcpuId,
    pub(super) kick: Kick,
    /// It is to find out whether it is halted.
    pub(super) nudged: AtomicBool,
    /// Somebody wants to know where the guest is.
    pub(super) sampled: AtomicBool,
    /// It was found halted, and waits outside of the guest.
    pub(super) halted: AtomicBool,
    /// Somebody wants to know where its walks of page tables begin.
    pub(super) root_wanted: AtomicBool,
    /// Where they did when that was asked last, packed; 0 if that is not known.
    pub(super) root: AtomicU64,
    /// Its registers when it last stopped, of real ones.
    pub(super) registers: Mutex<Option<Registers>>,
}

/// What all threads of a machine share.
pub(super) struct Common {
    pub(super) vm: VmFd,
    pub(super) gate: Gate,
    pub(super) outside: Arc<dyn Outside>,
    pub(super) tsc: TscBoard,
    /// Some route is level-triggered: stand-ins look at the mode of each interrupt.
    pub(super) levels: AtomicBool,
    // Dropped after the machine that maps them.
    _private: Private,
    pub(super) ram: Ram,
}

/// One route of the interrupt chips: what a GSI sends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GsiRoute {
    /// The global system interrupt; the IOAPIC's pins come first.
    pub gsi: u32,
    /// MSI address, in x2APIC form (destination bits 8 to 31 in the upper half).
    pub address: u64,
    /// MSI data.
    pub data: u32,
}

impl GsiRoute {
    fn is_level(&self) -> bool {
        self.data & 1 << 15 != 0
    }
}

/// All vCPUs of the virtual machine at this node, paused when made. Dropping it ends their threads.
pub struct Machine {
    common: Arc<Common>,
    seats: Vec<Arc<Seat>>,
    placements: Vec<Placement>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A vCPU before its thread starts.
struct Made {
    fd: VcpuFd,
    seat: Arc<Seat>,
    page: RunPage,
    placement: Placement,
}

impl Machine {
    /// Creates the machine with all vCPUs, and starts their threads, which wait for
    /// [`Machine::resume`]. All stand-ins take interrupts when it returns: what other nodes need to
    /// know before any vCPU of the virtual machine runs.
    ///
    /// # Errors
    /// [`KvmError`]: too many vCPUs, or what KVM refuses.
    pub fn new(
        kvm: &Kvm,
        config: MachineConfig,
        outside: Arc<dyn Outside>,
    ) -> Result<Self, KvmError> {
        let limits = kvm.limits();
        let (asked, most) = (config.vcpus.len(), limits.vcpus_max.min(private::STAND_INS_MAX));
        if asked == 0 {
            return Err(KvmError::NoVcpus);
        }
        if asked > most {
            return Err(KvmError::TooManyVcpus { asked, most });
        }
        kick::prepare().map_err(KvmError::call("sigaction"))?;
        let vm = kvm.kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
        prepare_vm(&vm, limits.halt_in_guest)?;
        let private = Private::new()?;
        map_memory(&vm, &config.ram, &private)?;
        let run_size = kvm.kvm.get_vcpu_mmap_size();
        let run_size = run_size.map_err(KvmError::call("KVM_GET_VCPU_MMAP_SIZE"))?;
        let mut boot = config.boot;
        let mut made = Vec::new();
        for (index, &placement) in config.vcpus.iter().enumerate() {
            let vcpu = VcpuId(index as u32);
            let fd = vm.create_vcpu(index as u64);
            let fd = fd.map_err(KvmError::vcpu("KVM_CREATE_VCPU", vcpu))?;
            let cpuid = config.cpuid.get(index).map_or(&[][..], Vec::as_slice);
            prepare_vcpu(vcpu, &fd, cpuid, limits.enforces_pv_cpuid)?;
            config.tsc.apply(vcpu, &fd)?;
            if index == 0
                && placement.here
                && let Some(boot) = boot.take()
            {
                let mut regs = fd.get_regs().map_err(KvmError::vcpu("KVM_GET_REGS", vcpu))?;
                let mut sregs = fd.get_sregs().map_err(KvmError::vcpu("KVM_GET_SREGS", vcpu))?;
                boot(&mut regs, &mut sregs);
                fd.set_sregs(&sregs).map_err(KvmError::vcpu("KVM_SET_SREGS", vcpu))?;
                fd.set_regs(&regs).map_err(KvmError::vcpu("KVM_SET_REGS", vcpu))?;
            }
            let page = RunPage::new(vcpu, fd.as_raw_fd(), run_size)?;
            let kick = Kick::new(RunPage::new(vcpu, fd.as_raw_fd(), run_size)?);
            let seat = Arc::new(Seat {
                vcpu,
                kick,
                nudged: AtomicBool::new(false),
                sampled: AtomicBool::new(false),
                halted: AtomicBool::new(false),
                root_wanted: AtomicBool::new(false),
                root: AtomicU64::new(0),
                registers: Mutex::new(None),
            });
            made.push(Made { fd, seat, page, placement });
        }
        let common = Arc::new(Common {
            vm,
            gate: Gate::new(),
            outside,
            tsc: TscBoard::new(config.tsc),
            levels: AtomicBool::new(false),
            _private: private,
            ram: config.ram,
        });
        let seats = made.iter().map(|made| Arc::clone(&made.seat)).collect();
        let machine = Self { common, seats, placements: config.vcpus, threads: Mutex::default() };
        let (ready, when_ready) = mpsc::channel();
        for made in made {
            machine.start(made, ready.clone())?;
        }
        drop(ready);
        // Each thread says once how it began; all stand-ins are online then.
        when_ready.into_iter().collect::<Result<(), KvmError>>()?;
        Ok(machine)
    }

    fn start(&self, made: Made, ready: Sender<Result<(), KvmError>>) -> Result<(), KvmError> {
        let Made { fd, seat, page, placement } = made;
        let common = Arc::clone(&self.common);
        let vcpu = seat.vcpu;
        let name = if placement.here { "vcpu" } else { "standin" };
        let run = move || {
            seat.kick.this_thread(true);
            if placement.here {
                let pinned = placement.pin.map_or(Ok(()), |processor| {
                    pin_to(processor).map_err(|source| KvmError::Pin { vcpu, processor, source })
                });
                let goes_on = pinned.is_ok();
                let _ = ready.send(pinned);
                drop(ready);
                if goes_on {
                    real::run(&common, &seat, fd, page);
                }
            } else {
                kick::outrank();
                stand_in::run(&common, &seat, fd, ready);
            }
            seat.kick.this_thread(false);
        };
        let builder = std::thread::Builder::new().name(format!("gvm-{name}-{vcpu}"));
        let thread = builder.spawn(run).map_err(KvmError::vcpu("starting a thread", vcpu))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Number of vCPUs of the whole virtual machine.
    pub fn vcpus(&self) -> usize {
        self.placements.len()
    }

    /// Whether a vCPU runs on this node.
    pub fn is_here(&self, vcpu: VcpuId) -> bool {
        self.placements.get(vcpu.0 as usize).is_some_and(|placement| placement.here)
    }

    /// Lets vCPUs run, and stand-ins send on what comes.
    pub fn resume(&self) {
        self.common.gate.set(Order::Run);
    }

    /// Has all vCPUs stop outside of the guest; [`Machine::wait_paused`] says when they have.
    pub fn pause(&self) {
        self.common.gate.set(Order::Park);
        self.kick_all();
    }

    /// Waits until all vCPUs have stopped after [`Machine::pause`]; says whether they have in time.
    /// One that waits for a page or a device stops only when it has got it.
    pub fn wait_paused(&self, timeout: Duration) -> bool {
        self.common.gate.wait_parked(timeout)
    }

    fn kick_all(&self) {
        self.seats.iter().for_each(|seat| seat.kick.kick());
    }

    /// Has a vCPU of this node, given by its thread, find out whether it is halted within the guest:
    /// it then waits outside of it, where its thread sleeps. Returns at once.
    pub fn nudge(&self, thread: u32) {
        if let Some(seat) = self.seat_of(thread) {
            seat.nudged.store(true, Ordering::SeqCst);
            seat.kick.kick();
        }
    }

    /// Whether a vCPU of this node, given by its thread, was found halted at a nudge. It may have been
    /// woken since: only if its thread sleeps, for nothing else, it still is.
    pub fn found_halted(&self, thread: u32) -> bool {
        self.seat_of(thread).is_some_and(|seat| seat.halted.load(Ordering::SeqCst))
    }

    /// The vCPU of this node that a thread runs.
    pub fn vcpu_of(&self, thread: u32) -> Option<VcpuId> {
        self.seat_of(thread).map(|seat| seat.vcpu)
    }

    fn seat_of(&self, thread: u32) -> Option<&Arc<Seat>> {
        self.seats.iter().find(|seat| seat.kick.is(thread))
    }

    /// Has a vCPU of this node leave the guest and tell where it was ([`Outside::sampled`]): of one
    /// that waits for a page, the instruction that needs it. Returns at once.
    pub fn sample(&self, vcpu: VcpuId) {
        if let Some(seat) = self.seats.get(vcpu.0 as usize) {
            seat.sampled.store(true, Ordering::SeqCst);
            seat.kick.kick();
        }
    }

    /// Lets vCPUs that [`Machine::nudge`] found halted go on, as if an interrupt had come that asks for
    /// nothing; a halted guest halts again. To be called a few times a second: one that had just been
    /// woken, and was met before its first instruction, looks like a halted one.
    pub fn revive(&self) {
        for seat in &self.seats {
            if seat.halted.load(Ordering::SeqCst) {
                seat.kick.kick();
            }
        }
    }

    /// Has the vCPUs of this node tell where their walks of page tables begin, each before it next
    /// enters the guest: now, but for those that wait for something, which walk no tables meanwhile.
    pub fn ask_roots(&self) {
        for (seat, placement) in self.seats.iter().zip(&self.placements) {
            if placement.here {
                seat.root_wanted.store(true, Ordering::SeqCst);
                if !seat.halted.load(Ordering::SeqCst) {
                    seat.kick.kick();
                }
            }
        }
    }

    /// What they told last.
    pub fn roots(&self) -> impl Iterator<Item = Root> {
        self.seats.iter().filter_map(|seat| Root::unpack(seat.root.load(Ordering::SeqCst)))
    }

    /// The registers of a vCPU of this node when it last stopped.
    pub fn registers(&self, vcpu: VcpuId) -> Option<Registers> {
        let seat = self.seats.get(vcpu.0 as usize)?;
        lock(&seat.registers).clone()
    }

    /// Injects an interrupt, sent on another node, into a vCPU of this one.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn interrupt(&self, vcpu: VcpuId, interrupt: Interrupt) -> Result<(), KvmError> {
        let data = match interrupt {
            Interrupt::Fixed { vector, level } => u32::from(vector) | if level { LEVEL } else { 0 },
            Interrupt::Nmi => MODE_NMI,
            Interrupt::Init => MODE_INIT,
            Interrupt::Startup { vector } => MODE_STARTUP | u32::from(vector),
        };
        let id = u64::from(vcpu.0);
        self.message(APIC_ADDRESS | (id & 0xff) << 12 | (id & !0xff) << 32, data).map(drop)
    }

    /// Sends a message-signalled interrupt as a device of this node would; says to how many vCPUs,
    /// stand-ins included, it went.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn message(&self, address: u64, data: u32) -> Result<usize, KvmError> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // A message that nobody takes, such as a vector for an APIC that is switched off, is no error.
        match self.common.vm.signal_msi(msi) {
            Ok(taken) => Ok(usize::try_from(taken).unwrap_or(0)),
            Err(error) if error.errno() == libc::EPERM => Ok(0),
            Err(error) => Err(KvmError::call("KVM_SIGNAL_MSI")(error)),
        }
    }

    /// Replaces the routes: KVM reports the end of interrupts of the level-triggered ones. In force
    /// when it returns.
    ///
    /// # Errors
    /// Too many routes, or KVM refuses.
    pub fn set_routes(&self, routes: &[GsiRoute]) -> Result<(), KvmError> {
        let asked = routes.len();
        if asked > GSIS_MAX || routes.iter().any(|route| route.gsi as usize >= GSIS_MAX) {
            return Err(KvmError::Routes { asked });
        }
        let entries: Vec<_> = routes.iter().map(route_entry).collect();
        let table = KvmIrqRouting::from_entries(&entries);
        let table = table.map_err(|_| KvmError::Routes { asked })?;
        // Before a level-triggered interrupt can be sent by the new routes.
        self.common.levels.store(routes.iter().any(GsiRoute::is_level), Ordering::SeqCst);
        self.common.vm.set_gsi_routing(&table).map_err(KvmError::call("KVM_SET_GSI_ROUTING"))
    }

    /// Has the vCPUs of this node count time in another way: each before it next enters the guest, which
    /// all leave now. One that can't says so to [`Outside::failed`].
    pub fn set_tsc(&self, setting: TscSetting) {
        self.common.tsc.publish(setting);
        self.seats.iter().zip(&self.placements).for_each(|(seat, placement)| {
            if placement.here {
                seat.kick.kick();
            }
        });
    }

    /// Ends the machine: no vCPU enters the guest any more. Returns when all threads have ended, or
    /// after `timeout`; says whether they have. Threads that wait for memory that never comes are
    /// left behind.
    pub fn end(&self, timeout: Duration) -> bool {
        self.common.gate.set(Order::End);
        self.kick_all();
        let ended = self.common.gate.wait_parked(timeout);
        if ended {
            let me = std::thread::current().id();
            let threads = std::mem::take(&mut *lock(&self.threads));
            for thread in threads.into_iter().filter(|thread| thread.thread().id() != me) {
                let _ = thread.join();
            }
        }
        ended
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end(Duration::from_secs(1));
    }
}

/// Locks what nothing panics over.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enable(vm: &VmFd, cap: u32, name: &'static str, args: [u64; 4]) -> Result<(), KvmError> {
    let cap = kvm_enable_cap { cap, args, ..Default::default() };
    vm.enable_cap(&cap).map_err(KvmError::call(name))
}

fn prepare_vm(vm: &VmFd, halt_in_guest: bool) -> Result<(), KvmError> {
    enable(vm, KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", [PINS, 0, 0, 0])?;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(vm, KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", [x2apic.into(), 0, 0, 0])?;
    if halt_in_guest {
        let hlt = KVM_X86_DISABLE_EXITS_HLT;
        enable(vm, KVM_CAP_X86_DISABLE_EXITS, "KVM_CAP_X86_DISABLE_EXITS", [hlt.into(), 0, 0, 0])?;
    }
    let reason = KVM_MSR_EXIT_REASON_FILTER;
    let name = "KVM_CAP_X86_USER_SPACE_MSR";
    enable(vm, KVM_CAP_X86_USER_SPACE_MSR, name, [reason.into(), 0, 0, 0])?;
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_APIC_BASE,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
        .map_err(KvmError::call("KVM_X86_SET_MSR_FILTER"))?;
    vm.set_identity_map_address(0xfffb_c000)
        .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(0xfffb_d000).map_err(KvmError::call("KVM_SET_TSS_ADDR"))
}

fn map_memory(vm: &VmFd, ram: &Ram, private: &Private) -> Result<(), KvmError> {
    let (stand_ins, reset) = private.addresses();
    let own = [
        (private::START, private::LEN as u64, stand_ins),
        (private::RESET_PAGE, private::RESET_LEN as u64, reset),
    ];
    let guest =
        ram.ranges.iter().map(|(range, host)| (range.start, range.end - range.start, *host as u64));
    for (slot, (start, len, host)) in guest.chain(own).enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: `Ram` promises the guest's mappings, `Private` its own; the machine keeps both.
        let result = unsafe { vm.set_user_memory_region(region) };
        result.map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn prepare_vcpu(
    vcpu: VcpuId,
    fd: &VcpuFd,
    cpuid: &[kvm_cpuid_entry2],
    enforce: bool,
) -> Result<(), KvmError> {
    if enforce {
        let cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID;
        let cap = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
        let name = "KVM_CAP_ENFORCE_PV_FEATURE_CPUID";
        fd.enable_cap(&cap).map_err(KvmError::vcpu(name, vcpu))?;
    }
    let too_many = |_| std::io::Error::from_raw_os_error(libc::E2BIG);
    let cpuid = CpuId::from_entries(cpuid).map_err(too_many);
    let cpuid = cpuid.map_err(KvmError::vcpu("KVM_SET_CPUID2", vcpu))?;
    fd.set_cpuid2(&cpuid).map_err(KvmError::vcpu("KVM_SET_CPUID2", vcpu))?;
    let mut sregs = fd.get_sregs().map_err(KvmError::vcpu("KVM_GET_SREGS", vcpu))?;
    let boots = sregs.apic_base & APIC_BSP;
    sregs.apic_base = APIC_ADDRESS | APIC_X2APIC | boots;
    fd.set_sregs(&sregs).map_err(KvmError::vcpu("KVM_SET_SREGS", vcpu))
}

fn route_entry(route: &GsiRoute) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: route.gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = route.address as u32;
    entry.u.msi.address_hi = (route.address >> 32) as u32;
    entry.u.msi.data = route.data;
    entry
}

/// Keeps this thread on one processor.
fn pin_to(processor: usize) -> std::io::Result<()> {
    if processor >= libc::CPU_SETSIZE as usize {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a zeroed set is empty, the index is within it, and the set outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

pub(super) fn set_mp_state(vcpu: VcpuId, fd: &VcpuFd, mp_state: u32) -> Result<(), KvmError> {
    let state = kvm_mp_state { mp_state };
    fd.set_mp_state(state).map_err(KvmError::vcpu("KVM_SET_MP_STATE", vcpu))
}

/// Sets IA32_APIC_BASE to x2APIC mode, with or without the mark of the boot processor.
pub(super) fn set_boots(vcpu: VcpuId, fd: &VcpuFd, boots: bool) -> Result<(), KvmError> {
    let data = APIC_ADDRESS | APIC_X2APIC | if boots { APIC_BSP } else { 0 };
    let entry = kvm_msr_entry { index: MSR_APIC_BASE, data, ..Default::default() };
    let failed = |error: std::io::Error| KvmError::vcpu("KVM_SET_MSRS", vcpu)(error);
    let msrs = Msrs::from_entries(&[entry])
        .map_err(|_| failed(std::io::Error::from_raw_os_error(libc::EINVAL)))?;
    match fd.set_msrs(&msrs) {
        Ok(1) => Ok(()),
        Ok(_) => Err(failed(std::io::Error::from_raw_os_error(libc::EINVAL))),
        Err(error) => Err(failed(error.into())),
    }
}

/// The registers of a vCPU that is not in the guest.
pub(super) fn registers(fd: &VcpuFd) -> Registers {
    Registers { regs: fd.get_regs().unwrap_or_default(), sregs: fd.get_sregs().unwrap_or_default() }
}
