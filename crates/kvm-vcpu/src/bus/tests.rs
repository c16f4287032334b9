//! Tests of the bus: who answers, who does not, and what cannot be claimed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use proptest::prelude::*;

use super::*;

/// Remembers what was written, reads its own offset.
#[derive(Default)]
struct Probe {
    name: &'static str,
    written: Mutex<Vec<(u64, Data)>>,
    resets: AtomicU64,
}

impl Simple for Probe {
    fn name(&self) -> &str {
        self.name
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        Data::from_u64(offset, len)
    }

    fn write(&self, offset: u64, data: Data) {
        self.written.lock().unwrap().push((offset, data));
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

fn probe(name: &'static str) -> Arc<Immediate<Probe>> {
    Arc::new(Immediate(Probe { name, ..Probe::default() }))
}

fn remote(node: usize) -> Place {
    Place::Remote { node, name: "far".to_owned(), doorbells: vec![0x10..0x14, 0x20..0x24] }
}

fn answer(bus: &Bus, space: Space, access: Access) -> Option<Data> {
    let (tx, rx) = mpsc::channel();
    bus.serve(space, access, Reply::new(move |data| tx.send(data).unwrap()));
    rx.try_recv().unwrap()
}

#[test]
fn each_address_finds_its_device_and_offset() {
    let mut builder = BusBuilder::new();
    builder.claim(Range::ports(0x3f8, 8), Place::Local(probe("serial"))).unwrap();
    builder.claim(Range::memory(0xfec0_0000, 0x1000), Place::Everywhere(probe("mem"))).unwrap();
    builder.claim(Range::memory(0xd000_0000, 0x100), remote(2)).unwrap();
    let bus = builder.build();
    let found = |space, address, len| format!("{:?}", bus.find(space, address, len));
    assert_eq!(found(Space::Pio, 0x3f8, 1), "Some(Local(serial 0x0))");
    assert_eq!(found(Space::Pio, 0x3fe, 2), "Some(Local(serial 0x6))");
    assert_eq!(found(Space::Pio, 0x400, 1), "None");
    assert_eq!(found(Space::Pio, 0x3f7, 1), "None");
    assert_eq!(found(Space::Mmio, 0x3f8, 1), "None", "ports are not memory");
    assert_eq!(found(Space::Mmio, 0xfec0_0010, 4), "Some(Local(mem 0x10))");
    assert_eq!(found(Space::Mmio, 0xfec0_0ffe, 4), "None", "runs over the end");
    assert_eq!(found(Space::Mmio, 0xd000_000c, 4), "Some(Remote(node 2 0xc doorbell false))");
    assert_eq!(found(Space::Mmio, 0xd000_0010, 4), "Some(Remote(node 2 0x10 doorbell true))");
    assert_eq!(found(Space::Mmio, u64::MAX, 8), "None");
}

#[test]
fn a_port_access_that_leaves_a_claim_is_one_of_bytes() {
    let mut builder = BusBuilder::new();
    builder.claim(Range::ports(0x70, 1), Place::Local(probe("index"))).unwrap();
    builder.claim(Range::ports(0x71, 1), Place::Local(probe("data"))).unwrap();
    builder.claim(Range::ports(0xffff, 1), Place::Local(probe("last"))).unwrap();
    let bus = builder.build();
    assert!(matches!(bus.find(Space::Pio, 0x70, 2), Some(Hit::Bytes)));
    assert!(matches!(bus.find(Space::Pio, 0x6f, 2), Some(Hit::Bytes)));
    assert!(matches!(bus.find(Space::Pio, 0xffff, 4), Some(Hit::Bytes)));
    assert!(bus.find(Space::Pio, 0x1_0000, 1).is_none());
    assert!(bus.find(Space::Pio, 0x72, 4).is_none());
}

#[test]
fn a_device_may_have_its_registers_apart() {
    let device = probe("i8042");
    let mut builder = BusBuilder::new();
    builder.claim(Range::ports(0x60, 1), Place::Local(device.clone())).unwrap();
    builder.claim_at(Range::ports(0x64, 1), 4, Place::Local(device.clone())).unwrap();
    let bus = builder.build();
    assert!(matches!(bus.find(Space::Pio, 0x64, 1), Some(Hit::Local { offset: 4, .. })));
    bus.reset();
    assert_eq!(device.0.resets.load(Ordering::Relaxed), 1, "reset once, not once a range");
}

#[test]
fn what_cannot_be_claimed_is_refused_with_both_names() {
    let mut builder = BusBuilder::new();
    builder.claim(Range::ports(0x3f8, 8), Place::Local(probe("serial"))).unwrap();
    let refused = builder.claim(Range::ports(0x3ff, 1), remote(1)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "device far claims ports 0x3ff to 0x3ff, but serial has ports 0x3f8 to 0x3ff: \
         move one of them"
    );
    let mut refuse =
        |range| builder.claim(range, Place::Local(probe("bad"))).map(|_| ()).unwrap_err();
    assert!(matches!(refuse(Range::ports(0x3f0, 0x10)), BusError::Overlap { .. }));
    assert!(matches!(refuse(Range::ports(0x80, 0)), BusError::Empty { .. }));
    assert!(matches!(refuse(Range::ports(0xffff, 2)), BusError::Beyond { .. }));
    assert!(matches!(refuse(Range::memory(u64::MAX, 2)), BusError::Beyond { .. }));
    let port = Range { space: Space::Pio, start: 1 << 40, len: 1 };
    assert!(matches!(refuse(port), BusError::Beyond { .. }));
    let range = Range::memory(0x1000, 2);
    let overflow = builder.claim_at(range, u64::MAX, Place::Local(probe("bad"))).unwrap_err();
    assert!(matches!(overflow, BusError::Offset { .. }));
    // Neighbours touch, and the same number in the other space is another place.
    builder.claim(Range::ports(0x400, 1), Place::Local(probe("next"))).unwrap();
    builder.claim(Range::memory(0x3f8, 8), Place::Local(probe("memory"))).unwrap();
}

#[test]
fn served_accesses_reach_the_device_or_are_counted() {
    let device = probe("served");
    let mut builder = BusBuilder::new();
    builder.claim(Range::memory(0x1000, 0x100), Place::Local(device.clone())).unwrap();
    builder.claim(Range::memory(0x2000, 0x100), remote(1)).unwrap();
    let bus = builder.build();
    let read = |offset| answer(&bus, Space::Mmio, Access::Read { offset, len: 4 });
    assert_eq!(read(0x1008), Some(Data::from_u64(8, 4)));
    assert_eq!(read(0x10fe), None, "runs over the end");
    assert_eq!(read(0x2000), None, "another node's: not passed on from here");
    let data = Data::from_u64(0x55, 2);
    assert_eq!(answer(&bus, Space::Mmio, Access::Write { offset: 0x1004, data }), None);
    assert_eq!(*device.0.written.lock().unwrap(), [(4, data)]);
    assert_eq!(answer(&bus, Space::Pio, Access::Write { offset: 0x80, data }), None);
    let expected = Unclaimed {
        reads: 2,
        writes: 1,
        last_read: Some((Space::Mmio, 0x2000)),
        last_write: Some((Space::Pio, 0x80)),
    };
    assert_eq!(bus.unclaimed(), expected);
}

proptest! {
    /// The binary search finds what a look at every claim finds.
    #[test]
    fn lookup_agrees_with_the_list_of_claims(
        claims in prop::collection::vec((0u16..200, 1u16..20), 0..20),
        accesses in prop::collection::vec((0u64..220, 0usize..10), 0..50),
    ) {
        let mut builder = BusBuilder::new();
        let mut accepted: Vec<Range> = Vec::new();
        for (start, len) in claims {
            let range = Range::ports(start, len);
            let free = !accepted.iter().any(|other| other.overlaps(&range));
            let claimed = builder.claim(range, Place::Local(probe("p"))).is_ok();
            prop_assert_eq!(claimed, free);
            accepted.extend(free.then_some(range));
        }
        let bus = builder.build();
        for (address, len) in accesses {
            let whole = accepted.iter().find(|range| range.contains(address, len));
            let part = |i| accepted.iter().any(|range| range.contains(address + i, 1));
            match bus.find(Space::Pio, address, len) {
                Some(Hit::Local { offset, .. }) => {
                    prop_assert_eq!(Some(offset), whole.map(|range| address - range.start));
                }
                Some(Hit::Bytes) => {
                    prop_assert!(whole.is_none() && len > 1 && (0..len.min(8) as u64).any(part));
                }
                Some(Hit::Remote { .. }) => prop_assert!(false, "nothing is remote"),
                None => {
                    prop_assert!(whole.is_none());
                    prop_assert!(len < 2 || !(0..len.min(8) as u64).any(part));
                }
            }
        }
    }
}
