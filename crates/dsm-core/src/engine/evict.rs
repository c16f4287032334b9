//! Memory is short: a worker gives frames back, a few in each turn, when nothing waits for it.
//!
//! First to go are frames whose bytes are of no use here (pages that have left), and copies that nobody
//! has touched for a round of the [clock](super::residency). Owned pages that nobody has touched move
//! to nodes with room, where that does not suffice. Pages that a hold or an open episode keeps, or
//! that something is under way for, stay.

use std::time::{Duration, Instant};

use crate::pages::MemoryError;
use crate::protocol::{Eviction, HAND_OVER_MAX, PageState, RoomWanted};
use crate::types::{Age, NodeId, Page};

use super::budget::Budget;
use super::shard::{Outgoing, Shard};

/// Frames that are given back in one turn, unless more than this are too many.
const STEP: u64 = 64;
/// Frames looked at in one turn for each that is to be given back.
const LOOKS: u64 = 8;
/// Excess from which others are to make room at the cost of copies that they use.
const PRESSING: u64 = 64;
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

/// What a worker remembers from turn to turn while there are too many frames.
#[derive(Default)]
pub(super) struct Shortage {
    begun: bool,
    /// Frames looked at since one was last given back.
    in_vain: u64,
    /// Frames that there are at this worker.
    count: u64,
    rest_until: Option<Instant>,
    /// A round was in vain: who keeps frames is to be looked at.
    pub(super) blames: bool,
    /// Of the oldest that waits for a frame.
    pub(super) starved: Option<Age>,
}

/// Owned pages on their way to other nodes.
#[derive(Default)]
pub(super) struct Moving {
    /// Owned, and not touched for a round of the hand.
    candidates: Vec<Page>,
    /// The peer that was asked last, by its place in the list.
    asked: usize,
    /// Nodes in a row that had no room.
    refusals: usize,
    ask_again_at: Option<Instant>,
    /// Since when some page has found no frame, and no node has had room.
    full_since: Option<Instant>,
    /// The engine has been told.
    told: bool,
}

impl Shortage {
    /// Goes on where there are too many frames, or begins.
    pub(super) fn begin(mut self, budget: &Budget) -> Option<Self> {
        self.begun |= budget.surplus() > 0;
        self.begun.then_some(self)
    }

    /// Gives back frames of one shard.
    pub(super) fn relieve(
        &mut self,
        shard: &mut Shard,
        peers: &[NodeId],
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        self.count += shard.residency.count();
        if self.rest_until.is_none_or(|until| Instant::now() >= until) {
            let goal = shard.budget.goal().min(STEP.max(shard.budget.surplus()));
            let step = shard.give_back(goal, false, self.age(shard), outgoing)?;
            self.in_vain = if step.freed > 0 { 0 } else { self.in_vain + step.looked };
        }
        let age = self.age(shard);
        if shard.budget.excess() > 0 && shard.move_pages(peers, age, outgoing)? > 0 {
            self.in_vain = 0;
        }
        Ok(())
    }

    /// For whose sake a shard gives frames back: the oldest of the worker that waits for one.
    fn age(&self, shard: &Shard) -> Age {
        self.starved.unwrap_or_else(|| shard.protocol.youngest())
    }

