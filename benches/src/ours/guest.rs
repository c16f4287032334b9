//! giantvm's virtual machine: a process for each node.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use std::{env, fs, io, process};

use dsm_core::engine::WaitMode;
use dsm_core::report::chain;
use giantvm_node::node::{Node, NodeConfig, NodeSpec, Patience};
use giantvm_node::vm::{
    ConsoleSink, DeviceSpec, ImageSpec, TscSource, VcpuSpec, Vm, VmOptions, VmSpec,
};
use kvm_vcpu::bus::{Access, Data, Device, Immediate, Range, Reply, Simple, Space};
use kvm_vcpu::vm::Kvm;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::floor::Transport;
use crate::guest::registers::{NEXT, SAMPLES, SUM, TARGET_ADDRESS, TARGET_PORT};
use crate::guest::{Guest, RAM_BYTES, Turns, serve};
use crate::placement::CpuSet;

/// The hidden subcommand of the executable that makes it a node of a virtual machine.
pub const SUBCOMMAND: &str = "__guest-node";

/// Longer than any floor's turn on any machine: nodes are not what is tested here.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A virtual machine over some nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The guest.
    pub(crate) image: PathBuf,
    /// Its command line.
    pub(crate) cmdline: String,
    /// The node of each vCPU, and the processor of its thread where the node has more than one.
    pub(crate) vcpus: Vec<(usize, Option<usize>)>,
    /// The CPUs of each node.
    pub(crate) nodes: Vec<CpuSet>,
    /// The node of the device that `pio` and `mmio` read.
    pub(crate) device_home: usize,
    /// Between the nodes.
    pub(crate) transport: Transport,
}

/// One node of it.
#[derive(Debug, Serialize, Deserialize)]
struct Member {
    spec: Spec,
    index: usize,
    addresses: Vec<String>,
}

/// Starts all nodes.
pub(crate) fn start(spec: &Spec) -> Result<Guest, BenchError> {
    let addresses = addresses(spec.transport, spec.nodes.len())?;
    let member = |index| Member { spec: spec.clone(), index, addresses: addresses.clone() };
    let members: Vec<Member> = (0..spec.nodes.len()).map(member).collect();
    Guest::start(SUBCOMMAND, &members)
}

/// An address for each node that nobody listens at.
fn addresses(transport: Transport, nodes: usize) -> Result<Vec<String>, BenchError> {
    if transport == Transport::Unix {
        let folder = env::temp_dir();
        static LAST: Mutex<u32> = Mutex::new(0);
        let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last += 1;
        let name = |node| format!("giantvm-bench-{}-{last}-{node}.sock", process::id());
        return Ok((0..nodes)
            .map(|it| format!("unix:{}", folder.join(name(it)).display()))
            .collect());
    }
    let listen = |_| TcpListener::bind("127.0.0.1:0");
    let listeners = (0..nodes).map(listen).collect::<io::Result<Vec<_>>>();
    let listeners = listeners.map_err(BenchError::os("finding free ports"))?;
    let address = |it: &TcpListener| it.local_addr().map(|address| address.to_string());
    listeners
        .iter()
        .map(address)
        .collect::<io::Result<_>>()
        .map_err(BenchError::os("finding free ports"))
}

/// Ends with an error that has its causes.
fn failed(error: impl std::error::Error) -> BenchError {
    BenchError::Peer(format!("failed: {}", chain(&error)))
}

