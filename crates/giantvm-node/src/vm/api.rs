//! A virtual machine, as programs use it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use dsm_core::engine::Nudge;
use dsm_core::report::chain;
use dsm_core::transport::ReceiveHalf;
use dsm_core::types::{NodeId, ThreadId};
use kvm_vcpu::boot::layout::Layout;
use kvm_vcpu::bus::{Device, Range, Unclaimed};
use kvm_vcpu::chips::Message;
use kvm_vcpu::cpuid::Supported;
use kvm_vcpu::vm::{Kvm, Limits, Machine};
use rustix::event::{EventfdFlags, epoll, eventfd};
use serde_json::{Value, json};

use super::access::Slots;
use super::clock::{Clock, ClockReport, HostClock};
use super::core::{Core, Event};
use super::exchange::Exchange;
use super::hub::Hub;
use super::lifecycle::{Ask, Lifecycle, VmState, Watch};
use super::maker::Maker;
use super::message::{Join, Outcome, Walks};
use super::platform::{self, Console, Parts};
use super::post::Post;
use super::profile::Profile;
use super::queue::DeviceQueue;
use super::ram::ram;
use super::spec::{Image, SpecError, TscSource, VmSpec};
use super::virtio;
use crate::node::{Node, NodeError, Patience, Region, lock};

/// Why there is no virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Its description can't be.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// KVM, the memory or a thread is not to be had.
    #[error("node {node}: {reason}")]
    Start {
        /// This node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The cluster can't.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It ended before it was asked for what it can't do any more.
    #[error("the virtual machine has ended: {0:?}")]
    Ended(Outcome),
}

/// Places and pages of the profile that a node's status tells.
const PROFILE_STATUS: usize = 1000;

/// Takes what the guest writes to its serial port; called on a vCPU's thread, must not block.
pub type ConsoleSink = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// What is this node's own business.
pub struct VmOptions {
    /// Run as soon as all nodes are ready.
    pub run: bool,
    /// The serial port's output, at the platform's home.
    pub console: Option<ConsoleSink>,
    /// Find out where the guest waits for pages ([`Vm::profile_json`]); it gets slower.
    pub profile: bool,
    /// Devices of the program's own whose home is this node, by the names of the description.
    pub devices: Vec<(String, Arc<dyn Device>)>,
    /// Where the output of virtio consoles whose home is this node goes, by their names. Called on a
    /// thread of the console.
    pub consoles: Vec<(String, ConsoleSink)>,
}

/// How a virtual machine does, at this node.
#[derive(Clone, PartialEq, Debug)]
pub struct VmReport {
    /// What it is doing.
    pub state: VmState,
    /// The guest's clock here.
    pub clock: ClockReport,
    /// Reads and writes that nobody answered.
    pub unclaimed: (u64, u64),
}

/// Who answers a range of ports or addresses, as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BusClaim {
    /// The range.
    pub range: Range,
    /// The device's name.
    pub device: String,
    /// The node that is asked; this one answers itself where there is none.
    pub node: Option<usize>,
}

/// One node's part of a virtual machine. Dropping it ends the machine.
pub struct Vm {
    node: Arc<Node>,
    region: Region,
    layout: Layout,
    core: Arc<Core>,
    watch: Arc<Watch>,
    console: Console,
    events: Sender<Event>,
    stop: OwnedFd,
    life: Mutex<Option<JoinHandle<()>>>,
    hears: Mutex<Option<JoinHandle<Vec<Option<ReceiveHalf>>>>>,
}

/// Drives interrupts from devices; lives as long as it likes.
#[derive(Clone)]
pub struct Interrupts(Weak<Hub>);

impl Interrupts {
    /// Drives the line of a global system interrupt.
    pub fn set_line(&self, gsi: u32, high: bool) {
        if let Some(hub) = self.0.upgrade() {
            hub.set_line(gsi, high);
        }
    }

    /// Sends a message-signalled interrupt to any vCPU (SDM vol. 3, 11.11).
    pub fn send_message(&self, address: u64, data: u32) {
        if let Some(hub) = self.0.upgrade() {
            hub.message(Message { address, data });
        }
    }
}

/// Says what makes the guest slow on this host, and what to do about it.
fn advise(limits: Limits, nodes: usize) {
    if !limits.halt_in_guest {
        log::warn!(
            "this host's KVM can't leave halted vCPUs in the guest (on AMD Zen 1 and 2 with SMT, \
             kvm.mitigate_smt_rsb=0 allows it): the guest's reads will fetch pages to write"
        );
    }
    if nodes > 1 && limits.ept_marks_pages {
        log::warn!(
            "this host's processor writes to the guest's page tables when it only reads them, and they \
             will go back and forth between the nodes: load kvm_intel with eptad=0"
        );
    }
}