    /// How things stand when all shards have been asked.
    pub(super) fn pressure(&mut self, budget: &Budget) -> Pressure {
        let count = std::mem::take(&mut self.count);
        if budget.goal() == 0 {
            *self = Self::default();
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
        if budget.surplus() == 0 {
            *self = Self::default();
            return Pressure::None;
        }
        // The frames may be another worker's.
        budget.wake_all();
        let until = now + REST;
        self.rest_until = Some(until);
        self.blames = true;
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
    /// Gives back up to `goal` frames; if it is `pressing`, of copies in use as well.
    fn give_back(
        &mut self,
        goal: u64,
        pressing: bool,
        age: Age,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<Step, MemoryError> {
        let mut step = Step::default();
        // No more than a round: no page comes twice.
        let looks = (goal * LOOKS).min(self.residency.count());
        let (mut victims, mut unused) = (Vec::new(), Vec::new());
        self.moving.candidates.clear();
        while step.looked < looks && (victims.len() as u64) < goal {
            let Some(page) = self.residency.advance() else { break };
            step.looked += 1;
            if !self.protocol.may_evict(page, age) {
                continue;
            }
            let state = self.protocol.state(page);
            let mapped = !matches!(state, PageState::Invalid | PageState::Lost);
            let dispensable = self.protocol.is_dispensable(page);
            if mapped && !self.residency.is_idle(page) && !(pressing && dispensable) {
                unused.push(page);
            } else if dispensable {
                victims.push(page);
            } else {
                self.moving.candidates.push(page);
            }
        }
        self.take_out_of_view(unused)?;
        step.freed = self.evict(&victims, age, outgoing)?;
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
    fn evict(
        &mut self,
        pages: &[Page],
        age: Age,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<u64, MemoryError> {
        self.run(&[], outgoing, |protocol, world| {
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

    /// Hands owned pages over that have not been touched, or sees to it that some node has room for
    /// them. Says how many went.
    fn move_pages(
        &mut self,
        peers: &[NodeId],
        age: Age,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<u64, MemoryError> {
        let Some((to, room)) = self.protocol.room_taken() else {
            return self.ask_room(peers, age, outgoing).map(|()| 0);
        };
        self.moving.refusals = 0;
        self.moving.full_since = None;
        let mut candidates = std::mem::take(&mut self.moving.candidates);
        candidates.retain(|&page| self.protocol.may_hand_over(page, age));
        candidates.truncate(room as usize);
        let mut moved = 0;
        for pages in candidates.chunks(HAND_OVER_MAX) {
            moved += self.run(&[], outgoing, |protocol, world| {
                protocol.hand_over(pages, to, age, world) as u64
            })?;
        }
        Ok(moved)
    }

    fn ask_room(
        &mut self,
        peers: &[NodeId],
        age: Age,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        let wanted = self.moving.candidates.len().min(u8::MAX.into()) as u8;
        let now = Instant::now();
        let rests = self.moving.ask_again_at.is_some_and(|at| now < at);
        if wanted == 0 || self.protocol.is_asking_room() || rests {
            return Ok(());
        }
        self.moving.ask_again_at = None;
        if self.moving.refusals >= peers.len() {
            self.moving.refusals = 0;
            if self.protocol.is_starved() {
                self.moving.full_since.get_or_insert(now);
            }
            self.moving.ask_again_at = Some(now + REST);
            return Ok(());
        }
        self.moving.refusals += 1;
        self.moving.asked = (self.moving.asked + 1) % peers.len();
        let peer = peers[self.moving.asked];
        let pressing = self.budget.excess() >= PRESSING;
        let wanted = RoomWanted { frames: wanted, pressing, age };
        self.run(&[], outgoing, |protocol, world| protocol.ask_room(peer, wanted, world))
    }

    /// Answers nodes that want room for their pages: with what is free within the share, or can be
    /// freed at once.
    pub(super) fn answer_room(&mut self, outgoing: &mut Vec<Outgoing>) -> Result<(), MemoryError> {
        while let Some((node, wanted)) = self.protocol.room_asked() {
            let frames = u64::from(wanted.frames);
            if self.budget.room() < frames {
                let goal = frames - self.budget.room() + self.budget.excess();
                self.give_back(goal, wanted.pressing, wanted.age, outgoing)?;
            }
            let room = self.budget.room().min(frames) as u8;
            // Another worker may have pages that can go.
            self.budget.want(if room == 0 { frames } else { 0 });
            self.run(&[], outgoing, |protocol, world| protocol.give_room(node, room, world))?;
        }
        Ok(())
    }

    /// Goes on with pages that found no frame, where there are some again, and with those that are to be
    /// restored.
    pub(super) fn feed(&mut self, outgoing: &mut Vec<Outgoing>) -> Result<(), MemoryError> {
        if self.protocol.is_starved() && !self.budget.is_full() {
            self.moving.full_since = None;
            self.run(&[], outgoing, |protocol, world| protocol.feed(world))?;
        }
        self.go_on_restoring(outgoing)
    }

    /// Whether pages wait for frames that there are nowhere in the cluster; said once.
    pub(super) fn finds_cluster_full(&mut self) -> bool {
        let full =
            self.moving.full_since.is_some_and(|since| since.elapsed() >= self.budget.full_after());
        let tell = full && !self.moving.told;
        self.moving.told |= full;
        tell
    }

    /// Ends the accesses to pages that wait for frames.
    pub(super) fn give_up_starved(
        &mut self,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        (self.moving.full_since, self.moving.told) = (None, false);
        self.run(&[], outgoing, |protocol, world| protocol.give_up_starved(world))
    }

    /// There is room here again: nobody need keep frames free for pages from here.
    pub(super) fn return_rooms(&mut self, outgoing: &mut Vec<Outgoing>) -> Result<(), MemoryError> {
        while let Some((node, _)) = self.protocol.room_taken() {
            self.run(&[], outgoing, |protocol, world| protocol.return_room(node, world))?;
        }
        Ok(())
    }
}
