//! Two machines of one process as two nodes, with memory that they simply share: what the boot
//! processor of one does to a vCPU of the other goes through its stand-in.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_vcpu::bus::Space;
use kvm_vcpu::vm::{
    Interrupt, Io, IoData, Kvm, Machine, MachineConfig, Outside, Placement, Ram, Stop, TscSetting,
    VcpuId,
};

/// Where the guest reports a byte.
const PORT: u64 = 0xe8;
const RAM: usize = 2 << 20;
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

std::arch::global_asm!(
    ".pushsection .rodata.test_guest, \"a\"",
    ".globl test_guest",
    ".globl test_guest_end",
    "test_guest:",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "xor edx, edx",
    "wrmsr",
    // INIT and two start-ups, without a pause, as kernels of today do.
    "mov ecx, 0x830",
    "mov edx, 1",
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x460a",
    "wrmsr",
    "wrmsr",
    // Until the other one has come up.
    "2: cmp byte ptr [0x8000], 1",
    "jne 2b",
    "mov r8d, 1000",
    "3: mov eax, 0x4041",
    "wrmsr",
    "mov al, 'f'",
    "out 0xe8, al",
    "dec r8d",
    "jnz 3b",
    // NMI; all but self; self, which is no other's business; lowest priority.
    "mov eax, 0x4400",
    "wrmsr",
    "mov al, 'n'",
    "out 0xe8, al",
    "mov eax, 0xc4055",
    "wrmsr",
    "mov al, 'b'",
    "out 0xe8, al",
    "mov eax, 0x4142",
    "wrmsr",
    "mov al, 'l'",
    "out 0xe8, al",
    // Again with another vector: cluster 0, logical id 2 is vCPU 1.
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x460b",
    "wrmsr",
    "4: cmp byte ptr [0x8000], 2",
    "jne 4b",
    "mov eax, 0x4843",
    "mov edx, 2",
    "wrmsr",
    "mov al, 'e'",
    "out 0xe8, al",
    // INIT when the stand-in has an interrupt to see to, at any point of its doing so: by turns with a
    // start-up at once, which is repeated once it has worked, and with another one later, as the
    // MultiProcessor Specification B.4 asks for.
    "mov r9d, 200",
    "7: mov byte ptr [0x8000], 0",
    "mov edx, 1",
    "mov eax, 0x4044",
    "wrmsr",
    "mov r8d, r9d",
    "20: dec r8d",
    "jnz 20b",
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x460a",
    "wrmsr",
    "8: cmp byte ptr [0x8000], 1",
    "jne 8b",
    "wrmsr",
    "mov eax, 0x4044",
    "wrmsr",
    "mov r8d, r9d",
    "21: dec r8d",
    "jnz 21b",
    "mov eax, 0x4500",
    "wrmsr",
    "mov r8d, 20000",
    "9: dec r8d",
    "jnz 9b",
    "mov eax, 0x460b",
    "wrmsr",
    "10: cmp byte ptr [0x8000], 2",
    "jne 10b",
    "dec r9d",
    "jnz 7b",
    // And with the same vector as before: whether a start-up came can't be seen at once.
    "mov r9d, 100",
    "11: mov byte ptr [0x8000], 0",
    "mov eax, 0x4044",
    "wrmsr",
    "mov r8d, r9d",
    "22: dec r8d",
    "jnz 22b",
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x460b",
    "wrmsr",
    "wrmsr",
    "12: cmp byte ptr [0x8000], 2",
    "jne 12b",
    "dec r9d",
    "jnz 11b",
    "5: jmp 5b",
    "test_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static test_guest: u8;
    static test_guest_end: u8;
}

/// Real-mode code of the other processor: `mov al, N; out PORT, al; mov byte [0x8000], N; hlt`.
const fn comes_up(number: u8) -> [u8; 14] {
    [0x31, 0xc0, 0x8e, 0xd8, 0xb0, number, 0xe6, PORT as u8, 0xc6, 0x06, 0x00, 0x80, number, 0xf4]
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Byte(VcpuId, u8),
    Interrupt(VcpuId, Interrupt),
    Stopped,
}

/// One node: sends interrupts to the other one's machine, and tells the test what it does.
struct Node {
    seen: Sender<Seen>,
    other: OnceLock<Weak<Machine>>,
    /// Answers the guest only when the test has seen what came before.
    go: Option<std::sync::Mutex<Receiver<()>>>,
}

