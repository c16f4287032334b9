//! What all nodes support.

use super::features::{Feature, has, hide};
use super::leaves::{Leaves, Regs};
use super::supported::Supported;
use super::xsave::settle_xsave;

/// The leaves that all nodes support, not yet those of a vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Common {
    pub(super) leaves: Leaves,
    pub(super) amd: bool,
}

/// Why nodes can't run one machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuidError {
    /// No node at all.
    #[error("no node has said what its processor supports")]
    NoNodes,
    /// A machine can't be of two vendors.
    #[error(
        "node 0 has a processor of {first}, node {node} one of {other}; all processors must be of \
         one vendor"
    )]
    Vendor {
        /// Vendor of node 0.
        first: String,
        /// The first node with another, by its position.
        node: usize,
        /// Its vendor.
        other: String,
    },
    /// A feature that no guest of 64 bits starts without.
    #[error("the nodes have no {feature} in common, which every 64-bit guest needs")]
    Needed {
        /// The feature's name.
        feature: &'static str,
    },
}

impl Common {
    /// Hides features, with those that need them, from the guest: for hosts with known faults.
    #[must_use]
    pub fn without(mut self, hidden: &[Feature]) -> Self {
        for feature in hidden {
            feature.clear(&mut self.leaves);
        }
        settle_xsave(&mut self.leaves);
        self
    }

    /// Whether the guest sees a feature.
    pub fn has(&self, feature: Feature) -> bool {
        has(&self.leaves, feature.name())
    }
}

/// What all nodes support: features that all have, the smallest of sizes and limits, and the identity
/// of the oldest processor. A leaf that one node lacks is dropped.
///
/// # Errors
/// No nodes, processors of different vendors, or too little in common.
pub fn common(nodes: &[Supported]) -> Result<Common, CpuidError> {
    let tables: Vec<_> = nodes.iter().map(|node| Leaves::from_entries(node.entries())).collect();
    let (first, others) = tables.split_first().ok_or(CpuidError::NoNodes)?;
    let vendor = vendor(first);
    for (node, other) in others.iter().enumerate() {
        if self::vendor(other) != vendor {
            let text = |vendor: [u8; 12]| String::from_utf8_lossy(&vendor).into_owned();
            return Err(CpuidError::Vendor {
                first: text(vendor),
                node: node + 1,
                other: text(self::vendor(other)),
            });
        }
    }
    let mut leaves = Leaves::default();
    for (function, index, mut regs) in first.iter() {
        let rule = rule(function, index);
        let there = others.iter().all(|other| other.has(function, index));
        let same = || others.iter().all(|other| first.agree(other, function));
        if rule == Rule::Drop || !there || (rule == Rule::Same && !same()) {
            continue;
        }
        if rule == Rule::Component && others.iter().any(|o| o.get(function, index) != regs) {
            continue;
        }
        for other in others {
            merge(rule, &mut regs, other.get(function, index));
        }
        leaves.set(function, index, regs);
    }
    drop_features_without_leaves(&mut leaves);
    settle_xsave(&mut leaves);
    for (feature, bit) in [("long mode", 29), ("nx", 20), ("syscall", 11)] {
        if leaves.get(0x8000_0001, 0).edx & 1 << bit == 0 {
            return Err(CpuidError::Needed { feature });
        }
    }
    if leaves.get(0x8000_0008, 0).eax == 0 {
        return Err(CpuidError::Needed {
            feature: "leaf with the widths of addresses (0x80000008)",
        });
    }
    let amd = matches!(&vendor, b"AuthenticAMD" | b"HygonGenuine");
    Ok(Common { leaves, amd })
}

/// How a leaf is made from those of all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// The highest leaf in EAX: the lowest of them. The rest is the vendor.
    Highest,
    /// Version in EAX: the oldest. Features in ECX and EDX. EBX describes the package.
    Version,
    /// Features in every register.
    Features,
    /// The highest index in EAX, features in the rest.
    StructuredFeatures,
    /// Describes caches, or is text: node 0's.
    First,
    /// Only if it is the same on all nodes.
    Same,
    /// A component of the XSAVE area: only where size and place are the same on all.
    Component,
    /// Components of the XSAVE area; the sizes are computed later.
    Components,
    /// Widths of addresses and more (0x80000008).
    Widths,
    /// 0x80000021: features, and a size in EBX.
    Extended2,
    /// Not for the guest: monitor, power, frequencies, SVM, SGX, tracing, quality of service,
    /// performance monitoring by AMD's newer leaves, encryption; what is rebuilt (topology, KVM's own);
    /// and what this table doesn't know.
    Drop,
}

