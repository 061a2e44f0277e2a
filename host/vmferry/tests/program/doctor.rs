//! `doctor` on a pool in a process of its own.

use crate::stage::{Pool, Stage, text};
use serde_json::json;

#[test]
fn the_doctor_tells_what_works_as_text_and_as_json() {
    let source = Pool::start(&["--tls", "--nbd-purpose", "nbd"]);
    let stage = Stage::of(source, Pool::start(&[]), "11111111-0000-4000-8000-000000000001");
    stage.configure("");
    let report = stage.json(&["doctor", "prod"], 0);
    assert_eq!(report["outcome"], "succeeded", "{report:#}");
    assert_eq!(report["lines"].as_array().unwrap().len(), 21);
    let nbd = report["lines"].as_array().unwrap().iter().find(|line| line["probe"] == "nbd").unwrap();
    assert_eq!((&nbd["verdict"], &nbd["needed"], &nbd["remedy"]), (&json!("ok"), &json!(false), &json!(null)));

    let output = stage.vmferry(&["doctor", "dr", "--sr", stage.target.text("sr")]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let told = text(&output);
    for words in ["as asked for", "ok         VHD import", "missing    NBD", "remedy: give a network", "runs work"] {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }
    for pool in [&stage.source, &stage.target] {
        assert_eq!(pool.records("VDI"), [json!(null); 0]);
    }
}

#[test]
fn a_pool_that_nobody_configured_is_a_wrong_question() {
    let stage = Stage::new();
    let output = stage.vmferry(&["doctor", "nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("define it in the configuration"), "{}", text(&output));
}