impl Outside for Node {
    fn interrupt(&self, to: VcpuId, interrupt: Interrupt) {
        let _ = self.seen.send(Seen::Interrupt(to, interrupt));
        if let Some(other) = self.other.get().and_then(Weak::upgrade) {
            other.interrupt(to, interrupt).expect("KVM takes the interrupt");
        }
    }

    fn end_of_interrupt(&self, _: VcpuId, _: u8) {}

    fn io(&self, vcpu: VcpuId, io: Io<'_>) {
        if let (Space::Pio, PORT, IoData::Write(&[byte])) = (io.space, io.address, io.data) {
            let _ = self.seen.send(Seen::Byte(vcpu, byte));
            if let Some(go) = &self.go {
                let _ = go.lock().unwrap().recv();
            }
        }
    }

    fn stopped(&self, _: VcpuId, stop: Stop) {
        eprintln!("{stop}");
        let _ = self.seen.send(Seen::Stopped);
    }

    fn failed(&self, vcpu: VcpuId, reason: String) {
        eprintln!("{vcpu}: {reason}");
        let _ = self.seen.send(Seen::Stopped);
    }
}

fn kvm() -> Option<Kvm> {
    match Kvm::open(Path::new(Kvm::PATH)) {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

/// Memory that lives as long as the process.
fn ram() -> (usize, Ram) {
    let bytes = Box::leak(vec![0u8; RAM + 4096].into_boxed_slice());
    let host = (bytes.as_mut_ptr() as usize).next_multiple_of(4096);
    // SAFETY: leaked above, long enough, and reached through raw pointers only from here on.
    (host, unsafe { Ram::new(vec![(0..RAM as u64, host)], Arc::new(())) }.unwrap())
}

fn put(host: usize, at: usize, bytes: &[u8]) {
    assert!(at + bytes.len() <= RAM);
    // SAFETY: within the leaked memory; the guest does not run yet.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (host + at) as *mut u8, bytes.len()) };
}

fn prepare(host: usize) {
    let (start, end) = (&raw const test_guest, &raw const test_guest_end);
    // SAFETY: the labels bound read-only bytes.
    let code = unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) };
    put(host, 0x1000, code);
    put(host, 0xa000, &comes_up(1));
    put(host, 0xb000, &comes_up(2));
    put(host, 0x1_0000, &0x1_1007u64.to_le_bytes());
    put(host, 0x1_1000, &0x1_2007u64.to_le_bytes());
    put(host, 0x1_2000, &0xe7u64.to_le_bytes());
    put(host, 0x2008, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    put(host, 0x2010, &0x00cf_9300_0000_ffffu64.to_le_bytes());
}

fn boot(regs: &mut kvm_regs, sregs: &mut kvm_sregs) {
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, 0x1_0000, 0x620, 0x500);
    (sregs.gdt.base, sregs.gdt.limit) = (0x2000, 23);
    let flat = kvm_segment { limit: !0, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    *regs = kvm_regs { rflags: 2, rip: 0x1000, rsp: 0x9000, ..Default::default() };
}

fn machine(kvm: &Kvm, ram: &Ram, here: usize, vcpus: usize, node: &Arc<Node>) -> Arc<Machine> {
    let mut cpuid = kvm.supported_cpuid().unwrap();
    for entry in &mut cpuid {
        if entry.function == 1 {
            entry.ecx |= 1 << 21;
        }
    }
    let config = MachineConfig {
        vcpus: (0..vcpus).map(|index| Placement { here: index == here, pin: None }).collect(),
        cpuid: vec![cpuid; vcpus],
        ram: ram.clone(),
        tsc: TscSetting::default(),
        boot: Some(Box::new(boot)),
    };
    let outside: Arc<dyn Outside> = Arc::<Node>::clone(node);
    Arc::new(Machine::new(kvm, config, outside).unwrap())
}

fn expect(seen: &Receiver<Seen>, what: Seen) {
    match seen.recv_timeout(PATIENCE) {
        Ok(it) => assert_eq!(it, what),
        Err(error) => panic!("{what:?} did not come: {error}"),
    }
}

#[test]
fn what_one_node_does_to_a_vcpu_of_another_arrives_there_once() {
    let Some(kvm) = kvm() else { return };
    let (host, ram) = ram();
    prepare(host);
    let ((seen_0, sees_0), (seen_1, sees_1)) = (channel(), channel());
    let (go, goes) = channel();
    let go_on = || go.send(()).unwrap();
    let node_0 = Arc::new(Node {
        seen: seen_0,
        other: OnceLock::new(),
        go: Some(std::sync::Mutex::new(goes)),
    });
    let node_1 = Arc::new(Node { seen: seen_1, other: OnceLock::new(), go: None });
    let machine_0 = machine(&kvm, &ram, 0, 2, &node_0);
    let machine_1 = machine(&kvm, &ram, 1, 2, &node_1);
    node_0.other.set(Arc::downgrade(&machine_1)).unwrap();
    node_1.other.set(Arc::downgrade(&machine_0)).unwrap();
    machine_1.resume();
    machine_0.resume();

    let (bsp, ap) = (VcpuId(0), VcpuId(1));
    let fixed = |vector| Seen::Interrupt(ap, Interrupt::Fixed { vector, level: false });
    expect(&sees_0, Seen::Interrupt(ap, Interrupt::Init));
    expect(&sees_0, Seen::Interrupt(ap, Interrupt::Startup { vector: 0x0a }));
    expect(&sees_1, Seen::Byte(ap, 1));
    for _ in 0..1000 {
        // The interrupt's way to the test and that of the byte that follows are not ordered.
        let both = [sees_0.recv_timeout(PATIENCE).unwrap(), sees_0.recv_timeout(PATIENCE).unwrap()];
        assert!(both.contains(&fixed(0x41)), "{both:?}");
        assert!(both.contains(&Seen::Byte(bsp, b'f')), "{both:?}");
        go_on();
    }
    let last =
        [(Seen::Interrupt(ap, Interrupt::Nmi), b'n'), (fixed(0x55), b'b'), (fixed(0x42), b'l')];
    for (interrupt, byte) in last {
        let both = [sees_0.recv_timeout(PATIENCE).unwrap(), sees_0.recv_timeout(PATIENCE).unwrap()];
        assert!(both.contains(&interrupt), "{both:?} without {interrupt:?}");
        assert!(both.contains(&Seen::Byte(bsp, byte)), "{both:?}");
        go_on();
    }
    expect(&sees_0, Seen::Interrupt(ap, Interrupt::Init));
    expect(&sees_0, Seen::Interrupt(ap, Interrupt::Startup { vector: 0x0b }));
    expect(&sees_1, Seen::Byte(ap, 2));
    let both = [sees_0.recv_timeout(PATIENCE).unwrap(), sees_0.recv_timeout(PATIENCE).unwrap()];
    assert!(both.contains(&fixed(0x43)), "{both:?}");
    assert!(both.contains(&Seen::Byte(bsp, b'e')), "{both:?}");
    go_on();
    let by_turns = std::iter::repeat_n([(0x0a, 1), (0x0b, 2)], 200).flatten();
    for (vector, number) in by_turns.chain(std::iter::repeat_n((0x0b, 2), 100)) {
        // An INIT drops interrupts that wait.
        let first = sees_0.recv_timeout(PATIENCE).unwrap();
        if first == fixed(0x44) {
            expect(&sees_0, Seen::Interrupt(ap, Interrupt::Init));
        } else {
            assert_eq!(first, Seen::Interrupt(ap, Interrupt::Init));
        }
        expect(&sees_0, Seen::Interrupt(ap, Interrupt::Startup { vector }));
        expect(&sees_1, Seen::Byte(ap, number));
    }
    drop(go);
    machine_0.pause();
    assert!(machine_0.wait_paused(PATIENCE));
    assert!(machine_0.registers(bsp).is_some());
    assert!(machine_0.end(PATIENCE) && machine_1.end(PATIENCE));
}

#[test]
fn more_vcpus_than_kvm_takes_are_refused() {
    let Some(kvm) = kvm() else { return };
    let (_, ram) = ram();
    let config = MachineConfig {
        vcpus: vec![Placement::default(); 100_000],
        cpuid: Vec::new(),
        ram,
        tsc: TscSetting::default(),
        boot: None,
    };
    let node = Arc::new(Node { seen: channel().0, other: OnceLock::new(), go: None });
    let error = Machine::new(&kvm, config, node).err().unwrap().to_string();
    assert!(error.starts_with("100000 vCPUs; this host's KVM takes at most"), "{error}");
}

#[test]
fn a_file_that_is_not_kvm_is_refused_with_what_to_do() {
    let open = |path: &str| Kvm::open(Path::new(path)).unwrap_err().to_string();
    assert!(open("/dev/no-such-kvm").contains("load kvm_intel or kvm_amd"));
    assert!(open("/dev/null").contains("can't be used as KVM"));
}