/// The node's own main: `args` are those behind [`SUBCOMMAND`].
///
/// # Errors
/// When the kernel refuses something, or the process that measures breaks the rules.
pub fn main(args: &[String]) -> Result<(), BenchError> {
    let usage = || BenchError::Usage(format!("{SUBCOMMAND} is internal"));
    let [member] = args else { return Err(usage()) };
    let Member { spec, index, addresses } = serde_json::from_str(member).map_err(|_| usage())?;
    spec.nodes.get(index).ok_or_else(usage)?.enter()?;
    let config = NodeConfig {
        etcd: None,
        cluster: "bench".into(),
        me: index,
        nodes: addresses.iter().enumerate().map(node_spec).collect(),
        heartbeat: Duration::from_secs(1),
        timeout: TIMEOUT,
        workers: 1,
        wait: WaitMode::Blocking,
        insecure: false,
        join_timeout: Some(TIMEOUT),
    };
    let node = Arc::new(Node::start(config, None, &Patience::FOREVER).map_err(failed)?);
    if let Some(path) = addresses.get(index).and_then(|address| address.strip_prefix("unix:")) {
        // This process is killed in the end, and leaves nothing.
        let _ = fs::remove_file(path);
    }
    let turns: Arc<Turns> = Arc::default();
    let mut devices: Vec<(String, Arc<dyn Device>)> = Vec::new();
    if index == 0 {
        devices.push(("batches".into(), Arc::new(BatchDevice(Arc::clone(&turns)))));
    }
    if index == spec.device_home {
        devices.push(("target".into(), Arc::new(Immediate(Target))));
    }
    let written: Arc<Mutex<Vec<u8>>> = Arc::default();
    let console = Arc::clone(&written);
    let console: ConsoleSink = Arc::new(move |bytes| lock(&console).extend_from_slice(bytes));
    let options = VmOptions {
        run: true,
        console: Some(console),
        profile: false,
        devices,
        consoles: Vec::new(),
    };
    let khz = Kvm::open(Kvm::PATH.as_ref()).and_then(|kvm| kvm.tsc_khz()).map_err(failed)?;
    let vm = Vm::start(&node, vm_spec(&spec), options, &Patience::FOREVER).map_err(failed)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let state = vm.wait(|_| false, &Patience::FOREVER);
            let console = String::from_utf8_lossy(&lock(&written)).into_owned();
            turns.end(format!("{state:?}\n{console}"));
        });
        let served = serve(&turns, khz, |_| Ok(()));
        vm.stop();
        served
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn node_spec((index, address): (usize, &String)) -> NodeSpec {
    NodeSpec {
        name: format!("n{index}"),
        address: address.clone(),
        memory_bytes: 256 << 20,
        late: false,
    }
}

fn vm_spec(spec: &Spec) -> VmSpec {
    let vcpu = |&(node, pin): &(usize, Option<usize>)| VcpuSpec { node, pin };
    let range = |space, start| Range { space, start, len: 16 };
    let device = |name: &str, home, ranges| DeviceSpec {
        name: name.into(),
        home,
        ranges,
        doorbells: Vec::new(),
    };
    let target = vec![range(Space::Pio, TARGET_PORT.into()), range(Space::Mmio, TARGET_ADDRESS)];
    VmSpec {
        name: "bench".into(),
        ram_bytes: RAM_BYTES as u64,
        vcpus: spec.vcpus.iter().map(vcpu).collect(),
        image: Some(ImageSpec {
            kernel: spec.image.clone(),
            format: None,
            cmdline: spec.cmdline.clone(),
            initrd: None,
            modules: Vec::new(),
        }),
        platform_home: 0,
        devices: vec![
            device("batches", 0, vec![range(Space::Pio, NEXT.into())]),
            device("target", spec.device_home, target),
        ],
        virtio: Vec::new(),
        hide: Vec::new(),
        overcommit: false,
        tsc: TscSource::Hosts,
        walk_shared: None,
        kvm: Kvm::PATH.into(),
    }
}

/// Where the guest gets its batches.
struct BatchDevice(Arc<Turns>);

impl Device for BatchDevice {
    fn name(&self) -> &str {
        "batches"
    }

    fn access(&self, access: Access, reply: Reply) {
        let at = |port: u16| u64::from(port - NEXT);
        match access {
            Access::Read { offset: 0, len } => {
                self.0.ask(move |count| reply.read(Data::from_u64(count.into(), len)));
            }
            Access::Read { len, .. } => reply.read(Data::all_ones(len)),
            Access::Write { offset, data } => {
                if offset == at(SAMPLES) {
                    self.0.add_samples(data.bytes());
                } else if offset == at(SUM) {
                    self.0.add_sum(data.bytes());
                }
                reply.written();
            }
        }
    }

    fn reset(&self) {}
}

/// A register that is always 0.
struct Target;

impl Simple for Target {
    fn name(&self) -> &str {
        "target"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::from_u64(0, len)
    }

    fn write(&self, _: u64, _: Data) {}

    fn reset(&self) {}
}
