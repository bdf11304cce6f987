//! The admission policies, evaluated: they let the DaemonSet's pod in, and turn away each pod that takes a liberty more. What Kubernetes
//! itself says, `cargo xtask admission` asks.

use siskin_deploy_tests::policy::{admission, gatekeeper, liberties, pod};

#[test]
fn the_daemonsets_pod_is_let_in() {
    assert_eq!(admission(&pod()), [""; 0]);
    assert_eq!(gatekeeper(&pod()), [""; 0]);
}

#[test]
fn every_liberty_is_turned_away_by_both() {
    for liberty in liberties() {
        for said in [admission(&liberty.pod), gatekeeper(&liberty.pod)] {
            assert!(said.len() == 1 && said[0].starts_with(liberty.against), "{}: {said:?}", liberty.what);
        }
    }
}
