//! Keeps the clock of a host with node 0's: what to ask, and what follows from the answers.
//!
//! No thread, no socket and no clock: time comes in as this host's counter.

use std::collections::BTreeMap;
use std::time::Duration;

use dsm_core::types::NodeId;
use kvm_vcpu::time::{
    Action, Discipline, DisciplineConfig, Estimator, EstimatorConfig, Exchange, Mapping, StartError,
};
use kvm_vcpu::vm::TscSetting;

use super::agree::Agreement;

/// Exchanges with node 0 that follow each other at once: the first finds threads and processors asleep,
/// later ones are as fast as they get.
const BURST_FIRST: u32 = 200;
const BURST: u32 = 8;
/// Exchanges with every other node before the guest's clock is set. As many as with node 0: if a much
/// faster one came later only, what is known of node 0's clock would not suffice any more.
const PROBES: u32 = BURST_FIRST;
/// From one burst to the next: until the clock is set; while the rates are not known well; later.
const PERIOD_START: Duration = Duration::from_millis(1);
const PERIOD_EARLY: Duration = Duration::from_millis(5);
const PERIOD: Duration = Duration::from_millis(20);
/// How long the rates are not known well.
const EARLY_S: f64 = 60.0;
/// Where all hosts' counters run from one source: their rates are the same, and nothing is to be learned.
const PERIOD_SHARED: Duration = Duration::from_millis(500);
/// How long such a clock is compared before it is set. It can't be corrected later, and all is measured
/// by the shortest message: on hosts that are busy with each other, none of the first may be.
const START_SHARED_S: f64 = 1.0;
/// Longest time between two looks at the clock: one period, and a thread that is late.
const STEP_MS_MAX: u32 = 40;
const STEP_MS_MAX_SHARED: u32 = 1000;
/// From one probe of the other nodes to the next.
const PROBE_S: f64 = 1.0;
/// How long node 0's clock may stay unknown before the machine is not to be had.
const START_S: f64 = 60.0;

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Deed {
    /// Ask a node for its counter.
    Ask(NodeId),
    /// Count the guest's time like this from now on.
    Set {
        setting: TscSetting,
        mapping: Mapping,
        /// Largest error against node 0's, in nanoseconds.
        error_ns: f64,
    },
    /// The machine must stop, or can't start.
    Fail(String),
}

/// The clock of one host.
pub(super) struct Keeper {
    config: DisciplineConfig,
    /// All hosts' counters run from one source.
    shared: bool,
    reference: Mapping,
    first: NodeId,
    estimator: Estimator,
    discipline: Option<Discipline>,
    /// The nodes of other hosts but node 0, and what is known of the ways to them.
    others: BTreeMap<NodeId, Way>,
    /// This host's counter at the start, and when the other nodes were last asked.
    began: u64,
    probed: u64,
    /// Exchanges with node 0 that are still to follow in this burst.
    burst: u32,
    failed: bool,
}

/// The way to another node.
struct Way {
    exchanges: u32,
    /// The shortest round trip, in ticks of this host.
    shortest: u64,
}

/// What is known of a clock that is kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Known {
    pub(super) error_ns: f64,
    pub(super) drift_ppm: f64,
}

impl Keeper {
    /// Node `me`, which is to keep its host's clock, at `now` of its counter.
    pub(super) fn new(
        agreement: &Agreement,
        me: NodeId,
        first: NodeId,
        others: &[NodeId],
        now: u64,
    ) -> Result<Self, String> {
        let (host_khz, guest_khz) = (agreement.host_khz, agreement.guest_khz);
        let config = match agreement.shared {
            true => EstimatorConfig::one_crystal(host_khz, guest_khz),
            false => EstimatorConfig::crystals(host_khz, guest_khz),
        };
        let way = |&node| (node, Way { exchanges: 0, shortest: u64::MAX });
        Ok(Self {
            config: DisciplineConfig {
                node: me.index(),
                host_khz,
                guest_khz,
                scaler: agreement.scaler,
                step_ms_max: if agreement.shared { STEP_MS_MAX_SHARED } else { STEP_MS_MAX },
            },
            shared: agreement.shared,
            reference: agreement.reference,
            first,
            estimator: Estimator::new(config).map_err(|error| error.to_string())?,
            discipline: None,
            others: others.iter().map(way).collect(),
            began: now,
            probed: now,
            burst: BURST_FIRST,
            failed: false,
        })
    }

    /// What to ask at first.
    pub(super) fn begin(&self) -> Vec<Deed> {
        std::iter::once(self.first).chain(self.others.keys().copied()).map(Deed::Ask).collect()
    }

