//! Disks, networks, consoles and random numbers, as a description names them.

use std::path::PathBuf;

use kvm_vcpu::virtio::MacAddress;
use xxhash_rust::xxh3::xxh3_64;

use crate::vm::spec::SpecError;

/// Most virtio devices: a bus has 32, and the host bridge is one.
pub(super) const DEVICES_MAX: usize = 31;
/// Longest name of a device: what a disk's serial number has room for.
const NAME_BYTES_MAX: usize = 20;

/// A virtio device on the PCI bus. The guest finds them in the order of the description, from device 1 on:
/// the first disk is `vda`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VirtioSpec {
    /// Its name, unique among all devices; a disk's is its serial number
    /// (`/dev/disk/by-id/virtio-NAME`).
    pub name: String,
    /// The node where it lives, by its position in the cluster's list: files and taps are that host's.
    pub home: usize,
    /// What it is.
    pub kind: VirtioKind,
}

/// What a virtio device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VirtioKind {
    /// A disk.
    Disk {
        /// A raw file, or a block device, of a multiple of 512 bytes.
        path: PathBuf,
        /// Whether the guest can only read it; any number of disks can share it then.
        read_only: bool,
    },
    /// A network interface.
    Net {
        /// An existing tap of the host.
        tap: String,
        /// Its address, or none for one that follows from the names of machine and device.
        mac: Option<MacAddress>,
        /// Pairs of queues, 1 to 64: each has a thread, and more than one needs a tap made with
        /// `multi_queue`.
        queues: u16,
    },
    /// A console: `hvc0` and so on. Its output goes where
    /// [`VmOptions::consoles`](crate::vm::VmOptions::consoles) says.
    Console,
    /// Random numbers of the host.
    Rng,
}

impl VirtioSpec {
    /// What kind of device it is, and its name, for people.
    pub(super) fn title(&self) -> String {
        let kind = match self.kind {
            VirtioKind::Disk { .. } => "disk",
            VirtioKind::Net { .. } => "network interface",
            VirtioKind::Console => "console",
            VirtioKind::Rng => "source of random numbers",
        };
        format!("{kind} {:?}", self.name)
    }

    /// What all nodes must agree on: not what only its home has to know.
    fn agreed(&self) -> (&str, usize, &str, u16) {
        let (kind, queues) = match &self.kind {
            VirtioKind::Disk { .. } => ("disk", 1),
            VirtioKind::Net { queues, .. } => ("net", *queues),
            VirtioKind::Console => ("console", 1),
            VirtioKind::Rng => ("rng", 1),
        };
        (&self.name, self.home, kind, queues)
    }

    /// The address of a network interface of the machine `vm`.
    pub(super) fn mac(&self, vm: &str) -> MacAddress {
        match self.kind {
            VirtioKind::Net { mac: Some(mac), .. } => mac,
            _ => MacAddress::local(xxh3_64(format!("{vm}\0{}", self.name).as_bytes())),
        }
    }
}

/// What all nodes must agree on.
pub(in crate::vm) fn agreed(devices: &[VirtioSpec]) -> String {
    format!("{:?}", devices.iter().map(VirtioSpec::agreed).collect::<Vec<_>>())
}

/// Whether these devices can be; `taken` are the names of others.
pub(in crate::vm) fn check(
    devices: &[VirtioSpec],
    taken: &[&str],
    nodes: usize,
) -> Result<(), SpecError> {
    if devices.len() > DEVICES_MAX {
        let asked = devices.len();
        return Err(SpecError(format!(
            "{asked} virtio devices; a virtual machine has room for {DEVICES_MAX}"
        )));
    }
    for (index, device) in devices.iter().enumerate() {
        let name = &device.name;
        let length = 1..=NAME_BYTES_MAX;
        if !length.contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SpecError(format!(
                "a device can't be named {name:?}: 1 to {NAME_BYTES_MAX} letters, digits and signs"
            )));
        }
        let before = devices[..index].iter().map(|other| other.name.as_str());
        if before.chain(taken.iter().copied()).any(|other| other == name) {
            return Err(SpecError(format!("two devices are named {name:?}")));
        }
        if device.home >= nodes {
            return Err(SpecError(format!(
                "{} is on node number {}, but the cluster has {nodes}",
                device.title(),
                device.home
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, home: usize, kind: VirtioKind) -> VirtioSpec {
        VirtioSpec { name: name.into(), home, kind }
    }

    fn refused(devices: &[VirtioSpec]) -> String {
        check(devices, &["own"], 2).unwrap_err().0
    }

    #[test]
    fn devices_that_can_not_be_are_refused() {
        let rng = |name: &str| device(name, 0, VirtioKind::Rng);
        assert!(check(&[rng("a"), rng("b")], &["own"], 2).is_ok());
        assert!(refused(&[rng("a"), rng("a")]).contains("two devices are named \"a\""));
        assert!(refused(&[rng("own")]).contains("two devices are named \"own\""));
        for name in ["", "a name", "a-name-of-21-letters-", "ä", "a\n"] {
            assert!(refused(&[rng(name)]).contains("can't be named"), "{name}");
        }
        let away = device("con", 2, VirtioKind::Console);
        let expected = "console \"con\" is on node number 2, but the cluster has 2";
        assert_eq!(refused(&[away]), expected);
        let many: Vec<_> = (0..32).map(|number| rng(&format!("r{number}"))).collect();
        assert!(refused(&many).contains("room for 31"));
        assert!(check(&many[..31], &[], 1).is_ok());
    }

    #[test]
    fn nodes_agree_on_what_the_guest_sees_and_not_on_paths() {
        let disk = |home, path: &str| {
            device("d", home, VirtioKind::Disk { path: path.into(), read_only: false })
        };
        assert_eq!(agreed(&[disk(0, "/a")]), agreed(&[disk(0, "/b")]));
        assert_ne!(agreed(&[disk(0, "/a")]), agreed(&[disk(1, "/a")]));
        let net = |queues| device("n", 0, VirtioKind::Net { tap: "t".into(), mac: None, queues });
        assert_ne!(agreed(&[net(1)]), agreed(&[net(2)]));
        assert_ne!(agreed(&[net(1)]), agreed(&[device("n", 0, VirtioKind::Rng)]));
    }

    #[test]
    fn an_address_follows_from_the_names() {
        let net = |name| device(name, 0, VirtioKind::Net { tap: "t".into(), mac: None, queues: 1 });
        assert_eq!(net("n").mac("vm"), net("n").mac("vm"));
        assert_ne!(net("n").mac("vm"), net("m").mac("vm"));
        assert_ne!(net("n").mac("vm"), net("n").mac("other"));
        let given: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        let kind = VirtioKind::Net { tap: "t".into(), mac: Some(given), queues: 1 };
        assert_eq!(device("n", 0, kind).mac("vm"), given);
    }
}
