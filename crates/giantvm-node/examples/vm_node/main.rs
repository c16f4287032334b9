//! One node of a virtual machine, from the command line: for work on the VM and for its tests,
//! without Python. Run it without arguments to see which there are.
//!
//! The guest's console is on stdout of node 0, what happens is logged on stderr. Exit status: 0 if the
//! guest passed or switched the machine off, 86 if a node was lost, 3 otherwise.

#![expect(clippy::unwrap_used, reason = "an example ends where something is not as it should be")]

#[path = "../../tests/vm/device.rs"]
mod device;
mod log_lines;
mod marks;
mod options;

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use device::{Shared, TestDevice};
use dsm_core::engine::WaitMode;
use giantvm_node::node::{Node, NodeConfig, NodeSpec, Patience};
use giantvm_node::vm::{
    ConsoleSink, ImageSpec, Outcome, VcpuSpec, VirtioKind, VirtioSpec, Vm, VmOptions, VmSpec,
    VmState,
};
use kvm_vcpu::bus::{Device, Immediate};
use log_lines::line;
use marks::Marks;
use options::Options;

/// How long a node waits for the others to be done.
const CLOSE: Duration = Duration::from_secs(5);

fn config(options: &Options) -> NodeConfig {
    let node = |(index, address): (usize, &String)| NodeSpec {
        name: format!("n{index}"),
        address: address.clone(),
        memory_bytes: options.share_bytes.unwrap_or(1 << 30),
        late: false,
    };
    NodeConfig {
        etcd: None,
        cluster: "vm".into(),
        me: options.me,
        nodes: options.addresses.iter().enumerate().map(node).collect(),
        heartbeat: options.heartbeat,
        timeout: options.timeout,
        workers: 1,
        wait: WaitMode::Blocking,
        insecure: true,
        join_timeout: None,
    }
}

fn spec(options: &Options) -> VmSpec {
    let mut devices = Vec::new();
    if let Some(home) = options.device {
        devices.push(TestDevice::spec(home));
        devices.extend((0..options.addresses.len()).map(Marks::spec));
    }
    VmSpec {
        name: "example".into(),
        ram_bytes: options.ram_bytes,
        vcpus: options.places.iter().map(|&node| VcpuSpec { node, pin: None }).collect(),
        image: Some(ImageSpec {
            kernel: options.kernel.clone(),
            format: None,
            cmdline: options.cmdline.clone(),
            initrd: options.initrd.clone(),
            modules: Vec::new(),
        }),
        platform_home: 0,
        devices,
        virtio: options.virtio.clone(),
        hide: options.hide.clone(),
        overcommit: options.share_bytes.is_none(),
        tsc: options.tsc,
        walk_shared: options.walk_shared,
        kvm: "/dev/kvm".into(),
    }
}

/// The devices of this node, with what they need of the machine.
struct Devices {
    test: Arc<TestDevice>,
    vm: Arc<OnceLock<std::sync::Weak<Vm>>>,
}

impl Devices {
    fn new() -> Self {
        Self { test: Arc::new(TestDevice::new()), vm: Arc::default() }
    }

    fn of(&self, options: &Options) -> Vec<(String, Arc<dyn Device>)> {
        let mut devices: Vec<(String, Arc<dyn Device>)> = Vec::new();
        if options.device.is_some() {
            let marks = Immediate(Marks(Arc::clone(&self.vm)));
            devices.push((Marks::spec(options.me).name, Arc::new(marks)));
        }
        if options.device == Some(options.me) {
            let test = Immediate(Shared(Arc::clone(&self.test)));
            devices.push(("test".into(), Arc::new(test)));
        }
        devices
    }

    fn connect(&self, vm: &Arc<Vm>) {
        assert!(self.test.interrupts.set(vm.interrupts()).is_ok());
        assert!(self.vm.set(Arc::downgrade(vm)).is_ok());
    }
}

/// Waits for the end, and logs now and then how it goes.
fn outcome(vm: &Vm, report: Duration) -> Outcome {
    loop {
        let patience = Patience::new(Some(report), &|| false);
        let state = vm.wait(|_| false, &patience);
        if let Ok(VmState::Ended(outcome)) = state {
            line(&format!("ended: {outcome:?}"));
            return outcome;
        }
        tell(vm);
    }
}

fn tell(vm: &Vm) {
    line(&format!("{:?} {}", vm.report(), vm.memory().stats_json().unwrap_or_default()));
}

/// Writes the memory that a line `...: result=0x... bytes=...` of the console names to a file.
fn save_result(vm: &Vm, console: &[u8], file: &Path) {
    let text = String::from_utf8_lossy(console);
    let named = text.lines().rev().find_map(|line| line.split_once(": result=0x"));
    let Some((start, bytes)) = named.and_then(|(_, rest)| rest.split_once(" bytes=")) else {
        return line("the guest has named no result");
    };
    // A guest's address below 3 GiB is the offset in the region.
    let start = usize::from_str_radix(start, 16).unwrap();
    let len: usize = bytes.trim().parse().unwrap();
    let view = vm.memory().memory().view();
    assert!(start.checked_add(len).is_some_and(|end| end <= view.len()));
    let mut copy = vec![0u8; len];
    // SAFETY: the range is in the view, which lives as long as the region that `vm` holds and may be
    // read at any time; the guest, the only one to write there, has ended.
    unsafe {
        std::ptr::copy_nonoverlapping((view.start + start) as *const u8, copy.as_mut_ptr(), len)
    };
    std::fs::write(file, copy).unwrap();
}

fn run(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let node = Arc::new(Node::start(config(options), None, &Patience::FOREVER)?);
    let written: Arc<Mutex<Vec<u8>>> = Arc::default();
    let console: ConsoleSink = {
        let written = Arc::clone(&written);
        Arc::new(move |bytes: &[u8]| {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(bytes);
            let _ = out.flush();
            written.lock().unwrap().extend_from_slice(bytes);
        })
    };
    let devices = Devices::new();
    let own = devices.of(options);
    let spec = spec(options);
    let is_console = |device: &&VirtioSpec| device.kind == VirtioKind::Console;
    let named = |device: &VirtioSpec| (device.name.clone(), Arc::clone(&console));
    let settings = VmOptions {
        run: false,
        console: Some(Arc::clone(&console)),
        profile: options.profile,
        devices: own,
        consoles: spec.virtio.iter().filter(is_console).map(named).collect(),
    };
    let vm = Arc::new(Vm::start(&node, spec, settings, &Patience::FOREVER)?);
    devices.connect(&vm);
    vm.run();
    let outcome = outcome(&vm, options.report);
    let lost = matches!(outcome, Outcome::Lost { .. });
    if !lost {
        line(&format!("stats: {}", vm.memory().stats_json().unwrap_or_default()));
        if let Some(profile) = vm.profile_json(1000) {
            line(&format!("profile: {profile}"));
        }
        if let Some(file) = options.result.as_ref().filter(|_| options.me == 0) {
            save_result(&vm, &written.lock().unwrap(), file);
        }
    }
    drop(vm);
    let _ = node.close(false, &Patience::new(Some(CLOSE), &|| false));
    line("closed");
    Ok(outcome)
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    log_lines::install(options.me);
    match run(&options) {
        Ok(Outcome::DebugExit { status: 1 } | Outcome::PowerOff) => ExitCode::SUCCESS,
        Ok(Outcome::Lost { .. }) => ExitCode::from(86),
        Ok(_) => ExitCode::from(3),
        Err(error) => {
            line(&error.to_string());
            ExitCode::from(3)
        }
    }
}
