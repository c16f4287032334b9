//! Which pages the guest's vCPUs wait for, and where in the guest.
//!
//! A vCPU that faults is told to leave the guest; when it has, its instruction pointer is that of the
//! instruction that needs the page. That costs an exit, and often a repeated fault, for each fault: a
//! profiled guest is slower, with the same faults.

use std::collections::HashMap;
use std::sync::Mutex;

use dsm_core::engine::{FaultKind, Observed};
use dsm_core::types::{Access, PAGE_SIZE, Page};
use kvm_vcpu::boot::layout::Layout;
use kvm_vcpu::vm::VcpuId;
use serde_json::{Value, json};

use crate::node::lock;

/// Most places and pages that are told apart; what comes later is counted together.
const SITES_MAX: usize = 1 << 16;
const PAGES_MAX: usize = 1 << 16;

/// What a fault is counted by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Site {
    page: Page,
    kind: FaultKind,
    access: Access,
    /// None for other threads of the node: devices, loaders, programs.
    vcpu: Option<VcpuId>,
    rip: u64,
}

/// What became of a page that a node could write, when it could no longer.
#[derive(Clone, Copy, Default, Debug)]
struct Departures {
    all: u64,
    unchanged: u64,
}

/// A fault whose place is not known yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Open {
    page: Page,
    kind: FaultKind,
    access: Access,
}

#[derive(Default)]
struct Table {
    sites: HashMap<Site, u64>,
    pages: HashMap<Page, Departures>,
    open: HashMap<VcpuId, Open>,
    /// Faults and departures that found the table full.
    others: u64,
}

/// The profile of a virtual machine at one node.
pub(super) struct Profile {
    table: Mutex<Table>,
    layout: Layout,
}

impl Profile {
    pub(super) fn new(layout: Layout) -> Self {
        Self { table: Mutex::default(), layout }
    }

    /// Takes in what the engine tells. `vcpu` is whose thread faulted; if it is to be sampled, it is
    /// returned.
    pub(super) fn observed(
        &self,
        observed: Observed,
        vcpu: impl FnOnce(u32) -> Option<VcpuId>,
    ) -> Option<VcpuId> {
        match observed {
            Observed::Left { page, unchanged } => {
                lock(&self.table).left(page, unchanged);
                None
            }
            Observed::Fault { page, access, kind, thread, again } => {
                let vcpu = vcpu(thread.0);
                let open = Open { page, kind, access };
                let mut table = lock(&self.table);
                let Some(vcpu) = vcpu else {
                    if !again {
                        table.count(Site { page, kind, access, vcpu, rip: 0 });
                    }
                    return None;
                };
                // The same fault once more, after the signal that asked for its place.
                let known = again && table.open.get(&vcpu) == Some(&open);
                table.open.insert(vcpu, open);
                (!known).then_some(vcpu)
            }
        }
    }

    /// A vCPU tells where it was.
    pub(super) fn sampled(&self, vcpu: VcpuId, rip: u64) {
        let mut table = lock(&self.table);
        if let Some(&Open { page, kind, access }) = table.open.get(&vcpu) {
            table.count(Site { page, kind, access, vcpu: Some(vcpu), rip });
        }
    }

    /// The `most` most frequent places and pages, as JSON; python/giantvm/profile.py describes the
    /// fields.
    pub(super) fn render(&self, most: usize) -> Value {
        let (sites, pages, others) = {
            let table = lock(&self.table);
            let sites: Vec<_> = table.sites.iter().map(|(&site, &count)| (site, count)).collect();
            let pages: Vec<_> = table.pages.iter().map(|(&page, &it)| (page, it)).collect();
            (sites, pages, table.others)
        };
        let faults: u64 = sites.iter().map(|&(_, count)| count).sum();
        let departures: u64 = pages.iter().map(|(_, it)| it.all).sum();
        let unchanged: u64 = pages.iter().map(|(_, it)| it.unchanged).sum();
        let sites = top(sites, most, |&(_, count)| count);
        let pages = top(pages, most, |(_, it)| it.all);
        let site = |(site, count): &(Site, u64)| {
            json!({
                "address": self.address(site.page),
                "kind": site.kind.name(),
                "access": match site.access { Access::Read => "read", Access::Write => "write" },
                "vcpu": site.vcpu.map(|vcpu| vcpu.0),
                "rip": site.rip,
                "faults": count,
            })
        };
        let page = |(page, it): &(Page, Departures)| {
            json!({
                "address": self.address(*page),
                "left": it.all,
                "unchanged": it.unchanged,
            })
        };
        json!({
            "faults": faults,
            "left": departures,
            "unchanged": unchanged,
            "others": others,
            "sites": sites.iter().map(site).collect::<Vec<_>>(),
            "pages": pages.iter().map(page).collect::<Vec<_>>(),
        })
    }

