//! What a virtual machine is made of.

use std::path::PathBuf;

use kvm_vcpu::boot::layout::{IOAPIC_ADDRESS, Layout};
use kvm_vcpu::boot::{File, Format, Module, detect};
use kvm_vcpu::bus::{Range, Space};
use kvm_vcpu::cpuid::Feature;
use kvm_vcpu::vm::VcpuId;
use xxhash_rust::xxh3::xxh3_64;

use dsm_core::types::NodeId;

use super::virtio::{self, VirtioSpec};

/// Most vCPUs: ids of 8 bits reach every one of them from an IOAPIC that knows no more.
pub(super) const VCPUS_MAX: usize = 255;

/// Where a vCPU runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuSpec {
    /// The node, by its position in the cluster's list.
    pub node: usize,
    /// The processor of that node's host that its thread stays on.
    pub pin: Option<usize>,
}

/// What the hosts' time-stamp counters count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TscSource {
    /// A crystal of each host's own: their rates differ by some parts per million. Nodes with one boot
    /// id are on one host.
    #[default]
    Hosts,
    /// One source for all hosts: the boards of one large machine, or virtual hosts of one hypervisor
    /// that neither scales their counters nor moves them. Only the offsets differ.
    Shared,
    /// As [`TscSource::Hosts`], with every node taken to be on a host of its own: to test what is done
    /// there.
    Nodes,
}

/// A file that the guest is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageSpec {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its format, or none to tell by the file.
    pub format: Option<Format>,
    /// Its command line.
    pub cmdline: String,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Multiboot and PVH modules, with their command lines.
    pub modules: Vec<(PathBuf, String)>,
}

/// A device of the program's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSpec {
    /// Its name, unique.
    pub name: String,
    /// The node where it lives.
    pub home: usize,
    /// Its ranges; offsets go on from one to the next.
    pub ranges: Vec<Range>,
    /// Offsets at which a write may go on before it has taken effect.
    pub doorbells: Vec<std::ops::Range<u64>>,
}

/// A virtual machine, described alike on all nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmSpec {
    /// Its name, and that of the region that is its memory.
    pub name: String,
    /// Bytes of RAM, a multiple of 4096.
    pub ram_bytes: u64,
    /// All vCPUs; the first one boots.
    pub vcpus: Vec<VcpuSpec>,
    /// What the guest is started with, on the node of the first vCPU; elsewhere it is ignored.
    pub image: Option<ImageSpec>,
    /// The node of the platform's devices: serial port, clocks, IOAPIC.
    pub platform_home: usize,
    /// Devices of the program's own.
    pub devices: Vec<DeviceSpec>,
    /// Disks, networks, consoles and random numbers, in the order in which the guest finds them.
    pub virtio: Vec<VirtioSpec>,
    /// Processor features to hide, by the names of /proc/cpuinfo.
    pub hide: Vec<String>,
    /// Whether RAM may exceed what the nodes give.
    pub overcommit: bool,
    /// What the hosts' time-stamp counters count.
    pub tsc: TscSource,
    /// Whether pages that are page tables of the guest, and that nobody stores to, are writable at
    /// several nodes at once: the guest must keep nothing but page tables in these pages. None: where
    /// walks of page tables count as writes and the guest is a Linux.
    pub walk_shared: Option<bool>,
    /// The device file of KVM.
    pub kvm: PathBuf,
}

/// A description that can't be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(
    /// What is wrong with it, and what to do.
    pub String,
);

/// A description that can be, for one node.
pub(super) struct Checked {
    pub(super) layout: Layout,
    pub(super) hidden: Vec<Feature>,
    pub(super) node_of: Vec<NodeId>,
}

