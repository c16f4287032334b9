//! Keeps a node's guest TSC where no message can show it to be ahead of, or behind, another node's.
//!
//! Let F be node 0's guest TSC, [low, high] its bounds at this node and f the shortest one-way
//! message, alike in both directions. Then low + f <= F <= high - f: every bound came from a message.
//! So a guest TSC g here is off by at most |g - middle| + width / 2 - f. A message between two nodes
//! shows time going back only if both errors together exceed f; each node keeps to half of that.

use std::fmt;

use super::estimator::{Estimate, Estimator};
use super::mapping::{Mapping, Ratio, Scaler};

/// Messages are taken to be a little faster than the fastest seen.
const SHARE: f64 = 7.0 / 8.0;
/// Corrections work over this time.
const HORIZON_S: f64 = 1.0;
/// A correction starts when this part of what is allowed would be used up after the horizon.
const DEAD_BAND: f64 = 1.0 / 4.0;
/// What is added to the rate, at most, to make up for an error.
const SLEW_MAX: f64 = 100e-6;

/// The clock of one node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DisciplineConfig {
    /// Its number, for messages.
    pub node: usize,
    /// What KVM takes for this host's frequency.
    pub host_khz: u32,
    /// The guest's nominal frequency.
    pub guest_khz: u32,
    /// `None` if the processor can't scale (`KVM_CAP_TSC_CONTROL`).
    pub scaler: Option<Scaler>,
    /// The longest time from one [`Discipline::step`] to the next, in milliseconds.
    pub step_ms_max: u32,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    /// Nothing.
    Steady,
    /// Give every vCPU of the node this frequency (`KVM_SET_TSC_KHZ`) and then this mapping's offset
    /// (`KVM_VCPU_TSC_OFFSET`), as [`Mapping`] says.
    Correct {
        /// The frequency to ask KVM for.
        khz: u32,
        /// What it makes of the host's TSC.
        mapping: Mapping,
    },
    /// Stop the virtual machine, now.
    Stop(StopReason),
}

/// Why a machine must stop: soon, one CPU could see the time of another go back.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StopReason {
    /// The node whose clock it is.
    pub node: usize,
    /// How fast it goes against node 0, in parts per million.
    pub drift_ppm: f64,
    /// Error of the drift.
    pub drift_error_ppm: f64,
    /// How far off the guest's clock can be before the next step.
    pub error_ns: f64,
    /// How far off it may be.
    pub allowed_ns: f64,
    /// Whether the processor could correct it.
    pub scaling: bool,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest's clock on node {} may be off by {:.0} ns, {:.0} are allowed between the \
             nodes' fastest messages: it drifts by {:.3} ppm (+-{:.3}) against node 0; ",
            self.node, self.error_ns, self.allowed_ns, self.drift_ppm, self.drift_error_ppm
        )?;
        const RARE: &str = "its exchanges with node 0 are too rare or too slow to be sure of it: check \
                            the load of both hosts and the network between them";
        const FIXED: &str = "this host's processor has no TSC scaling to correct it: use hosts that have \
                             it (KVM_CAP_TSC_CONTROL), or whose time-stamp counters run from one source";
        match (self.scaling, self.drift_ppm.abs() <= self.drift_error_ppm) {
            (true, _) => f.write_str(RARE),
            // It may not drift at all.
            (false, true) => write!(f, "{RARE}; {FIXED}"),
            (false, false) => f.write_str(FIXED),
        }
    }
}

/// Why the guest's clock can't be set.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum StartError {
    /// Not enough is known to keep the clock for a moment.
    #[error(
        "too few exchanges of time with node 0, over too short a time, to set the guest's clock: go on \
         with them"
    )]
    TooFew,
    /// The rates differ so much, and can't be corrected, that the machine would stop at once.
    #[error("{0}")]
    Drift(StopReason),
}

/// Bounds of a clock's error, in ticks.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// Ahead of the middle of the bounds.
    ahead: f64,
    /// Largest error until the next step.
    most: f64,
    allowed: f64,
    /// The guest's rate against the reference's.
    drift: f64,
}

/// What has to be certain at the start holds for this long without another good exchange, in
/// milliseconds.
const START_MS: u32 = 100;
/// And uses at most this part of what is allowed.
const START_SHARE: f64 = 0.5;
/// Exchanges before a start. Everything is measured by the shortest message, so one that was as fast as
/// they get has to be among them: a few slow ones allow, and hide, an error as large as themselves.
const START_EXCHANGES: u64 = 200;

/// Keeps one node's guest TSC with node 0's.
#[derive(Clone, Debug)]
pub struct Discipline {
    config: DisciplineConfig,
    khz: u32,
    mapping: Mapping,
}

