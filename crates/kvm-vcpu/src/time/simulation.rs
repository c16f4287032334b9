//! Clocks and a network that don't exist, to show what [`Estimator`] and [`Discipline`] promise.

use proptest::prelude::*;

use super::*;

/// SplitMix64: the schedule of a run follows from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Waiting in a queue: mostly short, sometimes a hundred times the mean.
    fn queue(&mut self, mean: f64) -> f64 {
        let mean = if self.next().is_multiple_of(20) { mean * 100.0 } else { mean };
        (-mean * (1.0 - self.unit()).ln()).min(5e-3)
    }
}

/// A host's counter: real seconds to ticks. Its rate is off by a constant, and swings with the
/// temperature.
#[derive(Clone, Copy, Debug)]
struct Host {
    khz: u32,
    offset: u64,
    ppm: f64,
    swing_ppm: f64,
}

impl Host {
    /// Seconds of a swing. 0.3 ppm make at most 6 ppb/s, 12 between two hosts.
    const SWING_S: f64 = 300.0;

    fn tsc(&self, s: f64) -> u64 {
        let turn = std::f64::consts::TAU / Self::SWING_S;
        let swung = self.swing_ppm * 1e-6 * (1.0 - (s * turn).cos()) / turn;
        let seconds = s * (1.0 + self.ppm * 1e-6) + swung;
        self.offset.wrapping_add((seconds * f64::from(self.khz) * 1e3) as u64)
    }
}

fn host() -> impl Strategy<Value = Host> {
    (0u64..1 << 60, -100.0..100.0f64, -0.3..0.3f64).prop_map(|(offset, ppm, swing_ppm)| Host {
        khz: 2_400_000,
        offset,
        ppm,
        swing_ppm,
    })
}

/// The way to node 0 and back: shortest times and mean waits, in seconds.
#[derive(Clone, Copy, Debug)]
struct Link {
    there: f64,
    back: f64,
    queue_there: f64,
    queue_back: f64,
}

impl Link {
    fn alike(floor: f64, queue: f64) -> Self {
        Self { there: floor, back: floor, queue_there: queue, queue_back: queue }
    }

    /// An exchange begun at `s`, and when it was over.
    fn exchange(
        &self,
        random: &mut Random,
        here: &Host,
        reference: impl Fn(f64) -> u64,
        s: f64,
    ) -> (Exchange, f64) {
        let answered = s + self.there + random.queue(self.queue_there);
        let over = answered + self.back + random.queue(self.queue_back);
        let (sent, received) = (here.tsc(s), here.tsc(over));
        (Exchange { sent, reference: reference(answered), received }, over)
    }
}

fn scaler(host: &Host) -> Scaler {
    Scaler { host_khz: host.khz, fraction_bits: 32, tolerance_ppm: 250 }
}

/// Nodes that run a guest's clock each; node 0 is the reference.
struct Cluster {
    hosts: Vec<Host>,
    link: Link,
    random: Random,
    guest_khz: u32,
    scaling: bool,
    reference: Mapping,
    clocks: Vec<(Estimator, Discipline)>,
    s: f64,
}

/// Seconds from one round of exchanges to the next: in the first minute, while the rates are not known
/// well, and later.
const STEPS_S: (f64, f64) = (0.005, 0.02);
/// That and the longest two exchanges.
const STEP_MS_MAX: u32 = 40;

impl Cluster {
    /// After the exchanges of the start.
    fn new(hosts: Vec<Host>, link: Link, seed: u64, scaling: bool) -> Result<Self, StopReason> {
        let scalers: Vec<_> = hosts.iter().map(scaler).collect();
        let guest_khz = if scaling { nominal_khz(&scalers).unwrap() } else { hosts[0].khz };
        let ratio = if scaling { scalers[0].ratio(guest_khz) } else { Ratio::ONE };
        let reference = Mapping::through(ratio, hosts[0].tsc(0.0), 1 << 40);
        let mut this = Self {
            hosts,
            link,
            random: Random(seed),
            guest_khz,
            scaling,
            reference,
            clocks: vec![],
            s: 0.0,
        };
        this.start()?;
        Ok(this)
    }

    /// Exchanges until every node knows enough.
    fn start(&mut self) -> Result<(), StopReason> {
        let estimator = |host: &Host| {
            Estimator::new(EstimatorConfig::crystals(host.khz, self.guest_khz)).unwrap()
        };
        let mut estimators: Vec<_> = self.hosts.iter().skip(1).map(estimator).collect();
        while self.s < 60.0 {
            for (node, estimator) in (1..).zip(&mut estimators) {
                self.exchange(node, estimator);
            }
            let clocks = (1..).zip(&estimators).map(|(node, e)| self.clock(node, e));
            match clocks.collect::<Result<Vec<_>, _>>() {
                Ok(clocks) => {
                    self.clocks = estimators.into_iter().zip(clocks).collect();
                    return Ok(());
                }
                Err(StartError::Drift(reason)) => return Err(reason),
                Err(StartError::TooFew) => {}
            }
        }
        panic!("no start in a minute");
    }

