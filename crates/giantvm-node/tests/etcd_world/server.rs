//! An etcd with leases, that can be out of reach, restarted or gone.

use giantvm_node::membership::etcd::{Announcement, Present, Proposal, Record, Standing, View};

use super::{LEASE_MS, lease_of, process_of};

/// A key of a process, under its lease.
#[derive(Clone, Debug)]
struct Key {
    name: String,
    since: u64,
    says: Announcement,
}

#[derive(Debug)]
pub(crate) struct Etcd {
    pub(super) up: bool,
    pub(super) term: u64,
    pub(super) record: Record,
    /// How often anything was written.
    revision: u64,
    /// When the epoch key was written last.
    written: u64,
    /// When each process's lease ends; `None` once it has.
    leases: Vec<Option<u64>>,
    keys: Vec<Option<Key>>,
}

impl Etcd {
    pub(super) fn new(record: Record) -> Self {
        Self {
            up: true,
            term: 2,
            record,
            revision: 1,
            written: 1,
            leases: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// A lease for one more process.
    pub(super) fn grant(&mut self, now_ms: u64) {
        self.leases.push(Some(now_ms + LEASE_MS));
        self.keys.push(None);
    }

    pub(super) fn announce(&mut self, pid: usize, name: &str, says: Announcement) {
        let is_free = self.keys.iter().flatten().all(|key| key.name != name);
        if is_free && self.leases[pid].is_some() {
            self.revision += 1;
            let (name, since) = (name.to_owned(), self.revision);
            self.keys[pid] = Some(Key { name, since, says });
        }
    }

    /// Ends leases that nobody renewed, `hurry_ms` too early.
    pub(super) fn expire(&mut self, now_ms: u64, hurry_ms: u64) {
        for pid in 0..self.leases.len() {
            if self.up && self.leases[pid].is_some_and(|ends_ms| now_ms + hurry_ms >= ends_ms) {
                self.revoke(pid);
            }
        }
    }

    pub(super) fn revoke(&mut self, pid: usize) {
        (self.leases[pid], self.keys[pid]) = (None, None);
    }

    /// Whether the lease was there to be renewed.
    pub(super) fn renew(&mut self, pid: usize, now_ms: u64) -> bool {
        // Its clock may run faster by as much as is allowed for.
        let ends_ms = now_ms + LEASE_MS - LEASE_MS / 1_000;
        self.leases[pid] = self.leases[pid].map(|_| ends_ms);
        self.leases[pid].is_some()
    }

    /// It comes back with what it had; leases start anew.
    pub(super) fn start(&mut self, now_ms: u64) {
        self.up = true;
        self.term += 1;
        for lease in self.leases.iter_mut().flatten() {
            *lease = now_ms + LEASE_MS;
        }
    }

    fn has(&self, name: &str, lease: u64) -> bool {
        self.keys[process_of(lease)].as_ref().is_some_and(|key| key.name == name)
    }

    /// Whether it was carried out.
    pub(super) fn transact(&mut self, proposal: &Proposal) -> bool {
        let holds = proposal.revision == self.written
            && proposal.present.iter().all(|(name, lease)| self.has(name, *lease))
            && !proposal.absent.iter().any(|(name, lease)| self.has(name, *lease));
        if holds {
            // The bytes are part of what is tried.
            let record = Record::from_json(&proposal.record.to_json()).unwrap();
            assert_eq!(record, proposal.record);
            self.check(&record);
            self.record = record;
            self.revision += 1;
            self.written = self.revision;
        }
        holds
    }

    /// What no transaction may do, whoever asks for it.
    fn check(&self, next: &Record) {
        let old = &self.record;
        if next.epoch == 0 {
            return;
        }
        assert!(next.epoch - old.epoch <= 1, "more than one epoch at once");
        let changed = old.members() != next.members();
        assert_eq!(changed || old.epoch == 0, next.epoch > old.epoch, "{old:?} {next:?}");
        // Who is eldest stays it until it is no member.
        let [was, is] = [old, next].map(|record| record.in_force().eldest());
        let stays = was.is_none_or(|was| !next.members().contains(was) || is == Some(was));
        assert!(stays || old.epoch == 0, "{old:?} {next:?}");
        for (node, it) in next.numbered() {
            let was = old.get(node).filter(|was| was.lease == it.lease);
            let joins = it.standing == Standing::Member
                && was.is_none_or(|was| was.standing != Standing::Member);
            assert!(!joins || was.is_some() && old.closed.is_none(), "{old:?} {next:?}");
            assert!(!joins || it.joined == next.epoch, "{old:?} {next:?}");
            assert!(!joins || !old.live().is_empty(), "of nobody: {old:?}");
            assert!(!joins || old.live() == old.members(), "somebody is about to go: {old:?}");
            if let Some(before) = old.get(node).filter(|before| before.lease != it.lease) {
                assert!(!self.has(&before.name, before.lease), "it has not stopped: {old:?}");
                assert!(!old.members().contains(node), "a member's place: {old:?}");
            }
        }
    }

    pub(super) fn view(&self) -> View {
        let present = |(pid, key): (usize, &Option<Key>)| {
            key.as_ref().map(|key| Present {
                name: key.name.clone(),
                lease: lease_of(pid),
                since: key.since,
                says: key.says.clone(),
            })
        };
        View {
            revision: self.written,
            record: Some(self.record.clone()),
            present: self.keys.iter().enumerate().filter_map(present).collect(),
        }
    }
}
