//! Whole nodes: several in one process, joined by Unix sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use dsm_core::engine::{HoldError, WaitMode};
use dsm_core::types::{Access, NodeSet};
use giantvm_node::node::{
    Loss, Node, NodeConfig, NodeError, NodeSpec, Patience, Region, query_status,
};
use giantvm_node::sync::{Outcome, SyncName, SyncOp, home_of};

/// A folder of its own, removed with its contents at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gvm-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn config(&self, nodes: usize, me: usize) -> NodeConfig {
        let spec = |index| NodeSpec {
            name: format!("n{index}"),
            address: format!("unix:{}/n{index}.sock", self.0.display()),
            memory_bytes: 1 << 24,
            late: false,
        };
        NodeConfig {
            etcd: None,
            cluster: "test".into(),
            me,
            nodes: (0..nodes).map(spec).collect(),
            heartbeat: Duration::from_millis(100),
            timeout: Duration::from_secs(5),
            workers: 1,
            wait: WaitMode::Adaptive,
            insecure: false,
            join_timeout: None,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts all nodes, the last of the list first, and runs `work` on each in a thread of its own.
fn on_all(nodes: usize, work: impl Fn(Arc<Node>) + Sync) {
    on_all_told(nodes, |node, _| work(node));
}

/// As [`on_all`], with what each node is told of losses.
fn on_all_told(nodes: usize, work: impl Fn(Arc<Node>, Receiver<Loss>) + Sync) {
    let folder = Folder::new();
    std::thread::scope(|scope| {
        for me in (0..nodes).rev() {
            let config = folder.config(nodes, me);
            let work = &work;
            scope.spawn(move || {
                let (told, losses) = mpsc::channel();
                let told = move |loss: &Loss| _ = told.send(loss.clone());
                let node = Node::start(config, Some(Arc::new(told)), &Patience::FOREVER).unwrap();
                work(Arc::new(node), losses);
            });
        }
    });
}

fn word(region: &Region, index: usize) -> &AtomicU64 {
    let view = region.memory().view();
    let address = view.start + index * 8;
    assert!(view.contains(&address));
    // SAFETY: an aligned word of the view, which lives as long as the region; atomics may be
    // shared.
    unsafe { &*(address as *const AtomicU64) }
}

#[test]
fn three_nodes_share_memory_and_leave_together() {
    on_all(3, |node| {
        let region = node.region("r", Some(1 << 20), false, &Patience::FOREVER);
        let region = match region {
            Ok(region) => region,
            Err(NodeError::Region { reason }) if reason.contains("userfaultfd") => {
                println!("SKIPPED: {reason}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        for _ in 0..1000 {
            word(&region, 0).fetch_add(1, Ordering::SeqCst);
        }
        let op = SyncOp::BarrierWait { parties: 3 };
        node.sync("done", op, &Patience::FOREVER).unwrap();
        assert_eq!(word(&region, 0).load(Ordering::SeqCst), 3000);
        let again = node.region("r", None, false, &Patience::FOREVER).unwrap();
        assert_eq!(word(&again, 0).load(Ordering::SeqCst), 3000);
        let offset = region.allocate("block", 100, 4096, &Patience::FOREVER).unwrap();
        assert_eq!(offset, 0);
        let hold = region.hold(0..4096, Access::Write, Duration::from_secs(60)).unwrap();
        region.release(hold);
        node.close(false, &Patience::FOREVER).unwrap();
    });
}

#[test]
fn locks_exclude_and_counters_count() {
    let inside = AtomicU32::new(0);
    on_all(2, |node| {
        for _ in 0..200 {
            let (ticket, outcome) = node.sync("m", SyncOp::MutexLock, &Patience::FOREVER).unwrap();
            assert_eq!(outcome, Outcome::Granted);
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            inside.fetch_sub(1, Ordering::SeqCst);
            let unlock = SyncOp::MutexUnlock { holder: ticket };
            node.sync("m", unlock, &Patience::FOREVER).unwrap();
            node.sync("c", SyncOp::CounterAdd { delta: 1 }, &Patience::FOREVER).unwrap();
        }
        node.sync("b", SyncOp::BarrierWait { parties: 2 }, &Patience::FOREVER).unwrap();
        let (_, value) = node.sync("c", SyncOp::CounterGet, &Patience::FOREVER).unwrap();
        assert_eq!(value, Outcome::Value(400));
        node.close(false, &Patience::FOREVER).unwrap();
    });
}

#[test]
fn a_wait_that_times_out_holds_nothing() {
    on_all(1, |node| {
        let (ticket, _) = node.sync("m", SyncOp::MutexLock, &Patience::FOREVER).unwrap();
        let short = Patience::new(Some(Duration::from_millis(10)), &|| false);
        let late = node.sync("m", SyncOp::MutexLock, &short);
        assert!(matches!(late, Err(NodeError::TimedOut { .. })), "{late:?}");
        let unlock = SyncOp::MutexUnlock { holder: ticket };
        node.sync("m", unlock, &Patience::FOREVER).unwrap();
        let free = node.sync("m", SyncOp::MutexTryLock, &Patience::FOREVER).unwrap();
        assert_eq!(free.1, Outcome::Granted);
        let interrupted = Patience::new(None, &|| true);
        let result = node.sync("m", SyncOp::MutexLock, &interrupted);
        assert_eq!(result.err(), Some(NodeError::Interrupted));
    });
}

#[test]
fn others_go_on_without_a_node_that_goes_although_they_use_regions() {
    on_all_told(3, |node, losses| {
        let region = node.region("r", Some(3 << 21), false, &Patience::FOREVER).unwrap();
        // What each node's own range begins with; of the second node's, the third has a copy.
        let own = node.index() * (2 << 20) / 8;
        word(&region, own).store(node.index() as u64 + 1, Ordering::SeqCst);
        node.sync("b", SyncOp::BarrierWait { parties: 3 }, &Patience::FOREVER).unwrap();
        if node.index() == 2 {
            assert_eq!(word(&region, (2 << 20) / 8).load(Ordering::SeqCst), 2);
        }
        node.sync("b", SyncOp::BarrierWait { parties: 3 }, &Patience::FOREVER).unwrap();
        if node.index() == 1 {
            // Nobody else has this page, nor may know of it.
            word(&region, (2 << 20) / 8 + 512).store(7, Ordering::SeqCst);
            node.close(true, &Patience::FOREVER).unwrap();
            return;
        }
        let loss = losses.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((loss.lost.node.as_str(), loss.ended), ("n1", false));
        let second = (2 << 20) + 4096..(2 << 20) + 8192;
        assert!(loss.ranges["r"].iter().any(|it| it.start <= second.start && second.end <= it.end));
        assert_eq!(loss.ranges["r"], region.lost().unwrap());
        assert_eq!(node.lost(), None);
        for (index, value) in [(0, 1), (2 << 20, 2), (4 << 20, 3)] {
            assert_eq!(word(&region, index / 8).load(Ordering::SeqCst), value);
        }
        let held = region.hold(second, Access::Read, Duration::from_secs(60));
        assert_eq!(held, Err(NodeError::Hold(HoldError::Lost)));
        // And what begins after it is theirs.
        let region = node.region("new", Some(2 << 20), false, &Patience::FOREVER).unwrap();
        word(&region, 512 * node.index()).store(5, Ordering::SeqCst);
        assert_eq!(region.lost().unwrap(), []);
        node.close(false, &Patience::FOREVER).unwrap();
    });
}

#[test]
fn what_is_missing_is_named() {
    let folder = Folder::new();
    let start = |me| {
        let patience = Patience::new(Some(Duration::from_millis(200)), &|| false);
        Node::start(folder.config(2, me), None, &patience).err().unwrap().to_string()
    };
    let error = start(0);
    assert!(error.contains("n1 (it has not connected)"), "{error}");
    let error = start(1);
    assert!(error.contains("n0 (cannot connect to unix:"), "{error}");
}

#[test]
fn lists_that_differ_do_not_meet_and_say_so() {
    let folder = Folder::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let patience = Patience::new(Some(Duration::from_millis(700)), &|| false);
            let result = Node::start(folder.config(2, 0), None, &patience);
            assert!(matches!(result, Err(NodeError::TimedOut { .. })));
        });
        let mut config = folder.config(2, 1);
        config.nodes[0].memory_bytes += 4096;
        let patience = Patience::new(Some(Duration::from_millis(500)), &|| false);
        let error = Node::start(config, None, &patience).err().unwrap().to_string();
        assert!(error.contains("does not match cluster"), "{error}");
    });
}

