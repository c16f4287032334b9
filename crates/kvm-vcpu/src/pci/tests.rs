use std::sync::{Arc, Mutex};

use super::*;
use crate::bus::{Access, Data, Device, Reply, Simple};
use crate::chips::Message;
use crate::devices::lock;

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: [1, 2, 3],
    subsystem_vendor: 0x1af4,
    subsystem: 0x40,
};
const BAR: MemoryBar = MemoryBar { address: 0xc000_8000, len: 0x8000 };

fn data(value: u64, len: usize) -> Data {
    Data::from_u64(value, len)
}

#[test]
fn the_header_says_what_the_function_is() {
    let space = ConfigSpace::new(&IDENTITY, Some(BAR));
    assert_eq!(space.u32(0x00), 0x1042_1af4);
    assert_eq!(space.u32(0x08), 0x0102_0301);
    assert_eq!(space.u32(0x2c), 0x0040_1af4);
    assert_eq!(space.u32(0x10), 0xc000_8004, "memory, 64 bits, not prefetchable");
    assert_eq!((space.u32(0x14), space.u32(0x18)), (0, 0));
    assert_eq!(space.u32(0x3c), 0, "no interrupt pin");
    assert_eq!(space.read(0x100, 4).to_u64(), 0, "no extended capability");
    assert_eq!(space.read(u64::MAX, 8).to_u64() >> 8, 0x1042_1af4, "wraps without a panic");
}

#[test]
fn a_guest_finds_the_size_of_memory_and_puts_the_address_back() {
    let mut space = ConfigSpace::new(&IDENTITY, Some(BAR));
    space.write(0x04, data(0xffff, 2));
    assert_eq!(space.u16(0x04), 0x0406, "memory, bus master, no pin; nothing else is there");
    assert!(space.answers_in_memory() && space.is_bus_master());
    // As Linux does: both halves all ones, and back.
    space.write(0x10, data(0xffff_ffff, 4));
    assert!(!space.answers_in_memory());
    space.write(0x14, data(0xffff_ffff, 4));
    assert_eq!((space.u32(0x10), space.u32(0x14)), (0xffff_8004, 0xffff_ffff));
    space.write(0x10, data(0xc000_8000, 4));
    space.write(0x14, data(0, 4));
    assert!(space.answers_in_memory());
    space.write(0x04, data(0, 2));
    assert!(!space.answers_in_memory() && !space.is_bus_master());
}

#[test]
fn read_only_registers_stay() {
    let fresh = ConfigSpace::new(&IDENTITY, Some(BAR));
    let mut space = fresh.clone();
    for at in 0..512 {
        space.write(at, data(0, 1));
        space.write(at, data(u64::MAX, 8));
    }
    for at in [0x00, 0x08, 0x0c, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x40, 0xfc] {
        assert_eq!(space.u32(at), fresh.u32(at), "{at:#x}");
    }
}

#[test]
fn capabilities_are_a_list_within_the_space() {
    let mut space = ConfigSpace::new(&IDENTITY, None);
    assert_eq!(space.u16(0x06), 0);
    assert_eq!(space.add_capability(9, &[5, 1, 2], &[]), Some(0x40));
    assert_eq!(space.add_capability(0x11, &[0xff; 10], &[0, 0xc0]), Some(0x48));
    assert_eq!((space.u16(0x06), space.read(0x34, 1).to_u64()), (0x10, 0x40));
    assert_eq!(space.u32(0x40), 0x0105_4809);
    assert_eq!(space.read(0x49, 1).to_u64(), 0, "the last one");
    space.write(0x4a, data(0, 2));
    assert_eq!(space.u16(0x4a), 0x3fff);
    let mut count = 0;
    while space.add_capability(9, &[0; 14], &[]).is_some() {
        count += 1;
    }
    assert_eq!(count, 10);
}

#[test]
fn ecam_has_a_window_for_each_function_and_nobody_between() {
    assert_eq!(config_range(0), Range::memory(0xe000_0000, 0x1000));
    assert_eq!(config_range(31), Range::memory(0xe00f_8000, 0x1000));
    let absent = absent_ranges(&[0, 1, 31]);
    let expected = [(0x1000, 0x7000), (0x9000, 0xe_f000), (0xf_9000, 0x7000)];
    let expected = expected.map(|(at, len)| Range::memory(0xe000_0000 + at, len));
    assert_eq!(absent, expected);
    assert_eq!(absent_ranges(&[]), [Range::memory(0xe000_0000, 0x10_0000)]);
}

/// Counts what reaches the reset register.
#[derive(Default)]
struct FakeReset(Mutex<Vec<u64>>);

impl Simple for FakeReset {
    fn name(&self) -> &str {
        "reset"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::from_u64(0x55, len)
    }

    fn write(&self, _: u64, data: Data) {
        lock(&self.0).push(data.to_u64());
    }

    fn reset(&self) {}
}

fn answer(device: &dyn Device, access: Access) -> Option<u64> {
    let (send, receive) = std::sync::mpsc::channel();
    device.access(access, Reply::new(move |data| send.send(data).unwrap()));
    receive.try_recv().expect("an answer").map(Data::to_u64)
}

fn read(device: &dyn Device, offset: u64, len: usize) -> Option<u64> {
    answer(device, Access::Read { offset, len })
}

