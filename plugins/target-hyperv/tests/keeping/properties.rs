//! Any sequence of calls.

use crate::folder::Recorded;
use crate::model::*;
use proptest::prelude::*;
use target_hyperv::Points;

#[derive(Clone, Debug)]
enum Step {
    Commit(Change, Change),
    Full(Change),
    Resize(u64),
    Abort(Change),
    Delete(prop::sample::Index),
    Hold(prop::sample::Index, bool),
    Setting(Points),
    Collect,
}

fn change_of() -> impl Strategy<Value = Change> {
    prop::collection::btree_map(0..3u64, prop::option::weighted(0.7, 1..=255u8), 0..4)
}

fn setting() -> impl Strategy<Value = Points> {
    prop_oneof![Just(Points::Differencing), Just(Points::Copies), Just(Points::Newest)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (change_of(), change_of()).prop_map(|(a, b)| Step::Commit(a, b)),
        1 => change_of().prop_map(Step::Full),
        1 => (3..6u64).prop_map(Step::Resize),
        1 => change_of().prop_map(Step::Abort),
        3 => any::<prop::sample::Index>().prop_map(Step::Delete),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, held)| Step::Hold(at, held)),
        1 => setting().prop_map(Step::Setting),
        1 => Just(Step::Collect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_calls_leave_what_the_model_says(first in setting(), steps in prop::collection::vec(step(), 1..14)) {
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
                Step::Setting(points) => keeper.points = points,
                Step::Collect => drop(keeper.collect(&[], true).expect("collected")),
            }
            let there = ids(&keeper);
            model.points.retain(|id, _| there.contains(id));
            assert_reads(&keeper, &model);
        }
        assert_sound(&keeper);
    }
}
