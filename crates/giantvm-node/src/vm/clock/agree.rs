//! Whose clock a node's follows: worked out alike on all nodes from what each tells when it joins.

use dsm_core::types::NodeId;
use kvm_vcpu::time::{Mapping, Ratio, Scaler, nominal_khz, tsc};
use kvm_vcpu::vm::TscSetting;

use super::super::spec::TscSource;

/// What a node tells of its host's time-stamp counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct HostClock {
    /// The same for nodes of one host, and for no others.
    pub(in super::super) host: u128,
    /// What KVM takes for the counter's rate.
    pub(in super::super) tsc_khz: u32,
    /// How the processor scales a guest's counter, if it does.
    pub(in super::super) scaler: Option<ScalerParts>,
    /// The counter's value when the node joined; the guest's is 0 at node 0's.
    pub(in super::super) begin: u64,
}

/// A [`Scaler`], without the rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct ScalerParts {
    pub(in super::super) fraction_bits: u8,
    pub(in super::super) tolerance_ppm: u32,
}

impl HostClock {
    /// This host's, of node `me`.
    pub(in super::super) fn here(
        source: TscSource,
        me: NodeId,
        tsc_khz: u32,
        scaler: Option<Scaler>,
    ) -> Self {
        let host = match source {
            TscSource::Nodes => me.index() as u128,
            _ => boot_id().unwrap_or(me.index() as u128),
        };
        let scaler = scaler.map(|it| ScalerParts {
            fraction_bits: it.fraction_bits as u8,
            tolerance_ppm: it.tolerance_ppm,
        });
        Self { host, tsc_khz, scaler, begin: tsc::now() }
    }

    fn scaler(&self) -> Option<Scaler> {
        self.scaler.map(|parts| Scaler {
            host_khz: self.tsc_khz,
            fraction_bits: parts.fraction_bits.into(),
            tolerance_ppm: parts.tolerance_ppm,
        })
    }
}

/// The running kernel's own number: two nodes that read the same run on one host.
fn boot_id() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

/// How a node's clock is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// It is node 0's: the same counter, made the guest's in the same way.
    Reference,
    /// It is that of another node on the same host, the first one there.
    Follower {
        /// That node.
        leader: NodeId,
    },
    /// It is compared with node 0's, and corrected.
    Leader {
        /// The other nodes on the same host.
        followers: Vec<NodeId>,
        /// The nodes on other hosts, without node 0.
        others: Vec<NodeId>,
    },
}

/// The guest's clock, as all nodes see it, and one node's part.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Agreement {
    /// The guest's rate.
    pub(super) guest_khz: u32,
    /// The rate against which this node's exchanges are counted.
    pub(super) host_khz: u32,
    /// How node 0's counter becomes the guest's.
    pub(super) reference: Mapping,
    /// The same, for KVM.
    pub(super) reference_setting: TscSetting,
    /// How this node's processor scales, where all do.
    pub(super) scaler: Option<Scaler>,
    /// Whether all hosts' counters run from one source.
    pub(super) shared: bool,
    /// This node's part.
    pub(super) role: Role,
}

impl Agreement {
    /// What all nodes' clocks, in their order, come to at node `me`.
    pub(super) fn new(clocks: &[&HostClock], source: TscSource, me: NodeId) -> Option<Self> {
        let (first, here) = (clocks.first()?, clocks.get(me.index())?);
        let shared = source == TscSource::Shared;
        // Where there is nothing to correct, nothing is scaled: that costs nothing and is exact.
        let alone = clocks.iter().all(|clock| clock.host == first.host);
        let scalers: Option<Vec<Scaler>> = match alone || shared {
            true => None,
            false => clocks.iter().map(|clock| clock.scaler()).collect(),
        };
        let guest_khz = match &scalers {
            Some(scalers) => nominal_khz(scalers)?,
            None => first.tsc_khz,
        };
        let scales = scalers.is_some();
        let ratio = match first.scaler() {
            Some(scaler) if scales => scaler.ratio(guest_khz),
            _ => Ratio::ONE,
        };
        let reference = Mapping::through(ratio, first.begin, 0);
        let khz = scales.then_some(guest_khz);
        Some(Self {
            guest_khz,
            host_khz: if shared { guest_khz } else { here.tsc_khz },
            reference,
            reference_setting: TscSetting { khz, offset: reference.offset },
            scaler: here.scaler().filter(|_| scales),
            shared,
            role: role(clocks, me)?,
        })
    }
}