fn rule(function: u32, index: u32) -> Rule {
    match (function, index) {
        (0 | 0x8000_0000, _) => Rule::Highest,
        (1 | 0x8000_0001, _) => Rule::Version,
        (2 | 4 | 0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001d, _) => Rule::First,
        (7, 0) => Rule::StructuredFeatures,
        (7 | 0x8000_001a, _) => Rule::Features,
        (0xa | 0x1d | 0x1e | 0x24, _) => Rule::Same,
        (0xd, 0 | 1) => Rule::Components,
        (0xd, _) => Rule::Component,
        (0x8000_0008, _) => Rule::Widths,
        (0x8000_0021, _) => Rule::Extended2,
        _ => Rule::Drop,
    }
}

/// Bits of leaf 7 EBX that say what a processor no longer does (bit 6: FDP_EXCPTN_ONLY, bit 13:
/// FCS and FDS deprecated): true if it is so anywhere.
const NEGATIVE_7_EBX: u32 = 1 << 6 | 1 << 13;

fn merge(rule: Rule, regs: &mut Regs, other: Regs) {
    match rule {
        Rule::Highest => regs.eax = regs.eax.min(other.eax),
        Rule::Version => {
            if version(other.eax) < version(regs.eax) {
                regs.eax = other.eax;
            }
            regs.ecx &= other.ecx;
            regs.edx &= other.edx;
        }
        Rule::Features | Rule::Components => {
            regs.eax &= other.eax;
            regs.ebx &= other.ebx;
            regs.ecx &= other.ecx;
            regs.edx &= other.edx;
        }
        Rule::StructuredFeatures => {
            regs.eax = regs.eax.min(other.eax);
            regs.ebx = (regs.ebx & other.ebx) | ((regs.ebx | other.ebx) & NEGATIVE_7_EBX);
            regs.ecx &= other.ecx;
            regs.edx &= other.edx;
        }
        Rule::Widths => {
            let (ours, others) = (regs.eax.to_le_bytes(), other.eax.to_le_bytes());
            regs.eax = u32::from_le_bytes([
                ours[0].min(others[0]),
                ours[1].min(others[1]),
                // Guest physical: 0 stands for the physical width, so it is the smallest too.
                ours[2].min(others[2]),
                0,
            ]);
            regs.ebx &= other.ebx;
            // Pages of INVLPGB, highest RDPRU; ECX is topology and rebuilt.
            let half = |value: u32, shift: u32| (value >> shift) & 0xffff;
            regs.edx = half(regs.edx, 0).min(half(other.edx, 0))
                | half(regs.edx, 16).min(half(other.edx, 16)) << 16;
        }
        Rule::Extended2 => {
            regs.eax &= other.eax;
            regs.ebx = regs.ebx.min(other.ebx);
            regs.ecx &= other.ecx;
            regs.edx &= other.edx;
        }
        Rule::First | Rule::Same | Rule::Component | Rule::Drop => {}
    }
}

/// Features whose leaf is gone, or that a guest can't have here.
fn drop_features_without_leaves(leaves: &mut Leaves) {
    // SDM 2A, CPUID leaf 7: SGX (EBX 2, ECX 30), cache monitoring and allocation (EBX 12, 15),
    // processor trace (EBX 25), key locker (ECX 23).
    if leaves.has(7, 0) {
        let regs = leaves.at(7, 0);
        regs.ebx &= !(1 << 2 | 1 << 12 | 1 << 15 | 1 << 25);
        regs.ecx &= !(1 << 23 | 1 << 30);
    }
    if !leaves.has(0x1d, 0) {
        hide(leaves, "amx_tile");
    }
    if !leaves.has(0x24, 0) {
        hide(leaves, "avx10");
    }
    if !has(leaves, "topoext") {
        leaves.remove(0x8000_001d);
    }
}

/// Family, model and stepping, comparable (SDM 2A, figure 3-6).
fn version(eax: u32) -> (u32, u32, u32) {
    let field = |shift: u32, mask: u32| (eax >> shift) & mask;
    let family = match field(8, 0xf) {
        0xf => 0xf + field(20, 0xff),
        family => family,
    };
    (family, field(16, 0xf) << 4 | field(4, 0xf), field(0, 0xf))
}

fn vendor(leaves: &Leaves) -> [u8; 12] {
    let leaf = leaves.get(0, 0);
    let mut name = [0; 12];
    for (bytes, word) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    name
}
