//! Taking samples in interleaved batches, and what is kept of them.

use crate::error::BenchError;

/// Something that can be measured again and again.
///
/// Between two calls of [`sample`](Self::sample) it must not use a CPU: others are measured then.
pub trait Sampler {
    /// Measures `count` times; the unit is the benchmark's (microseconds unless it says otherwise).
    ///
    /// # Errors
    /// When the kernel or a peer process fails.
    fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError>;
}

/// How often each [`Sampler`] is asked, and for how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    /// How many times each sampler gets its turn.
    pub rounds: usize,
    /// Samples a turn.
    pub per_round: usize,
    /// Samples taken first and thrown away.
    pub warm_up: usize,
}

/// The samples of one thing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Takes the values in any order; what is not a finite number is left out.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    /// All of them in another unit.
    #[must_use]
    pub fn scaled(&self, by: f64) -> Self {
        Self::new(self.0.iter().map(|value| value * by))
    }

    /// The value that `percent` of the samples do not exceed, by nearest rank; none without samples.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied()
    }

    /// The middle value; the mean of the two middle ones when their number is even.
    pub fn median(&self) -> Option<f64> {
        let upper = *self.0.get(self.0.len() / 2)?;
        if self.0.len() % 2 == 1 {
            return Some(upper);
        }
        self.0.get(self.0.len() / 2 - 1).map(|lower| (lower + upper) / 2.0)
    }
}

/// Measures all `samplers` in turns, so that a slow minute of the machine falls on each of them.
///
/// Every second round goes backwards: none always follows the same other.
///
/// # Errors
/// The first error of a sampler.
pub fn interleave<const N: usize>(
    mut samplers: [&mut dyn Sampler; N],
    batches: Batches,
) -> Result<[Samples; N], BenchError> {
    for sampler in &mut samplers {
        sampler.sample(batches.warm_up)?;
    }
    let mut taken = [const { Vec::new() }; N];
    for round in 0..batches.rounds {
        let mut turns: Vec<_> = samplers.iter_mut().zip(&mut taken).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (sampler, values) in turns {
            values.extend(sampler.sample(batches.per_round)?);
        }
    }
    Ok(taken.map(Samples::new))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(Samples::new([3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Samples::new([4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(Samples::new([]).median(), None);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred = Samples::new((1..=100).map(f64::from));
        assert_eq!(hundred.percentile(99.0), Some(99.0));
        assert_eq!(hundred.percentile(1.0), Some(1.0));
        assert_eq!(hundred.percentile(100.0), Some(100.0));
        assert_eq!(hundred.percentile(0.0), Some(1.0));
        let five = Samples::new([10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(five.percentile(99.0), Some(50.0));
        assert_eq!(five.percentile(40.0), Some(20.0));
        assert_eq!(five.percentile(41.0), Some(30.0));
        assert_eq!(Samples::new([]).percentile(99.0), None);
    }

    #[test]
    fn values_that_are_no_numbers_are_left_out() {
        let samples = Samples::new([f64::NAN, 1.0, f64::INFINITY]);
        assert_eq!(samples.percentile(100.0), Some(1.0));
    }

    struct Logged<'a>(char, &'a RefCell<String>);

    impl Sampler for Logged<'_> {
        fn sample(&mut self, count: usize) -> Result<Vec<f64>, BenchError> {
            self.1.borrow_mut().push(self.0);
            Ok(vec![count as f64; count])
        }
    }

    #[test]
    fn batches_alternate_and_keep_their_owner() {
        let log = RefCell::new(String::new());
        let (mut a, mut b) = (Logged('a', &log), Logged('b', &log));
        let batches = Batches { rounds: 3, per_round: 2, warm_up: 7 };
        let [of_a, of_b] = interleave([&mut a, &mut b], batches).unwrap();
        assert_eq!(*log.borrow(), "ababbaab");
        assert_eq!(of_a, Samples::new([2.0; 6]), "the warm-up must not be among the samples");
        assert_eq!(of_a, of_b);
    }
}