    fn clock(&self, node: usize, estimator: &Estimator) -> Result<Discipline, StartError> {
        let host = self.hosts[node];
        let config = DisciplineConfig {
            node,
            host_khz: host.khz,
            guest_khz: self.guest_khz,
            scaler: self.scaling.then(|| scaler(&host)),
            step_ms_max: STEP_MS_MAX,
        };
        let shortest = estimator.shortest_one_way().unwrap();
        Discipline::start(config, estimator, host.tsc(self.s), shortest)
    }

    fn exchange(&mut self, node: usize, estimator: &mut Estimator) {
        let (first, reference) = (self.hosts[0], self.reference);
        let reference = |s| reference.guest(first.tsc(s));
        let (exchange, over) =
            self.link.exchange(&mut self.random, &self.hosts[node], reference, self.s);
        estimator.add(exchange).unwrap();
        self.s = over;
    }

    fn guest(&self, node: usize, s: f64) -> u64 {
        let mapping = match node {
            0 => self.reference,
            _ => self.clocks[node - 1].1.mapping(),
        };
        mapping.guest(self.hosts[node].tsc(s))
    }

    /// How long before a message from any node, as fast as they get, arrives at any other, the
    /// receiver's clock showed its time stamp; in ticks. Negative: time went back.
    fn margin(&self) -> i64 {
        let nodes = 0..self.hosts.len();
        let pairs = nodes.clone().flat_map(|a| nodes.clone().map(move |b| (a, b)));
        let margin = |(a, b)| {
            let sent = self.guest(a, self.s);
            self.guest(b, self.s + self.link.there).wrapping_sub(sent) as i64
        };
        pairs.filter(|(a, b)| a != b).map(margin).min().unwrap()
    }

