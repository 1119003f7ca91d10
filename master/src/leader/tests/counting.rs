//! Whether what was counted of the replicas says something.

use super::*;

#[tokio::test(start_paused = true)]
async fn who_has_not_come_back_is_waited_for_and_who_lives_until_it_has_reported() {
    let mut stage = Stage::new(4);
    let heard = |stage: &Stage| stage.soft.has_heard_everybody().unwrap();
    assert!(heard(&stage), "all have reported");
    // All servers of the log have started again with the leader; three of them came so far.
    stage.fail_over(3);
    assert!(!heard(&stage), "the fourth may come yet");
    stage.pass(Duration::from_secs(11)).await;
    assert!(heard(&stage), "it had the time to");
    stage.register_without_report(4);
    assert!(!heard(&stage), "it is there, and nobody knows what it holds");
}