#[test]
fn addresses_that_others_can_reach_need_leave() {
    let folder = Folder::new();
    let mut config = folder.config(1, 0);
    config.nodes[0].address = "0.0.0.0:0".into();
    let error = Node::start(config, None, &Patience::FOREVER).err().unwrap();
    assert!(matches!(&error, NodeError::NotLoopback { .. }), "{error}");
    assert!(error.to_string().contains("--insecure"));
}

#[test]
fn status_is_told_to_who_asks() {
    let folder = Folder::new();
    let config = folder.config(1, 0);
    let address = config.nodes[0].address.clone();
    let node = Node::start(config, None, &Patience::FOREVER).unwrap();
    let second = Duration::from_secs(10);
    let status = query_status(&address, "test", second).unwrap();
    assert!(status.contains("\"node\":\"n0\""), "{status}");
    let error = query_status(&address, "other", second).unwrap_err().to_string();
    assert!(error.contains("belongs to cluster \"test\""), "{error}");
    drop(node);
    let error = query_status(&address, "test", second).unwrap_err();
    assert!(matches!(error, NodeError::Unreachable { .. }));
}

#[test]
fn regions_that_do_not_fit_are_refused_with_figures() {
    on_all(2, |node| {
        if node.index() == 0 {
            let result = node.region("big", Some(1 << 30), false, &Patience::FOREVER);
            let error = result.err().unwrap().to_string();
            assert!(error.contains("n0 gives 16777216, n1 gives 16777216"), "{error}");
        }
        node.close(false, &Patience::FOREVER).unwrap();
    });
}

