//! Virtual machines over one, two and three nodes of this process, with the guests of `guests/`.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsm_core::engine::WaitMode;
use giantvm_node::node::{Node, NodeConfig, NodeSpec, Patience};
use giantvm_node::vm::{ConsoleSink, ImageSpec, Outcome, VcpuSpec, Vm, VmOptions, VmSpec, VmState};

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
    };
    NodeConfig {
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
                scope.spawn(move || {
                    let node = Arc::new(Node::start(config, None, &Patience::FOREVER).unwrap());
                    let console: ConsoleSink =
                        Arc::new(move |bytes| written.lock().unwrap().extend_from_slice(bytes));
                    let spec = spec(guest, places, cmdline);
                    let options =
                        VmOptions { run: true, console: Some(console), devices: Vec::new() };
                    let vm = Vm::start(&node, spec, options, &Patience::FOREVER).unwrap();
                    let outcome = outcome(&vm);
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
        hide: Vec::new(),
        overcommit: false,
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
    everywhere("test=ipi count=50");
}

#[test]
fn locks_and_atomics_hold() {
    everywhere("test=locks count=200");
}
