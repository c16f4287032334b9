//! No access of a guest, of any width, anywhere, at any time, panics a device or the bus.

#![expect(clippy::unwrap_used, reason = "a test: a panic is how it fails")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use kvm_vcpu::bus::{
    Access, Bus, BusBuilder, Data, Device, Direct, Hit, Immediate, Place, Range, Reply, Simple,
    Space,
};
use kvm_vcpu::chips::{ELCR_OFFSET, Ioapic, PIC_SLAVE_OFFSET, Pic};
use kvm_vcpu::devices::{
    AcpiReset, AcpiSleep, Clock, DebugConsole, DebugExit, EventSink, FwCfg, FwCfgMachine, I8042,
    I8042_COMMAND_OFFSET, MachineEvent, PORT_B_OFFSET, Pit, PmTimer, Rtc, RtcMemory, Serial, Width,
};
use proptest::prelude::*;

/// The IOAPIC behind a lock, with its actions thrown away.
struct IoapicDevice(Mutex<Ioapic>);

impl Simple for IoapicDevice {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        self.0.lock().unwrap().read(offset, len)
    }

    fn write(&self, offset: u64, data: Data) {
        self.0.lock().unwrap().write(offset, data);
    }

    fn reset(&self) {
        self.0.lock().unwrap().reset();
    }
}

struct Machine {
    bus: Bus,
    devices: Vec<Arc<dyn Device>>,
    clock: Arc<AtomicU64>,
    serial: Arc<Immediate<Serial>>,
}

fn machine() -> Machine {
    let now = Arc::new(AtomicU64::new(0));
    let shared = Arc::clone(&now);
    let clock: Arc<dyn Clock> = Arc::new(move || shared.load(Ordering::Relaxed));
    let events: Arc<dyn EventSink> = Arc::new(|_: MachineEvent| {});
    let output = Arc::new(|_: &[u8]| {});
    let serial = Arc::new(Immediate(Serial::new("com1", Arc::new(|_: bool| {}), output.clone())));
    let memory = RtcMemory { below_4g: 1 << 30, above_4g: 0 };
    let fw_cfg = FwCfg::new(
        FwCfgMachine { cpus: 2, cpus_max: 2, ram_bytes: 1 << 30 },
        [("opt/test".to_owned(), b"value".to_vec())],
    );
    let mut devices: Vec<Arc<dyn Device>> = vec![serial.clone()];
    let mut bus = BusBuilder::new();
    bus.claim(Range::ports(0x3f8, 8), Place::Local(serial.clone())).unwrap();
    let mut add = |device: Arc<dyn Device>, claims: &[(Range, u64)]| {
        for &(range, offset) in claims {
            bus.claim_at(range, offset, Place::Local(device.clone())).unwrap();
        }
        devices.push(device);
    };
    add(
        Arc::new(Immediate(Pic::new())),
        &[
            (Range::ports(0x20, 2), 0),
            (Range::ports(0xa0, 2), PIC_SLAVE_OFFSET),
            (Range::ports(0x4d0, 2), ELCR_OFFSET),
        ],
    );
    add(
        Arc::new(Immediate(Pit::new(clock.clone()))),
        &[(Range::ports(0x40, 4), 0), (Range::ports(0x61, 1), PORT_B_OFFSET)],
    );
    add(
        Arc::new(Immediate(I8042::new(events.clone()))),
        &[(Range::ports(0x60, 1), 0), (Range::ports(0x64, 1), I8042_COMMAND_OFFSET)],
    );
    let rtc = Rtc::new(1_700_000_000, memory, clock.clone());
    add(Arc::new(Immediate(rtc)), &[(Range::ports(0x70, 2), 0)]);
    add(Arc::new(Immediate(DebugConsole::new(output))), &[(Range::ports(0xe9, 1), 0)]);
    add(Arc::new(Immediate(DebugExit::new(events.clone()))), &[(Range::ports(0xf4, 4), 0)]);
    add(Arc::new(Immediate(fw_cfg.unwrap())), &[(Range::ports(0x510, 2), 0)]);
    add(Arc::new(Immediate(AcpiReset::new(6, events.clone()))), &[(Range::ports(0x600, 1), 0)]);
    add(Arc::new(Immediate(AcpiSleep::new(events))), &[(Range::ports(0x601, 2), 0)]);
    let pm_timer = PmTimer::new(Width::Bits32, clock);
    add(Arc::new(Immediate(pm_timer)), &[(Range::ports(0x608, 4), 0)]);
    let ioapic = IoapicDevice(Mutex::default());
    add(Arc::new(Immediate(ioapic)), &[(Range::memory(0xfec0_0000, 0x1000), 0)]);
    Machine { bus: bus.build(), devices, clock: now, serial }
}

