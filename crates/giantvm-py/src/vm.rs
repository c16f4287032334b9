//! `NativeVm`, and what the devices in Python are asked for.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use giantvm_node::node::Patience;
use giantvm_node::vm::{
    ConsoleOutput, ConsoleSink, DeviceQueue, DeviceRequest, DeviceSpec, ImageSpec, Interrupts,
    Outcome, TscSource, VcpuSpec, VirtioKind, VirtioSpec, Vm, VmError, VmOptions, VmSpec, VmState,
};
use kvm_vcpu::boot::Format;
use kvm_vcpu::bus::{Access, Data, Range, Reply, Space};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::{ClosedError, ClusterError, ConfigError, to_python};
use crate::exit;
use crate::fork::Owned;
use crate::node::{NativeNode, lock, wait, wait_or};

/// How long the end of a virtual machine is waited for when it is closed.
const END: Duration = Duration::from_secs(10);

/// What belongs to the process that began it.
struct Handle {
    vm: Mutex<Option<Arc<Vm>>>,
    queue: Arc<DeviceQueue>,
    console: Arc<ConsoleOutput>,
    interrupts: Interrupts,
}

impl Handle {
    fn vm(&self) -> PyResult<Arc<Vm>> {
        lock(&self.vm).clone().ok_or_else(|| ClosedError::new_err("this virtual machine is closed"))
    }

    /// Ends it. Python's lock must be free: a device in Python may have to return first.
    fn close(&self) {
        let Some(vm) = lock(&self.vm).take() else { return };
        if vm.state() != VmState::Starting {
            // While it runs, its devices answer.
            vm.stop();
            let _ = vm.wait(|_| false, &Patience::new(Some(END), &|| false));
        }
        self.queue.close();
        self.console.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        Python::attach(|py| py.detach(|| self.close()));
    }
}

/// One node's part of a virtual machine.
#[pyclass(frozen, module = "giantvm._native")]
pub(crate) struct NativeVm {
    handle: Owned<Handle>,
}

/// Name, home, ranges (whether ports, first, length), doorbells (first offset, length).
type DeviceTuple = (String, usize, Vec<(bool, u64, u64)>, Vec<(u64, u64)>);

/// Name, home, kind, file or tap, whether read-only, address, queues.
type VirtioTuple = (String, usize, String, String, bool, Option<String>, u16);

fn virtio_spec(tuple: &VirtioTuple) -> PyResult<VirtioSpec> {
    let (name, home, kind, place, read_only, mac, queues) = tuple;
    let kind = match kind.as_str() {
        "disk" => VirtioKind::Disk { path: place.into(), read_only: *read_only },
        "net" => {
            let mac = mac.as_deref().map(parsed).transpose()?;
            VirtioKind::Net { tap: place.clone(), mac, queues: *queues }
        }
        "console" => VirtioKind::Console,
        "rng" => VirtioKind::Rng,
        other => return Err(PyValueError::new_err(format!("{other:?} is no virtio device"))),
    };
    Ok(VirtioSpec { name: name.clone(), home: *home, kind })
}

/// Where the output of the consoles of this node goes: to files.
fn consoles(virtio: &[VirtioTuple], me: usize) -> PyResult<Vec<(String, ConsoleSink)>> {
    let mut sinks = Vec::new();
    for (name, home, kind, place, ..) in virtio {
        if kind != "console" || *home != me || place.is_empty() {
            continue;
        }
        let opened = OpenOptions::new().append(true).create(true).open(place);
        let file = opened.map_err(|error| {
            ClusterError::new_err(format!("console {name:?}: can't write {place}: {error}"))
        })?;
        // What the file's host has no room for is lost, as the guest can't be told.
        let sink: ConsoleSink = Arc::new(move |bytes: &[u8]| _ = (&file).write_all(bytes));
        sinks.push((name.clone(), sink));
    }
    Ok(sinks)
}

/// Whether ports, first, length, device, node to be asked.
type ClaimTuple = (bool, u64, u64, String, Option<usize>);

/// Whether a port, and which port or address.
type PlaceTuple = (bool, u64);

fn device((name, home, ranges, doorbells): DeviceTuple) -> DeviceSpec {
    let range = |(ports, start, len)| {
        let space = if ports { Space::Pio } else { Space::Mmio };
        Range { space, start, len }
    };
    let doorbell = |(start, len): (u64, u64)| start..start.saturating_add(len);
    DeviceSpec {
        name,
        home,
        ranges: ranges.into_iter().map(range).collect(),
        doorbells: doorbells.into_iter().map(doorbell).collect(),
    }
}

fn vm_error(error: VmError) -> PyErr {
    let text = error.to_string();
    match error {
        VmError::Spec(_) => ConfigError::new_err(text),
        VmError::Start { .. } | VmError::Ended(_) => ClusterError::new_err(text),
        VmError::Node(error) => to_python(error),
    }
}

