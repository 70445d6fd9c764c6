//! A wall clock that is set while pods are looked after.

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::*;

const HOUR: SignedDuration = SignedDuration::from_hours(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_is_set_moves_what_is_told_and_nothing_that_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let ahead = Arc::new(Mutex::new(SignedDuration::ZERO));
    let set = ahead.clone();
    let clock = Clock::beside(move || Timestamp::now() + *ahead.lock());
    let mut rig = Rig::with(dir.path(), Vec::new(), Parts { clock, ..Parts::default() });
    rig.tell(Down::Synced(Synced { revision: 1 })).await;
    // Longer than any test, and shorter than the steps.
    let spec = json!({ "activeDeadlineSeconds": 1800, "containers": [{ "name": "c", "image": "none:1.0" }] });
    rig.put("pods", pod("p", spec)).await;
    rig.give_block("10.128.7.0/24").await;
    let begun_at = |status: &Value| status["startTime"].as_str()?.parse::<Timestamp>().ok();
    let begun = rig.status("p", begun_at).await;
    for steps in [1, -2, 0] {
        *set.lock() = HOUR * steps;
        // Whatever happens next on the node.
        rig.held().await;
        let phase = rig
            .status("p", |status| {
                let moved = begun_at(status)?.duration_since(begun);
                let second = SignedDuration::from_secs(1);
                ((moved - HOUR * steps).abs() <= second).then(|| status["phase"].clone())
            })
            .await;
        assert_eq!(phase, "Pending", "its deadline is as far as before");
    }
    rig.stop().await;
}
