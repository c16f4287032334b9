//! One node of a virtual machine, from the command line: for work on the VM without Python.
//!
//!     vm_node INDEX ADDRESS,ADDRESS,... VCPU_NODE,VCPU_NODE,... MIB KERNEL INITRD|- CMDLINE [HIDE,...|- [hosts|shared [DEVICE...]]]
//!
//! The last word says what the hosts' time-stamp counters count: `shared` for virtual hosts of one machine. Node 0 writes
//! the guest's console to stdout. A device is `disk:NAME:HOME:PATH`, `cdrom:NAME:HOME:PATH` for one that is only read,
//! `net:NAME:HOME:TAP:QUEUES`, `console:NAME:HOME`, whose output is the node's stdout, or `rng:NAME:HOME`.

#![expect(clippy::unwrap_used, reason = "an example ends where something is not as it should be")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use dsm_core::engine::WaitMode;
use giantvm_node::node::{Node, NodeConfig, NodeSpec, Patience};
use giantvm_node::vm::{
    ConsoleSink, ImageSpec, TscSource, VcpuSpec, VirtioKind, VirtioSpec, Vm, VmOptions, VmSpec,
    VmState,
};

struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

fn config(me: usize, addresses: &str) -> NodeConfig {
    let node = |(index, address): (usize, &str)| NodeSpec {
        name: format!("n{index}"),
        address: address.into(),
        memory_bytes: 1 << 30,
    };
    NodeConfig {
        cluster: "vm".into(),
        me,
        nodes: addresses.split(',').enumerate().map(node).collect(),
        heartbeat: Duration::from_millis(500),
        timeout: Duration::from_secs(20),
        workers: 1,
        wait: WaitMode::Blocking,
        insecure: true,
        join_timeout: None,
    }
}

fn spec(args: &[String]) -> VmSpec {
    let vcpus = args[2].split(',').map(|node| VcpuSpec { node: node.parse().unwrap(), pin: None });
    VmSpec {
        name: "example".into(),
        ram_bytes: args[3].parse::<u64>().unwrap() << 20,
        vcpus: vcpus.collect(),
        image: Some(ImageSpec {
            kernel: args[4].clone().into(),
            format: None,
            cmdline: args[6].clone(),
            initrd: (args[5] != "-").then(|| args[5].clone().into()),
            modules: Vec::new(),
        }),
        platform_home: 0,
        devices: Vec::new(),
        virtio: args.iter().skip(9).map(|device| virtio(device)).collect(),
        hide: words(args.get(7)),
        overcommit: true,
        tsc: match args.get(8).map(String::as_str) {
            None | Some("hosts") => TscSource::Hosts,
            Some("shared") => TscSource::Shared,
            Some(other) => panic!("{other:?} is neither \"hosts\" nor \"shared\""),
        },
        kvm: "/dev/kvm".into(),
    }
}

/// The words of a list with commas; `-` is an empty one.
fn words(list: Option<&String>) -> Vec<String> {
    let list = list.filter(|list| *list != "-");
    list.map_or(Vec::new(), |list| list.split(',').map(str::to_owned).collect())
}

fn virtio(device: &str) -> VirtioSpec {
    let parts: Vec<&str> = device.split(':').collect();
    let kind = match parts[0] {
        kind @ ("disk" | "cdrom") => {
            VirtioKind::Disk { path: parts[3].into(), read_only: kind == "cdrom" }
        }
        "net" => {
            let queues = parts[4].parse().unwrap();
            VirtioKind::Net { tap: parts[3].into(), mac: None, queues }
        }
        "console" => VirtioKind::Console,
        "rng" => VirtioKind::Rng,
        other => panic!("{other:?} is no device"),
    };
    VirtioSpec { name: parts[1].into(), home: parts[2].parse().unwrap(), kind }
}

fn main() {
    let _ = log::set_logger(&Log);
    log::set_max_level(log::LevelFilter::Info);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let me: usize = args[0].parse().unwrap();
    let node = Arc::new(Node::start(config(me, &args[1]), None, &Patience::FOREVER).unwrap());
    let console: ConsoleSink = Arc::new(|bytes: &[u8]| {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes);
        let _ = out.flush();
    });
    let spec = spec(&args);
    let is_console = |device: &&VirtioSpec| device.kind == VirtioKind::Console;
    let named = |device: &VirtioSpec| (device.name.clone(), Arc::clone(&console));
    let consoles = spec.virtio.iter().filter(is_console).map(named).collect();
    let options = VmOptions {
        run: true,
        console: Some(Arc::clone(&console)),
        profile: false,
        devices: Vec::new(),
        consoles,
    };
    let vm = Vm::start(&node, spec, options, &Patience::FOREVER).unwrap();
    let outcome = loop {
        let patience = Patience::new(Some(Duration::from_secs(5)), &|| false);
        let state = vm.wait(|_| false, &patience);
        eprintln!("[n{me}] {:?} {}", vm.report(), vm.memory().stats_json().unwrap_or_default());
        if let Ok(VmState::Ended(outcome)) = state {
            break outcome;
        }
    };
    eprintln!("[n{me}] stats: {}", vm.memory().stats_json().unwrap_or_default());
    eprintln!("[n{me}] ended: {outcome:?}");
    if let Some(profile) = vm.profile_json(1000) {
        eprintln!("[n{me}] profile: {profile}");
    }
    drop(vm);
    let _ = node.close(false, &Patience::new(Some(Duration::from_secs(5)), &|| false));
}