impl Vm {
    /// Begins this node's part of a virtual machine; [`Vm::wait`] tells how it goes on. Every node of
    /// the cluster has to, in any order.
    ///
    /// # Errors
    /// [`VmError`], for what can be known without the other nodes.
    pub fn start(
        node: &Arc<Node>,
        spec: VmSpec,
        options: VmOptions,
        patience: &Patience<'_>,
    ) -> Result<Self, VmError> {
        let (me, nodes) = (node.index(), node.nodes().len());
        let name = node.config().nodes[me].name.clone();
        let failed = |reason: String| VmError::Start { node: name.clone(), reason };
        let checked = spec.check(nodes)?;
        let boots = spec.vcpus.first().is_some_and(|vcpu| vcpu.node == me);
        let image = match &spec.image {
            Some(image) if boots => Some(Image::read(image)?),
            _ => None,
        };
        let kvm = Kvm::open(&spec.kvm).map_err(|error| failed(chain(&error)))?;
        let most = kvm.limits().vcpus_max;
        if spec.vcpus.len() > most {
            let asked = spec.vcpus.len();
            return Err(failed(format!("{asked} vCPUs; this host's KVM takes at most {most}")));
        }
        advise(kvm.limits(), nodes);
        let format = spec.image.as_ref().and_then(|image| image.format);
        let join = Join {
            digest: spec.digest(),
            cpuid: supported(&kvm).map_err(failed)?,
            clock: host_clock(&kvm, spec.tsc, me).map_err(failed)?,
            walks: Walks {
                write: kvm.limits().walks_write,
                linux: image.as_ref().is_some_and(|image| image.is_linux(format)),
                one_worker: node.config().workers == 1,
            },
        };
        let region_name = format!("vm:{}", spec.name);
        let region = node.frail_region(&region_name, spec.ram_bytes, spec.overcommit, patience)?;
        let ram = ram(&region, &checked.layout).map_err(|error| failed(chain(&error)))?;
        let io = |error: std::io::Error| failed(error.to_string());
        let streams = node.take_vm_streams()?;
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for (index, stream) in streams.into_iter().enumerate() {
            let halves = stream.map(|stream| stream.split()).transpose().map_err(io)?;
            if halves.is_none() && index != me {
                return Err(failed("a cluster carries one virtual machine, and had it".into()));
            }
            let (sender, receiver) = halves.unzip();
            senders.push(sender);
            receivers.push(receiver);
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| io(e.into()))?;
        let link_failed = node.vm_link_failed();
        let watched = epoll.try_clone().map_err(io)?;
        let post = Post::new(senders, watched, Box::new(link_failed.clone())).map_err(io)?;
        let post = Arc::new(post);
        let id = |index| NodeId::new(index).ok_or_else(|| failed("too many nodes".into()));
        let hub = Arc::new(Hub::new(id(me)?, id(spec.platform_home)?, checked.node_of, post));
        let clock = Arc::new(Clock::new());
        let (events, received) = mpsc::channel();
        let lost = Arc::new(AtomicBool::new(false));
        let parts = Parts {
            spec: &spec,
            me,
            layout: &checked.layout,
            hub: &hub,
            clock: &clock,
            events: &events,
            console: options.console,
            devices: options.devices,
            virtio: virtio::Host {
                spec: &spec,
                me,
                name: &name,
                ram: &ram,
                hub: &hub,
                lost: &lost,
                consoles: &options.consoles,
            },
        };
        let (bus, console, virtio) = platform::build(parts)?;
        let slots = Arc::new(Slots::new(spec.vcpus_of(me)));
        let profile = options.profile.then(|| Profile::new(checked.layout));
        let core = Arc::new(Core {
            hub,
            bus,
            virtio,
            lost,
            slots,
            clock,
            events: events.clone(),
            profile,
        });
        if core.profile.is_some() {
            observe(&region, &core);
        }
        region.serve_vcpus(Arc::new(Halted(Arc::downgrade(&core.hub))));
        let watch = Arc::new(Watch::new());
        let mut joins = vec![None; nodes];
        joins[me] = Some(join);
        let spec = Arc::new(spec);
        let maker = Maker {
            spec,
            me,
            kvm,
            ram,
            layout: checked.layout,
            hidden: checked.hidden,
            image,
            cpuid: Vec::new(),
        };
        let lifecycle = Lifecycle {
            me: id(me)?,
            core: Arc::clone(&core),
            events: received,
            watch: Arc::clone(&watch),
            maker,
            memory: region.clone(),
            names: node.nodes().into_iter().map(|node| node.name).collect(),
            joins,
            generation: 0,
            ready: Default::default(),
            paused: Default::default(),
            auto_run: options.run,
            pausing: false,
            cleared: vec![0; nodes],
            loading: false,
            clock: None,
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| io(e.into()))?;
        let exchange =
            Exchange::new(Arc::clone(&core), receivers, epoll, &stop, Box::new(link_failed));
        let exchange = exchange.map_err(io)?;
        let vm = Self {
            node: Arc::clone(node),
            region,
            layout: checked.layout,
            core,
            watch,
            console,
            events,
            stop,
            life: Mutex::default(),
            hears: Mutex::default(),
        };
        vm.stop_with_node();
        vm.tell_status();
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        let hears = named("gvm-vm-hear").spawn(move || exchange.run()).map_err(io)?;
        *lock(&vm.hears) = Some(hears);
        let life = named("gvm-vm-life").spawn(move || lifecycle.run()).map_err(io)?;
        *lock(&vm.life) = Some(life);
        Ok(vm)
    }

