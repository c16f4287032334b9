//! CPUID leaves as a table.

use std::collections::BTreeMap;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The four registers that CPUID answers in.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Regs {
    pub(super) eax: u32,
    pub(super) ebx: u32,
    pub(super) ecx: u32,
    pub(super) edx: u32,
}

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Regs {
    pub(super) fn get(&self, reg: Reg) -> u32 {
        match reg {
            Reg::Eax => self.eax,
            Reg::Ebx => self.ebx,
            Reg::Ecx => self.ecx,
            Reg::Edx => self.edx,
        }
    }

    pub(super) fn get_mut(&mut self, reg: Reg) -> &mut u32 {
        match reg {
            Reg::Eax => &mut self.eax,
            Reg::Ebx => &mut self.ebx,
            Reg::Ecx => &mut self.ecx,
            Reg::Edx => &mut self.edx,
        }
    }
}

/// Leaves by function (EAX) and index (ECX; 0 where it means nothing). A leaf that is missing reads
/// as zeros, as KVM answers it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Leaves(BTreeMap<(u32, u32), Regs>);

impl Leaves {
    pub(super) fn from_entries(entries: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |e: &kvm_cpuid_entry2| {
            let index = if has_index(e.function) { e.index } else { 0 };
            ((e.function, index), Regs { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx })
        };
        Self(entries.iter().map(leaf).collect())
    }

    /// As KVM takes them. Leaves of zeros are left out, since a missing one reads the same: KVM
    /// lists many, and its table has an end.
    pub(super) fn to_entries(&self) -> Vec<kvm_cpuid_entry2> {
        let entry = |(&(function, index), regs): (&(u32, u32), &Regs)| kvm_cpuid_entry2 {
            function,
            index,
            flags: if has_index(function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: regs.eax,
            ebx: regs.ebx,
            ecx: regs.ecx,
            edx: regs.edx,
            ..Default::default()
        };
        self.0.iter().filter(|(_, regs)| **regs != Regs::default()).map(entry).collect()
    }

    pub(super) fn get(&self, function: u32, index: u32) -> Regs {
        self.0.get(&(function, index)).copied().unwrap_or_default()
    }

    pub(super) fn has(&self, function: u32, index: u32) -> bool {
        self.0.contains_key(&(function, index))
    }

    /// The leaf, to change; it is added if it is missing.
    pub(super) fn at(&mut self, function: u32, index: u32) -> &mut Regs {
        self.0.entry((function, index)).or_default()
    }

    pub(super) fn set(&mut self, function: u32, index: u32, regs: Regs) {
        self.0.insert((function, index), regs);
    }

    /// Removes a leaf with all its indices.
    pub(super) fn remove(&mut self, function: u32) {
        self.0.retain(|&(f, _), _| f != function);
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(u32, u32) -> bool) {
        self.0.retain(|&(function, index), _| keep(function, index));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32, Regs)> + '_ {
        self.0.iter().map(|(&(function, index), &regs)| (function, index, regs))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, u32, &mut Regs)> + '_ {
        self.0.iter_mut().map(|(&(function, index), regs)| (function, index, regs))
    }

    /// Whether a leaf is the same in both, with all its indices.
    pub(super) fn agree(&self, other: &Self, function: u32) -> bool {
        let all = (function, 0)..=(function, u32::MAX);
        self.0.range(all.clone()).eq(other.0.range(all))
    }
}

/// Whether ECX selects a part of this leaf.
fn has_index(function: u32) -> bool {
    matches!(
        function,
        0x4 | 0x7
            | 0xb
            | 0xd
            | 0xf
            | 0x10
            | 0x12
            | 0x14
            | 0x17
            | 0x18
            | 0x1d
            | 0x1e
            | 0x1f
            | 0x20
            | 0x23
            | 0x24
            | 0x8000_001d
            | 0x8000_0020
            | 0x8000_0026
    )
}