    /// A node has answered: its counter was `told` between `sent` and `received` of this host's.
    pub(super) fn told(&mut self, from: NodeId, sent: u64, told: u64, received: u64) -> Vec<Deed> {
        if self.failed {
            return Vec::new();
        }
        if let Some(way) = self.others.get_mut(&from) {
            way.shortest = way.shortest.min(received.wrapping_sub(sent));
            way.exchanges = way.exchanges.saturating_add(1);
            let more = way.exchanges < PROBES;
            return if more { vec![Deed::Ask(from)] } else { Vec::new() };
        }
        if from != self.first {
            return Vec::new();
        }
        let exchange = Exchange { sent, reference: self.reference.guest(told), received };
        if let Err(error) = self.estimator.add(exchange) {
            return self.fail(format!("its clock can't be compared with node 0's: {error}"));
        }
        self.burst = self.burst.saturating_sub(1);
        if self.burst > 0 { vec![Deed::Ask(self.first)] } else { Vec::new() }
    }

    /// Time has passed: sets, corrects or gives up the clock. Also says when to call again.
    pub(super) fn tick(&mut self, now: u64) -> (Vec<Deed>, Duration) {
        let age_s = self.seconds(now, self.began);
        if self.failed {
            return (Vec::new(), PERIOD);
        }
        if self.discipline.is_none() {
            if age_s > START_S {
                let why = StartError::TooFew;
                return (self.fail(format!("after {START_S} s: {why}")), PERIOD);
            }
            let mut deeds = self.start(now);
            deeds.extend(self.ask());
            return (deeds, PERIOD_START);
        }
        let mut deeds = self.step(now);
        deeds.extend(self.ask());
        if !self.failed && self.seconds(now, self.probed) >= PROBE_S {
            self.probed = now;
            deeds.extend(self.others.keys().copied().map(Deed::Ask));
        }
        let period = match self.shared {
            true => PERIOD_SHARED,
            false if age_s < EARLY_S => PERIOD_EARLY,
            false => PERIOD,
        };
        (deeds, period)
    }

    /// What is known at `now`, once the clock is set.
    pub(super) fn known(&self, now: u64) -> Option<Known> {
        let (ahead, error) = self.discipline.as_ref()?.offset(&self.estimator, now)?;
        let estimate = self.estimator.at(now)?;
        let error_ns = (ahead.abs() + error) * 1e6 / f64::from(self.config.guest_khz);
        Some(Known { error_ns, drift_ppm: estimate.drift_ppm })
    }

    /// Begins a burst, unless one is under way.
    fn ask(&mut self) -> Option<Deed> {
        if self.burst > 0 || self.failed {
            return None;
        }
        self.burst = BURST;
        Some(Deed::Ask(self.first))
    }

