//! Between the guest, which asks for batches, and the process that has them run.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::BenchError;

/// Gives the guest, which waits in its access, the length of the next batch.
type Give = Box<dyn FnOnce(u32) + Send>;

/// The batches of one guest.
#[derive(Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The guest waits for the next batch.
    waits: Option<Give>,
    samples: Vec<u32>,
    sums: Vec<u32>,
    ended: Option<String>,
}

/// What a guest told of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) samples: Vec<u32>,
    pub(crate) sums: Vec<u32>,
}

impl Turns {
    /// The guest asks for its next batch.
    pub(crate) fn ask(&self, give: impl FnOnce(u32) + Send + 'static) {
        self.lock().waits = Some(Box::new(give));
        self.changed.notify_all();
    }

    /// The guest writes samples: words one after the other.
    pub(crate) fn add_samples(&self, bytes: &[u8]) {
        self.lock().samples.extend(words(bytes));
    }

    /// The guest writes what it has computed.
    pub(crate) fn add_sum(&self, bytes: &[u8]) {
        self.lock().sums.extend(words(bytes));
    }

    /// The guest will not ask any more.
    pub(crate) fn end(&self, reason: String) {
        self.lock().ended.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Gives the guest its next batch as soon as it asks; returns when it has it.
    pub(crate) fn begin(&self, count: u32) -> Result<(), BenchError> {
        let mut state = self.asked()?;
        state.samples.clear();
        state.sums.clear();
        let give = state.waits.take();
        drop(state);
        if let Some(give) = give {
            give(count);
        }
        Ok(())
    }

    /// Runs one batch.
    pub(crate) fn run(&self, count: u32) -> Result<Told, BenchError> {
        self.begin(count)?;
        let mut state = self.asked()?;
        let told =
            Told { samples: mem::take(&mut state.samples), sums: mem::take(&mut state.sums) };
        if told.samples.len() != count as usize {
            let got = told.samples.len();
            return Err(BenchError::Peer(format!("gave {got} samples instead of {count}")));
        }
        Ok(told)
    }

    /// Waits until the guest asks.
    fn asked(&self) -> Result<MutexGuard<'_, State>, BenchError> {
        let waits = |state: &mut State| state.waits.is_none() && state.ended.is_none();
        let state = self.changed.wait_while(self.lock(), waits);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        match &state.ended {
            Some(reason) => Err(BenchError::Peer(format!("has lost its guest: {reason}"))),
            None => Ok(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    /// A guest that answers each batch of `n` with the samples 1 to `n`, and ends with an empty one.
    fn guest(turns: &Turns) {
        loop {
            let (give, given) = mpsc::channel();
            turns.ask(move |count| give.send(count).unwrap());
            let count: u32 = given.recv().unwrap();
            if count == 0 {
                return turns.end("done".into());
            }
            (1..=count).for_each(|sample| turns.add_samples(&sample.to_le_bytes()));
            turns.add_sum(&count.to_le_bytes());
        }
    }

    #[test]
    fn each_batch_has_its_own_samples_until_the_guest_ends() {
        let turns = Arc::new(Turns::default());
        let runs = thread::spawn({
            let turns = Arc::clone(&turns);
            move || guest(&turns)
        });
        assert_eq!(turns.run(2).unwrap(), Told { samples: vec![1, 2], sums: vec![2] });
        assert_eq!(turns.run(1).unwrap(), Told { samples: vec![1], sums: vec![1] });
        let ended = turns.run(0).unwrap_err().to_string();
        assert!(ended.contains("done"), "{ended}");
        runs.join().unwrap();
    }
}
