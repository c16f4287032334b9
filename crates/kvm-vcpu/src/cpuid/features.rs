//! Features by the names of `/proc/cpuinfo`, and what each needs.

use std::fmt;
use std::str::FromStr;

use super::leaves::Leaves;
use super::leaves::Reg::{self, Eax, Ebx, Ecx, Edx};

/// A feature of a processor that can be hidden from the guest, by its name in `/proc/cpuinfo`.
#[derive(Clone, Copy)]
pub struct Feature(&'static Row);

/// No feature of this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown processor feature {name:?}; known are: {}", Feature::names().collect::<Vec<_>>().join(" "))]
pub struct UnknownFeature {
    /// What was asked for.
    pub name: String,
}

/// Name, where its bit is, and the features without which it must not be seen.
type Row = (&'static str, u32, u32, Reg, u32, &'static [&'static str]);

impl Feature {
    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FEATURES.iter().map(|row| row.0)
    }

    /// The name in `/proc/cpuinfo`.
    pub fn name(self) -> &'static str {
        self.0.0
    }

    /// Clears its bit, but not those of the features that need it: see [`settle`].
    pub(super) fn clear(self, leaves: &mut Leaves) {
        clear(self.0, leaves);
    }
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        find(name).map(Feature).ok_or_else(|| UnknownFeature { name: name.to_owned() })
    }
}

impl PartialEq for Feature {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Feature {}

impl fmt::Debug for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the leaves have a feature.
pub(super) fn has(leaves: &Leaves, name: &str) -> bool {
    find(name).is_some_and(|row| is_set(row, leaves))
}

/// Hides a feature by name, but not those that need it: see [`settle`].
pub(super) fn hide(leaves: &mut Leaves, name: &str) {
    if let Some(row) = find(name) {
        clear(row, leaves);
    }
}

/// Hides every feature that lacks another which it needs.
pub(super) fn settle(leaves: &mut Leaves) {
    let lacking = |leaves: &Leaves| {
        let lacks = |row: &&Row| is_set(row, leaves) && row.5.iter().any(|need| !has(leaves, need));
        FEATURES.iter().find(lacks)
    };
    // Each turn clears a bit, so this ends.
    while let Some(row) = lacking(leaves) {
        clear(row, leaves);
    }
}

fn find(name: &str) -> Option<&'static Row> {
    FEATURES.iter().find(|row| row.0 == name)
}

fn is_set(&(_, function, index, reg, bit, _): &Row, leaves: &Leaves) -> bool {
    leaves.get(function, index).get(reg) & 1 << bit != 0
}

fn clear(&(_, function, index, reg, bit, _): &Row, leaves: &mut Leaves) {
    if leaves.has(function, index) {
        *leaves.at(function, index).get_mut(reg) &= !(1 << bit);
    }
}

const X: u32 = 0x8000_0001;