#[derive(Debug, Clone)]
enum Op {
    /// Through the bus.
    Bus {
        space: Space,
        access: Access,
    },
    /// Past it, at offsets that it would never pass on.
    Device {
        device: prop::sample::Index,
        access: Access,
    },
    Time(u64),
    Input(Vec<u8>),
    Reset,
}

fn access(offset: impl Strategy<Value = u64>) -> impl Strategy<Value = Access> {
    let len = prop_oneof![8 => prop::sample::select(vec![1usize, 2, 4, 8]), 1 => 0usize..20];
    // Small values reach more: indices, commands, modes.
    let value = prop_oneof![0u64..256, any::<u64>()];
    (offset, len, value, any::<bool>()).prop_map(|(offset, len, value, write)| match write {
        true => Access::Write { offset, data: Data::from_u64(value, len) },
        false => Access::Read { offset, len },
    })
}

fn op() -> impl Strategy<Value = Op> {
    let known =
        [0x20u64, 0xa0, 0x4d0, 0x40, 0x60, 0x64, 0x70, 0xe9, 0xf4, 0x3f8, 0x510, 0x600, 0x608];
    let port = prop_oneof![
        6 => (prop::sample::select(known.to_vec()), 0u64..8).prop_map(|(base, at)| base + at),
        1 => 0u64..0x1_0010,
        1 => any::<u64>(),
    ];
    let address = prop_oneof![
        4 => (0u64..0x1010).prop_map(|at| 0xfec0_0000 + at),
        4 => prop::sample::select(vec![0xfec0_0000u64, 0xfec0_0010, 0xfec0_0040]),
        1 => any::<u64>(),
    ];
    let offset = prop_oneof![6 => 0u64..16, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    prop_oneof![
        12 => access(port).prop_map(|access| Op::Bus { space: Space::Pio, access }),
        4 => access(address).prop_map(|access| Op::Bus { space: Space::Mmio, access }),
        8 => (any::<prop::sample::Index>(), access(offset))
            .prop_map(|(device, access)| Op::Device { device, access }),
        2 => prop_oneof![any::<u64>(), 0u64..1_000_000_000].prop_map(Op::Time),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Op::Input),
        1 => Just(Op::Reset),
    ]
}

/// What a device answers directly and through a reply; both ways must do.
fn ask(device: &dyn Device, access: Access) {
    let len = access.len();
    match (device.direct(), access) {
        (Some(direct), Access::Write { offset, data }) => Direct::write(direct, offset, data),
        (Some(direct), Access::Read { offset, len }) => {
            assert_eq!(direct.read(offset, len).len(), len.min(8), "{}", device.name());
        }
        (None, _) => panic!("{} does not answer at once", device.name()),
    }
    let (tx, rx) = mpsc::channel();
    device.access(access, Reply::new(move |data| tx.send(data).unwrap()));
    let data = rx.try_recv().expect("answered at once");
    match access {
        Access::Read { .. } => assert_eq!(data.map(|data| data.len()), Some(len.min(8))),
        Access::Write { .. } => assert_eq!(data, None),
    }
}

fn apply(machine: &Machine, op: Op) {
    match op {
        Op::Bus { space, access } => match machine.bus.find(space, access.offset(), access.len()) {
            Some(Hit::Local { device, offset }) => ask(&**device, access.at(offset)),
            Some(Hit::Remote { .. }) => panic!("nothing is remote"),
            Some(Hit::Bytes) | None => machine.bus.serve(space, access, Reply::new(|_| {})),
        },
        Op::Device { device, access } => ask(&**device.get(&machine.devices), access),
        Op::Time(ns) => machine.clock.store(ns, Ordering::Relaxed),
        Op::Input(bytes) => {
            machine.serial.0.enqueue(&bytes);
        }
        Op::Reset => machine.bus.reset(),
    }
}

proptest! {
    #[test]
    fn no_access_panics(ops in prop::collection::vec(op(), 0..300)) {
        let machine = machine();
        for op in ops {
            apply(&machine, op);
        }
    }
}
