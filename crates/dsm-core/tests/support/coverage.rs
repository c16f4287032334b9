//! What happened in a history or a state space: shows that a configuration exercises its feature.

use dsm_core::protocol::Counters;
use std::fmt;

/// Counts of events, or the most in any history.
#[derive(Clone, Copy, Default, Debug)]
pub struct Coverage {
    pub messages: u64,
    pub faults: u64,
    pub retired: u64,
    pub poisoned: u64,
    pub leases: u64,
    pub migratory: u64,
    pub companions: u64,
    pub refused: u64,
    pub void: u64,
    pub without_data: u64,
    pub unchanged: u64,
    pub forwards: u64,
    pub kept: u64,
    pub deferred: u64,
    pub hurried_requests: u64,
    pub hurried_invalidations: u64,
    pub handed_over: u64,
    pub holds: u64,
    pub evicted: u64,
    pub evicted_copies: u64,
    pub moved: u64,
    pub starved: u64,
    pub inherited: u64,
    pub adopted: u64,
    pub lost_pages: u64,
    pub recoveries: u64,
    pub arrivals: u64,
    pub absorbed: u64,
    pub entered_early: u64,
    pub restored: u64,
    pub not_lost: u64,
    pub interrupted: u64,
    pub walk_entered: u64,
    pub walk_joined: u64,
    pub walk_left: u64,
    pub walk_reports: u64,
    pub walk_waited: u64,
}

impl Coverage {
    pub fn rows(&self) -> [(&'static str, u64); 37] {
        [
            ("messages", self.messages),
            ("faults", self.faults),
            ("retired", self.retired),
            ("poisoned", self.poisoned),
            ("leases", self.leases),
            ("migratory", self.migratory),
            ("companions", self.companions),
            ("refused", self.refused),
            ("void", self.void),
            ("no-data", self.without_data),
            ("unchanged", self.unchanged),
            ("forwards", self.forwards),
            ("kept", self.kept),
            ("deferred", self.deferred),
            ("hurry-req", self.hurried_requests),
            ("hurry-inv", self.hurried_invalidations),
            ("handed-over", self.handed_over),
            ("holds", self.holds),
            ("evicted", self.evicted),
            ("evicted-copies", self.evicted_copies),
            ("moved", self.moved),
            ("starved", self.starved),
            ("inherited", self.inherited),
            ("adopted", self.adopted),
            ("lost-pages", self.lost_pages),
            ("recoveries", self.recoveries),
            ("arrivals", self.arrivals),
            ("absorbed", self.absorbed),
            ("entered-early", self.entered_early),
            ("restored", self.restored),
            ("not-lost", self.not_lost),
            ("interrupted", self.interrupted),
            ("walk-entered", self.walk_entered),
            ("walk-joined", self.walk_joined),
            ("walk-left", self.walk_left),
            ("walk-reports", self.walk_reports),
            ("walk-waited", self.walk_waited),
        ]
    }

    fn rows_mut(&mut self) -> [&mut u64; 37] {
        [
            &mut self.messages,
            &mut self.faults,
            &mut self.retired,
            &mut self.poisoned,
            &mut self.leases,
            &mut self.migratory,
            &mut self.companions,
            &mut self.refused,
            &mut self.void,
            &mut self.without_data,
            &mut self.unchanged,
            &mut self.forwards,
            &mut self.kept,
            &mut self.deferred,
            &mut self.hurried_requests,
            &mut self.hurried_invalidations,
            &mut self.handed_over,
            &mut self.holds,
            &mut self.evicted,
            &mut self.evicted_copies,
            &mut self.moved,
            &mut self.starved,
            &mut self.inherited,
            &mut self.adopted,
            &mut self.lost_pages,
            &mut self.recoveries,
            &mut self.arrivals,
            &mut self.absorbed,
            &mut self.entered_early,
            &mut self.restored,
            &mut self.not_lost,
            &mut self.interrupted,
            &mut self.walk_entered,
            &mut self.walk_joined,
            &mut self.walk_left,
            &mut self.walk_reports,
            &mut self.walk_waited,
        ]
    }

    /// Adds what a machine counted between two moments.
    pub fn add_counters(&mut self, before: &Counters, after: &Counters) {
        self.messages += after.messages_sent - before.messages_sent;
        self.leases += after.leases - before.leases;
        self.migratory += after.migratory_grants - before.migratory_grants;
        self.companions += after.companions_received - before.companions_received;
        self.refused += after.companions_refused - before.companions_refused;
        self.void += after.void_grants - before.void_grants;
        self.without_data += after.received_without_data - before.received_without_data;
        self.unchanged += after.left_unchanged - before.left_unchanged;
        self.forwards += after.forwards - before.forwards;
        self.kept += after.kept - before.kept;
        self.evicted += after.evicted - before.evicted;
        self.moved += after.handed_over - before.handed_over;
        self.starved += after.starved - before.starved;
        self.inherited += after.pages_inherited - before.pages_inherited;
        self.adopted += after.pages_adopted - before.pages_adopted;
        self.lost_pages += after.pages_lost - before.pages_lost;
        self.walk_entered += after.walk_entered - before.walk_entered;
        self.walk_joined += after.walk_joined - before.walk_joined;
        self.walk_left += after.walk_left - before.walk_left;
        self.walk_reports += after.walk_reports - before.walk_reports;
    }

    pub fn max(&mut self, other: &Self) {
        for (mine, (_, theirs)) in self.rows_mut().into_iter().zip(other.rows()) {
            *mine = (*mine).max(theirs);
        }
    }

    pub fn sum(&mut self, other: &Self) {
        for (mine, (_, theirs)) in self.rows_mut().into_iter().zip(other.rows()) {
            *mine += theirs;
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen: Vec<String> = self
            .rows()
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        f.write_str(&seen.join(", "))
    }
}