/// After Linux `cpufeatures.h` and `cpuid-deps.c`.
#[rustfmt::skip]
static FEATURES: &[Row] = &[
    ("cx8", 1, 0, Edx, 8, &[]),
    ("sep", 1, 0, Edx, 11, &[]),
    ("clflush", 1, 0, Edx, 19, &[]),
    ("sse", 1, 0, Edx, 25, &[]),
    ("sse2", 1, 0, Edx, 26, &["sse"]),
    ("pni", 1, 0, Ecx, 0, &["sse2"]),
    ("pclmulqdq", 1, 0, Ecx, 1, &["sse2"]),
    ("ssse3", 1, 0, Ecx, 9, &["pni"]),
    ("fma", 1, 0, Ecx, 12, &["avx"]),
    ("cx16", 1, 0, Ecx, 13, &[]),
    ("pcid", 1, 0, Ecx, 17, &[]),
    ("sse4_1", 1, 0, Ecx, 19, &["ssse3"]),
    ("sse4_2", 1, 0, Ecx, 20, &["sse4_1"]),
    ("movbe", 1, 0, Ecx, 22, &[]),
    ("popcnt", 1, 0, Ecx, 23, &[]),
    ("aes", 1, 0, Ecx, 25, &["sse2"]),
    ("xsave", 1, 0, Ecx, 26, &[]),
    ("osxsave", 1, 0, Ecx, 27, &["xsave"]),
    ("avx", 1, 0, Ecx, 28, &["xsave"]),
    ("f16c", 1, 0, Ecx, 29, &["avx"]),
    ("rdrand", 1, 0, Ecx, 30, &[]),

    ("fsgsbase", 7, 0, Ebx, 0, &[]),
    ("tsc_adjust", 7, 0, Ebx, 1, &[]),
    ("bmi1", 7, 0, Ebx, 3, &[]),
    ("hle", 7, 0, Ebx, 4, &[]),
    ("avx2", 7, 0, Ebx, 5, &["avx"]),
    ("smep", 7, 0, Ebx, 7, &[]),
    ("bmi2", 7, 0, Ebx, 8, &[]),
    ("erms", 7, 0, Ebx, 9, &[]),
    ("invpcid", 7, 0, Ebx, 10, &["pcid"]),
    ("rtm", 7, 0, Ebx, 11, &[]),
    ("mpx", 7, 0, Ebx, 14, &["xsave"]),
    ("avx512f", 7, 0, Ebx, 16, &["avx2"]),
    ("avx512dq", 7, 0, Ebx, 17, &["avx512f"]),
    ("rdseed", 7, 0, Ebx, 18, &[]),
    ("adx", 7, 0, Ebx, 19, &[]),
    ("smap", 7, 0, Ebx, 20, &[]),
    ("avx512ifma", 7, 0, Ebx, 21, &["avx512f"]),
    ("clflushopt", 7, 0, Ebx, 23, &[]),
    ("clwb", 7, 0, Ebx, 24, &[]),
    ("avx512pf", 7, 0, Ebx, 26, &["avx512f"]),
    ("avx512er", 7, 0, Ebx, 27, &["avx512f"]),
    ("avx512cd", 7, 0, Ebx, 28, &["avx512f"]),
    ("sha_ni", 7, 0, Ebx, 29, &["sse2"]),
    ("avx512bw", 7, 0, Ebx, 30, &["avx512f"]),
    ("avx512vl", 7, 0, Ebx, 31, &["avx512f"]),
    ("avx512vbmi", 7, 0, Ecx, 1, &["avx512bw"]),
    ("umip", 7, 0, Ecx, 2, &[]),
    ("pku", 7, 0, Ecx, 3, &["xsave"]),
    ("waitpkg", 7, 0, Ecx, 5, &[]),
    ("avx512_vbmi2", 7, 0, Ecx, 6, &["avx512bw"]),
    ("shstk", 7, 0, Ecx, 7, &["xsaves"]),
    ("gfni", 7, 0, Ecx, 8, &["sse2"]),
    ("vaes", 7, 0, Ecx, 9, &["avx"]),
    ("vpclmulqdq", 7, 0, Ecx, 10, &["avx"]),
    ("avx512_vnni", 7, 0, Ecx, 11, &["avx512f"]),
    ("avx512_bitalg", 7, 0, Ecx, 12, &["avx512bw"]),
    ("avx512_vpopcntdq", 7, 0, Ecx, 14, &["avx512f"]),
    ("la57", 7, 0, Ecx, 16, &[]),
    ("rdpid", 7, 0, Ecx, 22, &[]),
    ("bus_lock_detect", 7, 0, Ecx, 24, &[]),
    ("cldemote", 7, 0, Ecx, 25, &[]),
    ("movdiri", 7, 0, Ecx, 27, &[]),
    ("movdir64b", 7, 0, Ecx, 28, &[]),
    ("avx512_4vnniw", 7, 0, Edx, 2, &["avx512f"]),
    ("avx512_4fmaps", 7, 0, Edx, 3, &["avx512f"]),
    ("fsrm", 7, 0, Edx, 4, &[]),
    ("avx512_vp2intersect", 7, 0, Edx, 8, &["avx512f"]),
    ("serialize", 7, 0, Edx, 14, &[]),
    ("tsxldtrk", 7, 0, Edx, 16, &["rtm"]),
    ("ibt", 7, 0, Edx, 20, &["xsaves"]),
    ("amx_bf16", 7, 0, Edx, 22, &["amx_tile"]),
    ("avx512_fp16", 7, 0, Edx, 23, &["avx512bw"]),
    ("amx_tile", 7, 0, Edx, 24, &["xsave"]),
    ("amx_int8", 7, 0, Edx, 25, &["amx_tile"]),
    ("spec_ctrl", 7, 0, Edx, 26, &[]),
    ("arch_capabilities", 7, 0, Edx, 29, &[]),
    ("avx_vnni", 7, 1, Eax, 4, &["avx2"]),
    ("avx512_bf16", 7, 1, Eax, 5, &["avx512bw"]),
    ("amx_fp16", 7, 1, Eax, 21, &["amx_tile"]),
    ("avx_ifma", 7, 1, Eax, 23, &["avx2"]),
    ("avx_vnni_int8", 7, 1, Edx, 4, &["avx2"]),
    ("avx_ne_convert", 7, 1, Edx, 5, &["avx2"]),
    ("amx_complex", 7, 1, Edx, 8, &["amx_tile"]),
    ("avx_vnni_int16", 7, 1, Edx, 10, &["avx2"]),
    ("avx10", 7, 1, Edx, 19, &["avx512vl"]),
    ("xsaveopt", 0xd, 1, Eax, 0, &["xsave"]),
    ("xsavec", 0xd, 1, Eax, 1, &["xsave"]),
    ("xgetbv1", 0xd, 1, Eax, 2, &["xsave"]),
    ("xsaves", 0xd, 1, Eax, 3, &["xsavec"]),

    ("lahf_lm", X, 0, Ecx, 0, &[]),
    ("abm", X, 0, Ecx, 5, &[]),
    ("sse4a", X, 0, Ecx, 6, &["pni"]),
    ("misalignsse", X, 0, Ecx, 7, &["sse"]),
    ("3dnowprefetch", X, 0, Ecx, 8, &[]),
    ("osvw", X, 0, Ecx, 9, &[]),
    ("xop", X, 0, Ecx, 11, &["avx"]),
    ("fma4", X, 0, Ecx, 16, &["avx"]),
    ("tbm", X, 0, Ecx, 21, &[]),
    ("topoext", X, 0, Ecx, 22, &[]),
    ("perfctr_core", X, 0, Ecx, 23, &[]),
    ("syscall", X, 0, Edx, 11, &[]),
    ("nx", X, 0, Edx, 20, &[]),
    ("mmxext", X, 0, Edx, 22, &[]),
    ("fxsr_opt", X, 0, Edx, 25, &[]),
    ("pdpe1gb", X, 0, Edx, 26, &[]),
    ("rdtscp", X, 0, Edx, 27, &[]),
    ("clzero", 0x8000_0008, 0, Ebx, 0, &[]),
    ("xsaveerptr", 0x8000_0008, 0, Ebx, 2, &["xsave"]),
    ("wbnoinvd", 0x8000_0008, 0, Ebx, 9, &[]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_table_names_each_feature_and_bit_once_and_only_needs_known_ones() {
        let names: HashSet<_> = Feature::names().collect();
        assert_eq!(names.len(), FEATURES.len());
        let bits: HashSet<_> =
            FEATURES.iter().map(|row| (row.1, row.2, format!("{:?}", row.3), row.4)).collect();
        assert_eq!(bits.len(), FEATURES.len());
        for row in FEATURES {
            assert!(row.4 < 32, "{}", row.0);
            assert!(row.5.iter().all(|need| names.contains(need)), "{}", row.0);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = "cmpxchg16b".parse::<Feature>().unwrap_err().to_string();
        assert!(error.contains("\"cmpxchg16b\""), "{error}");
        assert!(error.contains("cx16") && error.contains("xsave"), "{error}");
    }
}
