//! The power fails at every single change, and whatever was not synced is there, gone, or torn.

use crate::support::{Content, Host, Strike, Unsynced, content};
use std::collections::BTreeMap;
use vmferry_plugin_api::Error;
use vmferry_plugin_api::target::DiskReceipt;

const UNSYNCED: [Unsynced; 4] = [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn(false), Unsynced::Torn(true)];

/// A repository with a history, the acts that follow, and what is there whatever happens during them.
struct Story {
    prepare: fn(&Host),
    act: fn(&Host) -> Result<(), Error>,
    /// Points that are there before and after.
    stay: &'static [(&'static str, &'static str)],
}

const A: &str = "abcdefgh........";
const B: &str = "abXdefgh...YZ...";
const C: &str = "aXXdefghi..YZ...";

fn two_points(host: &Host) {
    host.point("A", None, &content(A)).expect("stored");
    host.point("B", Some(("A", &content(A))), &content(B)).expect("stored");
}

fn two_points_and_garbage(host: &Host) {
    host.point("0", None, &content("satbucvdwexfygzh")).expect("stored");
    two_points(host);
    host.delete("0").expect("deleted");
}

/// Strikes at every change of `act`. After each: what stays restores, what else is listed restores too, and after a
/// second attempt at everything nothing is left that belongs to nobody.
fn strike_everywhere(story: &Story, again: fn(&Host)) {
    for strike in [Strike::Before, Strike::After] {
        for unsynced in UNSYNCED {
            for change in 0.. {
                let host = Host::default();
                (story.prepare)(&host);
                host.storage.strike_at(change, strike);
                let outcome = (story.act)(&host);
                if !host.storage.is_dark() {
                    outcome.expect("nothing failed");
                    assert!(change > 2, "the act changed something");
                    break;
                }
                host.storage.restart(unsynced);
                let told = format!("power failed {strike:?} change {change}, unsynced {unsynced:?}");

                let whole: BTreeMap<&str, Content> =
                    [("A", A), ("B", B), ("C", C)].map(|(id, text)| (id, content(text))).into();
                let points = host.points();
                for (id, text) in story.stay {
                    assert!(points.iter().any(|point| point == id), "{told}: {id} is gone");
                    assert_eq!(
                        host.restore(id).unwrap_or_else(|error| panic!("{told}: {error:?}")),
                        content(text),
                        "{told}"
                    );
                }
                for id in points.iter().filter(|id| whole.contains_key(id.as_str())) {
                    assert_eq!(
                        host.restore(id).unwrap_or_else(|error| panic!("{told}: {error:?}")),
                        whole[id.as_str()],
                        "{told}"
                    );
                }
                again(&host);
                for (id, text) in story.stay {
                    assert_eq!(
                        host.restore(id).unwrap_or_else(|error| panic!("{told}: {error:?}")),
                        content(text),
                        "{told}"
                    );
                    assert_eq!(host.verify(id).expect("looked at"), [], "{told}");
                }
                host.pass(1);
                host.collect(&[], true).unwrap_or_else(|error| panic!("{told}: {error:?}"));
                assert_eq!(host.collect(&[], true).expect("looked at"), [], "{told}");
                for (id, text) in story.stay {
                    assert_eq!(
                        host.restore(id).unwrap_or_else(|error| panic!("{told}: {error:?}")),
                        content(text),
                        "{told}"
                    );
                }
                assert!(
                    host.storage.names().iter().all(|name| !name.starts_with("drafts/")),
                    "{told}: {:?}",
                    host.storage.names()
                );
            }
        }
    }
}

#[test]
fn a_write_and_commit_that_die_cost_no_point() {
    let act = |host: &Host| {
        let other = host.write("C", "other", None, &content("abcdklmn"))?;
        let disk = host.write("C", "disk", Some(("B", &content(B))), &content(C))?;
        host.commit("C", Some("B"), &[disk, other]).map(drop)
    };
    let story = Story { prepare: two_points, act, stay: &[("A", A), ("B", B)] };
    strike_everywhere(&story, |_| {});
}

#[test]
fn a_commit_that_died_is_done_by_another_attempt() {
    for strike in [Strike::Before, Strike::After] {
        for unsynced in UNSYNCED {
            for change in 0.. {
                let host = Host::default();
                two_points(&host);
                let receipts = [host.write("C", "disk", Some(("B", &content(B))), &content(C)).expect("written")];
                host.storage.strike_at(change, strike);
                let outcome = host.commit("C", Some("B"), &receipts);
                if !host.storage.is_dark() {
                    outcome.expect("nothing failed");
                    break;
                }
                host.storage.restart(unsynced);
                let told = format!("power failed {strike:?} change {change}, unsynced {unsynced:?}");
                let point = host.commit("C", Some("B"), &receipts).unwrap_or_else(|error| panic!("{told}: {error:?}"));
                assert_eq!(point.id, "C");
                for (id, text) in [("A", A), ("B", B), ("C", C)] {
                    assert_eq!(host.restore(id).expect("restored"), content(text), "{told}");
                }
                host.pass(1);
                host.collect(&[], true).expect("collected");
                assert_eq!(host.collect(&[], true).expect("looked at"), [], "{told}");
                assert_eq!(host.restore("C").expect("restored"), content(C), "{told}");
            }
        }
    }
}

