//! How nodes that know only etcd and the cluster's name find each other.
//!
//! Each node has a key of its own under its lease, which says who it is ([`Present`]). When as many
//! are there as the cluster has, one of them, whoever is first, writes the list into the epoch key.
//! How many that is at least one node has to know; the others take the word of the first to say it.
//! [`Forming`] looks at what etcd has and says what to do next.
//!
//! Where a cluster runs already, a node announces itself all the same, and its eldest member takes it
//! in, or who is that after it.
//! If that can't be, the record and the keys show why: nobody has to answer.

use dsm_core::types::NODES_MAX;
use serde_json::{Value, json};

use super::record::{Listed, Record, RecordError, Standing, number, text};
use crate::limits::NODE_ADDRESS_BYTES_MAX;

/// What must be the same at every node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    /// How many nodes the cluster has; `None` at a node that leaves it to others to say.
    pub nodes: Option<u64>,
    /// Interval between heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// Silence after which a node is out, in milliseconds.
    pub timeout_ms: u64,
    /// Worker threads of every node.
    pub workers: u64,
}

impl Settings {
    fn fields(&self) -> [(&'static str, Option<u64>); 4] {
        [
            ("nodes", self.nodes),
            ("heartbeat_ms", Some(self.heartbeat_ms)),
            ("timeout_ms", Some(self.timeout_ms)),
            ("workers", Some(self.workers)),
        ]
    }

    /// The first difference, for people.
    fn difference(&self, other: &Self) -> Option<String> {
        let pairs = self.fields().into_iter().zip(other.fields());
        let mut both = pairs.filter_map(|((field, a), (_, b))| Some((field, a?, b?)));
        let (field, mine, theirs) = both.find(|(_, mine, theirs)| mine != theirs)?;
        Some(format!("{field} = {theirs}, this one with {field} = {mine}"))
    }
}

/// What a node says of itself, in its own key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Announcement {
    /// Where it listens.
    pub listen: String,
    /// Its share of memory, in bytes.
    pub memory_bytes: u64,
    /// Its process.
    pub incarnation: u64,
    /// How it is configured.
    pub settings: Settings,
}

impl Announcement {
    /// As text, for the key's value.
    pub fn to_json(&self) -> String {
        json!({
            "listen": self.listen,
            "memory_bytes": self.memory_bytes,
            "incarnation": self.incarnation,
            "nodes": self.settings.nodes,
            "heartbeat_ms": self.settings.heartbeat_ms,
            "timeout_ms": self.settings.timeout_ms,
            "workers": self.settings.workers,
        })
        .to_string()
    }

    /// Reads a key's value.
    ///
    /// # Errors
    /// [`RecordError`] names the first field that is wrong.
    pub fn from_json(value: &str) -> Result<Self, RecordError> {
        let value: Value = serde_json::from_str(value).unwrap_or_default();
        Ok(Self {
            listen: text(&value, "listen", NODE_ADDRESS_BYTES_MAX)?,
            memory_bytes: number(&value, "memory_bytes")?,
            incarnation: number(&value, "incarnation")?,
            settings: Settings {
                nodes: match value.get("nodes") {
                    None | Some(Value::Null) => None,
                    Some(_) => Some(number(&value, "nodes")?),
                },
                heartbeat_ms: number(&value, "heartbeat_ms")?,
                timeout_ms: number(&value, "timeout_ms")?,
                workers: number(&value, "workers")?,
            },
        })
    }
}

/// A node whose key is there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Present {
    /// Its name.
    pub name: String,
    /// The lease that keeps its key.
    pub lease: u64,
    /// The revision at which it came: the order of arrival.
    pub since: u64,
    /// What it says of itself.
    pub says: Announcement,
}

impl Present {
    /// Its entry in a record.
    pub(super) fn listed(&self, standing: Standing) -> Listed {
        let Announcement { listen, memory_bytes, incarnation, .. } = &self.says;
        Listed {
            name: self.name.clone(),
            listen: listen.clone(),
            memory_bytes: *memory_bytes,
            incarnation: *incarnation,
            lease: self.lease,
            joined: 0,
            standing,
        }
    }
}

/// All that etcd has of a cluster, at one moment.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct View {
    /// The revision at which the epoch key was written last; 0 if there is none.
    pub revision: u64,
    /// What it says.
    pub record: Option<Record>,
    /// The nodes that are there.
    pub present: Vec<Present>,
}