impl VmSpec {
    pub(super) fn check(&self, nodes: usize) -> Result<Checked, SpecError> {
        let failed = |what: String| Err(SpecError(what));
        let layout = Layout::new(self.ram_bytes).map_err(|error| SpecError(error.to_string()))?;
        if self.vcpus.is_empty() {
            return failed("a virtual machine needs at least one vCPU".into());
        }
        if self.vcpus.len() > VCPUS_MAX {
            let asked = self.vcpus.len();
            return failed(format!("{asked} vCPUs; a virtual machine has at most {VCPUS_MAX}"));
        }
        let known = |what: &str, node: usize| match NodeId::new(node) {
            Some(id) if node < nodes => Ok(id),
            _ => Err(SpecError(format!(
                "{what} is on node number {node}, but the cluster has {nodes}"
            ))),
        };
        let node_of = self
            .vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| known(&format!("vCPU {index}"), vcpu.node))
            .collect::<Result<Vec<_>, _>>()?;
        known("the platform", self.platform_home)?;
        for (index, device) in self.devices.iter().enumerate() {
            known(&format!("device {:?}", device.name), device.home)?;
            if self.devices[..index].iter().any(|other| other.name == device.name) {
                return failed(format!(
                    "two devices are named {:?}: give each a name of its own",
                    device.name
                ));
            }
            for range in &device.ranges {
                self.check_range(&layout, &device.name, range)?;
            }
        }
        let taken: Vec<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
        virtio::check(&self.virtio, &taken, nodes)?;
        let hidden = self
            .hide
            .iter()
            .map(|name| name.parse::<Feature>().map_err(|error| SpecError(error.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Checked { layout, hidden, node_of })
    }

    /// A device that memory hides would never be asked.
    fn check_range(&self, layout: &Layout, name: &str, range: &Range) -> Result<(), SpecError> {
        let end = range.start.saturating_add(range.len);
        let hidden = layout
            .ranges()
            .into_iter()
            .find(|ram| range.start < ram.start + ram.len && ram.start < end);
        match hidden {
            Some(ram) if range.space == Space::Mmio => Err(SpecError(format!(
                "device {name:?} is at {:#x}, where RAM is ({:#x} to {:#x}): move it up",
                range.start,
                ram.start,
                ram.start + ram.len
            ))),
            _ => Ok(()),
        }
    }

    /// The same on two nodes if what they must agree on is the same.
    pub(super) fn digest(&self) -> u64 {
        let places: Vec<usize> = self.vcpus.iter().map(|vcpu| vcpu.node).collect();
        let virtio = virtio::agreed(&self.virtio);
        let text = format!(
            "{:?}\0{}\0{places:?}\0{}\0{:?}\0{virtio}\0{:?}\0{:?}\0{:?}\0{IOAPIC_ADDRESS}",
            self.name,
            self.ram_bytes,
            self.platform_home,
            self.devices,
            self.hide,
            self.tsc,
            self.walk_shared
        );
        xxh3_64(text.as_bytes())
    }

    /// The vCPUs of a node.
    pub(super) fn vcpus_of(&self, node: usize) -> impl Iterator<Item = VcpuId> {
        let here = move |(index, vcpu): (usize, &VcpuSpec)| {
            (vcpu.node == node).then_some(VcpuId(index as u32))
        };
        self.vcpus.iter().enumerate().filter_map(here)
    }
}

/// The files of an [`ImageSpec`], read.
pub(super) struct Image {
    kernel: (String, Vec<u8>),
    initrd: Option<(String, Vec<u8>)>,
    modules: Vec<(String, Vec<u8>, String)>,
}

impl Image {
    /// Reads them; they are kept for resets.
    pub(super) fn read(spec: &ImageSpec) -> Result<Self, SpecError> {
        let read = |path: &PathBuf| match std::fs::read(path) {
            Ok(bytes) => Ok((path.display().to_string(), bytes)),
            Err(error) => Err(SpecError(format!("can't read {}: {error}", path.display()))),
        };
        let module = |(path, cmdline): &(PathBuf, String)| {
            read(path).map(|(name, bytes)| (name, bytes, cmdline.clone()))
        };
        Ok(Self {
            kernel: read(&spec.kernel)?,
            initrd: spec.initrd.as_ref().map(read).transpose()?,
            modules: spec.modules.iter().map(module).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the kernel is one that Linux distributions ship.
    pub(super) fn is_linux(&self, format: Option<Format>) -> bool {
        let format = format.map_or_else(|| detect(self.kernel()), Ok);
        format.is_ok_and(|format| format == Format::Linux)
    }

    pub(super) fn kernel(&self) -> File<'_> {
        File { name: &self.kernel.0, bytes: &self.kernel.1 }
    }

    pub(super) fn initrd(&self) -> Option<File<'_>> {
        self.initrd.as_ref().map(|(name, bytes)| File { name, bytes })
    }

    pub(super) fn modules(&self) -> Vec<Module<'_>> {
        self.modules
            .iter()
            .map(|(name, bytes, cmdline)| Module { file: File { name, bytes }, cmdline })
            .collect()
    }
}