impl Discipline {
    /// Sets the guest's clock, before it runs, by what is known at `host`. `shortest` is the shortest
    /// one-way message between any two nodes, in guest ticks ([`Estimator::shortest_one_way`]).
    ///
    /// # Errors
    /// Too little is known, or the clocks drift so fast that the machine would have to stop at once.
    pub fn start(
        config: DisciplineConfig,
        estimator: &Estimator,
        host: u64,
        shortest: f64,
    ) -> Result<Self, StartError> {
        let estimate = estimator.at(host).ok_or(StartError::TooFew)?;
        if estimator.exchanges() < START_EXCHANGES {
            return Err(StartError::TooFew);
        }
        let mapping = Mapping::through(Ratio::ONE, 0, 0);
        let mut this = Self { config, khz: config.host_khz, mapping };
        if let Some(scaler) = config.scaler {
            this.khz = this.khz_for(estimate.drift_ppm * 1e-6);
            this.mapping.ratio = scaler.ratio(this.khz);
        }
        this.mapping = Mapping::through(this.mapping.ratio, host, estimate.reference());
        let ms = START_MS.max(config.step_ms_max);
        let fault = this.fault(estimator, &estimate, shortest, ms).ok_or(StartError::TooFew)?;
        let allowed = fault.allowed * START_SHARE;
        if fault.most <= allowed {
            return Ok(this);
        }
        // What more exchanges won't change.
        let rate = fault.drift.abs() - estimate.drift_error_ppm * 1e-6;
        let drifted = rate * f64::from(config.guest_khz) * f64::from(ms);
        if drifted > allowed / 4.0 && fault.most - drifted <= allowed {
            return Err(StartError::Drift(this.reason(&estimate, &fault)));
        }
        Err(StartError::TooFew)
    }

    /// The guest's TSC as it is now.
    pub fn mapping(&self) -> Mapping {
        self.mapping
    }

    /// The frequency that KVM is asked for.
    pub fn khz(&self) -> u32 {
        self.khz
    }

    /// The guest's clock against node 0's at `host`, not before the last exchange: how far ahead it
    /// is and the largest error of that, in ticks.
    pub fn offset(&self, estimator: &Estimator, host: u64) -> Option<(f64, f64)> {
        let estimate = estimator.at(host)?;
        Some((estimate.ahead(self.mapping.guest(host)), estimate.error_ticks))
    }

    /// What to do at `host`, not before the last exchange; `shortest` as in [`Discipline::start`].
    /// A correction is taken to be carried out.
    pub fn step(&mut self, estimator: &Estimator, host: u64, shortest: f64) -> Action {
        let known = estimator.at(host);
        let known = known
            .and_then(|e| Some((e, self.fault(estimator, &e, shortest, self.config.step_ms_max)?)));
        let Some((estimate, fault)) = known else { return Action::Steady };
        if fault.most.is_nan() || fault.most > fault.allowed {
            return Action::Stop(self.reason(&estimate, &fault));
        }
        let Some(scaler) = self.config.scaler else { return Action::Steady };
        let horizon = f64::from(self.config.guest_khz) * 1e3 * HORIZON_S;
        if (fault.ahead + fault.drift * horizon).abs() <= fault.allowed * DEAD_BAND {
            return Action::Steady;
        }
        let catch_up = (-fault.ahead / horizon).clamp(-SLEW_MAX, SLEW_MAX);
        let khz = self.khz_for(estimate.drift_ppm * 1e-6 + catch_up);
        if khz == self.khz {
            return Action::Steady;
        }
        self.khz = khz;
        self.mapping = self.mapping.continued(scaler.ratio(khz), host);
        Action::Correct { khz, mapping: self.mapping }
    }

    fn khz_for(&self, rate: f64) -> u32 {
        (f64::from(self.config.guest_khz) * (1.0 + rate)).round() as u32
    }

    fn fault(
        &self,
        estimator: &Estimator,
        now: &Estimate,
        shortest: f64,
        ms: u32,
    ) -> Option<Fault> {
        let host_ticks = u64::from(self.config.host_khz) * u64::from(ms);
        let later = estimator.at(now.host.wrapping_add(host_ticks))?;
        // Of its own link: the shorter, the less is certain.
        let one_way = estimator.shortest_one_way()? * SHARE;
        let error =
            |e: &Estimate| e.ahead(self.mapping.guest(e.host)).abs() + e.error_ticks - one_way;
        let nominal = f64::from(self.config.guest_khz) / f64::from(self.config.host_khz);
        Some(Fault {
            ahead: now.ahead(self.mapping.guest(now.host)),
            most: error(now).max(error(&later)),
            allowed: shortest * SHARE / 2.0,
            drift: self.mapping.ratio.as_f64() / nominal - 1.0 - now.drift_ppm * 1e-6,
        })
    }

    fn reason(&self, estimate: &Estimate, fault: &Fault) -> StopReason {
        let ns = 1e6 / f64::from(self.config.guest_khz);
        StopReason {
            node: self.config.node,
            drift_ppm: fault.drift * 1e6,
            drift_error_ppm: estimate.drift_error_ppm,
            error_ns: fault.most * ns,
            allowed_ns: fault.allowed * ns,
            scaling: self.config.scaler.is_some(),
        }
    }
}