fn role(clocks: &[&HostClock], me: NodeId) -> Option<Role> {
    let host = clocks.get(me.index())?.host;
    let on = |here: bool| {
        let nodes = clocks.iter().enumerate().filter(move |(_, it)| (it.host == host) == here);
        nodes.filter_map(|(index, _)| NodeId::new(index))
    };
    let leader = on(true).next()?;
    Some(match leader {
        _ if leader.index() == 0 => Role::Reference,
        _ if leader == me => Role::Leader {
            followers: on(true).filter(|&node| node != me).collect(),
            others: on(false).filter(|node| node.index() != 0).collect(),
        },
        leader => Role::Follower { leader },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(host: u128, tsc_khz: u32, scales: bool) -> HostClock {
        let parts = ScalerParts { fraction_bits: 48, tolerance_ppm: 250 };
        HostClock { host, tsc_khz, scaler: scales.then_some(parts), begin: 1000 }
    }

    fn agreed(clocks: &[HostClock], source: TscSource) -> Vec<Agreement> {
        let clocks: Vec<&HostClock> = clocks.iter().collect();
        (0..clocks.len())
            .map(|me| Agreement::new(&clocks, source, NodeId::new(me).unwrap()).unwrap())
            .collect()
    }

    fn node(index: usize) -> NodeId {
        NodeId::new(index).unwrap()
    }

    #[test]
    fn the_first_node_of_each_host_leads() {
        let hosts = [7, 8, 7, 8, 9].map(|host| clock(host, 2_000_000, false));
        let roles: Vec<Role> =
            agreed(&hosts, TscSource::Hosts).into_iter().map(|it| it.role).collect();
        let others = |nodes: &[usize]| nodes.iter().map(|&it| node(it)).collect::<Vec<_>>();
        assert_eq!(
            roles,
            [
                Role::Reference,
                Role::Leader { followers: others(&[3]), others: others(&[2, 4]) },
                Role::Reference,
                Role::Follower { leader: node(1) },
                Role::Leader { followers: Vec::new(), others: others(&[1, 2, 3]) },
            ]
        );
    }

    #[test]
    fn the_guest_is_scaled_only_where_every_host_can_and_one_has_to() {
        let one_host = [clock(7, 2_000_000, true), clock(7, 2_000_000, true)];
        let mixed = [clock(7, 2_000_000, true), clock(8, 2_000_000, false)];
        for hosts in [one_host, mixed] {
            for agreement in agreed(&hosts, TscSource::Hosts) {
                assert_eq!((agreement.guest_khz, agreement.scaler), (2_000_000, None));
                assert_eq!(agreement.reference_setting.khz, None);
                assert_eq!(agreement.reference.guest(1500), 500);
            }
        }
        let all = [clock(7, 2_000_000, true), clock(8, 2_000_300, true)];
        for (agreement, host) in agreed(&all, TscSource::Hosts).into_iter().zip(&all) {
            assert_eq!(agreement.reference_setting.khz, Some(agreement.guest_khz));
            let scaler = agreement.scaler.unwrap();
            assert!(!scaler.ignores(agreement.guest_khz));
            assert_eq!(scaler.host_khz, host.tsc_khz);
            assert_eq!(agreement.reference.guest(1000), 0);
        }
    }

    /// Each host's kernel measures the same counter a little differently.
    #[test]
    fn counters_of_one_source_are_counted_alike() {
        let hosts = [clock(7, 2_000_000, true), clock(8, 2_050_000, true)];
        for agreement in agreed(&hosts, TscSource::Shared) {
            assert!(agreement.shared && agreement.scaler.is_none());
            assert_eq!((agreement.guest_khz, agreement.host_khz), (2_000_000, 2_000_000));
        }
    }
}