    /// The guest-physical address of a page of the region.
    fn address(&self, page: Page) -> u64 {
        let ranges = self.layout.ranges_of(page.0 * PAGE_SIZE as u64, PAGE_SIZE as u64);
        ranges.first().map_or(u64::MAX, |range| range.start)
    }
}

impl Table {
    fn count(&mut self, site: Site) {
        if self.sites.len() >= SITES_MAX && !self.sites.contains_key(&site) {
            self.others += 1;
            return;
        }
        *self.sites.entry(site).or_default() += 1;
    }

    fn left(&mut self, page: Page, unchanged: bool) {
        if self.pages.len() >= PAGES_MAX && !self.pages.contains_key(&page) {
            self.others += 1;
            return;
        }
        let departures = self.pages.entry(page).or_default();
        departures.all += 1;
        departures.unchanged += u64::from(unchanged);
    }
}

/// The `most` largest by `key`, the largest first.
fn top<T>(mut all: Vec<T>, most: usize, key: impl Fn(&T) -> u64) -> Vec<T> {
    all.sort_by_key(|it| std::cmp::Reverse(key(it)));
    all.truncate(most);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsm_core::types::ThreadId;

    const THREAD: u32 = 70;

    fn fault(page: u64, thread: u32, again: bool) -> Observed {
        Observed::Fault {
            page: Page(page),
            access: Access::Write,
            kind: FaultKind::Upgrade,
            thread: ThreadId(thread),
            again,
        }
    }

    fn vcpu(thread: u32) -> Option<VcpuId> {
        (thread >= THREAD).then(|| VcpuId(thread - THREAD))
    }

    fn profile() -> Profile {
        Profile::new(Layout::new(4 << 30).unwrap())
    }

    #[test]
    fn a_fault_is_counted_once_where_its_instruction_is() {
        let profile = profile();
        for round in 0..3 {
            let first = fault(9, THREAD + 1, false);
            assert_eq!(profile.observed(first, vcpu), Some(VcpuId(1)));
            profile.sampled(VcpuId(1), 0xffff_ffff_8100_0000);
            // The kernel repeats it; nobody asks again.
            assert_eq!(profile.observed(fault(9, THREAD + 1, true), vcpu), None, "{round}");
        }
        let told = profile.render(5);
        assert_eq!(told["faults"], 3);
        let site = &told["sites"][0];
        assert_eq!((&site["faults"], &site["vcpu"]), (&json!(3), &json!(1)));
        assert_eq!(site["rip"], json!(0xffff_ffff_8100_0000u64));
        assert_eq!((&site["address"], &site["kind"]), (&json!(0x9000), &json!("upgrade")));
    }

    #[test]
    fn two_vcpus_that_wait_for_one_page_are_two_faults() {
        let profile = profile();
        assert_eq!(profile.observed(fault(9, THREAD, false), vcpu), Some(VcpuId(0)));
        assert_eq!(profile.observed(fault(9, THREAD + 1, true), vcpu), Some(VcpuId(1)));
        profile.sampled(VcpuId(1), 1);
        profile.sampled(VcpuId(0), 2);
        assert_eq!(profile.render(5)["sites"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn threads_that_are_no_vcpus_have_no_place() {
        let profile = profile();
        assert_eq!(profile.observed(fault(9, 5, false), vcpu), None);
        let site = &profile.render(5)["sites"][0];
        assert_eq!((&site["vcpu"], &site["rip"]), (&Value::Null, &json!(0)));
    }

    #[test]
    fn pages_behind_the_hole_have_their_address_in_the_guest() {
        let profile = profile();
        let page = Page((3 << 30) / PAGE_SIZE as u64 + 5);
        profile.observed(Observed::Left { page, unchanged: true }, vcpu);
        profile.observed(Observed::Left { page, unchanged: false }, vcpu);
        let told = profile.render(5);
        assert_eq!(told["pages"][0]["address"], json!((4u64 << 30) + 0x5000));
        assert_eq!((&told["left"], &told["unchanged"]), (&json!(2), &json!(1)));
    }

    #[test]
    fn a_full_table_counts_on() {
        let profile = profile();
        for page in 0..PAGES_MAX as u64 + 10 {
            profile.observed(Observed::Left { page: Page(page), unchanged: true }, vcpu);
        }
        assert_eq!(profile.render(1)["others"], 10);
    }
}
