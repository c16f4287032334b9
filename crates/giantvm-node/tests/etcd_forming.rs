//! How nodes that know only etcd find each other, and what etcd's keys say.

use giantvm_node::membership::etcd::{
    Announcement, Forming, Listed, Next, Present, Proposal, Record, Settings, Standing, View,
};

const LEASE_MS: u64 = 2_000;

fn says(index: usize) -> Announcement {
    Announcement {
        listen: format!("unix:/n{index}"),
        memory_bytes: 1 << 30,
        incarnation: 100 + index as u64,
        settings: Settings { nodes: Some(2), heartbeat_ms: 100, timeout_ms: 2_000, workers: 1 },
    }
}

/// Node `index`, which came at revision 10 more than it.
fn present(index: usize) -> Present {
    let since = 10 + index as u64;
    Present { name: format!("n{index}"), lease: 70 + index as u64, since, says: says(index) }
}

fn listed(index: usize) -> Listed {
    Listed {
        name: format!("n{index}"),
        listen: format!("unix:/n{index}"),
        memory_bytes: 1 << 30,
        incarnation: 100 + index as u64,
        lease: 70 + index as u64,
        joined: 0,
        standing: Standing::Member,
    }
}

fn record(epoch: u16, nodes: Vec<Listed>) -> Record {
    Record { epoch, nodes, closed: None }
}

fn forming(index: usize) -> Forming {
    Forming::new(&format!("n{index}"), says(index), 70 + index as u64, LEASE_MS)
}

fn view(present: Vec<Present>) -> View {
    View { present, ..View::default() }
}

fn formed(next: Next) -> Proposal {
    match next {
        Next::Form(proposal) => proposal,
        other => panic!("{other:?}"),
    }
}