    /// One exchange of each node, and what follows from it.
    fn step(&mut self) -> Result<u32, StopReason> {
        let mut corrections = 0;
        self.s += if self.s < 60.0 { STEPS_S.0 } else { STEPS_S.1 };
        let mut clocks = std::mem::take(&mut self.clocks);
        let mut stop = None;
        for (node, (estimator, clock)) in (1..).zip(&mut clocks) {
            self.exchange(node, estimator);
            let (now, before) = (self.hosts[node].tsc(self.s), clock.mapping());
            let shortest = estimator.shortest_one_way().unwrap();
            let action = clock.step(estimator, now, shortest);
            // A correction is no jump.
            assert_eq!(clock.mapping().guest(now), before.guest(now));
            corrections += u32::from(matches!(action, Action::Correct { .. }));
            if let Action::Stop(reason) = action {
                stop = Some(reason);
            }
        }
        self.clocks = clocks;
        stop.map_or(Ok(corrections), Err)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the delays, equal or not, the bounds contain the truth, and so do those of the rate.
    #[test]
    fn the_bounds_always_contain_the_truth(
        here in host(), there in host(), seed in any::<u64>(), gap in 0.0..2.0f64,
        link in (1e-6..1e-3f64, 1e-6..1e-3f64, 1e-7..1e-3f64, 1e-7..1e-3f64),
    ) {
        let link = Link { there: link.0, back: link.1, queue_there: link.2, queue_back: link.3 };
        let mut random = Random(seed);
        let mut estimator = Estimator::new(EstimatorConfig::crystals(here.khz, 2_400_000)).unwrap();
        let mut s = 1.0;
        for round in 0..3000 {
            let (exchange, over) = link.exchange(&mut random, &here, |s| there.tsc(s), s);
            estimator.add(exchange).unwrap();
            let later = over + random.unit() * gap;
            for s in [over, later] {
                let estimate = estimator.at(here.tsc(s)).unwrap();
                prop_assert!(estimate.contains(there.tsc(s)), "{round}: {estimate:?}");
                let turn = (s * std::f64::consts::TAU / Host::SWING_S).sin();
                let rate = |host: &Host| 1.0 + (host.ppm + host.swing_ppm * turn) * 1e-6;
                let drift = (rate(&there) / rate(&here) - 1.0) * 1e6;
                prop_assert!(
                    (estimate.drift_ppm - drift).abs() <= estimate.drift_error_ppm + 1e-6,
                    "{round}: drift {drift}: {estimate:?}"
                );
            }
            s = if round < 200 { over } else { later };
        }
        let end = estimator.at(here.tsc(s)).unwrap();
        let trip = (link.there + link.back) * 2.4e9;
        prop_assert!(end.error_ticks >= trip / 2.0 * 0.999);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Hours of clocks that drift: with scaling, no message ever shows time going back.
    #[test]
    fn with_scaling_time_never_goes_back(
        hosts in prop::collection::vec(host(), 3), seed in any::<u64>(),
        floor in 4e-6..100e-6f64, queue in 0.05..1.0f64,
    ) {
        let mut cluster = Cluster::new(hosts, Link::alike(floor, floor * queue), seed, true).unwrap();
        let mut corrections = 0;
        while cluster.s < 3.0 * 3600.0 {
            let margin = cluster.margin();
            prop_assert!(margin >= 0, "at {} s: {margin} ticks", cluster.s);
            match cluster.step() {
                Ok(made) => corrections += made,
                Err(reason) => prop_assert!(false, "at {} s: {reason}", cluster.s),
            }
        }
        // Every correction kicks the vCPUs: they must be rare.
        prop_assert!(f64::from(corrections) < cluster.s * 4.0, "{corrections} in {} s", cluster.s);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Without scaling, the machine stops before a message could show time going back.
    #[test]
    fn without_scaling_the_machine_stops_in_time(
        mut hosts in prop::collection::vec(host(), 3), seed in any::<u64>(),
        floor in 4e-6..100e-6f64, ppm in prop_oneof![-200.0..-1.0f64, 1.0..200.0f64],
    ) {
        hosts[0].ppm = 0.0;
        hosts[1].ppm = ppm / 2.0;
        hosts[2].ppm = ppm;
        let link = Link::alike(floor, floor / 4.0);
        let mut cluster = match Cluster::new(hosts, link, seed, false) {
            Ok(cluster) => cluster,
            Err(reason) => {
                // Only hosts that drift too far for the network within a moment are not started with.
                prop_assert!(ppm.abs() * 1e-6 * 0.1 > floor * 0.05, "{reason}");
                return Ok(());
            }
        };
        let reason = loop {
            let margin = cluster.margin();
            prop_assert!(margin >= 0, "at {} s: {margin} ticks", cluster.s);
            prop_assert!(cluster.s < 600.0, "it never stopped");
            if let Err(reason) = cluster.step() {
                break reason;
            }
        };
        prop_assert!(cluster.margin() >= 0);
        prop_assert!(reason.to_string().contains("no TSC scaling"), "{reason}");
    }
}

#[test]
fn a_clock_that_is_set_is_noticed() {
    let host = Host { khz: 2_400_000, offset: 5, ppm: 10.0, swing_ppm: 0.0 };
    let link = Link::alike(10e-6, 1e-6);
    let mut random = Random(1);
    let mut estimator = Estimator::new(EstimatorConfig::crystals(host.khz, host.khz)).unwrap();
    let mut jump = 0;
    for round in 0..1000 {
        let s = 1.0 + 0.01 * f64::from(round);
        let (exchange, _) = link.exchange(&mut random, &host, |s| (s * 2.4e9) as u64 + jump, s);
        match estimator.add(exchange) {
            Ok(()) => assert!(round < 500, "not noticed"),
            Err(error) => {
                assert!(matches!(error, ClockError::Inconsistent { .. }), "{error}");
                assert_eq!(round, 500);
                return;
            }
        }
        // 100 us, far more than a round trip.
        jump = if round >= 499 { 240_000 } else { 0 };
    }
}

/// Whoever takes the shortest of a few slow messages for the shortest there is starts with an error of
/// milliseconds.
#[test]
fn a_few_slow_exchanges_make_no_start() {
    let khz = 2_400_000;
    let config =
        DisciplineConfig { node: 1, host_khz: khz, guest_khz: khz, scaler: None, step_ms_max: 40 };
    let mut estimator = Estimator::new(EstimatorConfig::crystals(khz, khz)).unwrap();
    // 3 ms there and 10 us back, on links that take 10 us.
    let reference = 7_200_000;
    estimator.add(Exchange { sent: 0, reference, received: reference + 24_000 }).unwrap();
    let shortest = estimator.shortest_one_way().unwrap();
    let start = Discipline::start(config, &estimator, reference + 24_000, shortest);
    assert_eq!(start.map(|_| ()), Err(StartError::TooFew));
}

#[test]
fn impossible_exchanges_are_refused() {
    let config = EstimatorConfig::crystals(1_000_000, 1_000_000);
    let mut estimator = Estimator::new(config).unwrap();
    assert_eq!(estimator.at(0), None);
    let backwards = Exchange { sent: 10, reference: 0, received: 9 };
    assert_eq!(estimator.add(backwards), Err(ClockError::Order));
    let mut estimator = Estimator::new(config).unwrap();
    estimator.add(Exchange { sent: 100, reference: 7, received: 300 }).unwrap();
    let earlier = Exchange { sent: 50, reference: 7, received: 200 };
    assert_eq!(estimator.add(earlier), Err(ClockError::Order));
    let none = Estimator::new(EstimatorConfig::crystals(0, 1)).map(|_| ());
    assert_eq!(none, Err(ClockError::NoFrequency));
}

#[test]
fn on_one_crystal_the_bounds_stay() {
    let mut estimator = Estimator::new(EstimatorConfig::one_crystal(2_400_000, 2_400_000)).unwrap();
    estimator.add(Exchange { sent: 1000, reference: 501_500, received: 2000 }).unwrap();
    let hour = 2000 + 3_600 * 2_400_000_000u64;
    let estimate = estimator.at(hour).unwrap();
    assert!(estimate.contains(hour + 500_000));
    assert!(estimate.error_ticks < 510.0 + 3_600.0 * 2.4, "{estimate:?}");
}
