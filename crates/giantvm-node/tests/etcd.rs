//! Nodes that a real etcd brings together and decides on: in this process, on Unix sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod etcd_proxy;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dsm_core::engine::WaitMode;
use etcd_proxy::Proxy;
use giantvm_node::node::{
    EtcdConfig, Node, NodeConfig, NodeError, NodeSpec, Patience, query_nodes,
};
use giantvm_node::sync::{Outcome, SyncOp};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gvm-etcd-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server on loopback, which ends with the test.
struct Etcd {
    folder: PathBuf,
    client: String,
    peer: String,
    server: Child,
}

impl Etcd {
    /// `None`, with a message, where there is none installed.
    fn start(folder: &Path) -> Option<Self> {
        let [client, peer] = [(); 2].map(|()| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            format!("http://127.0.0.1:{port}")
        });
        let folder = folder.to_owned();
        let Some(server) = Self::run(&folder, &client, &peer) else {
            println!("SKIPPED: there is no etcd: install etcd-server");
            return None;
        };
        Some(Self { folder, client, peer, server })
    }

    fn run(folder: &Path, client: &str, peer: &str) -> Option<Child> {
        let log = std::fs::File::create(folder.join("etcd.log")).unwrap();
        let etcd = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        etcd.ok()
    }

    fn stop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    fn start_again(&mut self) {
        self.server = Self::run(&self.folder, &self.client, &self.peer).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn config(folder: &Path, etcd: &str, name: &str, nodes: usize) -> NodeConfig {
    NodeConfig {
        cluster: "test".into(),
        me: 0,
        nodes: vec![NodeSpec {
            name: name.into(),
            address: format!("unix:{}/{name}.sock", folder.display()),
            memory_bytes: 64 << 20,
            late: false,
        }],
        etcd: Some(EtcdConfig { endpoints: vec![etcd.into()], nodes: Some(nodes) }),
        heartbeat: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        workers: 1,
        wait: WaitMode::Blocking,
        insecure: false,
        join_timeout: None,
    }
}

fn start(config: NodeConfig, patience: Duration) -> JoinHandle<Result<Arc<Node>, NodeError>> {
    std::thread::spawn(move || {
        Node::start(config, None, &Patience::new(Some(patience), &|| false)).map(Arc::new)
    })
}

/// Starts them all; only the first knows how many they are.
fn start_all(folder: &Path, etcd: &str, names: &[&str]) -> Vec<Arc<Node>> {
    let config_of = |(index, name): (usize, &&str)| {
        let mut config = config(folder, etcd, name, names.len());
        if let Some(etcd) = config.etcd.as_mut().filter(|_| index > 0) {
            etcd.nodes = None;
        }
        config
    };
    let starting: Vec<_> =
        names.iter().enumerate().map(config_of).map(|config| start(config, LONG)).collect();
    starting.into_iter().map(|node| node.join().unwrap().unwrap()).collect()
}

fn close_all(nodes: Vec<Arc<Node>>) {
    let closing: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            std::thread::spawn(move || {
                node.close(false, &Patience::new(Some(LONG), &|| false)).unwrap();
            })
        })
        .collect();
    closing.into_iter().for_each(|node| node.join().unwrap());
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn add(node: &Node, delta: i64) -> i64 {
    let patience = Patience::new(Some(LONG), &|| false);
    match node.sync("count", SyncOp::CounterAdd { delta }, &patience).unwrap().1 {
        Outcome::Value(before) => before,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nodes_find_each_other_share_and_leave_and_the_next_run_takes_over() {
    let folder = Folder::new("find");
    let Some(etcd) = Etcd::start(&folder.0) else { return };
    for _ in 0..2 {
        // They are started before etcd answers, the first time, and in no order.
        let nodes = start_all(&folder.0, &etcd.client, &["b", "a", "c"]);
        let orders: Vec<Vec<_>> = nodes
            .iter()
            .map(|node| node.config().nodes.iter().map(|it| it.name.clone()).collect())
            .collect();
        assert_eq!(orders, vec![["a", "b", "c"]; 3]);
        assert_eq!(nodes.iter().map(|node| node.index()).collect::<Vec<_>>(), [1, 0, 2]);
        let mut seen: Vec<_> = nodes.iter().map(|node| add(node, 1)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
        let known = query_nodes(std::slice::from_ref(&etcd.client), "test", LONG).unwrap();
        assert_eq!(known, nodes[0].config().nodes);
        close_all(nodes);
    }
    let unknown =
        query_nodes(std::slice::from_ref(&etcd.client), "other", LONG).unwrap_err().to_string();
    assert!(unknown.contains("knows no node of \"other\""), "{unknown}");
}

#[test]
fn etcd_away_for_a_moment_costs_nothing_and_for_good_ends_all_nodes() {
    let folder = Folder::new("away");
    let Some(mut etcd) = Etcd::start(&folder.0) else { return };
    let nodes = start_all(&folder.0, &etcd.client, &["a", "b"]);
    etcd.stop();
    etcd.start_again();
    // Every transaction from now on needs the etcd that came back.
    let deadline = Instant::now() + Duration::from_secs(8);
    while Instant::now() < deadline {
        add(&nodes[0], 1);
        assert_eq!(nodes.iter().find_map(|node| node.lost()), None);
        std::thread::sleep(Duration::from_millis(50));
    }
    etcd.stop();
    for node in &nodes {
        wait_until("the end of its right to run", || node.lost().is_some());
        let lost = node.lost().unwrap();
        assert!(lost.reason.contains(&etcd.client), "{lost:?}");
        assert!(lost.reason.contains("can't reach etcd at"), "{lost:?}");
        assert!(lost.reason.contains("check that etcd runs there"), "{lost:?}");
    }
}

#[test]
fn what_cannot_join_says_why() {
    let folder = Folder::new("refused");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = config(&folder.0, &format!("http://{nobody}"), "a", 2);
    let error = start(unreachable, Duration::from_secs(1)).join().unwrap().err().unwrap();
    let text = error.to_string();
    assert!(text.contains(&format!("etcd (http://{nobody}: ")), "{text}");
    assert!(text.contains("check that it runs there"), "{text}");

    let Some(etcd) = Etcd::start(&folder.0) else { return };
    let odd = EtcdConfig { endpoints: vec!["https://127.0.0.1:1".into()], nodes: None };
    let odd = NodeConfig { etcd: Some(odd), ..config(&folder.0, &etcd.client, "a", 1) };
    let error = start(odd, LONG).join().unwrap().err().unwrap().to_string();
    assert!(error.contains("etcd's addresses must be like http://"), "{error}");

    let nodes = start_all(&folder.0, &etcd.client, &["a", "b"]);
    let mut twice = config(&folder.0, &etcd.client, "a", 2);
    twice.nodes[0].address = format!("unix:{}/other.sock", folder.0.display());
    let mut other = config(&folder.0, &etcd.client, "d", 2);
    other.workers = 2;
    // Both at once: the first waits until what is in the way must be alive.
    let starting = [twice, other].map(|config| start(config, LONG));
    let [twice, other] = starting.map(|node| {
        let error = node.join().unwrap().err().unwrap();
        assert!(matches!(error, NodeError::Join { .. }), "{error:?}");
        error.to_string()
    });
    assert!(twice.contains("runs as node `a` of this cluster"), "{twice}");
    let text = "was started with workers = 1, this one with workers = 2";
    assert!(other.contains(text), "{other}");
    assert_eq!(nodes[0].lost(), None, "the cluster is not concerned");
    close_all(nodes);
}

#[test]
fn the_node_with_the_regions_may_leave_first() {
    let folder = Folder::new("leave");
    let Some(etcd) = Etcd::start(&folder.0) else { return };
    let nodes = start_all(&folder.0, &etcd.client, &["a", "b", "c"]);
    nodes[0].close(true, &Patience::FOREVER).unwrap();
    wait_until("the next epoch", || nodes[1..].iter().all(|node| node.epoch() == 2));
    assert_eq!((nodes[1].lost(), nodes[2].lost()), (None, None));
    let patience = Patience::new(Some(LONG), &|| false);
    nodes[1].region("late", Some(4096), false, &patience).unwrap();
    nodes[2].region("late", None, false, &patience).unwrap();
    for node in &nodes[1..] {
        node.close(true, &Patience::FOREVER).unwrap();
    }
}

#[test]
fn the_next_address_serves_if_one_does_not_answer() {
    let folder = Folder::new("next");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Some(etcd) = Etcd::start(&folder.0) else { return };
    let mut config = config(&folder.0, &etcd.client, "solo", 1);
    if let Some(etcd) = &mut config.etcd {
        etcd.endpoints.insert(0, format!("http://{nobody}"));
    }
    let node = start(config, LONG).join().unwrap().unwrap();
    assert_eq!((node.epoch(), add(&node, 1)), (1, 0));
    node.close(false, &Patience::FOREVER).unwrap();
}

#[test]
fn renewals_wait_for_no_transaction() {
    let folder = Folder::new("renewals");
    let Some(etcd) = Etcd::start(&folder.0) else { return };
    let proxy = Proxy::start(&etcd.client);
    // A transaction that renewals waited for would never be done, and no cluster formed.
    let nodes = start_all(&folder.0, &proxy.address, &["a", "b"]);
    // Two nodes came, formed a list, and started.
    assert!(proxy.transactions() >= 4, "what they wrote went another way");
    close_all(nodes);
}
