//! Several hosts share a repository, and act in any order.

use crate::support::{Content, Host, Turns, content};
use std::collections::BTreeMap;
use std::sync::Arc;
use vmferry_plugin_api::{Error, ErrorCode};

const A: &str = "abcdefghijkl....";
const B: &str = "abcdXfgh...z....";
/// Little of either, so that what somebody needs of a pack depends on which of them is still there.
const E: &str = "g..a..ij........";
/// What two writers store at the same time: much of A, which somebody deletes meanwhile.
const C: &str = "abcdefghijkl...u";
const D: &str = "abcdXfgh...zijkl";

/// What one host does.
type Acts = fn(&Host) -> Result<(), Error>;

fn write_c(host: &Host) -> Result<(), Error> {
    // Its clock goes fast, so its draft never looks old.
    host.pass(1_000_000);
    write_c_slowly(host)
}

/// The same so slowly that the grace time passes: others take its draft for dead.
fn write_c_slowly(host: &Host) -> Result<(), Error> {
    host.point("C", None, &content(C)).map(drop)
}

fn write_d(host: &Host) -> Result<(), Error> {
    host.pass(1_000_000);
    let base = content(B);
    host.point("D", Some(("B", &base)), &content(D)).map(drop)
}

fn delete_a_and_collect(host: &Host) -> Result<(), Error> {
    host.delete("A")?;
    host.collect(&[], true).map(drop)
}

fn delete_b_and_collect(host: &Host) -> Result<(), Error> {
    host.delete("B")?;
    host.collect(&[], true).map(drop)
}

fn collect(host: &Host) -> Result<(), Error> {
    host.collect(&[], true).map(drop)
}

fn write_c_and_abort(host: &Host) -> Result<(), Error> {
    let written = host.write("C", "disk", None, &content(C));
    host.abort("C")?;
    written.map(drop)
}

fn verify_b(host: &Host) -> Result<(), Error> {
    assert_eq!(host.verify("B")?, []);
    Ok(())
}

/// Runs the hosts side by side in the order that follows from `seed`; after that, every point restores, none that `commit` answered
/// is missing, and what is left belongs to somebody.
fn side_by_side(seed: u64, hosts: &[Acts], stay: &[&str]) -> (usize, usize) {
    let prepared = Host::default();
    prepared.point("A", None, &content(A)).expect("stored");
    prepared.point("B", Some(("A", &content(A))), &content(B)).expect("stored");
    prepared.point("E", None, &content(E)).expect("stored");
    let mut storage = Arc::into_inner(prepared.storage).expect("nobody else has it");
    let turns = Arc::new(Turns::new(hosts.len(), seed));
    storage.turns = Some(Arc::clone(&turns));
    let storage = Arc::new(storage);

    let outcomes: Vec<Result<(), Error>> = std::thread::scope(|scope| {
        let start = |(number, acts): (usize, &Acts)| {
            let (turns, storage, acts) = (Arc::clone(&turns), Arc::clone(&storage), *acts);
            scope.spawn(move || turns.take_part(number, || acts(&Host::on(storage))))
        };
        let threads: Vec<_> = hosts.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });

    let host = Host::on(storage);
    let whole: BTreeMap<&str, Content> =
        [("A", A), ("B", B), ("C", C), ("D", D), ("E", E)].map(|(id, text)| (id, content(text))).into();
    let look = |when: &str| {
        let points = host.points();
        for id in &points {
            let restored = host.restore(id).unwrap_or_else(|error| panic!("seed {seed}, {when}: {id}: {error:?}"));
            assert_eq!(restored, whole[id.as_str()], "seed {seed}, {when}: {id}");
        }
        points
    };
    let points = look("after all");
    for (acts, outcome) in hosts.iter().zip(&outcomes) {
        let wrote = [(write_c as Acts, "C"), (write_c_slowly, "C"), (write_d, "D")]
            .into_iter()
            .find(|(write, _)| std::ptr::fn_addr_eq(*write, *acts));
        match outcome {
            Ok(()) => {
                if let Some((_, id)) = wrote {
                    assert!(points.iter().any(|point| point == id), "seed {seed}: {id} was committed");
                }
            }
            // Another attempt is worth while.
            Err(error) if error.code == ErrorCode::Unavailable && error.retry_after.is_some() => {}
            // What another host removed under a reader.
            Err(error) if error.is_damaged() || error.code == ErrorCode::NotFound => {}
            Err(error) => panic!("seed {seed}: {error:?}"),
        }
    }
    for id in stay {
        assert!(points.iter().any(|point| point == id), "seed {seed}: {id} is gone");
    }
    host.pass(2_000_000);
    host.collect(&[], true).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
    assert_eq!(look("after a collection"), points, "seed {seed}");
    assert_eq!(host.collect(&[], true).expect("looked at"), [], "seed {seed}");
    assert_eq!(look("after another"), points, "seed {seed}");
    (outcomes.iter().filter(|outcome| outcome.is_ok()).count(), outcomes.len())
}

fn in_many_orders(hosts: &[Acts], stay: &[&str]) {
    let (mut done, mut all) = (0, 0);
    for seed in 0..300 {
        let (some, of) = side_by_side(seed, hosts, stay);
        (done, all) = (done + some, all + of);
    }
    // Not everything fails, nor does nothing ever meet.
    assert!(done > all / 4, "{done} of {all} succeeded");
}

#[test]
fn a_writer_never_loses_what_a_collector_removes() {
    in_many_orders(&[write_c, delete_a_and_collect], &["B", "E"]);
}

#[test]
fn a_writer_that_is_taken_for_dead_loses_its_work_or_commits_it_whole() {
    in_many_orders(&[write_c_slowly, delete_a_and_collect, collect], &["B", "E"]);
}

#[test]
fn writers_and_collectors_in_any_number_agree() {
    in_many_orders(&[write_c, delete_a_and_collect, write_d, collect], &["B", "E"]);
}

#[test]
fn two_collectors_remove_nothing_of_each_others_remains() {
    in_many_orders(&[delete_a_and_collect, collect, collect, write_d], &["B", "E"]);
}

#[test]
fn two_collectors_that_know_of_different_deletions_remove_nothing_of_each_others_remains() {
    in_many_orders(&[delete_a_and_collect, delete_b_and_collect], &["E"]);
}

#[test]
fn a_base_that_is_deleted_under_a_writer_costs_that_writer_alone() {
    in_many_orders(&[write_d, delete_b_and_collect, collect], &["A", "E"]);
}

#[test]
fn a_draft_that_is_aborted_costs_nobody_else() {
    in_many_orders(&[write_c_and_abort, delete_a_and_collect, write_d], &["B", "E"]);
}

#[test]
fn a_verification_finds_no_damage_in_what_is_moved_under_it() {
    in_many_orders(&[verify_b, delete_a_and_collect, write_d, collect], &["B", "E"]);
}