fn write(device: &dyn Device, offset: u64, value: u64, len: usize) {
    answer(device, Access::Write { offset, data: data(value, len) });
}

#[test]
fn the_ports_lead_to_configuration_space_and_to_the_reset_register() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let route = move |access: Access, reply: Reply| {
        lock(&seen).push((access.offset(), access.len()));
        reply.read(Data::from_u64(access.offset(), access.len()));
    };
    let reset = Arc::new(FakeReset::default());
    let register: Arc<dyn Simple> = Arc::<FakeReset>::clone(&reset);
    let ports = ConfigPorts::new(Arc::new(route), register);
    assert_eq!(read(&ports, 4, 4), None, "not enabled");
    // Device 3, function 1, register 0x14. Its second byte is what the reset register takes.
    write(&ports, 0, 0x8000_0614, 4);
    write(&ports, 0, 0x8000_1914, 4);
    assert_eq!(read(&ports, 0, 4), Some(0x8000_1914));
    assert_eq!(read(&ports, 4, 4), Some(0x1_9014));
    assert_eq!(read(&ports, 7, 1), Some(0x17));
    write(&ports, 6, 7, 2);
    assert_eq!(*lock(&asked), [(0x1_9014, 4), (0x1_9017, 1), (0x1_9016, 2)]);
    write(&ports, 0, 0x8001_0000, 4);
    assert_eq!(read(&ports, 4, 4), None, "no second bus");
    // Narrower accesses do not reach the address.
    write(&ports, 0, 0, 1);
    write(&ports, 0, 0, 2);
    assert_eq!(read(&ports, 0, 4), Some(0x8001_0000));
    assert!(lock(&reset.0).is_empty());
    write(&ports, 1, 6, 1);
    assert_eq!((read(&ports, 1, 1), &*lock(&reset.0)), (Some(0x55), &vec![6]));
    Device::reset(&ports);
    assert_eq!(read(&ports, 0, 4), Some(0));
}

fn msix(vectors: u16) -> (Msix, Arc<Mutex<Vec<Message>>>) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&sent);
    let msix = Msix::new(vectors, Arc::new(move |message| lock(&sink).push(message)));
    (msix, sent)
}

const ENABLED: u16 = 0x8000;
const ALL_MASKED: u16 = 0xc000;

#[test]
fn a_vector_sends_its_message_or_waits() {
    let (msix, sent) = msix(3);
    assert_eq!(msix.capability(0x4000, 0x5000).0, [2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]);
    msix.write_table(0x10, data(0xfee0_1000, 4));
    msix.write_table(0x18, data(0x41, 8));
    msix.trigger(1);
    assert!(lock(&sent).is_empty() && !msix.is_enabled());
    msix.set_control(ENABLED, true);
    assert!(lock(&sent).is_empty(), "what came while it was off is forgotten");
    msix.trigger(1);
    msix.trigger(0);
    msix.trigger(3);
    let message = Message { address: 0xfee0_1000, data: 0x41 };
    assert_eq!(std::mem::take(&mut *lock(&sent)), [message]);
    assert_eq!(msix.read_pending(0, 8).to_u64(), 1, "vector 0 is masked from the start");

    msix.set_control(ALL_MASKED, true);
    msix.trigger(1);
    assert_eq!(msix.read_pending(0, 4).to_u64(), 3);
    // A new message while it waits is what will be sent.
    msix.write_table(0x18, data(0x42, 4));
    msix.set_control(ENABLED, false);
    assert!(lock(&sent).is_empty(), "no messages without bus mastering");
    msix.set_control(ENABLED, true);
    let message = Message { address: 0xfee0_1000, data: 0x42 };
    assert_eq!(std::mem::take(&mut *lock(&sent)), [message]);
    msix.write_table(0x0c, data(0, 4));
    assert_eq!(lock(&sent).len(), 1, "unmasked");
    assert_eq!(msix.read_pending(0, 8).to_u64(), 0);

    msix.reset();
    assert_eq!(msix.read_table(0x1c, 4).to_u64(), 1);
    assert_eq!(msix.read_table(0x10, 8).to_u64(), 0);
}

#[test]
fn odd_accesses_to_the_table_do_nothing() {
    let (msix, _) = msix(2);
    for (offset, len) in [(0, 1), (0, 2), (1, 4), (4, 8), (0x20, 4), (u64::MAX - 3, 4)] {
        msix.write_table(offset, data(u64::MAX, len));
    }
    assert_eq!(msix.read_table(0, 8).to_u64(), 0);
    assert_eq!(msix.read_table(0x1e, 4).to_u64(), 0, "beyond the end");
    msix.write_table(0x0c, data(0xffff_fffe, 4));
    assert_eq!(msix.read_table(0x0c, 4).to_u64(), 0, "one bit of the control exists");
}

#[test]
fn the_bridge_is_one() {
    let bridge = HostBridge::new();
    assert_eq!(bridge.config_read(8, 4).to_u64(), 0x0600_0000);
    bridge.config_write(4, data(0xffff, 2));
    bridge.reset();
    assert_eq!(bridge.config_read(4, 2).to_u64(), 0);
    assert_eq!(bridge.memory_read(0, 4).to_u64(), 0xffff_ffff);
}