/// Has a commit of C fail at each of its changes, and looks at what comes `then`: with the receipts, and what a power failure costs.
fn after_each_failed_commit(strikes: &[Strike], then: impl Fn(&Host, &[DiskReceipt], Unsynced, &str)) {
    for strike in strikes {
        for unsynced in UNSYNCED {
            for change in 0.. {
                let host = Host::default();
                two_points(&host);
                let receipts = [host.write("C", "disk", Some(("B", &content(B))), &content(C)).expect("written")];
                host.storage.strike_at(change, *strike);
                if host.commit("C", Some("B"), &receipts).is_ok() {
                    assert!(change > 2, "the act changed something");
                    break;
                }
                host.storage.begin_anew();
                then(&host, &receipts, unsynced, &format!("{strike:?} change {change}, unsynced {unsynced:?}"));
            }
        }
    }
}

#[test]
fn a_commit_that_answers_after_one_that_failed_survives_a_power_failure() {
    let strikes = [Strike::Before, Strike::After, Strike::Refused];
    after_each_failed_commit(&strikes, |host, receipts, unsynced, told| {
        host.commit("C", Some("B"), receipts).unwrap_or_else(|error| panic!("{told}: {error:?}"));
        host.storage.restart(unsynced);
        assert_eq!(host.restore("C").unwrap_or_else(|error| panic!("{told}: {error:?}")), content(C), "{told}");
    });
}

#[test]
fn an_abort_that_finds_a_point_leaves_it_for_good() {
    after_each_failed_commit(&[Strike::Before, Strike::After], |host, _, unsynced, told| {
        let points = host.points();
        host.abort("C").unwrap_or_else(|error| panic!("{told}: {error:?}"));
        host.storage.restart(unsynced);
        assert_eq!(host.points(), points, "{told}");
        host.collect(&[], true).unwrap_or_else(|error| panic!("{told}: {error:?}"));
        for id in points {
            host.restore(&id).unwrap_or_else(|error| panic!("{told}: {id}: {error:?}"));
        }
    });
}

#[test]
fn an_abort_that_dies_costs_no_point() {
    fn prepare(host: &Host) {
        two_points(host);
        host.write("C", "disk", Some(("B", &content(B))), &content(C)).expect("written");
        host.write("C", "other", None, &content("klmnopqr")).expect("written");
    }
    let story = Story { prepare, act: |host| host.abort("C"), stay: &[("A", A), ("B", B)] };
    strike_everywhere(&story, |host| host.abort("C").expect("aborted"));
}

#[test]
fn a_draft_that_is_half_removed_keeps_nobody_from_collecting() {
    for change in 0.. {
        let host = Host::default();
        two_points_and_garbage(&host);
        host.write("C", "disk", Some(("B", &content(B))), &content(C)).expect("written");
        host.storage.strike_at(change, Strike::Before);
        let outcome = host.abort("C");
        if !host.storage.is_dark() {
            outcome.expect("nothing failed");
            assert!(change > 2, "the act changed something");
            break;
        }
        host.storage.restart(Unsynced::Kept);
        // Whoever is still to abort it names it.
        host.collect(&["C"], false).unwrap_or_else(|error| panic!("change {change}: {error:?}"));
        for _ in 0..2 {
            host.collect(&["C"], true).unwrap_or_else(|error| panic!("change {change}: {error:?}"));
        }
        host.abort("C").expect("aborted");
        host.collect(&[], true).expect("collected");
        for (id, text) in [("A", A), ("B", B)] {
            assert_eq!(host.restore(id).expect("restored"), content(text), "change {change}");
        }
        assert_eq!(host.collect(&[], false).expect("looked at"), [], "change {change}");
    }
}

#[test]
fn a_deletion_that_dies_costs_no_other_point() {
    let story = Story { prepare: two_points, act: |host| host.delete("A"), stay: &[("B", B)] };
    strike_everywhere(&story, |host| host.delete("A").expect("deleted"));
}

#[test]
fn a_collection_that_dies_costs_no_point() {
    let act = |host: &Host| host.collect(&[], true).map(drop);
    let story = Story { prepare: two_points_and_garbage, act, stay: &[("A", A), ("B", B)] };
    strike_everywhere(&story, |_| {});
}

#[test]
fn a_verification_that_dies_costs_no_point() {
    fn prepare(host: &Host) {
        two_points(host);
        host.point("0", None, &content("st")).expect("stored");
        host.with(|repository| repository.hold("0", true)).expect("held");
    }
    let act = |host: &Host| {
        host.with(|repository| repository.hold("A", true))?;
        host.verify("B").map(drop)
    };
    let story = Story { prepare, act, stay: &[("A", A), ("B", B), ("0", "st")] };
    strike_everywhere(&story, |_| {});
}
