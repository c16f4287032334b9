//! Virtual machines over one, two and three nodes of this process, with the guests of `guests/`.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod device;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::{Shared, TestDevice};
use dsm_core::engine::WaitMode;
use giantvm_node::node::{Node, NodeConfig, NodeSpec, Patience};
use giantvm_node::vm::{
    ConsoleSink, ImageSpec, Outcome, TscSource, VcpuSpec, Vm, VmOptions, VmSpec, VmState,
};
use kvm_vcpu::bus::{Device, Immediate};

/// How long a guest may take, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(120);

/// The guests, where `make guests` or the variable says; none if they are not built.
fn guest() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests/guest.elf");
    let path = std::env::var_os("GIANTVM_GUEST").map_or(target, PathBuf::from);
    if !Path::new("/dev/kvm").exists() {
        println!("SKIPPED: this machine has no /dev/kvm");
        return None;
    }
    if !path.exists() {
        println!("SKIPPED: {} is not built; run make guests", path.display());
        return None;
    }
    Some(path)
}

fn config(folder: &Path, nodes: usize, me: usize) -> NodeConfig {
    let spec = |index| NodeSpec {
        name: format!("n{index}"),
        address: format!("unix:{}/n{index}.sock", folder.display()),
        memory_bytes: 256 << 20,
        late: false,
    };
    NodeConfig {
        etcd: None,
        cluster: "test".into(),
        me,
        nodes: (0..nodes).map(spec).collect(),
        heartbeat: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        workers: 1,
        wait: WaitMode::Blocking,
        insecure: false,
        join_timeout: None,
    }
}

/// Runs a guest with a vCPU on each of `places`; what it wrote, and how it ended on each node.
fn run(guest: &Path, nodes: usize, places: &[usize], cmdline: &str) -> (String, Vec<Outcome>) {
    run_by(TscSource::Hosts, None, guest, nodes, places, cmdline)
}

/// Profiles as JSON, by node.
type Profiles = Arc<Mutex<Vec<(usize, String)>>>;

