//! Memory is short: a worker gives frames back, a few in each turn, when nothing waits for it.
//!
//! First to go are frames whose bytes are of no use here (pages that have left), and those that nobody
//! has touched for a round of the [clock](super::residency). Pages that a hold or an open episode
//! keeps, or that something is under way for, stay.

use std::time::{Duration, Instant};

use crate::pages::MemoryError;
use crate::protocol::{Eviction, PageState};
use crate::types::Page;

use super::budget::Budget;
use super::shard::{Outgoing, Shard};

/// Frames that are given back in one turn, unless more than this are too many.
const STEP: u64 = 64;
/// Frames looked at in one turn for each that is to be given back.
const LOOKS: u64 = 8;
/// How long to rest when a round has freed nothing: what keeps the frames is a matter of microseconds
/// to milliseconds.
const REST: Duration = Duration::from_millis(2);

/// How things stand after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pressure {
    /// There is room.
    None,
    /// More is to be given back in the next turn.
    GoesOn,
    /// Nothing can be given back at the moment; to be tried again at that time.
    Stuck(Instant),
}

/// What a worker remembers from turn to turn while there is an excess.
#[derive(Default)]
pub(super) struct Shortage {
    /// Frames looked at since one was last given back.
    in_vain: u64,
    /// Frames that there are at this worker.
    count: u64,
    rest_until: Option<Instant>,
}

impl Shortage {
    /// Gives back frames of one shard.
    pub(super) fn relieve(
        &mut self,
        shard: &mut Shard,
        budget: &Budget,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        self.count += shard.residency.count();
        if self.rest_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let goal = budget.goal().min(STEP.max(budget.excess()));
        let step = shard.give_back(goal, outgoing)?;
        self.in_vain = if step.freed > 0 { 0 } else { self.in_vain + step.looked };
        Ok(())
    }

    /// How things stand when all shards have been asked.
    pub(super) fn pressure(&mut self, budget: &Budget) -> Pressure {
        let count = std::mem::take(&mut self.count);
        if budget.excess() == 0 {
            return Pressure::None;
        }
        let now = Instant::now();
        if let Some(until) = self.rest_until {
            if now < until {
                return Pressure::Stuck(until);
            }
            self.rest_until = None;
        }
        // One round takes pages out of the view, the next finds those that nobody has touched since.
        if self.in_vain < 2 * count {
            return Pressure::GoesOn;
        }
        self.in_vain = 0;
        // The frames may be another worker's.
        budget.wake_all();
        let until = now + REST;
        self.rest_until = Some(until);
        Pressure::Stuck(until)
    }
}

/// What one turn did.
#[derive(Default)]
struct Step {
    looked: u64,
    freed: u64,
}

impl Shard {
    /// Gives back up to `goal` frames.
    fn give_back(&mut self, goal: u64, outgoing: &mut Vec<Outgoing>) -> Result<Step, MemoryError> {
        let mut step = Step::default();
        let looks = (goal * LOOKS).min(2 * self.residency.count());
        let (mut victims, mut unused) = (Vec::new(), Vec::new());
        while step.looked < looks && (victims.len() as u64) < goal {
            let Some(page) = self.residency.advance() else { break };
            step.looked += 1;
            if !self.protocol.may_evict(page, self.protocol.youngest()) {
                continue;
            }
            let mapped = self.protocol.state(page) != PageState::Invalid;
            if mapped && !self.residency.is_idle(page) {
                unused.push(page);
            } else if self.protocol.is_dispensable(page) {
                victims.push(page);
            }
        }
        self.take_out_of_view(unused)?;
        step.freed = self.evict(&victims, outgoing)?;
        Ok(step)
    }

    /// Unmaps pages without a change to their state: who touches one shows that it is in use.
    fn take_out_of_view(&mut self, mut pages: Vec<Page>) -> Result<(), MemoryError> {
        pages.sort_unstable();
        for run in pages.chunk_by(|a, b| a.0 + 1 == b.0) {
            self.memory.revoke(run[0]..Page(run[run.len() - 1].0 + 1))?;
            run.iter().for_each(|&page| self.residency.set_idle(page));
        }
        Ok(())
    }

    /// Gives back the frames of `pages`, until what that leads to is to be sent first.
    fn evict(&mut self, pages: &[Page], outgoing: &mut Vec<Outgoing>) -> Result<u64, MemoryError> {
        self.run(&[], outgoing, |protocol, world| {
            let age = protocol.youngest();
            let mut freed = 0;
            for &page in pages {
                // A message may have bytes of a frame that would go next.
                if !world.outgoing.is_empty() {
                    break;
                }
                freed += u64::from(protocol.evict(page, age, world) == Eviction::Done);
            }
            freed
        })
    }
}