#[test]
fn a_lock_whose_home_has_left_moves_and_stays_held() {
    let away = (0..)
        .map(|number| format!("lock {number}"))
        .find(|name| {
            home_of(&SyncName::new(name).unwrap(), 2, NodeSet::EMPTY)
                .is_some_and(|home| home.index() == 1)
        })
        .unwrap();
    on_all(2, |node| {
        if node.index() == 1 {
            node.sync("b", SyncOp::BarrierWait { parties: 2 }, &Patience::FOREVER).unwrap();
            node.close(true, &Patience::FOREVER).unwrap();
            return;
        }
        let (holder, _) = node.sync(&away, SyncOp::MutexLock, &Patience::FOREVER).unwrap();
        node.sync("b", SyncOp::BarrierWait { parties: 2 }, &Patience::FOREVER).unwrap();
        std::thread::scope(|scope| {
            // It waits when the home leaves, or after that: the lock is held either way.
            let next = scope.spawn(|| node.sync(&away, SyncOp::MutexLock, &Patience::FOREVER));
            while node.epoch() < 2 {
                std::thread::yield_now();
            }
            let tried = node.sync(&away, SyncOp::MutexTryLock, &Patience::FOREVER);
            assert!(matches!(tried, Ok((_, Outcome::Busy))), "{tried:?}");
            node.sync(&away, SyncOp::MutexUnlock { holder }, &Patience::FOREVER).unwrap();
            assert!(matches!(next.join().unwrap(), Ok((_, Outcome::Granted))));
        });
    });
}