/// The same, with clocks that are compared or not, and with a profile or without.
fn run_by(
    tsc: TscSource,
    profiles: Option<&Profiles>,
    guest: &Path,
    nodes: usize,
    places: &[usize],
    cmdline: &str,
) -> (String, Vec<Outcome>) {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("gvm-vm-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let written = Arc::new(Mutex::new(Vec::new()));
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..nodes)
            .map(|me| {
                let config = config(&folder, nodes, me);
                let written = Arc::clone(&written);
                let profile = profiles.is_some();
                let profiles = profiles.cloned().unwrap_or_default();
                scope.spawn(move || {
                    let node = Arc::new(Node::start(config, None, &Patience::FOREVER).unwrap());
                    let console: ConsoleSink =
                        Arc::new(move |bytes| written.lock().unwrap().extend_from_slice(bytes));
                    // The device is as far from the first processor as it can be.
                    let mut spec = VmSpec { tsc, ..spec(guest, places, cmdline) };
                    spec.devices.push(TestDevice::spec(nodes - 1));
                    let test = Arc::new(TestDevice::new());
                    let device: Arc<dyn Device> = Arc::new(Immediate(Shared(Arc::clone(&test))));
                    let devices = match me == nodes - 1 {
                        true => vec![("test".into(), device)],
                        false => Vec::new(),
                    };
                    let options = VmOptions {
                        run: false,
                        console: Some(console),
                        profile,
                        devices,
                        consoles: Vec::new(),
                    };
                    let vm = Vm::start(&node, spec, options, &Patience::FOREVER).unwrap();
                    assert!(test.interrupts.set(vm.interrupts()).is_ok());
                    vm.run();
                    let outcome = outcome(&vm);
                    println!("node {me}: {:?}", vm.report().clock);
                    if let Some(profile) = vm.profile_json(1000) {
                        profiles.lock().unwrap().push((me, profile));
                    }
                    drop(vm);
                    node.close(false, &Patience::FOREVER).unwrap();
                    outcome
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let _ = std::fs::remove_dir_all(&folder);
    let written = String::from_utf8_lossy(&written.lock().unwrap()).into_owned();
    (written, outcomes)
}

fn outcome(vm: &Vm) -> Outcome {
    let patience = Patience::new(Some(PATIENCE), &|| false);
    match vm.wait(|_| false, &patience) {
        Ok(VmState::Ended(outcome)) => outcome,
        other => {
            vm.stop();
            Outcome::Failed { reason: format!("{other:?}") }
        }
    }
}

fn spec(guest: &Path, places: &[usize], cmdline: &str) -> VmSpec {
    VmSpec {
        name: "test".into(),
        ram_bytes: 64 << 20,
        vcpus: places.iter().map(|&node| VcpuSpec { node, pin: None }).collect(),
        image: Some(ImageSpec {
            kernel: guest.to_owned(),
            format: None,
            cmdline: cmdline.into(),
            initrd: None,
            modules: Vec::new(),
        }),
        platform_home: 0,
        devices: Vec::new(),
        virtio: Vec::new(),
        hide: Vec::new(),
        overcommit: false,
        tsc: TscSource::Hosts,
        walk_shared: None,
        kvm: "/dev/kvm".into(),
    }
}

/// Runs the same guest over one, two and three nodes: it succeeds, and says the same.
fn everywhere(cmdline: &str) {
    let Some(guest) = guest() else { return };
    let mut first = None;
    for (nodes, places) in [(1, [0, 0, 0]), (2, [0, 1, 1]), (3, [0, 1, 2])] {
        let (written, outcomes) = run(&guest, nodes, &places, cmdline);
        let expected = vec![Outcome::DebugExit { status: 1 }; nodes];
        assert_eq!(outcomes, expected, "{nodes} nodes wrote:\n{written}");
        let said: Vec<String> =
            written.lines().filter(|it| !it.starts_with('#')).map(str::to_owned).collect();
        let first = first.get_or_insert_with(|| said.clone());
        assert_eq!(*first, said, "{nodes} nodes said something else than one");
    }
}

#[test]
fn all_processors_start() {
    everywhere("test=smp");
}

#[test]
fn interrupts_of_every_kind_arrive_once() {
    everywhere("test=ipi count=20");
}

#[test]
#[ignore = "long: ten thousand interrupts of each kind from each vCPU to each"]
fn ten_thousand_interrupts_of_every_kind_arrive_once() {
    everywhere("test=ipi count=10000");
}

#[test]
fn locks_and_atomics_hold() {
    everywhere("test=locks count=200");
}

#[test]
fn devices_of_other_nodes_take_every_access_once() {
    everywhere("test=io count=50");
}

#[test]
fn memory_is_ordered_as_the_processor_promises() {
    everywhere("test=litmus count=60");
}

#[test]
fn a_device_interrupts_processors_of_other_nodes() {
    everywhere("test=msi count=50");
}

#[test]
fn time_never_goes_back_between_processors() {
    everywhere("test=tsc count=1000");
}

/// As on hosts of their own, whose clocks are compared all the time. Messages take 3 us here, so a busy
/// machine can make it impossible to be sure: then the guest is stopped before it can tell.
#[test]
fn time_never_goes_back_between_hosts() {
    let Some(guest) = guest() else { return };
    let places = [0, 1, 2];
    let (written, outcomes) =
        run_by(TscSource::Nodes, None, &guest, 3, &places, "test=tsc count=1000");
    let passed = |outcome: &Outcome| *outcome == Outcome::DebugExit { status: 1 };
    let stopped = |outcome: &Outcome| match outcome {
        Outcome::Failed { reason } => reason.contains("clock on node"),
        _ => false,
    };
    let fine = outcomes.iter().all(passed) || outcomes.iter().all(stopped);
    assert!(fine, "{outcomes:?}\n{written}");
    println!("the guest ran to its end: {}", outcomes.iter().all(passed));
}

#[test]
fn a_processor_goes_and_comes_back_with_another_vector() {
    everywhere("test=hotplug rounds=4");
}

#[test]
fn the_machine_starts_again() {
    everywhere("test=reset");
}

#[test]
fn every_processor_has_a_timer() {
    everywhere("test=timer count=5");
}

#[test]
fn a_triple_fault_ends_the_machine_everywhere_with_the_registers() {
    let Some(guest) = guest() else { return };
    let (_, outcomes) = run(&guest, 2, &[0, 1], "test=triplefault");
    for outcome in outcomes {
        let Outcome::GuestFault { reason } = &outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("triple fault") && reason.contains("rip 0x"), "{reason}");
    }
}

#[test]
fn a_profile_names_the_instructions_that_wait_for_pages() {
    let Some(guest) = guest() else { return };
    let profiles = Profiles::default();
    let places = [0, 1];
    let cmdline = "test=locks count=100";
    let (written, outcomes) =
        run_by(TscSource::Hosts, Some(&profiles), &guest, 2, &places, cmdline);
    assert_eq!(outcomes, vec![Outcome::DebugExit { status: 1 }; 2], "{written}");
    let profiles = profiles.lock().unwrap();
    assert_eq!(profiles.len(), 2);
    let text = text_of(&guest);
    for (node, profile) in profiles.iter() {
        let profile: serde_json::Value = serde_json::from_str(profile).unwrap();
        println!("node {node}: {profile}");
        let sites = profile["sites"].as_array().unwrap();
        let of_guest = |site: &&serde_json::Value| site["vcpu"].as_u64() == Some(*node as u64);
        // How many there are depends on how much both vCPUs run at the same time.
        let hottest = sites.iter().find(of_guest).unwrap();
        assert!(text.contains(&hottest["rip"].as_u64().unwrap()), "{hottest} not in {text:x?}");
        assert!(profile["left"].as_u64().unwrap() > 0);
    }
}

/// Where the guest's image is, by the first program header of its ELF64 file.
fn text_of(guest: &Path) -> std::ops::Range<u64> {
    let file = std::fs::read(guest).unwrap();
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let header = word(0x20) as usize;
    let (start, len) = (word(header + 0x18), word(header + 0x28));
    start..start + len
}

#[test]
fn a_kernel_that_is_none_is_refused_on_all_nodes() {
    let Some(_) = guest() else { return };
    let (_, outcomes) = run(Path::new("/proc/version"), 2, &[0, 1], "");
    for outcome in outcomes {
        let Outcome::Failed { reason } = &outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("/proc/version"), "{reason}");
    }
}