fn refusal(next: Next) -> String {
    match next {
        Next::Refused(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_announces_itself_waits_and_forms_the_list() {
    let mut node = forming(1);
    assert_eq!(node.look(0, &View::default()), Next::Announce);
    let waiting = Next::Wait("nodes: 1 of 2 are there: n1".into());
    assert_eq!(node.look(0, &view(vec![present(1)])), waiting);
    // Whoever came first, both write the same list.
    let both = view(vec![present(1), present(0)]);
    let proposal = formed(node.look(0, &both));
    assert_eq!(proposal, formed(forming(0).look(0, &both)));
    assert_eq!(proposal.record, record(0, vec![listed(0), listed(1)]));
    assert_eq!(proposal.present, [("n0".into(), 70), ("n1".into(), 71)]);
    let there = View { revision: 20, record: Some(proposal.record), ..both };
    assert_eq!(node.look(0, &there), Next::Formed);
}

#[test]
fn an_earlier_run_is_taken_over_once_its_leases_have_ended() {
    let old = |index| Listed { incarnation: 1, lease: 30, ..listed(index) };
    let mut lost = old(1);
    lost.standing = Standing::Removed { reason: "killed".into() };
    let ending = Listed { standing: Standing::Left, ..old(2) };
    let record = Some(record(2, vec![old(0), lost, ending]));
    let mut node = forming(1);
    let there = Present { lease: 30, since: 1, says: says(2), ..present(2) };
    let alive = View { revision: 5, record: record.clone(), present: vec![there, present(1)] };
    assert!(matches!(node.look(0, &alive), Next::Wait(_)));
    assert!(matches!(node.look(2 * LEASE_MS - 1, &alive), Next::Wait(_)));
    let reason = refusal(node.clone().look(2 * LEASE_MS, &alive));
    assert!(
        reason.contains("runs since before (epoch 2, with n2) and takes no node in"),
        "{reason}"
    );
    assert!(reason.contains(": none of its members is there any more; end all"), "{reason}");
    let stale = View { present: vec![present(0), present(1)], ..alive };
    let proposal = formed(node.look(2 * LEASE_MS, &stale));
    assert_eq!((proposal.revision, proposal.record.epoch), (5, 0));
    assert_eq!(proposal.absent, [("n2".into(), 30)], "the others' keys have new leases");
}

#[test]
fn a_name_that_is_taken_is_refused_unless_its_process_is_gone() {
    let mut node = forming(0);
    let other = Present { lease: 99, ..present(0) };
    assert!(matches!(node.look(0, &view(vec![other.clone()])), Next::Wait(_)));
    assert_eq!(node.clone().look(LEASE_MS, &View::default()), Next::Announce);
    let reason = refusal(node.look(2 * LEASE_MS, &view(vec![other])));
    assert!(reason.contains("another process, which listens on unix:/n0, runs as node `n0`"));
}

#[test]
fn the_later_one_of_two_that_do_not_fit_is_refused() {
    let mut odd = present(1);
    odd.says.settings.workers = 2;
    let both = view(vec![present(0), odd.clone()]);
    let mut later = Forming::new("n1", odd.says, 71, LEASE_MS);
    let reason = refusal(later.look(0, &both));
    assert!(reason.contains("workers = 1, this one with workers = 2"), "{reason}");
    let waiting = Next::Wait("nodes: 1 of 2 are there: n0".into());
    assert_eq!(forming(0).look(0, &both), waiting, "the earlier one doesn't count it");

    let mut same_place = present(1);
    same_place.says.listen = "unix:/n0".into();
    let both = view(vec![present(0), same_place.clone()]);
    let mut later = Forming::new("n1", same_place.says, 71, LEASE_MS);
    assert!(refusal(later.look(0, &both)).contains("node `n0` listens on unix:/n0 too"));
    assert_eq!(forming(0).look(0, &both), waiting);
}

#[test]
fn one_node_that_knows_how_many_they_are_is_enough() {
    let quiet = |index| {
        let mut node = present(index);
        node.says.settings.nodes = None;
        node
    };
    let mut node = Forming::new("n0", quiet(0).says, 70, LEASE_MS);
    let whom = waits(node.look(0, &view(vec![quiet(0), quiet(1)])));
    assert!(whom.starts_with("a node that says how many the cluster has (2 are there)"), "{whom}");
    let three = |index| {
        let mut node = present(index);
        node.says.settings.nodes = Some(3);
        node
    };
    let some = view(vec![quiet(0), three(1)]);
    assert_eq!(waits(node.look(0, &some)), "nodes: 2 of 3 are there: n0, n1");
    // The first to say it is right, for those who left it to others as well.
    let other = view(vec![quiet(0), three(1), present(2)]);
    assert_eq!(waits(node.look(0, &other)), "nodes: 2 of 3 are there: n0, n1");
    let mut later = Forming::new("n2", present(2).says, 72, LEASE_MS);
    assert!(refusal(later.look(0, &other)).contains("nodes = 3, this one with nodes = 2"));
    let all = view(vec![quiet(0), three(1), quiet(3)]);
    assert_eq!(formed(node.look(0, &all)).record.nodes.len(), 3);
    assert_eq!(Announcement::from_json(&quiet(0).says.to_json()), Ok(quiet(0).says));
}

/// Says whom it waits for.
fn waits(next: Next) -> String {
    match next {
        Next::Wait(whom) => whom,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_too_many_waits_for_the_start_and_to_be_taken_in() {
    let all = vec![present(0), present(1), present(2)];
    let mut third = forming(2);
    let reason = "a place: the cluster has its 2 nodes: n0, n1";
    assert_eq!(waits(third.look(0, &view(all.clone()))), reason);
    let has = |epoch, nodes| View {
        revision: 20,
        record: Some(record(epoch, nodes)),
        present: all.clone(),
    };
    let formed = has(0, vec![listed(0), listed(1)]);
    let reason = "the start of the cluster (epoch 0, with n0, n1), to join it then";
    assert_eq!(waits(third.look(0, &formed)), reason);
    let runs = has(1, vec![listed(0), listed(1)]);
    let reason = "node `n0` to take this one into the cluster that runs (epoch 1, with n0, n1)";
    assert_eq!(waits(third.look(0, &runs)), reason);
    assert_eq!(waits(third.look(9 * LEASE_MS, &runs)), reason, "for as long as its user likes");
    let unannounced = View { present: all[..2].to_vec(), ..runs };
    assert_eq!(third.look(0, &unannounced), Next::Announce);
    let joining = Listed { standing: Standing::Joining, ..listed(2) };
    let taken = has(1, vec![listed(0), listed(1), joining]);
    assert_eq!(third.look(0, &taken), Next::Formed);
}

#[test]
fn a_cluster_that_takes_nobody_in_says_why_once_it_is_certainly_alive() {
    let all = vec![present(0), present(1), present(3)];
    let left = Listed { standing: Standing::Left, ..listed(0) };
    let lost = Listed { standing: Standing::Lost { reason: "silent".into() }, ..listed(1) };
    let over = "none of its members is there any more";
    let closed = Some("a virtual machine runs".to_owned());
    let full = (0..64).map(|index| listed(if index < 3 { index } else { index + 1 })).collect();
    let (first, both) = (all.clone(), || vec![listed(0), listed(1)]);
    let cases = [
        ("n0, n1) and takes no node in: a virtual machine runs; end all", both(), closed, first),
        (over, vec![left.clone(), lost], None, all.clone()),
        (over, vec![left, listed(2)], None, all.clone()),
        ("takes no node in: it has 64 nodes", full, None, all.clone()),
    ];
    for (what, nodes, closed, present) in cases {
        let record = Some(Record { epoch: 2, nodes, closed });
        let view = View { revision: 20, record, present };
        let mut node = forming(3);
        assert!(waits(node.look(0, &view)).starts_with("the leases of an earlier run to end"));
        let reason = refusal(node.look(2 * LEASE_MS, &view));
        assert!(reason.contains(what), "{what}: {reason}");
    }
    let late = record(65_000, vec![listed(0), listed(1)]);
    let view = View { revision: 20, record: Some(late), present: all };
    let mut node = forming(3);
    assert!(waits(node.look(0, &view)).contains("too many nodes have come and gone"));
}

#[test]
fn the_eldest_takes_in_who_waits() {
    let all = vec![present(0), present(1), present(2), present(3)];
    let of_first = |standing| Listed { standing, ..listed(0) };
    let lost = of_first(Standing::Lost { reason: "silent".into() });
    let back = Listed { joined: 3, ..listed(0) };
    let cases = [
        (listed(0), "node `n0` to take this one into the cluster that runs"),
        (lost, "the end of node `n0`, to join the cluster then"),
        (of_first(Standing::Left), "node `n1` to take this one"),
        (of_first(Standing::Removed { reason: "silent".into() }), "node `n1` to take this one"),
        (of_first(Standing::Joining), "node `n1` to take this one"),
        (back, "node `n1` to take this one"),
    ];
    for (first, whom) in cases {
        let record = Some(record(3, vec![first, listed(1), listed(2)]));
        let mut view = View { revision: 20, record, present: all.clone() };
        let mut node = forming(3);
        assert!(waits(node.look(0, &view)).starts_with(whom), "{whom}");
        // The eldest's key may be gone, which others notice.
        view.present.remove(0);
        assert!(waits(node.look(9 * LEASE_MS, &view)).starts_with(whom), "{whom}");
    }
}

#[test]
fn who_comes_back_waits_until_its_earlier_process_is_gone() {
    let mut node = forming(1);
    let old = Listed { lease: 30, incarnation: 1, ..listed(1) };
    let view = |old: Listed, present| View {
        revision: 20,
        record: Some(record(2, vec![listed(0), old])),
        present,
    };
    let there = Present { lease: 30, since: 1, ..present(1) };
    let alive = view(old.clone(), vec![present(0), there]);
    assert!(waits(node.look(0, &alive)).contains("another process"));
    assert!(refusal(node.clone().look(2 * LEASE_MS, &alive)).contains("runs as node `n1`"));
    assert_eq!(node.look(LEASE_MS, &view(old.clone(), vec![present(0)])), Next::Announce);
    let back = vec![present(0), present(1)];
    let whom = waits(node.look(LEASE_MS, &view(old.clone(), back.clone())));
    assert_eq!(whom, "the cluster to notice that the earlier process is gone");
    let old = Listed { standing: Standing::Removed { reason: "killed".into() }, ..old };
    assert!(waits(node.look(LEASE_MS, &view(old, back))).starts_with("node `n0` to take this one"));
}

#[test]
fn what_is_in_etcd_is_checked_when_it_is_read() {
    let nodes = vec![
        listed(0),
        Listed { standing: Standing::Lost { reason: "why".into() }, ..listed(1) },
        Listed { standing: Standing::Left, ..listed(2) },
        Listed { joined: 2, ..listed(3) },
        Listed { standing: Standing::Joining, ..listed(4) },
        Listed { standing: Standing::Gone, ..listed(5) },
    ];
    let record = Record { epoch: 3, nodes, closed: Some("why".into()) };
    assert_eq!((record.members().len(), record.live().len()), (3, 2));
    assert_eq!(record.joining().len(), 1);
    let in_force = record.in_force();
    assert_eq!((in_force.number, in_force.members), (3, record.members()));
    assert_eq!(in_force.joined.into_values().collect::<Vec<_>>(), [2]);
    assert_eq!(Record::from_json(&record.to_json()), Ok(record.clone()));
    let broken = [
        ("", String::new()),
        ("standing is `odd`", record.to_json().replace("\"left\"", "\"odd\"")),
        ("`lease` is no", record.to_json().replace("72", "-72")),
        ("`name` is no text", record.to_json().replace("n2", &"n".repeat(64))),
        ("0 nodes", r#"{"epoch":1,"nodes":[]}"#.into()),
        ("`epoch` is over 65535", record.to_json().replace("\"epoch\":3", "\"epoch\":65536")),
        ("`n3` joined in epoch 2", record.to_json().replace("\"epoch\":3", "\"epoch\":1")),
        ("`n4` joined in epoch 3", record.to_json().replace("\"joined\":0", "\"joined\":3")),
        ("`n3` is listed twice", record.to_json().replace("n4", "n3")),
        ("`closed` is no text", record.to_json().replace("\"closed\":\"why\"", "\"closed\":7")),
    ];
    for (what, text) in broken {
        let error = Record::from_json(&text).map(|_| ()).map_err(|error| error.to_string());
        assert!(error.as_ref().is_err_and(|error| error.contains(what)), "{what}: {error:?}");
    }
    assert_eq!(Announcement::from_json(&says(0).to_json()), Ok(says(0)));
    assert!(Announcement::from_json("{}").is_err());
}
