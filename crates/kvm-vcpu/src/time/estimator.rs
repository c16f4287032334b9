//! Where node 0's guest TSC is, seen from another node: hard bounds from message exchanges.
//!
//! A message can't arrive before it was sent. So node 0's counter passed the value in its answer
//! after this node asked and before it had the answer. Every exchange is one such pair of bounds;
//! they are carried forward with bounds of the rate, and intersected. Nothing is averaged: as long as
//! the configured limits of rate and wander hold, the truth is inside, whatever the network does.

use std::collections::VecDeque;

/// One question to node 0 and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exchange {
    /// This host's TSC before the question was sent.
    pub sent: u64,
    /// Node 0's guest TSC when it answered.
    pub reference: u64,
    /// This host's TSC when the answer was here.
    pub received: u64,
}

/// What the clocks are known to keep to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct EstimatorConfig {
    /// What KVM takes for this host's frequency.
    pub host_khz: u32,
    /// The guest's nominal frequency.
    pub guest_khz: u32,
    /// Most that the rate between both can differ from nominal: what crystals and the calibration of
    /// two kernels are off together, in parts per million.
    pub rate_ppm_max: f64,
    /// Most that this rate changes in a second, in parts per thousand million: crystals follow the
    /// temperature.
    pub wander_ppb_per_s: f64,
}

impl EstimatorConfig {
    /// Limits that crystals of servers keep to.
    pub fn crystals(host_khz: u32, guest_khz: u32) -> Self {
        Self { host_khz, guest_khz, rate_ppm_max: 500.0, wander_ppb_per_s: 20.0 }
    }

    /// Both nodes count the same crystal: they are on one host (with one boot id). What is left is how
    /// finely the processor scales. Two such nodes may as well share a [`super::Mapping`].
    pub fn one_crystal(host_khz: u32, guest_khz: u32) -> Self {
        Self { host_khz, guest_khz, rate_ppm_max: 0.001, wander_ppb_per_s: 0.0 }
    }
}

/// An exchange that can't be.
#[derive(Clone, Copy, PartialEq, Debug, thiserror::Error)]
pub enum ClockError {
    /// No frequency to count with.
    #[error("a time-stamp counter of 0 kHz: the kernel could not calibrate it")]
    NoFrequency,
    /// Received before it was sent, or before the one before.
    #[error("an exchange of time was received before it was sent, or before the previous one")]
    Order,
    /// The clocks don't keep to the limits.
    #[error(
        "two exchanges of time contradict each other by {ticks} ticks: a clock was set, a host was \
         suspended or moved, or its time-stamp counter is not invariant"
    )]
    Inconsistent {
        /// By how much.
        ticks: u64,
    },
}

/// Bounds of node 0's guest TSC at one moment of this host's, and of how fast it goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// This host's TSC at that moment.
    pub host: u64,
    /// At least this, in ticks of the guest, modulo 2^64.
    pub low: u64,
    /// The middle of the bounds is this much above `low`: the largest error, in ticks.
    pub error_ticks: f64,
    /// Rate of the reference against nominal, in parts per million: the middle of its bounds.
    pub drift_ppm: f64,
    /// Largest error of the drift.
    pub drift_error_ppm: f64,
}

impl Estimate {
    /// The middle of the bounds: node 0's guest TSC, as far as this node can know.
    pub fn reference(&self) -> u64 {
        self.low.wrapping_add(self.error_ticks.round() as u64)
    }

    /// How far `guest` is ahead of the middle of the bounds, in ticks.
    pub fn ahead(&self, guest: u64) -> f64 {
        guest.wrapping_sub(self.low) as i64 as f64 - self.error_ticks
    }

    /// Whether `reference` is within the bounds.
    pub fn contains(&self, reference: u64) -> bool {
        self.ahead(reference).abs() <= self.error_ticks
    }
}

/// What rounding to whole ticks can cost a bound.
const TICK: f64 = 1.0;
/// What rounding of floating-point numbers below 2^33 can cost a bound in one step.
const ROUNDING: f64 = 1e-5;
/// Numbers are kept relative to a base, which moves when they reach this.
const REBASE: f64 = 4e9;
const ANCHORS_MAX: usize = 32;

