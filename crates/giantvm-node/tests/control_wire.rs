//! Control messages survive their bytes, and other bytes never do harm.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::collections::BTreeMap;

use dsm_core::types::{NODES_MAX, NodeId, NodeSet, RegionId};
use giantvm_node::control::{
    Change, ControlMessage, DecodeError, Heartbeat, MemberMessage, RegionMessage, RegionOrigin,
};
use giantvm_node::limits::{CONTROL_BODY_BYTES_MAX, NAME_BYTES_MAX, REASON_BYTES_MAX};
use giantvm_node::sync::{
    Held, Hold, Kind, Outcome, SyncError, SyncName, SyncOp, SyncReply, SyncReport, SyncRequest,
};
use proptest::option;
use proptest::prelude::*;

/// Most holds in one part of a report.
const HOLDS: usize = 19;

fn node() -> impl Strategy<Value = NodeId> {
    (0usize..64).prop_map(|index| NodeId::new(index).unwrap())
}

fn nodes() -> impl Strategy<Value = NodeSet> {
    any::<u64>().prop_map(NodeSet::from_bits)
}

fn reason() -> impl Strategy<Value = String> {
    ".{0,100}"
}

fn joined() -> impl Strategy<Value = BTreeMap<NodeId, u16>> {
    prop::collection::btree_map(node(), any::<u16>(), 0..=64)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (prop::collection::vec(any::<u64>(), 0..=64), joined())
            .prop_map(|(incarnations, joined)| Change::Started { incarnations, joined }),
        (node(), any::<u64>()).prop_map(|(node, incarnation)| Change::Joined { node, incarnation }),
        (node(), reason()).prop_map(|(node, reason)| Change::Lost { node, reason }),
        node().prop_map(|node| Change::Removed { node }),
        node().prop_map(|node| Change::Left { node }),
    ]
}

fn member() -> impl Strategy<Value = MemberMessage> {
    prop_oneof![
        (any::<u64>(), any::<u64>(), any::<u64>(), option::of(any::<u64>()), nodes()).prop_map(
            |(epoch, incarnation, sent_ms, echo_ms, connected)| MemberMessage::Heartbeat(
                Heartbeat { epoch, incarnation, sent_ms, echo_ms, connected }
            )
        ),
        (any::<u64>(), nodes(), change()).prop_map(|(epoch, members, change)| {
            MemberMessage::MemberUpdate { epoch, members, change }
        }),
        (node(), reason()).prop_map(|(node, reason)| MemberMessage::Suspect { node, reason }),
        Just(MemberMessage::Leave),
        any::<u64>().prop_map(|epoch| MemberMessage::LeaveAck { epoch }),
        reason().prop_map(|reason| MemberMessage::Gone { reason }),
        reason().prop_map(|reason| MemberMessage::Fatal { reason }),
        reason().prop_map(|reason| MemberMessage::NotYet { reason }),
    ]
}

fn origin() -> impl Strategy<Value = RegionOrigin> {
    let shares = proptest::collection::vec(any::<u64>(), 0..=NODES_MAX);
    let began = (any::<u16>(), shares);
    (any::<u32>(), "[a-zä]{1,100}", any::<u64>(), any::<[bool; 2]>(), began).prop_map(
        |(region, name, bytes, [overcommit, recover], (since, shares))| {
            let region = RegionId(region);
            RegionOrigin { region, name, bytes, overcommit, recover, since, shares }
        },
    )
}

