//! Makes this node's part of the machine, at the start and at every reset.

use std::sync::Arc;

use kvm_bindings::{kvm_cpuid_entry2, kvm_regs, kvm_sregs};
use kvm_vcpu::acpi::Tables;
use kvm_vcpu::boot::layout::Layout;
use kvm_vcpu::boot::{BootParams, Entry, load};
use kvm_vcpu::cpuid::{self, Feature, Supported, Topology};
use kvm_vcpu::vm::{BootState, Kvm, Machine, MachineConfig, Outside, Placement, Ram, VcpuId};

use dsm_core::report::chain;

use super::core::Core;
use super::message::Join;
use super::platform;
use super::spec::{Image, VmSpec};

/// What the machine is made of, each time.
pub(super) struct Maker {
    pub(super) spec: Arc<VmSpec>,
    pub(super) me: usize,
    pub(super) kvm: Kvm,
    pub(super) ram: Ram,
    pub(super) layout: Layout,
    pub(super) hidden: Vec<Feature>,
    /// At the node of the first vCPU.
    pub(super) image: Option<Image>,
    pub(super) cpuid: Vec<Vec<kvm_cpuid_entry2>>,
}

impl Maker {
    /// Works out what all nodes' processors have in common.
    pub(super) fn agree(&mut self, joins: &[&Join], names: &[String]) -> Result<(), String> {
        let mut supported = Vec::new();
        for (index, join) in joins.iter().enumerate() {
            let name = names.get(index).map_or("?", String::as_str);
            let one = Supported::decode(&join.cpuid);
            supported.push(one.map_err(|error| format!("the CPUID of node {name}: {error}"))?);
        }
        let common = cpuid::common(&supported).map_err(|error| error.to_string())?;
        let common = common.without(&self.hidden);
        let places: Vec<usize> = self.spec.vcpus.iter().map(|vcpu| vcpu.node).collect();
        let topology = Topology::new(&places);
        self.cpuid = (0..places.len())
            .map(|index| cpuid::for_vcpu(&common, VcpuId(index as u32), &topology))
            .collect();
        Ok(())
    }

    /// Makes the machine and hands it to the hub, paused; loads the guest where it boots.
    pub(super) fn make(&self, core: &Arc<Core>, generation: u32) -> Result<(), String> {
        let boots = self.spec.vcpus.first().is_some_and(|vcpu| vcpu.node == self.me);
        let boot = match &self.image {
            Some(image) if boots => Some(self.load(image, core.clock.report().tsc_khz)?),
            _ => None,
        };
        let place = |vcpu: &super::spec::VcpuSpec| {
            let here = vcpu.node == self.me;
            Placement { here, pin: vcpu.pin.filter(|_| here) }
        };
        let config = MachineConfig {
            vcpus: self.spec.vcpus.iter().map(place).collect(),
            cpuid: self.cpuid.clone(),
            ram: self.ram.clone(),
            tsc: core.clock.setting(),
            boot,
        };
        let outside: Arc<dyn Outside> = Arc::<Core>::clone(core);
        let machine = Machine::new(&self.kvm, config, outside).map_err(|error| chain(&error))?;
        let machine = Arc::new(machine);
        core.hub.set_machine(Some(Arc::clone(&machine)), generation);
        // The clock may have been corrected since it was asked, when there was no machine to tell.
        loop {
            let setting = core.clock.setting();
            machine.set_tsc(setting);
            if core.clock.setting() == setting {
                return Ok(());
            }
        }
    }

    fn load(&self, image: &Image, tsc_khz: u32) -> Result<BootState, String> {
        let spec = self.spec.image.as_ref().ok_or("there is nothing to start")?;
        let memory = self.ram.memory();
        let knows_rate = image.is_linux(spec.format);
        let platform = platform::describe(&self.spec.vcpus, &self.layout, knows_rate);
        let tables = Tables::build(&platform).map_err(|error| error.to_string())?;
        let modules = image.modules();
        let params = BootParams {
            format: spec.format,
            kernel: image.kernel(),
            cmdline: &spec.cmdline,
            initrd: image.initrd(),
            modules: &modules,
            layout: &self.layout,
            rsdp: Some(tables.rsdp()),
            tsc_khz: Some(tsc_khz),
        };
        let boot = load(memory, &params).map_err(|error| chain(&error))?;
        tables.write(memory).map_err(|error| format!("the ACPI tables: {error}"))?;
        let entry: Entry = boot.entry;
        Ok(Box::new(move |regs: &mut kvm_regs, sregs: &mut kvm_sregs| {
            entry.set_registers(regs, sregs);
        }))
    }
}