/// State, and, at the end, how: kind, status, reason.
type StateTuple = (&'static str, Option<(&'static str, Option<u32>, String)>);

fn state_tuple(state: VmState) -> StateTuple {
    let name = state.name();
    let outcome = match state {
        VmState::Ended(outcome) => Some(outcome_tuple(outcome)),
        _ => None,
    };
    (name, outcome)
}

fn outcome_tuple(outcome: Outcome) -> (&'static str, Option<u32>, String) {
    match outcome {
        Outcome::PowerOff => ("power-off", None, String::new()),
        Outcome::DebugExit { status } => ("debug-exit", Some(status), String::new()),
        Outcome::GuestFault { reason } => ("guest-fault", None, reason),
        Outcome::Failed { reason } => ("failed", None, reason),
        Outcome::Lost { reason } => ("lost", None, reason),
        Outcome::Stopped => ("stopped", None, String::new()),
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> PyResult<T> {
    text.parse().map_err(|error: T::Err| ConfigError::new_err(error.to_string()))
}

fn tsc_source(name: &str) -> PyResult<TscSource> {
    match name {
        "hosts" => Ok(TscSource::Hosts),
        "shared" => Ok(TscSource::Shared),
        "nodes" => Ok(TscSource::Nodes),
        other => Err(ConfigError::new_err(format!(
            "tsc {other:?}: use \"hosts\", \"shared\" or \"nodes\""
        ))),
    }
}

#[pymethods]
impl NativeVm {
    #[new]
    #[pyo3(signature = (node, name, memory_bytes, vcpus, kernel, kernel_format, cmdline, initrd,
        modules, platform, devices, virtio, hide, overcommit, tsc, walk_shared, kvm, profile,
        timeout_ms))]
    #[expect(clippy::too_many_arguments, reason = "the description, one by one")]
    fn new(
        py: Python<'_>,
        node: &NativeNode,
        name: String,
        memory_bytes: u64,
        vcpus: Vec<(usize, Option<usize>)>,
        kernel: Option<PathBuf>,
        kernel_format: Option<&str>,
        cmdline: String,
        initrd: Option<PathBuf>,
        modules: Vec<(PathBuf, String)>,
        platform: usize,
        devices: Vec<DeviceTuple>,
        virtio: Vec<VirtioTuple>,
        hide: Vec<String>,
        overcommit: bool,
        tsc: &str,
        walk_shared: Option<bool>,
        kvm: PathBuf,
        profile: bool,
        timeout_ms: Option<u64>,
    ) -> PyResult<Self> {
        let native = node.state.get()?.node()?;
        let format: Option<Format> = kernel_format.map(parsed).transpose()?;
        let image = kernel.map(|kernel| ImageSpec { kernel, format, cmdline, initrd, modules });
        let spec = VmSpec {
            name,
            ram_bytes: memory_bytes,
            vcpus: vcpus.into_iter().map(|(node, pin)| VcpuSpec { node, pin }).collect(),
            image,
            platform_home: platform,
            devices: devices.into_iter().map(device).collect(),
            virtio: virtio.iter().map(virtio_spec).collect::<PyResult<_>>()?,
            hide,
            overcommit,
            tsc: tsc_source(tsc)?,
            walk_shared,
            kvm,
        };
        let (queue, console) = (DeviceQueue::new(), ConsoleOutput::new());
        let here = spec.devices.iter().enumerate();
        let here = here.filter(|(_, device)| device.home == native.index());
        let devices = here.map(|(at, it)| (it.name.clone(), queue.device(at, &it.name))).collect();
        let options = VmOptions {
            run: false,
            console: Some(console.sink()),
            profile,
            devices,
            consoles: consoles(&virtio, native.index())?,
        };
        let vm = wait_or(py, timeout_ms, vm_error, |patience| {
            Vm::start(&native, spec, options, patience)
        })?;
        vm.serve(&queue);
        let output = Arc::clone(&console);
        vm.on_end(move || output.close());
        let interrupts = vm.interrupts();
        let vm = Mutex::new(Some(Arc::new(vm)));
        Ok(Self { handle: Owned::new(Handle { vm, queue, console, interrupts }) })
    }

    fn run(&self) -> PyResult<()> {
        self.vm().map(|vm| vm.run())
    }

    fn pause(&self) -> PyResult<()> {
        self.vm().map(|vm| vm.pause())
    }

    fn reset(&self) -> PyResult<()> {
        self.vm().map(|vm| vm.reset())
    }

    fn stop(&self) -> PyResult<()> {
        self.vm().map(|vm| vm.stop())
    }

    fn fail(&self, reason: String) -> PyResult<()> {
        self.vm().map(|vm| vm.fail(reason))
    }

    fn state(&self) -> PyResult<StateTuple> {
        Ok(state_tuple(self.vm()?.state()))
    }

    #[pyo3(signature = (states, timeout_ms))]
    fn wait(
        &self,
        py: Python<'_>,
        states: Vec<String>,
        timeout_ms: Option<u64>,
    ) -> PyResult<StateTuple> {
        let vm = self.vm()?;
        let wanted = |state: &VmState| {
            let (name, _) = state_tuple(state.clone());
            states.iter().any(|wanted| wanted == name)
        };
        wait(py, timeout_ms, |patience| vm.wait(wanted, patience)).map(state_tuple)
    }

    /// Guest-physical address, offset in the region, length.
    fn ram(&self) -> PyResult<Vec<(u64, u64, u64)>> {
        Ok(self.vm()?.ram())
    }

    fn clock(&self) -> PyResult<(u32, i64, f64, f64)> {
        let clock = self.vm()?.report().clock;
        Ok((clock.tsc_khz, clock.tsc_offset, clock.error_ns, clock.drift_ppm))
    }

    fn claims(&self) -> PyResult<Vec<ClaimTuple>> {
        let claims = self.vm()?.claims().into_iter();
        let tuple = |it: giantvm_node::vm::BusClaim| {
            (it.range.space == Space::Pio, it.range.start, it.range.len, it.device, it.node)
        };
        Ok(claims.map(tuple).collect())
    }

    /// Reads, writes, and where the last of each was.
    fn unclaimed(&self) -> PyResult<(u64, u64, Option<PlaceTuple>, Option<PlaceTuple>)> {
        let unclaimed = self.vm()?.unclaimed();
        let place = |(space, address): (Space, u64)| (space == Space::Pio, address);
        let (read, write) = (unclaimed.last_read, unclaimed.last_write);
        Ok((unclaimed.reads, unclaimed.writes, read.map(place), write.map(place)))
    }

    fn set_line(&self, py: Python<'_>, gsi: u32, high: bool) -> PyResult<()> {
        let interrupts = &self.handle.get()?.interrupts;
        detached(py, || interrupts.set_line(gsi, high));
        Ok(())
    }

    fn send_msi(&self, py: Python<'_>, address: u64, data: u32) -> PyResult<()> {
        let interrupts = &self.handle.get()?.interrupts;
        detached(py, || interrupts.send_message(address, data));
        Ok(())
    }

    fn console_write(&self, py: Python<'_>, data: &[u8]) -> PyResult<usize> {
        let vm = self.vm()?;
        Ok(detached(py, || vm.input(data)))
    }

    #[pyo3(signature = (timeout_ms))]
    fn console_read(&self, py: Python<'_>, timeout_ms: Option<u64>) -> PyResult<Vec<u8>> {
        let console = &self.handle.get()?.console;
        wait(py, timeout_ms, |patience| console.read(patience))
    }

    fn console_dropped(&self) -> PyResult<u64> {
        Ok(self.handle.get()?.console.dropped())
    }

    fn next_request(&self, py: Python<'_>) -> PyResult<Option<NativeRequest>> {
        let queue = &self.handle.get()?.queue;
        Ok(detached(py, || queue.next()).map(NativeRequest::new))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.handle.get()?;
        detached(py, || handle.close());
        Ok(())
    }
}