    /// When a node is lost, no vCPU and no device of this one goes on, on memory that may be
    /// lost.
    fn stop_with_node(&self) {
        /// As long as a vCPU that was kicked can take to leave the guest.
        const OUT: Duration = Duration::from_millis(200);
        let core = Arc::clone(&self.core);
        self.node.set_stop_vm(Some(Arc::new(move |lost| {
            core.lost.store(true, Ordering::SeqCst);
            core.virtio.halt();
            if let Some(machine) = core.hub.machine() {
                machine.pause();
                core.slots.end();
                machine.wait_paused(OUT);
            }
            core.virtio.wait_quiet(OUT);
            core.tell(Event::Lost(format!("node {} is lost: {}", lost.node, lost.reason)));
        })));
    }

    fn tell_status(&self) {
        let (core, watch) = (Arc::downgrade(&self.core), Arc::clone(&self.watch));
        self.node.set_vm_status(Some(Arc::new(move || {
            let Some(core) = core.upgrade() else { return Value::Null };
            let clock = core.clock.report();
            let unclaimed = core.bus.unclaimed();
            json!({
                "state": watch.get().name(),
                "tsc_khz": clock.tsc_khz,
                "clock_error_ns": clock.error_ns,
                "clock_drift_ppm": clock.drift_ppm,
                "unclaimed_reads": unclaimed.reads,
                "unclaimed_writes": unclaimed.writes,
                "profile": core.profile.as_ref().map(|profile| profile.render(PROFILE_STATUS)),
            })
        })));
    }

    fn ask(&self, ask: Ask) {
        let _ = self.events.send(Event::Ask(ask));
    }

    /// Has all nodes' vCPUs run, once all are ready.
    pub fn run(&self) {
        self.ask(Ask::Run);
    }

    /// Has all nodes' vCPUs stop outside of the guest, whose clock goes on.
    pub fn pause(&self) {
        self.ask(Ask::Pause);
    }

    /// Has the guest start again.
    pub fn reset(&self) {
        self.ask(Ask::Reset);
    }

    /// Ends the virtual machine on all nodes.
    pub fn stop(&self) {
        self.ask(Ask::Stop);
    }

    /// What it is doing.
    pub fn state(&self) -> VmState {
        self.watch.get()
    }

    /// Waits for a state that `wanted` accepts; the end is always one.
    ///
    /// # Errors
    /// What ended the waiting.
    pub fn wait(
        &self,
        wanted: impl Fn(&VmState) -> bool,
        patience: &Patience<'_>,
    ) -> Result<VmState, NodeError> {
        let accepts = |state: &VmState| wanted(state) || matches!(state, VmState::Ended(_));
        patience.poll("the virtual machine", |until| self.watch.wait(accepts, Some(until)))
    }

    /// Ends the virtual machine on all nodes, for a device of the program's own that can't go on.
    pub fn fail(&self, reason: String) {
        let _ = self.events.send(Event::Failed(reason));
    }

