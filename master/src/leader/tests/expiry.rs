//! When sessions come to their end.

use gfs_proto::time::UnixMs;

use super::*;
use crate::state::read;

#[tokio::test(start_paused = true)]
async fn sessions_end_faster_than_one_command_a_look_could_end_them() {
    let stage = Stage::new(0);
    for opened in 0..1000_u128 {
        stage.propose(Command::OpenSession { nonce: opened.to_be_bytes() }).unwrap();
    }
    let open = || read::counters(&*stage.view()).unwrap().sessions;
    assert_eq!(open(), 1000);
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    // All are due, by the leader's clock and by the state's.
    stage.log.set_now(UnixMs::from_raw(10_000));
    for _ in 0..2 {
        duties.tick_expiry().await.unwrap();
    }
    assert_eq!(open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_look_ends_when_the_next_one_is_due_however_many_sessions_are_left() {
    let stage = Stage::new(0);
    for opened in 0..300_u128 {
        stage.propose(Command::OpenSession { nonce: opened.to_be_bytes() }).unwrap();
    }
    let duties = Duties::new(stage.log.clone(), stage.servers.clone(), stage.granter.clone());
    stage.log.set_now(UnixMs::from_raw(10_000));
    // A log so slow that two commands fill the time.
    stage.log.set_delay(Duration::from_millis(600));
    let begun = stage.now();
    duties.tick_expiry().await.unwrap();
    let took = stage.now().since(begun);
    assert!((Duration::from_millis(1200)..Duration::from_millis(1300)).contains(&took), "{took:?}");
    assert_eq!(read::counters(&*stage.view()).unwrap().sessions, 300 - 2 * 64);
}