/// Bounds at a moment `at` (nominal ticks since the start) of the difference between the reference and
/// the nominal count, in ticks above the estimator's base.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    at: i64,
    low: f64,
    high: f64,
}

/// Collects exchanges: at first one after the other, until [`super::Discipline::start`] has enough of
/// them; then one every some milliseconds.
#[derive(Clone, Debug)]
pub struct Estimator {
    config: EstimatorConfig,
    /// Largest rate, without unit.
    rate_max: f64,
    /// Largest change of the rate, per tick.
    wander: f64,
    start: Option<Start>,
    now: Bounds,
    /// Bounds of the rate now.
    rate: (f64, f64),
    anchors: VecDeque<Bounds>,
    anchor_spacing: i64,
    shortest_round_trip: f64,
    exchanges: u64,
}

#[derive(Clone, Copy, Debug)]
struct Start {
    host: u64,
    /// Reference minus nominal count; moves.
    base: u64,
}

impl Estimator {
    /// An estimator without exchanges.
    ///
    /// # Errors
    /// A frequency is 0.
    pub fn new(config: EstimatorConfig) -> Result<Self, ClockError> {
        if config.host_khz == 0 || config.guest_khz == 0 {
            return Err(ClockError::NoFrequency);
        }
        let ticks_per_s = f64::from(config.guest_khz) * 1e3;
        let rate_max = config.rate_ppm_max.abs() * 1e-6;
        Ok(Self {
            config,
            rate_max,
            wander: config.wander_ppb_per_s.abs() * 1e-9 / ticks_per_s,
            start: None,
            now: Bounds { at: 0, low: f64::NEG_INFINITY, high: f64::INFINITY },
            rate: (-rate_max, rate_max),
            anchors: VecDeque::new(),
            // 20 ms at first; doubled whenever there are too many.
            anchor_spacing: i64::from(config.guest_khz) * 20,
            shortest_round_trip: f64::INFINITY,
            exchanges: 0,
        })
    }

    /// Takes in an exchange; they come in the order in which they were received.
    ///
    /// # Errors
    /// [`ClockError`]; after `Inconsistent` the clock can't be trusted any more.
    pub fn add(&mut self, exchange: Exchange) -> Result<(), ClockError> {
        let Exchange { sent, reference, received } = exchange;
        let round_trip = received.wrapping_sub(sent);
        let start = *self.start.get_or_insert(Start { host: sent, base: reference });
        if round_trip > i64::MAX as u64 || received.wrapping_sub(start.host) > i64::MAX as u64 {
            return Err(ClockError::Order);
        }
        let (asked, at) = (self.nominal(start, sent), self.nominal(start, received));
        if at < self.now.at {
            return Err(ClockError::Order);
        }
        self.advance(at);
        let from_base = reference.wrapping_sub(start.base) as i64;
        let trip = (at - asked) as f64;
        // When the answer came, the reference had passed its value ...
        let low = from_base.wrapping_sub(at) as f64 - TICK;
        // ... and when the question left, it had not reached it; since then it went on by its rate.
        let gone = trip * (self.rate.1 + self.wander * trip).min(self.rate_max);
        let high = from_base.wrapping_sub(asked) as f64 + gone + TICK;
        self.now.low = self.now.low.max(low);
        self.now.high = self.now.high.min(high);
        self.shortest_round_trip = self.shortest_round_trip.min(trip + TICK);
        self.check()?;
        self.bound_rate()?;
        self.shortest_round_trip = self.shortest_round_trip.min(self.now.high - self.now.low);
        self.exchanges += 1;
        self.anchor();
        self.rebase();
        Ok(())
    }

    /// Bounds at `host`, not before the last exchange; `None` before the first.
    pub fn at(&self, host: u64) -> Option<Estimate> {
        let start = self.start?;
        let at = self.nominal(start, host).max(self.now.at);
        let (now, rate) = self.stepped(at);
        let low = start.base.wrapping_add(at as u64).wrapping_add((now.low.floor() as i64) as u64);
        // To whole ticks, outwards.
        let width = now.high - now.low.floor() + 2.0 * TICK;
        Some(Estimate {
            host,
            low: low.wrapping_sub(1),
            error_ticks: width / 2.0,
            drift_ppm: (rate.0 + rate.1) / 2.0 * 1e6,
            drift_error_ppm: (rate.1 - rate.0) / 2.0 * 1e6,
        })
    }

