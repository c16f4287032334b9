//! One machine: memory, the guest in it, and vCPUs.

use std::path::Path;
use std::sync::Arc;
use std::{fs, ptr, slice, thread};

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_CAP_X86_DISABLE_EXITS,
    KVM_MAX_CPUID_ENTRIES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_msi, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::platform::Platform;
use crate::error::BenchError;
use crate::floor::memory::Memory;
use crate::guest::RAM_BYTES;
use crate::guest::registers::{TARGET_ADDRESS, VECTOR};
use crate::placement::CpuSet;

/// Where pages of others are in the guest's addresses: behind its RAM.
pub(super) const SHARED: u64 = 128 << 20;
/// Where the start information and the command line are: below the image, which is at 1 MiB.
const START_INFO: usize = 0x8000;
const CMDLINE: usize = 0x9000;
const CMDLINE_MAX: usize = 0x800;
const PVH_MAGIC: u32 = 0x336e_c578;
/// Enabled, and in x2APIC mode.
const APIC_X2APIC: u64 = 0xc00;

/// A machine that has not run yet.
pub(super) struct Machine {
    pub(super) vm: Arc<VmFd>,
    pub(super) khz: u32,
    vcpus: Vec<VcpuFd>,
}

/// For `map_err`.
fn kvm(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BenchError {
    move |error| BenchError::Os { doing, source: error.into() }
}

impl Machine {
    /// `shared` is mapped at [`SHARED`], and has to live as long as this process.
    pub(super) fn new(
        image: &Path,
        cmdline: &str,
        vcpus: usize,
        shared: Option<&'static Memory>,
    ) -> Result<Self, BenchError> {
        let file = fs::read(image).map_err(BenchError::os("reading the guest"))?;
        let opened = Kvm::new().map_err(kvm("opening /dev/kvm"))?;
        let vm = opened.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        set_up(&vm)?;
        let ram = map_ram(&vm)?;
        let entry = load(&file, ram).ok_or_else(|| BenchError::Peer("has no such guest".into()))?;
        describe(ram, cmdline)?;
        if let Some(memory) = shared {
            let (start, len) = memory.view();
            map(&vm, 1, SHARED, start, len)?;
        }
        let cpuid = opened.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let vcpus: Vec<VcpuFd> = (0..vcpus)
            .map(|id| new_vcpu(&vm, id as u32, cpuid.clone(), entry))
            .collect::<Result<_, _>>()?;
        let khz = match vcpus.first() {
            Some(first) => first.get_tsc_khz().map_err(kvm("KVM_GET_TSC_KHZ"))?,
            None => 0,
        };
        Ok(Self { vm: Arc::new(vm), khz, vcpus })
    }

    /// Runs each vCPU in a thread of its own on its CPUs, until the process ends.
    pub(super) fn run(self, cpus: &[CpuSet], platform: Platform) {
        let platform = Arc::new(platform);
        for (vcpu, cpus) in self.vcpus.into_iter().zip(cpus) {
            let (platform, cpus) = (Arc::clone(&platform), cpus.clone());
            thread::spawn(move || {
                let ran = cpus.enter().and_then(|()| run(vcpu, &platform));
                platform.turns.end(ran.err().map_or("it ended".into(), |error| error.to_string()));
            });
        }
    }
}

/// Interrupts the first vCPU.
pub(super) fn interrupt(vm: &VmFd) -> Result<(), BenchError> {
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: VECTOR, ..Default::default() };
    vm.signal_msi(msi).map(drop).map_err(kvm("KVM_SIGNAL_MSI"))
}

fn run(mut vcpu: VcpuFd, platform: &Platform) -> Result<(), BenchError> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => platform.read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if !platform.write(port, data) {
                    return Ok(());
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                let value = match address {
                    TARGET_ADDRESS => platform.outside.ask(),
                    _ => u32::MAX,
                };
                let len = data.len().min(4);
                data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
            Ok(exit) => return Err(BenchError::Peer(format!("left its guest: {exit:?}"))),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(kvm("KVM_RUN")(error)),
        }
    }
}

