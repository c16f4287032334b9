//! One node of a virtual machine, from the command line: for work on the VM without Python.
//!
//!     vm_node INDEX ADDRESS,ADDRESS,... VCPU_NODE,VCPU_NODE,... MIB KERNEL INITRD|- CMDLINE [HIDE,...]

#![expect(clippy::unwrap_used, reason = "an example ends where something is not as it should be")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use dsm_core::engine::WaitMode;
use giantvm_node::node::{Node, NodeConfig, NodeSpec, Patience};
use giantvm_node::vm::{
    ConsoleSink, ImageSpec, TscSource, VcpuSpec, Vm, VmOptions, VmSpec, VmState,
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
        hide: args.get(7).map_or(Vec::new(), |hide| hide.split(',').map(str::to_owned).collect()),
        overcommit: true,
        tsc: TscSource::Hosts,
        kvm: "/dev/kvm".into(),
    }
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
    let options =
        VmOptions { run: true, console: Some(console), profile: false, devices: Vec::new() };
    let vm = Vm::start(&node, spec(&args), options, &Patience::FOREVER).unwrap();
    let outcome = loop {
        let patience = Patience::new(Some(Duration::from_secs(5)), &|| false);
        let state = vm.wait(|_| false, &patience);
        eprintln!("[n{me}] {:?} {}", vm.report(), vm.memory().stats_json().unwrap_or_default());
        if let Ok(VmState::Ended(outcome)) = state {
            break outcome;
        }
    };
    eprintln!("[n{me}] ended: {outcome:?}");
    if let Some(profile) = vm.profile_json(1000) {
        eprintln!("[n{me}] profile: {profile}");
    }
    drop(vm);
    let _ = node.close(false, &Patience::new(Some(Duration::from_secs(5)), &|| false));
}