fn region() -> impl Strategy<Value = RegionMessage> {
    let id = || any::<u32>().prop_map(RegionId);
    prop_oneof![
        (any::<u64>(), "[a-zä]{1,100}", any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
            |(ticket, name, bytes, overcommit, recover)| RegionMessage::Create {
                ticket,
                name,
                bytes,
                overcommit,
                recover
            }
        ),
        (any::<u16>(), origin()).prop_map(|(epoch, origin)| RegionMessage::Open { epoch, origin }),
        (any::<u16>(), origin()).prop_map(|(epoch, origin)| RegionMessage::Has { epoch, origin }),
        (any::<u64>(), id()).prop_map(|(ticket, region)| RegionMessage::Created { ticket, region }),
        (any::<u64>(), reason())
            .prop_map(|(ticket, reason)| RegionMessage::Refused { ticket, reason }),
        id().prop_map(|region| RegionMessage::Close { region }),
        any::<u16>().prop_map(|epoch| RegionMessage::Tell { epoch }),
        (any::<u16>(), id(), "[a-zä]{1,100}", any::<[u64; 3]>()).prop_map(
            |(epoch, region, name, [offset, bytes, align])| RegionMessage::HasBlock {
                epoch,
                region,
                name,
                offset,
                bytes,
                align
            }
        ),
        any::<(u16, u32)>().prop_map(|(epoch, last)| RegionMessage::HasAll { epoch, last }),
    ]
}

fn op() -> impl Strategy<Value = SyncOp> {
    let (number, value) = (any::<u64>, any::<i64>);
    prop_oneof![
        Just(SyncOp::MutexLock),
        Just(SyncOp::MutexTryLock),
        number().prop_map(|holder| SyncOp::MutexUnlock { holder }),
        Just(SyncOp::ReadLock),
        Just(SyncOp::ReadTryLock),
        number().prop_map(|holder| SyncOp::ReadUnlock { holder }),
        Just(SyncOp::WriteLock),
        Just(SyncOp::WriteTryLock),
        number().prop_map(|holder| SyncOp::WriteUnlock { holder }),
        any::<u32>().prop_map(|parties| SyncOp::BarrierWait { parties }),
        value().prop_map(|delta| SyncOp::CounterAdd { delta }),
        Just(SyncOp::CounterGet),
        value().prop_map(|value| SyncOp::CounterSet { value }),
        (value(), value()).prop_map(|(expected, new)| SyncOp::CompareExchange { expected, new }),
        number().prop_map(|waiter| SyncOp::Cancel { waiter }),
        number().prop_map(|holder| SyncOp::GiveBack { holder }),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Mutex), Just(Kind::RwLock), Just(Kind::Barrier), Just(Kind::Counter)]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Granted),
        node().prop_map(|node| Outcome::Abandoned { node }),
        Just(Outcome::Busy),
        Just(Outcome::Unlocked),
        any::<u32>().prop_map(|index| Outcome::Passed { index }),
        any::<i64>().prop_map(Outcome::Value),
        (any::<bool>(), any::<i64>())
            .prop_map(|(done, before)| Outcome::Exchanged { done, before }),
        Just(Outcome::Cancelled),
        Just(Outcome::NotWaiting),
    ]
}

fn error() -> impl Strategy<Value = SyncError> {
    let number = any::<u32>;
    prop_oneof![
        (kind(), kind()).prop_map(|(found, wanted)| SyncError::KindMismatch { found, wanted }),
        Just(SyncError::NotHolder),
        (number(), number())
            .prop_map(|(expected, got)| SyncError::PartiesMismatch { expected, got }),
        (number(), number()).prop_map(|(got, max)| SyncError::PartiesOutOfRange { got, max }),
        number().prop_map(|limit| SyncError::TooManyObjects { limit }),
        number().prop_map(|limit| SyncError::QueueFull { limit }),
        number().prop_map(|limit| SyncError::TooManyTickets { limit }),
        Just(SyncError::DuplicateTicket),
        (node(), any::<u16>()).prop_map(|(node, epoch)| SyncError::BarrierBroken { node, epoch }),
        node().prop_map(|node| SyncError::ValueLost { node }),
        Just(SyncError::NotHome),
        Just(SyncError::NoHome),
    ]
}

