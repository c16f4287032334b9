//! How a machine comes into an epoch: when it is told of one, or opens a region that was there before.

use super::super::mutation::Mutation;
use super::super::{Effects, Message, Protocol};
use super::{Entering, Phase, Recover, Recovery};
use crate::types::{Epoch, NodeId, NodeSet};

impl Protocol {
    /// For a region that begins in `epoch`. Who is no member then is the first owner of none of its
    /// pages.
    pub fn after(mut self, epoch: &Epoch) -> Self {
        if self.recovers() {
            (self.recovery.now, self.recovery.birth) = (epoch.clone(), epoch.number);
            self.recovery.heard = epoch.members;
        }
        self
    }

    /// The region began in epoch `birth`, and this node has joined since; `epoch` is the latest that it
    /// knows of. It enters that at once. To be called before anything else.
    pub fn arrive<E: Effects>(&mut self, birth: u16, epoch: &Epoch, fx: &mut E) {
        if !self.recovers() || !epoch.members.contains(self.me()) {
            return self.end(fx);
        }
        (self.recovery.now, self.recovery.birth) = (epoch.clone(), birth);
        self.recovery.heard = NodeSet::EMPTY;
        self.table.arrive(self.mutated(Mutation::RecoverJoiningAsFirst));
        self.recovery.arrives = true;
        self.begin_epoch(fx);
    }

    /// `epoch` has begun: nodes were lost, left, or joined. All members must be told of the same epochs,
    /// each in its own time, and may be told of several at once. But who is told that a node has joined
    /// must have been told that it went, if it was a member before.
    ///
    /// Who is no member any more must have stopped: none of its threads can use the region. Else it could
    /// read what the others have replaced.
    ///
    /// Where [`super::Features::recover`] is off, or pages may be walk-shared, the region ends.
    pub fn change<E: Effects>(&mut self, epoch: &Epoch, fx: &mut E) {
        if self.ended || epoch.number <= self.epoch() {
            return;
        }
        if !self.recovers() || !epoch.members.contains(self.me()) {
            return self.end(fx);
        }
        let recovery = &mut self.recovery;
        let before = std::mem::replace(&mut recovery.now, epoch.clone());
        let joined = epoch.joined_after(before.number);
        let gone = before.members.minus(epoch.members);
        recovery.strangers = recovery.strangers.union(gone).union(joined);
        recovery.heard = recovery.heard.minus(joined);
        if !self.mutated(Mutation::RecoverJoiningWithOldCounts) {
            let recovery = &mut self.recovery;
            recovery.sent.retain(|&node, _| !joined.contains(node));
            recovery.received.retain(|&node, _| !joined.contains(node));
        }
        self.begin_epoch(fx);
    }

    /// Takes back what is under way, and tells all that this node has entered the epoch.
    fn begin_epoch<E: Effects>(&mut self, fx: &mut E) {
        let epoch = self.epoch();
        let recovery = &mut self.recovery;
        recovery.phase = Phase::Draining;
        recovery.holdings.clear();
        recovery.verdicts.clear();
        (recovery.settled, recovery.arrivals) = (NodeSet::EMPTY, NodeSet::EMPTY);
        recovery.entered.clear();
        for (&node, &(entered, entering)) in &recovery.early {
            if entered == epoch {
                recovery.entered.insert(node, entering.sent);
                recovery.heard.insert(node);
                if entering.arrives {
                    recovery.arrivals.insert(node);
                }
            }
        }
        recovery.early.retain(|_, early| early.0 > epoch);
        recovery.unaware = recovery.now.members.minus(recovery.heard);
        self.take_back();
        for node in self.members().without(self.me()).iter() {
            self.say_entered(node, self.recovery.arrives, fx);
        }
        // Nobody else may be left; then there is nothing to contradict.
        let _ = self.advance(fx);
        self.settle(fx);
    }

    fn say_entered<E: Effects>(&mut self, to: NodeId, arrives: bool, fx: &mut E) {
        let sent = self.recovery.sent.get(&to).copied().unwrap_or(0);
        self.send(to, Message::Recover(Recover::Entered { sent, arrives }), fx);
    }

    /// `from` has entered this epoch; whether that can be. It has the region open, and is told what it may
    /// not have heard.
    pub(super) fn receive_entered<E: Effects>(
        &mut self,
        from: NodeId,
        entering: Entering,
        fx: &mut E,
    ) -> bool {
        let Entering { sent, arrives } = entering;
        if arrives {
            self.recovery.arrivals.insert(from);
        }
        // Later, it has heard: else it would not be as far.
        let draining = self.recovery.phase == Phase::Draining;
        let answered = !self.mutated(Mutation::RecoverJoiningUnheard);
        if self.recovery.unaware.remove(from) && draining && answered {
            self.say_entered(from, self.recovery.arrives, fx);
        }
        // It may say so once more, for the same reason.
        self.recovery.entered.insert(from, sent).is_none_or(|said| said == sent)
    }

    /// Who belongs to the cluster, as far as this machine was told.
    pub(in super::super) fn members(&self) -> NodeSet {
        self.recovery.now.members
    }

    /// Whether what `node` once was the first owner of may have been anywhere since: it was away, or its
    /// number has gone to another process.
    pub(super) fn is_void(&self, node: NodeId) -> bool {
        let Recovery { now, birth, .. } = &self.recovery;
        let joined = now.joined.get(&node).is_some_and(|joined| joined > birth);
        !now.members.contains(node) || joined && !self.mutated(Mutation::RecoverJoiningAsFirstAgain)
    }
}