    fn start(&mut self, now: u64) -> Vec<Deed> {
        if self.others.values().any(|way| way.exchanges < PROBES) {
            return Vec::new();
        }
        if self.shared && self.seconds(now, self.began) < START_SHARED_S {
            return Vec::new();
        }
        let Some(shortest) = self.shortest() else { return Vec::new() };
        match Discipline::start(self.config, &self.estimator, now, shortest) {
            Ok(discipline) => {
                let (khz, mapping) = (discipline.khz(), discipline.mapping());
                self.discipline = Some(discipline);
                vec![self.set(khz, mapping, now)]
            }
            Err(StartError::TooFew) => Vec::new(),
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn step(&mut self, now: u64) -> Vec<Deed> {
        let shortest = self.shortest();
        let (Some(discipline), Some(shortest)) = (&mut self.discipline, shortest) else {
            return Vec::new();
        };
        match discipline.step(&self.estimator, now, shortest) {
            Action::Steady => Vec::new(),
            Action::Correct { khz, mapping } => vec![self.set(khz, mapping, now)],
            Action::Stop(reason) => self.fail(reason.to_string()),
        }
    }

    fn set(&self, khz: u32, mapping: Mapping, now: u64) -> Deed {
        let khz = self.config.scaler.map(|_| khz);
        let setting = TscSetting { khz, offset: mapping.offset };
        let error_ns = self.known(now).map_or(0.0, |known| known.error_ns);
        Deed::Set { setting, mapping, error_ns }
    }

    fn fail(&mut self, reason: String) -> Vec<Deed> {
        self.failed = true;
        vec![Deed::Fail(reason)]
    }

    /// The shortest message between this host and any other, one way, in ticks of the guest. Every
    /// other host keeps to half of what its own links allow, so each pair together to all of theirs.
    fn shortest(&self) -> Option<f64> {
        let ratio = f64::from(self.config.guest_khz) / f64::from(self.config.host_khz);
        let others = self.others.values().map(|way| way.shortest as f64 / 2.0 * ratio);
        Some(others.fold(self.estimator.shortest_one_way()?, f64::min))
    }

    fn seconds(&self, now: u64, then: u64) -> f64 {
        now.wrapping_sub(then) as f64 / (f64::from(self.config.host_khz) * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::super::agree::{HostClock, Role, ScalerParts};
    use super::*;
    use crate::vm::spec::TscSource;

    const KHZ: u32 = 1_000_000;
    /// One way, in ticks.
    const WAY: u64 = 20_000;

    /// A host whose counter runs `ppm` faster than node 0's, and 5 s ahead of it.
    struct World {
        keeper: Keeper,
        ppm: f64,
        /// Node 0's counter.
        now: u64,
        mapping: Option<Mapping>,
        reference: Mapping,
        sets: usize,
        /// Until then, questions take eight times as long as answers.
        slow_until: u64,
        /// So many more questions to nodes but node 0 do, whenever they are asked.
        slow_others: u32,
    }

    impl World {
        fn new(ppm: f64, scales: bool, others: &[NodeId]) -> Self {
            Self::of(TscSource::Hosts, ppm, scales, others)
        }

        fn of(source: TscSource, ppm: f64, scales: bool, others: &[NodeId]) -> Self {
            let parts = ScalerParts { fraction_bits: 48, tolerance_ppm: 250 };
            let scaler = scales.then_some(parts);
            let clock = |host| HostClock { host, tsc_khz: KHZ, scaler, begin: 0 };
            let clocks = [clock(1), clock(2)];
            let clocks: Vec<&HostClock> = clocks.iter().collect();
            let (first, me) = (NodeId::new(0).unwrap(), NodeId::new(1).unwrap());
            let agreement = Agreement::new(&clocks, source, me).unwrap();
            assert!(matches!(agreement.role, Role::Leader { .. }));
            let began = here(ppm, 0);
            let keeper = Keeper::new(&agreement, me, first, others, began).unwrap();
            let reference = agreement.reference;
            Self {
                keeper,
                ppm,
                now: 0,
                mapping: None,
                reference,
                sets: 0,
                slow_until: 0,
                slow_others: 0,
            }
        }

        /// Carries out deeds, and what follows from them; a failure's reason.
        fn carry_out(&mut self, mut deeds: Vec<Deed>) -> Option<String> {
            while let Some(deed) = deeds.pop() {
                match deed {
                    Deed::Ask(node) => {
                        let sent = here(self.ppm, self.now);
                        let slow = match node.index() {
                            0 => self.now < self.slow_until,
                            _ => {
                                let slow = self.slow_others > 0;
                                self.slow_others -= u32::from(slow);
                                slow
                            }
                        };
                        let slower = if slow { 8 } else { 1 };
                        let told = self.now + WAY * slower;
                        self.now = told + WAY;
                        deeds.extend(self.keeper.told(node, sent, told, here(self.ppm, self.now)));
                    }
                    Deed::Set { mapping, .. } => {
                        self.mapping = Some(mapping);
                        self.sets += 1;
                    }
                    Deed::Fail(reason) => return Some(reason),
                }
            }
            None
        }

        /// Runs for as many seconds; a failure's reason.
        fn run(&mut self, seconds: u64) -> Option<String> {
            let end = self.now + seconds * u64::from(KHZ) * 1000;
            while self.now < end {
                let (deeds, wait) = self.keeper.tick(here(self.ppm, self.now));
                if let Some(reason) = self.carry_out(deeds) {
                    return Some(reason);
                }
                self.now += wait.as_nanos() as u64 * u64::from(KHZ) / 1_000_000;
            }
            None
        }

        /// How far this host's guest clock is ahead of node 0's, in ticks.
        fn ahead(&self) -> i64 {
            let guest = self.mapping.unwrap().guest(here(self.ppm, self.now));
            guest.wrapping_sub(self.reference.guest(self.now)) as i64
        }
    }

    fn here(ppm: f64, reference: u64) -> u64 {
        let gone = i128::from(reference) * (1_000_000_000 + (ppm * 1000.0) as i128) / 1_000_000_000;
        5_000_000_000 + gone as u64
    }

    #[test]
    fn a_clock_that_drifts_is_corrected_by_its_rate() {
        let mut world = World::new(40.0, true, &[]);
        assert_eq!(world.carry_out(world.keeper.begin()), None);
        for _ in 0..20 {
            assert_eq!(world.run(10), None);
            assert!(world.ahead().unsigned_abs() <= WAY / 2, "{} ticks", world.ahead());
        }
        assert!(world.sets > 1, "40 ppm need a correction");
        let known = world.keeper.known(here(40.0, world.now)).unwrap();
        assert!((known.drift_ppm + 40.0).abs() < 1.0, "{known:?}");
        assert!(known.error_ns >= world.ahead().unsigned_abs() as f64);
    }

    #[test]
    fn without_scaling_the_machine_stops_with_the_drift() {
        let mut world = World::new(40.0, false, &[]);
        assert_eq!(world.carry_out(world.keeper.begin()), None);
        let reason = world.run(60).expect("it stops");
        if world.mapping.is_some() {
            assert!(world.ahead().unsigned_abs() <= WAY, "{} ticks", world.ahead());
        }
        assert!(reason.contains("node 1") && reason.contains("no TSC scaling"), "{reason}");
    }

    #[test]
    fn the_clock_is_set_only_when_the_ways_to_all_hosts_are_known() {
        let other = NodeId::new(2).unwrap();
        let mut world = World::new(0.0, false, &[other]);
        let (first, deeds) = (NodeId::new(0).unwrap(), world.keeper.begin());
        assert_eq!(deeds, [Deed::Ask(first), Deed::Ask(other)]);
        assert_eq!(world.carry_out(vec![Deed::Ask(first)]), None);
        assert_eq!(world.run(10), None);
        assert!(world.mapping.is_none(), "nothing is known of the way to node 2");
        assert_eq!(world.carry_out(vec![Deed::Ask(other)]), None);
        assert_eq!(world.run(10), None);
        assert!(world.mapping.is_some());
    }

    /// The error of a slow exchange is as large as the exchange.
    #[test]
    fn a_clock_of_one_source_waits_for_fast_exchanges() {
        let mut world = World::of(TscSource::Shared, 0.0, false, &[]);
        world.slow_until = u64::from(KHZ) * 500;
        assert_eq!(world.carry_out(world.keeper.begin()), None);
        assert_eq!(world.run(10), None);
        assert!(world.ahead().unsigned_abs() <= WAY / 2, "{} ticks", world.ahead());
    }

    /// What is known of node 0's clock has to suffice for the fastest message of any other node, which
    /// is seldom among the first.
    #[test]
    fn a_clock_is_not_set_by_the_first_slow_exchanges_with_other_nodes() {
        let other = NodeId::new(2).unwrap();
        let mut world = World::of(TscSource::Shared, 0.0, false, &[other]);
        world.slow_until = u64::from(KHZ) * 2000;
        world.slow_others = 50;
        assert_eq!(world.carry_out(world.keeper.begin()), None);
        assert_eq!(world.run(60), None);
        assert!(world.ahead().unsigned_abs() <= WAY / 2, "{} ticks", world.ahead());
    }

    /// Its exchanges would cost an emulated host most of its time.
    #[test]
    fn a_clock_of_one_source_is_looked_at_seldom_and_stays() {
        let mut world = World::of(TscSource::Shared, 0.0, false, &[]);
        assert_eq!(world.carry_out(world.keeper.begin()), None);
        assert_eq!(world.run(2), None);
        let (_, wait) = world.keeper.tick(here(0.0, world.now));
        assert_eq!(wait, PERIOD_SHARED);
        assert_eq!(world.run(600), None);
        assert!(world.ahead().unsigned_abs() <= WAY / 2, "{} ticks", world.ahead());
    }

    #[test]
    fn a_host_that_does_not_answer_well_enough_is_an_error() {
        let mut world = World::new(0.0, false, &[NodeId::new(2).unwrap()]);
        let deeds = vec![Deed::Ask(NodeId::new(0).unwrap())];
        assert_eq!(world.carry_out(deeds), None);
        let reason = world.run(100).expect("it gives up");
        assert!(reason.contains("after 60 s"), "{reason}");
    }

    #[test]
    fn a_counter_that_jumps_is_an_error() {
        let mut world = World::new(0.0, false, &[]);
        assert_eq!(world.carry_out(world.keeper.begin()), None);
        assert_eq!(world.run(10), None);
        let now = here(0.0, world.now);
        let deeds = world.keeper.told(NodeId::new(0).unwrap(), now, world.now + 9 * WAY, now + WAY);
        let [Deed::Fail(reason)] = &deeds[..] else { panic!("{deeds:?}") };
        assert!(reason.contains("contradict"), "{reason}");
    }
}
