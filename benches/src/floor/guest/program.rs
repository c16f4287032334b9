//! The process of a floor's virtual machine.

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use super::bell::outrank;
use super::machine::{Machine, SHARED};
use super::platform::Platform;
use super::roles::{Alone, Asks, Faults, Hops, Outside};
use super::{Role, Spec};
use crate::error::BenchError;
use crate::floor::faults::{Flag, Waiter, join};
use crate::floor::link::Link;
use crate::floor::memory::Memory;
use crate::floor::peer::{self, Peer};
use crate::floor::{Seat, Wake};
use crate::guest::registers::BATCH_MAX;
use crate::guest::{Turns, serve};
use crate::placement::Spin;

/// The hidden subcommand of the executable that makes it a floor's virtual machine.
pub const SUBCOMMAND: &str = "__floor-guest";
/// The same for the machine that answers another one's interrupts; its link is standard input.
const ANSWERS: &str = "answers";

/// The process's own main: `args` are those behind [`SUBCOMMAND`].
///
/// # Errors
/// When the kernel refuses something, or the process that measures breaks the rules.
pub fn main(args: &[String]) -> Result<(), BenchError> {
    let usage = || BenchError::Usage(format!("{SUBCOMMAND} is internal"));
    let (spec, answers) = match args {
        [spec] => (spec, false),
        [spec, role] if role == ANSWERS => (spec, true),
        _ => return Err(usage()),
    };
    let spec: Spec = serde_json::from_str(spec).map_err(|_| usage())?;
    spec.cpus.first().ok_or_else(usage)?.enter()?;
    match spec.role {
        _ if answers => answer(&spec),
        Role::Local => {
            let turns = Arc::default();
            let khz = boot(&spec, &spec.cmdline, None, &turns, |_| Ok(Arc::new(Alone)))?;
            serve(&turns, khz, |_| Ok(()))
        }
        Role::Device => {
            let turns = Arc::default();
            let peer = serving_peer(&spec, 1)?;
            let asks = Asks::start(peer, Arc::clone(&turns));
            let khz = boot(&spec, &spec.cmdline, None, &turns, |_| Ok(asks))?;
            serve(&turns, khz, |_| Ok(()))
        }
        Role::Interrupt => send(&spec),
        Role::Fault { write } => fault(&spec, write),
    }
}

/// Starts the machine; the rate of its TSC.
fn boot<O: Outside + 'static>(
    spec: &Spec,
    cmdline: &str,
    shared: Option<&'static Memory>,
    turns: &Arc<Turns>,
    outside: impl FnOnce(&Machine) -> Result<Arc<O>, BenchError>,
) -> Result<u32, BenchError> {
    let machine = Machine::new(&spec.image, cmdline, spec.cpus.len(), shared)?;
    let platform = Platform {
        turns: Arc::clone(turns),
        outside: outside(&machine)?,
        vcpus: spec.cpus.len(),
        item: Mutex::default(),
        console: Mutex::default(),
    };
    let khz = machine.khz;
    machine.run(&spec.cpus, platform);
    Ok(khz)
}

fn seat(spec: &Spec) -> Seat {
    Seat { wake: Wake::Blocking, spin: Spin::Yielding, cpus: spec.peer_cpus.clone() }
}

/// Starts a peer that goes before all of ordinary priority, as giantvm's engine does that serves vCPUs: it
/// takes over the priority of the thread that starts it.
fn serving_peer(spec: &Spec, pages: usize) -> Result<Peer, BenchError> {
    let start = || {
        outrank();
        Peer::start(peer::Role::Serve, spec.transport, &seat(spec), pages)
    };
    thread::scope(|scope| join(scope.spawn(start)))
}

/// The side that sends first.
fn send(spec: &Spec) -> Result<(), BenchError> {
    let (link, theirs) = Link::pair(spec.transport)?;
    let mut there = spec.clone();
    there.cpus = vec![spec.peer_cpus.clone()];
    let there = serde_json::to_string(&there)
        .map_err(|error| BenchError::Peer(format!("can't be told anything: {error}")))?;
    let program = env::current_exe().map_err(BenchError::os("finding this executable"))?;
    // It ends with the link, so nobody waits for it.
    Command::new(program)
        .args([SUBCOMMAND, &there, ANSWERS])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(BenchError::os("starting a virtual machine's process"))?;
    let turns = Arc::default();
    let hops = Hops::start(link, Arc::clone(&turns));
    let cmdline = format!("{} kind=hop", spec.cmdline);
    let khz = boot(spec, &cmdline, None, &turns, |machine| {
        let (vm, hears, turns) = (Arc::clone(&machine.vm), Arc::clone(&hops), Arc::clone(&turns));
        thread::spawn(move || {
            let ended = hears.hear(&vm).err();
            turns.end(ended.map_or("the peer has ended".into(), |error| error.to_string()));
        });
        Ok(Arc::clone(&hops))
    })?;
    serve(&turns, khz, |count| hops.play(count))
}

/// The side that answers.
fn answer(spec: &Spec) -> Result<(), BenchError> {
    let input: OwnedFd =
        io::stdin().as_fd().try_clone_to_owned().map_err(BenchError::os("taking the link"))?;
    let turns = Arc::default();
    let hops = Hops::start(Link::from_fd(input), Arc::clone(&turns));
    let cmdline = format!("{} kind=answer", spec.cmdline);
    let mut vm = None;
    boot(spec, &cmdline, None, &turns, |machine| {
        vm = Some(Arc::clone(&machine.vm));
        Ok(Arc::clone(&hops))
    })?;
    vm.map_or(Ok(()), |vm| hops.hear(&vm))
}

fn fault(spec: &Spec, write: bool) -> Result<(), BenchError> {
    // The guest has it until the process ends.
    let memory: &'static Memory = Box::leak(Box::new(Memory::for_guests(BATCH_MAX)?));
    let faults = Arc::new(Faults { memory, peer: serving_peer(spec, BATCH_MAX)?, write });
    let turns: Arc<Turns> = Arc::default();
    let mine =
        Seat { cpus: spec.cpus.first().cloned().unwrap_or(spec.peer_cpus.clone()), ..seat(spec) };
    thread::spawn({
        let (faults, turns) = (Arc::clone(&faults), Arc::clone(&turns));
        move || {
            outrank();
            let handle = || {
                let done = Flag::new()?;
                let links = [faults.peer.link()];
                // What the peer says between batches is not for this thread, which would spin over it.
                let for_faults = Waiter::new(memory, &mine, &[], &done)?;
                let for_pages = Waiter::new(memory, &mine, &links, &done)?;
                while let Some(page) = for_faults.next_fault()? {
                    faults.answer(&for_pages, page)?;
                }
                Ok(())
            };
            let ended: Result<(), BenchError> = handle();
            memory.uffd().release();
            turns.end(ended.err().map_or("no more faults".into(), |error| error.to_string()));
        }
    });
    let cmdline = format!("{} at={SHARED:#x}", spec.cmdline);
    let khz = boot(spec, &cmdline, Some(memory), &turns, |_| Ok(Arc::new(Alone)))?;
    serve(&turns, khz, |_| faults.prepare())
}