fn set_up(vm: &VmFd) -> Result<(), BenchError> {
    let enable = |cap: u32, argument: u64| {
        let cap = kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap)
    };
    enable(KVM_CAP_SPLIT_IRQCHIP, 24).map_err(kvm("KVM_CAP_SPLIT_IRQCHIP"))?;
    let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(KVM_CAP_X2APIC_API, x2apic.into()).map_err(kvm("KVM_CAP_X2APIC_API"))?;
    // As giantvm has it; a host that refuses takes faults in another thread, for both.
    let _ = enable(KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT.into());
    vm.set_identity_map_address(0xfffb_c000).map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(0xfffb_d000).map_err(kvm("KVM_SET_TSS_ADDR"))
}

/// The guest's RAM, of ordinary pages that are all there.
fn map_ram(vm: &VmFd) -> Result<&'static mut [u8], BenchError> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe { libc::mmap(ptr::null_mut(), RAM_BYTES, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(BenchError::last_os("mapping the guest's RAM"));
    }
    // Huge pages would be another machine than giantvm's; without the right to ask there are none.
    // SAFETY: the mapping just made.
    unsafe { libc::madvise(start, RAM_BYTES, libc::MADV_NOHUGEPAGE) };
    map(vm, 0, 0, start.cast(), RAM_BYTES)?;
    // SAFETY: the mapping is never taken away, and nobody else uses it until the guest runs.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), RAM_BYTES) })
}

fn map(vm: &VmFd, slot: u32, at: u64, start: *mut u8, len: usize) -> Result<(), BenchError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: at,
        memory_size: len as u64,
        userspace_addr: start as u64,
    };
    // SAFETY: both kinds of memory stay mapped until the process ends.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm("KVM_SET_USER_MEMORY_REGION"))
}

/// Copies what the ELF file says is to be loaded; its entry.
fn load(file: &[u8], ram: &mut [u8]) -> Option<u64> {
    let field = |at: usize, len: usize| {
        let bytes = file.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let number = |at, len| field(at, len).and_then(|value| usize::try_from(value).ok());
    if file.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (headers, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = headers.checked_add(index * size)?;
        if field(at, 4)? != 1 {
            continue;
        }
        let (offset, address, len) = (number(at + 8, 8)?, number(at + 24, 8)?, number(at + 32, 8)?);
        let bytes = file.get(offset..offset.checked_add(len)?)?;
        ram.get_mut(address..address.checked_add(len)?)?.copy_from_slice(bytes);
    }
    field(24, 8)
}

/// PVH's start information: nothing but the command line.
fn describe(ram: &mut [u8], cmdline: &str) -> Result<(), BenchError> {
    if cmdline.len() >= CMDLINE_MAX {
        return Err(BenchError::Usage("the guest's command line is too long".into()));
    }
    ram[CMDLINE..CMDLINE + cmdline.len()].copy_from_slice(cmdline.as_bytes());
    ram[START_INFO..START_INFO + 4].copy_from_slice(&PVH_MAGIC.to_le_bytes());
    ram[START_INFO + 24..START_INFO + 32].copy_from_slice(&(CMDLINE as u64).to_le_bytes());
    Ok(())
}

fn new_vcpu(vm: &VmFd, id: u32, mut cpuid: CpuId, entry: u64) -> Result<VcpuFd, BenchError> {
    let vcpu = vm.create_vcpu(id.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => leaf.edx = id,
            // KVM's own features: the guest uses none.
            0x4000_0001 => leaf.eax = 0,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    sregs.apic_base |= APIC_X2APIC;
    if id != 0 {
        vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
        return Ok(vcpu);
    }
    // 32-bit protected mode without paging.
    let flat =
        kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x8, type_: 0xb, ..flat };
    let data = kvm_segment { selector: 0x10, type_: 0x3, ..flat };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    let task = kvm_segment { limit: 0x67, present: 1, type_: 0xb, ..Default::default() };
    sregs.tr = task;
    sregs.cr0 = 0x11;
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?;
    (regs.rip, regs.rbx, regs.rflags) = (entry, START_INFO as u64, 2);
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
    Ok(vcpu)
}