fn report() -> impl Strategy<Value = SyncReport> {
    let held = prop_oneof![Just(Held::Mutex), Just(Held::Read), Just(Held::Write)];
    let hold = (any::<u64>(), "[a-z]{1,200}", held, option::of(node()));
    let hold = hold.prop_map(|(ticket, name, held, abandoned)| Hold {
        ticket,
        name: SyncName::new(&name).unwrap(),
        held,
        abandoned,
    });
    (any::<u16>(), any::<bool>(), prop::collection::vec(hold, 0..=HOLDS))
        .prop_map(|(epoch, last, holds)| SyncReport { epoch, last, holds })
}

fn message() -> impl Strategy<Value = ControlMessage> {
    prop_oneof![
        member().prop_map(ControlMessage::Member),
        region().prop_map(ControlMessage::Region),
        (any::<u64>(), any::<u16>(), "[a-zä]{1,100}", op()).prop_map(
            |(ticket, epoch, name, op)| {
                let name = SyncName::new(&name).unwrap();
                ControlMessage::SyncRequest(SyncRequest { ticket, epoch, name, op })
            }
        ),
        report().prop_map(ControlMessage::SyncReport),
        (any::<u64>(), any::<u16>(), prop_oneof![outcome().prop_map(Ok), error().prop_map(Err)])
            .prop_map(|(ticket, epoch, result)| {
                ControlMessage::SyncReply(SyncReply { ticket, epoch, result })
            }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_message_survives_its_bytes(message in message()) {
        let bytes = message.encode();
        prop_assert!(bytes.len() <= CONTROL_BODY_BYTES_MAX);
        prop_assert_eq!(ControlMessage::decode(&bytes), Ok(message));
    }

    #[test]
    fn a_cut_message_and_one_with_more_behind_it_are_refused(
        message in message(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut bytes = message.encode();
        let cut = bytes[..at.index(bytes.len())].to_vec();
        prop_assert!(ControlMessage::decode(&cut).is_err());
        bytes.push(0);
        prop_assert_eq!(ControlMessage::decode(&bytes), Err(DecodeError::Trailing(1)));
    }

    /// Bytes that decode are the only encoding of what they decode to.
    #[test]
    fn random_and_damaged_bytes_never_panic(
        message in message(),
        random in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut damaged = message.encode();
        let index = at.index(damaged.len());
        damaged[index] = value;
        for bytes in [damaged, random] {
            if let Ok(decoded) = ControlMessage::decode(&bytes) {
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }
    }
}

#[test]
fn bounds_of_texts_are_kept() {
    let long = "ä".repeat(REASON_BYTES_MAX);
    let sent = ControlMessage::Member(MemberMessage::Fatal { reason: long.clone() });
    let Ok(ControlMessage::Member(MemberMessage::Fatal { reason })) =
        ControlMessage::decode(&sent.encode())
    else {
        panic!("a long reason is cut, not refused");
    };
    assert_eq!(reason, long[..REASON_BYTES_MAX]);

    let name = SyncName::new(&"a".repeat(NAME_BYTES_MAX)).unwrap();
    let hold = Hold { ticket: 0, name, held: Held::Mutex, abandoned: NodeId::new(1) };
    let report = SyncReport { epoch: 1, last: true, holds: vec![hold; HOLDS] };
    let mut bytes = ControlMessage::SyncReport(report).encode();
    assert!(bytes.len() <= CONTROL_BODY_BYTES_MAX);
    assert_eq!(bytes[4], HOLDS as u8);
    bytes[4] += 1;
    let refused = Err(DecodeError::Invalid { field: "holds", value: HOLDS as u64 + 1 });
    assert_eq!(ControlMessage::decode(&bytes), refused);

    for len in [0, NAME_BYTES_MAX + 1] {
        let create = ControlMessage::Region(RegionMessage::Create {
            ticket: 0,
            name: "a".repeat(len),
            bytes: 4096,
            overcommit: false,
            recover: true,
        });
        let refused = Err(DecodeError::Length { field: "name", len });
        assert_eq!(ControlMessage::decode(&create.encode()), refused);
        assert!(SyncName::new(&"a".repeat(len)).is_err());
    }
}
