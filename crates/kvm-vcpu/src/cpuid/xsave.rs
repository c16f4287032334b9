//! Leaf 0xD: the state that XSAVE saves, in step with the features that use it.

use super::features::{has, hide, settle};
use super::leaves::Leaves;

/// State components that only make sense together, and the feature that uses them
/// (SDM 1, 13.1; APM 2, 11.5.2).
const COMPONENTS: [(u64, &str); 5] = [
    (1 << 2, "avx"),
    (0b11 << 3, "mpx"),
    (0b111 << 5, "avx512f"),
    (1 << 9, "pku"),
    (0b11 << 17, "amx_tile"),
];
/// x87 and SSE: always there with XSAVE.
const LEGACY: u64 = 0b11;
/// The legacy region and the XSAVE header, before all other components.
const LEGACY_LEN: u32 = 576;
/// In ECX of a component: it begins at a multiple of 64 in the compacted format.
const ALIGNED: u32 = 1 << 1;

/// Makes features, and the components of the state that they use, agree; then what follows of it.
pub(super) fn settle_xsave(leaves: &mut Leaves) {
    loop {
        let before = leaves.clone();
        settle(leaves);
        if !has(leaves, "xsave") {
            leaves.remove(0xd);
        }
        let xcr0 = user_components(leaves);
        for (bits, feature) in COMPONENTS {
            if xcr0 & bits != bits {
                hide(leaves, feature);
            }
        }
        if *leaves == before {
            break;
        }
    }
    if leaves.has(0xd, 0) {
        write(leaves);
    }
}

/// The bits of XCR0 that all agree on: each with its size and place, and with its feature.
fn user_components(leaves: &Leaves) -> u64 {
    let main = leaves.get(0xd, 0);
    let mut xcr0 = u64::from(main.edx) << 32 | u64::from(main.eax);
    for bit in 2..63 {
        if !leaves.has(0xd, bit) {
            xcr0 &= !(1 << bit);
        }
    }
    let mut known = LEGACY;
    for (bits, feature) in COMPONENTS {
        if has(leaves, feature) && xcr0 & bits == bits {
            known |= bits;
        }
    }
    xcr0 & known
}

/// Bits of IA32_XSS with a leaf of their own.
fn supervisor_components(leaves: &Leaves) -> u64 {
    let mut xss = 0;
    if has(leaves, "xsaves") {
        let one = leaves.get(0xd, 1);
        xss = u64::from(one.edx) << 32 | u64::from(one.ecx);
        for bit in 0..63 {
            if !leaves.has(0xd, bit) || bit < 2 {
                xss &= !(1 << bit);
            }
        }
    }
    xss
}

fn write(leaves: &mut Leaves) {
    let (xcr0, xss) = (user_components(leaves), supervisor_components(leaves));
    leaves.retain(|function, index| {
        function != 0xd || index < 2 || (index < 63 && (xcr0 | xss) & 1 << index != 0)
    });
    let main = leaves.at(0xd, 0);
    (main.eax, main.edx) = (xcr0 as u32, (xcr0 >> 32) as u32);
    let most = size(leaves, xcr0, false);
    // EBX is for what XCR0 has now; KVM keeps it up to date. At reset it is x87 alone.
    let main = leaves.at(0xd, 0);
    (main.ebx, main.ecx) = (LEGACY_LEN, most);
    if leaves.has(0xd, 1) {
        let (compact, has_compact) = (size(leaves, xcr0 | xss, true), has(leaves, "xsavec"));
        let one = leaves.at(0xd, 1);
        one.ebx = if has_compact { compact } else { 0 };
        (one.ecx, one.edx) = (xss as u32, (xss >> 32) as u32);
    }
}

/// Bytes of the area for these components (SDM 1, 13.4.3).
fn size(leaves: &Leaves, components: u64, compact: bool) -> u32 {
    let mut end = LEGACY_LEN;
    for bit in (2..63).filter(|bit| components & 1 << bit != 0) {
        let part = leaves.get(0xd, bit);
        let start = match (compact, part.ecx & ALIGNED != 0) {
            (false, _) => part.ebx,
            (true, true) => end.saturating_add(63) & !63,
            (true, false) => end,
        };
        end = end.max(start.saturating_add(part.eax));
    }
    end
}
