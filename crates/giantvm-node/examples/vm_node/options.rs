//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use giantvm_node::vm::{TscSource, VirtioKind, VirtioSpec};

/// What this node does.
pub(crate) struct Options {
    pub(crate) me: usize,
    pub(crate) addresses: Vec<String>,
    /// The node of each vCPU.
    pub(crate) places: Vec<usize>,
    pub(crate) ram_bytes: u64,
    /// What each node gives of its memory; then all of them together have to suffice.
    pub(crate) share_bytes: Option<u64>,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) cmdline: String,
    pub(crate) hide: Vec<String>,
    /// The node of the test device of guests/README.md, if there is one.
    pub(crate) device: Option<usize>,
    /// Where the memory goes that the guest names as its result.
    pub(crate) result: Option<PathBuf>,
    pub(crate) tsc: TscSource,
    pub(crate) virtio: Vec<VirtioSpec>,
    /// Whether page tables are walk-shared, if that is not to be found out.
    pub(crate) walk_shared: Option<bool>,
    /// Find out where the guest waits for pages.
    pub(crate) profile: bool,
    /// How often a line tells what the memory has done so far.
    pub(crate) report: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) timeout: Duration,
}

const USAGE: &str = "\
vm_node INDEX ADDRESS,ADDRESS,... VCPU_NODE,VCPU_NODE,... MIB KERNEL INITRD|- CMDLINE [HIDE,...]
    --device=NODE        the test device of guests/README.md, and marks on all nodes
    --result=FILE        memory that the guest names as its result, when it has ended
    --share-mib=MIB      what each node gives of its memory; 1 GiB, and overcommit, without it
    --tsc=hosts|shared|nodes    what the hosts' time-stamp counters count
    --virtio=DEVICE      disk:NAME:HOME:PATH, cdrom:NAME:HOME:PATH (only read), net:NAME:HOME:TAP:QUEUES,
                         console:NAME:HOME (its output is the node's), rng:NAME:HOME; may be repeated
    --walk-shared=1|0    page tables that nobody stores to are writable on several nodes at once, or not
    --profile=1          tell at the end where the guest waited for pages
    --report-ms=5000     tell so often what the memory has done so far
    --heartbeat-ms=500   --timeout-ms=20000";

impl Options {
    /// Reads the command line, or says why it can't be.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (named, placed): (Vec<String>, Vec<String>) = args.partition(|it| it.starts_with("--"));
        let [me, addresses, places, mib, kernel, initrd, cmdline, rest @ ..] = &placed[..] else {
            return Err(USAGE.into());
        };
        let mut options = Self {
            me: number(me)?,
            addresses: list(addresses),
            places: list(places).iter().map(|it| number(it)).collect::<Result<_, _>>()?,
            ram_bytes: number::<u64>(mib)? << 20,
            share_bytes: None,
            kernel: kernel.into(),
            initrd: (initrd != "-").then(|| initrd.into()),
            cmdline: cmdline.clone(),
            hide: rest.first().map_or(Vec::new(), |hide| list(hide)),
            device: None,
            result: None,
            tsc: TscSource::Hosts,
            virtio: Vec::new(),
            walk_shared: None,
            profile: false,
            report: Duration::from_secs(5),
            heartbeat: Duration::from_millis(500),
            timeout: Duration::from_secs(20),
        };
        for option in &named {
            let (name, value) = option.split_once('=').ok_or(USAGE)?;
            match name {
                "--device" => options.device = Some(number(value)?),
                "--result" => options.result = Some(value.into()),
                "--share-mib" => options.share_bytes = Some(number::<u64>(value)? << 20),
                "--tsc" => {
                    options.tsc = match value {
                        "hosts" => TscSource::Hosts,
                        "shared" => TscSource::Shared,
                        "nodes" => TscSource::Nodes,
                        _ => return Err(USAGE.into()),
                    }
                }
                "--virtio" => options.virtio.push(virtio(value)?),
                "--walk-shared" => options.walk_shared = Some(value == "1"),
                #[cfg(feature = "mutations")]
                "--mistake" => dsm_core::engine::seed(mistake(value)?),
                "--profile" => options.profile = value == "1",
                "--report-ms" => options.report = Duration::from_millis(number(value)?),
                "--heartbeat-ms" => options.heartbeat = Duration::from_millis(number(value)?),
                "--timeout-ms" => options.timeout = Duration::from_millis(number(value)?),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}

/// What a region can be made to do wrong.
#[cfg(feature = "mutations")]
fn mistake(name: &str) -> Result<dsm_core::protocol::Mutation, String> {
    use dsm_core::protocol::Mutation;
    match name {
        "no-flush" => Ok(Mutation::WalkWithoutFlush),
        "no-proof" => Ok(Mutation::WalkWithoutProof),
        _ => Err(format!("{name:?} is no mistake that is known here: no-flush, no-proof")),
    }
}

fn virtio(device: &str) -> Result<VirtioSpec, String> {
    let parts: Vec<&str> = device.split(':').collect();
    let (name, home, kind) = match parts[..] {
        [kind @ ("disk" | "cdrom"), name, home, path] => {
            (name, home, VirtioKind::Disk { path: path.into(), read_only: kind == "cdrom" })
        }
        ["net", name, home, tap, queues] => {
            let queues = number(queues)?;
            (name, home, VirtioKind::Net { tap: tap.into(), mac: None, queues })
        }
        ["console", name, home] => (name, home, VirtioKind::Console),
        ["rng", name, home] => (name, home, VirtioKind::Rng),
        _ => return Err(format!("{device:?} is no device\n{USAGE}")),
    };
    Ok(VirtioSpec { name: name.into(), home: number(home)?, kind })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number that can be here\n{USAGE}"))
}