impl NativeVm {
    fn vm(&self) -> PyResult<Arc<Vm>> {
        self.handle.get()?.vm()
    }
}

/// Runs `call` without Python's lock.
fn detached<T: Send>(py: Python<'_>, call: impl FnOnce() -> T + Send) -> T {
    py.detach(|| {
        let result = call();
        exit::stay_if_ending();
        result
    })
}

/// One access of the guest to a device in Python, or its reset.
#[pyclass(frozen, module = "giantvm._native")]
pub(crate) struct NativeRequest {
    #[pyo3(get)]
    device: usize,
    #[pyo3(get)]
    kind: &'static str,
    #[pyo3(get)]
    offset: u64,
    #[pyo3(get)]
    size: usize,
    #[pyo3(get)]
    value: u64,
    reply: Mutex<Option<Reply>>,
}

impl NativeRequest {
    fn new(request: DeviceRequest) -> Self {
        let (kind, offset, size, value) = match request.access {
            None => ("reset", 0, 0, 0),
            Some(Access::Read { offset, len }) => ("read", offset, len, 0),
            Some(Access::Write { offset, data }) => ("write", offset, data.len(), data.to_u64()),
        };
        let reply = Mutex::new(Some(request.reply));
        Self { device: request.device, kind, offset, size, value, reply }
    }
}

#[pymethods]
impl NativeRequest {
    #[pyo3(signature = (value))]
    fn answer(&self, py: Python<'_>, value: Option<u64>) -> PyResult<()> {
        let reply = lock(&self.reply).take();
        let reply = reply.ok_or_else(|| PyValueError::new_err("answered already"))?;
        detached(py, || match value {
            Some(value) => reply.read(Data::from_u64(value, self.size)),
            None => reply.written(),
        });
        Ok(())
    }
}