/// Why a node that says `own` can't be in one cluster with `other`, for people.
fn contradiction(own: &Announcement, other: &Present) -> Option<String> {
    if let Some(difference) = own.settings.difference(&other.says.settings) {
        let name = &other.name;
        return Some(format!(
            "node `{name}` was started with {difference}: use the same cluster file everywhere"
        ));
    }
    (other.says.listen == own.listen).then(|| {
        format!("node `{}` listens on {} too: give each its own", other.name, other.says.listen)
    })
}

impl View {
    /// Nodes that could be taken into the cluster that runs, in the order in which they came.
    pub(super) fn arrivals(&self, record: &Record) -> Vec<&Present> {
        let is_listed = |it: &Present| {
            record.nodes.iter().any(|listed| (&listed.name, listed.lease) == (&it.name, it.lease))
        };
        let fits = |it: &&Present| {
            let mut earlier = self.present.iter().filter(|other| other.since < it.since);
            earlier.all(|other| contradiction(&it.says, other).is_none())
        };
        let mut arrivals: Vec<_> =
            self.present.iter().filter(|it| !is_listed(it)).filter(fits).collect();
        arrivals.sort_by_key(|it| it.since);
        arrivals
    }

    /// Why nobody can be taken in, if that is so for good; for people. Members whose keys are gone
    /// have stopped, and those that are lost end: where no others are there, none will be.
    pub(super) fn no_way_in(&self, record: &Record) -> Option<String> {
        let is_there = |it: &Listed| it.standing == Standing::Member && self.has(it);
        let all_gone = || !record.nodes.iter().any(is_there);
        let over = || all_gone().then(|| "none of its members is there any more".into());
        record.no_way_in().or_else(over)
    }

    /// Whether the process that `listed` stands for is there.
    pub fn has(&self, listed: &Listed) -> bool {
        let is = |it: &Present| it.name == listed.name && it.lease == listed.lease;
        self.present.iter().any(is)
    }
}

/// Writes the epoch key, if nobody else has since it was read and the nodes are as stated.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proposal {
    /// The revision of what it follows; 0 if there was none.
    pub revision: u64,
    /// What is to be written.
    pub record: Record,
    /// Nodes, by name and lease, that must be there.
    pub present: Vec<(String, u64)>,
    /// Nodes, by name and lease, that must not be there.
    pub absent: Vec<(String, u64)>,
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Wait: for whom, for people.
    Wait(String),
    /// Write this node's own key, if there is none of its name.
    Announce,
    /// Write the list.
    Form(Proposal),
    /// The list is there, and this node is in it.
    Formed,
    /// This node can't be part of it, for people.
    Refused(String),
}

/// A node on its way into a list.
#[derive(Clone, Debug)]
pub struct Forming {
    name: String,
    lease: u64,
    lease_ms: u64,
    me: Announcement,
    /// Since when a process that may be dead is in the way.
    blocked_ms: Option<u64>,
}

impl Forming {
    /// The node called `name`, with its lease of `lease_ms`.
    pub fn new(name: &str, me: Announcement, lease: u64, lease_ms: u64) -> Self {
        Self { name: name.to_owned(), lease, lease_ms, me, blocked_ms: None }
    }

    /// Says what to do now that etcd has `view`.
    pub fn look(&mut self, now_ms: u64, view: &View) -> Next {
        let mine = |it: &&Present| it.name == self.name;
        let own = view.present.iter().find(mine);
        let is_listed = |it: &&Listed| it.name == self.name && it.lease == self.lease;
        let record = view.record.as_ref();
        if let Some(listed) = record.and_then(|record| record.nodes.iter().find(is_listed)) {
            return match listed.standing {
                Standing::Member | Standing::Joining => Next::Formed,
                _ => Next::Refused("the others have given this process up already".into()),
            };
        }
        if let Some(other) = own.filter(|own| own.lease != self.lease) {
            let what = format!(
                "another process, which listens on {}, runs as node `{}` of this cluster: give \
                 each node its own name, or end that one first",
                other.says.listen, self.name
            );
            return self.blocked(now_ms, what);
        }
        if let Some(refusal) = self.contradiction(view, own.map(|own| own.since)) {
            return Next::Refused(refusal);
        }
        let running = record.and_then(|record| Some((record, running(record, view)?)));
        if let Some(what) =
            running.as_ref().and_then(|(record, it)| self.kept_out(record, it, view))
        {
            return self.blocked(now_ms, what);
        }
        self.blocked_ms = None;
        match running {
            _ if own.is_none() => Next::Announce,
            Some((record, running)) => Next::Wait(self.way_in(record, &running)),
            None => self.form(view),
        }
    }

