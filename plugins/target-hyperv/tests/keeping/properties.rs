//! Any sequence of calls.

use crate::folder::Recorded;
use crate::model::*;
use proptest::prelude::*;
use target_hyperv::Format;

#[derive(Clone, Debug)]
enum Step {
    Commit(Change, Change),
    Full(Change),
    Resize(u64),
    Abort(Change),
    Delete(prop::sample::Index),
    Hold(prop::sample::Index, bool),
    Change(Setting),
    Collect,
}

fn change_of() -> impl Strategy<Value = Change> {
    prop::collection::btree_map(0..3u64, prop::option::weighted(0.7, 1..=255u8), 0..4)
}

fn setting(format: Format) -> impl Strategy<Value = Setting> {
    prop::sample::select(ALL.into_iter().filter(|(of, _)| *of == format).collect::<Vec<_>>())
}

fn step(format: Format) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (change_of(), change_of()).prop_map(|(a, b)| Step::Commit(a, b)),
        1 => change_of().prop_map(Step::Full),
        1 => (3..6u64).prop_map(Step::Resize),
        1 => change_of().prop_map(Step::Abort),
        3 => any::<prop::sample::Index>().prop_map(Step::Delete),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, held)| Step::Hold(at, held)),
        1 => setting(format).prop_map(Step::Change),
        1 => Just(Step::Collect),
    ]
}

fn calls(format: Format) -> impl Strategy<Value = (Setting, Vec<Step>)> {
    (setting(format), prop::collection::vec(step(format), 1..14))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_calls_leave_what_the_model_says((first, steps) in calls(Format::Vhdx)) {
        check(first, steps);
    }

    #[test]
    fn any_calls_that_are_made_of_vhd_leave_what_the_model_says((first, steps) in calls(Format::Vhd)) {
        check(first, steps);
    }
}

fn check(first: Setting, steps: Vec<Step>) {
    let mut keeper = keeper(Recorded::default(), first);
    let mut model = Model::default();
    let mut size = 3 * MIB;
    for (number, step) in (1..).zip(steps) {
        let newest = ids(&keeper).pop();
        let draft = draft(number, newest.as_deref());
        match step {
            Step::Commit(a, b) => model.commit(&keeper, &draft, &[("a", size, a), ("b", 3 * MIB, b)]),
            Step::Full(a) => {
                let full = crate::model::draft(number, None);
                model.commit(&keeper, &full, &[("a", size, a), ("b", 3 * MIB, Change::new())]);
            }
            Step::Resize(blocks) => {
                size = blocks * MIB;
                model.commit(&keeper, &draft, &[("a", size, Change::new()), ("b", 3 * MIB, Change::new())]);
            }
            Step::Abort(a) => {
                write(&keeper, &draft, &[("a", size, a)]).expect("written");
                keeper.abort(&draft).expect("aborted");
            }
            Step::Delete(at) => {
                let there = ids(&keeper);
                if !there.is_empty() {
                    keeper.delete(&there[at.index(there.len())]).expect("deleted");
                }
            }
            Step::Hold(at, held) => {
                let there = ids(&keeper);
                if !there.is_empty() {
                    keeper.hold(&there[at.index(there.len())], held).expect("held");
                }
            }
            Step::Change((_, points)) => keeper.points = points,
            Step::Collect => drop(keeper.collect(&[], true).expect("collected")),
        }
        let there = ids(&keeper);
        model.points.retain(|id, _| there.contains(id));
        assert_reads(&keeper, &model);
    }
    assert_sound(&keeper);
}
