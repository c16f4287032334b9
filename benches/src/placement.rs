//! Which CPUs a node may use, and how its spinning threads behave there.
//!
//! The nodes of a benchmark stand for machines, so they do not share CPUs while there are enough: the
//! CPUs are dealt out in equal parts, and with more nodes than CPUs all but the first nodes share
//! the last one. Left to itself the scheduler moves processes that talk to each other onto one CPU or apart,
//! as it likes, and the same program then has two speeds.
//!
//! A node that has one CPU for its application and its engine can only spin politely: a thread that
//! spins yields between two looks. Floors and giantvm are placed by the same rule.

use std::hint;
use std::mem;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::error::BenchError;

/// The CPUs of this machine that the benchmarks may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    cpus: Vec<usize>,
    pinned: bool,
}

impl Placement {
    /// The CPUs that this process may use now; unless `pinned`, nodes use all of them alike.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn detect(pinned: bool) -> Result<Self, BenchError> {
        // SAFETY: an all-zero cpu_set_t is a valid, empty set.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        // SAFETY: `set` is a live cpu_set_t of the size given; 0 means the calling thread.
        if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
            return Err(BenchError::last_os("reading the CPU affinity"));
        }
        let is_set = |cpu: &usize| {
            // SAFETY: `cpu` is below CPU_SETSIZE, so it is a bit of the set.
            unsafe { libc::CPU_ISSET(*cpu, &set) }
        };
        Ok(Self { cpus: (0..libc::CPU_SETSIZE as usize).filter(is_set).collect(), pinned })
    }

    /// How many CPUs there are.
    pub fn count(&self) -> usize {
        self.cpus.len()
    }

    /// The one CPU at `index`; counts round when there are fewer.
    pub fn single(&self, index: usize) -> CpuSet {
        CpuSet(self.cpus.get(index % self.cpus.len().max(1)).copied().into_iter().collect())
    }

    /// What node `index` of `nodes` may use. Node 0 is the process that measures.
    pub fn node(&self, index: usize, nodes: usize) -> CpuSet {
        if !self.pinned {
            return CpuSet(self.cpus.clone());
        }
        let each = (self.cpus.len() / nodes.max(1)).max(1);
        let first = (index * each).min(self.cpus.len().saturating_sub(each));
        CpuSet(self.cpus.iter().skip(first).take(each).copied().collect())
    }

    /// How the threads of a node spin when `nodes` of them run.
    pub fn spin(&self, nodes: usize) -> Spin {
        // Each node has an application thread and a thread that spins.
        if self.cpus.len() >= 2 * nodes { Spin::Hot } else { Spin::Yielding }
    }
}

/// A set of CPUs, written as a list: `0,1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSet(Vec<usize>);

impl CpuSet {
    /// Binds the calling thread, and the threads and processes it starts from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), BenchError> {
        // SAFETY: an all-zero cpu_set_t is a valid, empty set.
        let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
        for cpu in self.0.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
            // SAFETY: the filter keeps `cpu` inside the set.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        // SAFETY: `set` is a live cpu_set_t of the size given; 0 means the calling thread.
        if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
            return Err(BenchError::last_os("setting the CPU affinity"));
        }
        Ok(())
    }

    /// The CPUs of all of them.
    pub fn union(sets: &[Self]) -> Self {
        let mut cpus: Vec<usize> = sets.iter().flat_map(|set| set.0.iter().copied()).collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }

    /// Its first CPU; none if there is none.
    pub fn first(&self) -> Option<usize> {
        self.0.first().copied()
    }

    /// Reads what [`Display`](std::fmt::Display) wrote; none when it is no list of numbers.
    pub fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|cpu| cpu.parse().ok()).collect::<Option<Vec<_>>>().map(Self)
    }
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cpus: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&cpus.join(","))
    }
}

/// What a spinning thread does between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spin {
    /// Nothing: it has a CPU of its own.
    Hot,
    /// Lets the others on its CPU run.
    Yielding,
}

impl Spin {
    /// One pause.
    pub fn pause(self) {
        match self {
            Self::Hot => hint::spin_loop(),
            Self::Yielding => thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(cpus: usize, nodes: usize) -> Vec<String> {
        let placement = Placement { cpus: (0..cpus).collect(), pinned: true };
        (0..nodes).map(|node| placement.node(node, nodes).to_string()).collect()
    }

    #[test]
    fn cpus_are_dealt_out_in_equal_parts() {
        assert_eq!(dealt(2, 2), ["0", "1"]);
        assert_eq!(dealt(8, 3), ["0,1", "2,3", "4,5"]);
    }

    #[test]
    fn the_measuring_node_keeps_a_cpu_of_its_own_when_there_are_too_few() {
        assert_eq!(dealt(2, 3), ["0", "1", "1"]);
        assert_eq!(dealt(1, 3), ["0", "0", "0"]);
    }

    #[test]
    fn nodes_share_all_cpus_when_not_pinned() {
        let placement = Placement { cpus: vec![0, 3], pinned: false };
        assert_eq!(placement.node(1, 2).to_string(), "0,3");
    }

    #[test]
    fn spinning_is_polite_unless_each_thread_has_a_cpu() {
        let placement = |cpus| Placement { cpus: (0..cpus).collect(), pinned: true };
        assert_eq!(placement(2).spin(2), Spin::Yielding);
        assert_eq!(placement(4).spin(2), Spin::Hot);
        assert_eq!(placement(4).spin(3), Spin::Yielding);
    }

    #[test]
    fn sets_are_read_back_as_written() {
        let set = CpuSet(vec![0, 5, 11]);
        assert_eq!(CpuSet::parse(&set.to_string()), Some(set));
        assert_eq!(CpuSet::parse("0,x"), None);
    }

    #[test]
    fn a_thread_that_enters_a_set_stays_in_it() {
        let all = Placement::detect(true).unwrap();
        let inside = thread::spawn(move || {
            all.single(0).enter().unwrap();
            (all.single(0), Placement::detect(true).unwrap())
        });
        let (set, seen) = inside.join().unwrap();
        assert_eq!(CpuSet(seen.cpus), set);
    }
}