    /// Why a cluster that is there doesn't take this node in.
    fn kept_out(&self, record: &Record, running: &str, view: &View) -> Option<String> {
        if !record.has_started() {
            return None;
        }
        let full = || {
            let place = record.place_for(&self.name, |_| true);
            let comes_back = record.nodes.iter().any(|it| it.name == self.name);
            (place.is_none() && !comes_back).then(|| format!("it has {NODES_MAX} nodes"))
        };
        let why = view.no_way_in(record).or_else(full)?;
        Some(format!(
            "the cluster runs since before ({running}) and takes no node in: {why}; end all nodes, \
             then start them again"
        ))
    }

    /// Whom it waits for where it can be taken in.
    fn way_in(&self, record: &Record, running: &str) -> String {
        if !record.has_started() {
            return format!("the start of the cluster ({running}), to join it then");
        }
        let of_name = record.nodes.iter().find(|it| it.name == self.name);
        if of_name.is_some_and(|it| !it.standing.is_over()) {
            return "the cluster to notice that the earlier process is gone".into();
        }
        let eldest = record.eldest().and_then(|node| record.get(node));
        let name = eldest.map_or("", |it| it.name.as_str());
        if eldest.is_some_and(|it| it.standing != Standing::Member) {
            return format!("the end of node `{name}`, to join the cluster then ({running})");
        }
        format!("node `{name}` to take this one into the cluster that runs ({running})")
    }

    /// What an earlier process left is gone after its lease; what is still there then is alive.
    fn blocked(&mut self, now_ms: u64, what: String) -> Next {
        let since_ms = *self.blocked_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= self.lease_ms.saturating_mul(2) {
            Next::Refused(what)
        } else {
            Next::Wait(format!("the leases of an earlier run to end ({what})"))
        }
    }

    /// Whoever comes later with something that doesn't fit is refused; the others don't count it.
    fn contradiction(&self, view: &View, since: Option<u64>) -> Option<String> {
        let earlier = |it: &&Present| since.is_none_or(|since| it.since < since);
        let others = view.present.iter().filter(|it| it.name != self.name);
        others.filter(earlier).find_map(|it| contradiction(&self.me, it))
    }

    /// What everyone must agree with: this node's settings, the number of nodes by whoever said it
    /// first.
    fn agreed(&self, all: &[Present]) -> Settings {
        let mut said: Vec<_> = all.iter().filter(|it| self.agrees(it)).collect();
        said.sort_by_key(|it| it.since);
        let nodes = said.into_iter().find_map(|it| it.says.settings.nodes);
        Settings { nodes, ..self.me.settings.clone() }
    }

    fn agrees(&self, it: &Present) -> bool {
        self.me.settings.difference(&it.says.settings).is_none()
    }

    fn form(&self, view: &View) -> Next {
        let all = &view.present;
        let agreed = self.agreed(all);
        let fits = |it: &&Present| {
            let same_place = |other: &Present| {
                other.name != it.name
                    && other.says.listen == it.says.listen
                    && other.since < it.since
            };
            agreed.difference(&it.says.settings).is_none() && !all.iter().any(same_place)
        };
        let mut there: Vec<&Present> = all.iter().filter(fits).collect();
        let Some(wanted) = agreed.nodes else {
            let there = there.len();
            return Next::Wait(format!(
                "a node that says how many the cluster has ({there} are there): give `nodes` in \
                 the cluster file of one at least"
            ));
        };
        let wanted = wanted as usize;
        there.sort_by_key(|it| it.since);
        there.truncate(wanted);
        there.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = there.iter().map(|it| it.name.as_str()).collect();
        let names = names.join(", ");
        if there.len() < wanted {
            return Next::Wait(format!("nodes: {} of {wanted} are there: {names}", there.len()));
        }
        if !there.iter().any(|it| it.name == self.name) {
            return Next::Wait(format!("a place: the cluster has its {wanted} nodes: {names}"));
        }
        let nodes = there.iter().map(|it| it.listed(Standing::Member));
        // Whoever has the name of an earlier one now has its key: that one is gone.
        let old = view.record.iter().flat_map(|record| &record.nodes);
        let old = old.filter(|old| !there.iter().any(|it| it.name == old.name));
        Next::Form(Proposal {
            revision: view.revision,
            record: Record { epoch: 0, nodes: nodes.collect(), closed: None },
            present: there.iter().map(|it| (it.name.clone(), it.lease)).collect(),
            absent: old.map(|it| (it.name.clone(), it.lease)).collect(),
        })
    }
}

/// The cluster that has not ended, for people: no new one can begin.
fn running(record: &Record, view: &View) -> Option<String> {
    let there: Vec<_> =
        record.nodes.iter().filter(|it| view.has(it)).map(|it| it.name.as_str()).collect();
    (!there.is_empty()).then(|| format!("epoch {}, with {}", record.epoch, there.join(", ")))
}
