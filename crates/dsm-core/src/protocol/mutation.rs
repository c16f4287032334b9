//! Ways to break the protocol on purpose: each must be caught by the model checker.

/// A seeded mistake. Without the feature `mutations` none has any effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the names say what breaks")]
pub enum Mutation {
    WriteBeforeLastAck,
    IgnoreInvalidation,
    DropAcknowledgement,
    KeepStaleCopyset,
    InstallVoidGrant,
    RedirectForwarderOnRead,
    KeepOwnerCopyOnGive,
    SkipDowngradeOnRead,
    OmitNeededData,
    ForgetWaitersOnGive,
    AnswerWaiterWithoutOwnership,
    KeepAgainstOlder,
    IgnoreUpgradeAfterRead,
    LeaseTouchedBlock,
    CompanionWhileBusy,
    TakeFromHold,
    KeepVersion,
    EvictWhileRequested,
    EvictWhileCopiesAreUnderWay,
    EvictWithoutForgetting,
    EvictTheOnlyBytes,
    EvictHeld,
    HandOverWithoutRoom,
    HandOverKeepsVersion,
    HandOverWithoutCopyset,
    HandOverWhileBusy,
    HandOverStillMapped,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::WriteBeforeLastAck,
        Self::IgnoreInvalidation,
        Self::DropAcknowledgement,
        Self::KeepStaleCopyset,
        Self::InstallVoidGrant,
        Self::RedirectForwarderOnRead,
        Self::KeepOwnerCopyOnGive,
        Self::SkipDowngradeOnRead,
        Self::OmitNeededData,
        Self::ForgetWaitersOnGive,
        Self::AnswerWaiterWithoutOwnership,
        Self::KeepAgainstOlder,
        Self::IgnoreUpgradeAfterRead,
        Self::LeaseTouchedBlock,
        Self::CompanionWhileBusy,
        Self::TakeFromHold,
        Self::KeepVersion,
        Self::EvictWhileRequested,
        Self::EvictWhileCopiesAreUnderWay,
        Self::EvictWithoutForgetting,
        Self::EvictTheOnlyBytes,
        Self::EvictHeld,
        Self::HandOverWithoutRoom,
        Self::HandOverKeepsVersion,
        Self::HandOverWithoutCopyset,
        Self::HandOverWhileBusy,
        Self::HandOverStillMapped,
    ];
}