    /// The shortest one-way message, in guest ticks, if both ways are alike at their best: half of the
    /// shortest round trip seen, or put together from the best of each way. `None` before the first.
    pub fn shortest_one_way(&self) -> Option<f64> {
        self.start.map(|_| self.shortest_round_trip / 2.0)
    }

    /// How many exchanges it has taken in.
    pub fn exchanges(&self) -> u64 {
        self.exchanges
    }
}

impl Estimator {
    /// Guest ticks since the start if the rate were nominal.
    fn nominal(&self, start: Start, host: u64) -> i64 {
        let gone = i128::from(host.wrapping_sub(start.host) as i64);
        let (guest_khz, host_khz) = (self.config.guest_khz, self.config.host_khz);
        (gone * i128::from(guest_khz)).div_euclid(i128::from(host_khz)) as i64
    }

    fn advance(&mut self, at: i64) {
        (self.now, self.rate) = self.stepped(at);
    }

    /// The bounds later, when nothing new is known.
    fn stepped(&self, at: i64) -> (Bounds, (f64, f64)) {
        let gone = (at - self.now.at) as f64;
        let wander = self.wander * gone;
        let (low, high) = self.rate;
        let now = Bounds {
            at,
            low: self.now.low + (low - wander / 2.0).max(-self.rate_max) * gone - ROUNDING,
            high: self.now.high + (high + wander / 2.0).min(self.rate_max) * gone + ROUNDING,
        };
        (now, ((low - wander).max(-self.rate_max), (high + wander).min(self.rate_max)))
    }

    /// Bounds of the rate now, from those of the difference now and earlier. The mean rate between
    /// two moments differs from the rate at the later by half of what it can have wandered.
    fn bound_rate(&mut self) -> Result<(), ClockError> {
        for then in &self.anchors {
            let gone = (self.now.at - then.at) as f64;
            if gone <= 0.0 {
                continue;
            }
            let wander = self.wander * gone / 2.0;
            let low = (self.now.low - then.high - ROUNDING) / gone - wander;
            let high = (self.now.high - then.low + ROUNDING) / gone + wander;
            self.rate = (self.rate.0.max(low), self.rate.1.min(high));
        }
        let ticks = (self.rate.0 - self.rate.1) * self.anchor_spacing as f64;
        if ticks > TICK {
            return Err(ClockError::Inconsistent { ticks: ticks as u64 });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ClockError> {
        let ticks = self.now.low - self.now.high;
        if ticks > 0.0 {
            return Err(ClockError::Inconsistent { ticks: ticks.ceil() as u64 });
        }
        Ok(())
    }

    /// Remembers the bounds of now, so that those of later give the rate.
    fn anchor(&mut self) {
        let due = |last: &Bounds| self.now.at - last.at >= self.anchor_spacing;
        if !self.anchors.back().is_none_or(due) {
            return;
        }
        if self.anchors.len() >= ANCHORS_MAX {
            // 32 of them, 4 s apart, reach back two minutes: further, wander is all there is.
            let spacing_max = i64::from(self.config.guest_khz) * 4000;
            if self.anchor_spacing < spacing_max {
                self.anchor_spacing *= 2;
                let mut keep = false;
                self.anchors.retain(|_| {
                    keep = !keep;
                    keep
                });
            } else {
                self.anchors.pop_front();
            }
        }
        self.anchors.push_back(self.now);
    }

    /// Keeps the numbers small, so that they stay exact.
    fn rebase(&mut self) {
        let Some(start) = &mut self.start else { return };
        if self.now.low.abs() < REBASE {
            return;
        }
        let by = self.now.low.trunc();
        start.base = start.base.wrapping_add(by as i64 as u64);
        for bounds in self.anchors.iter_mut().chain([&mut self.now]) {
            bounds.low -= by;
            bounds.high -= by;
        }
    }
}