    /// Has `then` called once, when it has ended; at once if it has. Called on a thread that must not
    /// be kept.
    pub fn on_end(&self, then: impl FnOnce() + Send + 'static) {
        self.watch.on_end(Box::new(then));
    }

    /// Hears of devices of `queue` that fail.
    pub fn serve(&self, queue: &DeviceQueue) {
        queue.connect(self.events.clone());
    }

    /// Gives input to the guest's serial port, at the platform's home; elsewhere to nobody. Returns how
    /// many bytes, from the first, there was room for.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.console.input(bytes)
    }

    /// Gives input to a virtio console, at its home; says how much of it there was room for, or none
    /// if there is no such console here.
    pub fn input_to(&self, console: &str, bytes: &[u8]) -> Option<usize> {
        self.core.virtio.console(console).map(|input| input.enqueue(bytes))
    }

    /// For devices of the program's own.
    pub fn interrupts(&self) -> Interrupts {
        Interrupts(Arc::downgrade(&self.core.hub))
    }

    /// The region that is its memory.
    pub fn memory(&self) -> &Region {
        &self.region
    }

    /// Where the guest waited for pages: the `most` most frequent places and pages of this node, as
    /// JSON that python/giantvm/profile.py describes; none without [`VmOptions::profile`].
    pub fn profile_json(&self, most: usize) -> Option<String> {
        self.core.profile.as_ref().map(|profile| profile.render(most).to_string())
    }

    /// Who answers which ports and addresses.
    pub fn claims(&self) -> Vec<BusClaim> {
        let claims = self.core.bus.claims();
        claims.map(|(range, name, node)| BusClaim { range, device: name.into(), node }).collect()
    }

    /// Accesses of this node's vCPUs that nobody answered.
    pub fn unclaimed(&self) -> Unclaimed {
        self.core.bus.unclaimed()
    }

    /// Where the guest's RAM is: guest-physical address, offset in the region, length.
    pub fn ram(&self) -> Vec<(u64, u64, u64)> {
        let ranges = self.layout.ranges().into_iter();
        ranges.map(|ram| (ram.start, ram.offset, ram.len)).collect()
    }

    /// How it does.
    pub fn report(&self) -> VmReport {
        let unclaimed = self.core.bus.unclaimed();
        VmReport {
            state: self.state(),
            clock: self.core.clock.report(),
            unclaimed: (unclaimed.reads, unclaimed.writes),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.node.set_stop_vm(None);
        self.node.set_vm_status(None);
        self.ask(Ask::Quit);
        if let Some(life) = lock(&self.life).take() {
            let _ = life.join();
        }
        // The machine has ended, and nobody needs to hear any more.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        let receivers = lock(&self.hears).take().and_then(|hears| hears.join().ok());
        self.node.keep((Arc::clone(&self.core), receivers));
    }
}

/// Which of this node's vCPUs, known by their threads, are halted.
struct Halted(Weak<Hub>);

impl Halted {
    fn machine(&self) -> Option<Arc<Machine>> {
        self.0.upgrade()?.machine()
    }
}

impl Nudge for Halted {
    fn nudge(&self, thread: ThreadId) {
        if let Some(machine) = self.machine() {
            machine.nudge(thread.0);
        }
    }

    fn found_idle(&self, thread: ThreadId) -> bool {
        self.machine().is_some_and(|machine| machine.found_halted(thread.0))
    }
}

/// Has the engine tell the profile of the guest's memory.
fn observe(region: &Region, core: &Arc<Core>) {
    let core = Arc::downgrade(core);
    region.observe(Arc::new(move |observed| {
        let Some(core) = core.upgrade() else { return };
        let Some(profile) = &core.profile else { return };
        let machine = core.hub.machine();
        let vcpu = |thread| machine.as_ref().and_then(|machine| machine.vcpu_of(thread));
        if let Some(vcpu) = profile.observed(observed, vcpu)
            && let Some(machine) = &machine
        {
            machine.sample(vcpu);
        }
    }));
}

fn supported(kvm: &Kvm) -> Result<Vec<u8>, String> {
    let entries = kvm.supported_cpuid().map_err(|error| chain(&error))?;
    Ok(Supported::new(entries).map_err(|error| error.to_string())?.encode())
}

fn host_clock(kvm: &Kvm, source: TscSource, me: usize) -> Result<HostClock, String> {
    let me = NodeId::new(me).ok_or("too many nodes")?;
    let khz = kvm.tsc_khz().map_err(|error| chain(&error))?;
    Ok(HostClock::here(source, me, khz, kvm.scaler(khz)))
}
