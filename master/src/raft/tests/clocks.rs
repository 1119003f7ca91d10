//! Whose time a group goes by (decision 0023).

use std::sync::Arc;
use std::time::Duration;

use gfs_proto::Environment;
use gfs_proto::time::{Clock, Moment, SystemClock, UnixMs};

use super::ask;
use super::group::{bootstrap, start, start_with, until, voters};

/// How far what several clocks of one machine show may be apart here.
const NEAR: Duration = Duration::from_secs(600);

/// A wall clock that is a year ahead.
struct Ahead(SystemClock);

impl Clock for Ahead {
    fn wall(&self) -> UnixMs {
        self.0.wall().plus(Duration::from_secs(365 * 24 * 3600))
    }
    fn moment(&self) -> Moment {
        self.0.moment()
    }
}

fn is_right(date: UnixMs) -> bool {
    let now = SystemClock::new().wall();
    date.since(now).max(now.since(date)) < NEAR
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_whose_wall_clock_is_a_year_ahead_dates_as_the_others_do_when_it_leads() {
    let wrong = Environment { clock: Arc::new(Ahead(SystemClock::new())), ..Environment::real() };
    let first = start(bootstrap()).await;
    let second = start(first.joining(false)).await;
    let third = start_with(&wrong, first.joining(false)).await;
    let (first, second, third) = (first.node, second.node, third.node);
    until("three vote", || voters(&first) == 3).await;
    // The wrong clock comes first.
    for follower in [&third, &second] {
        ask(follower).await;
    }
    assert!(is_right(first.date().await), "one wrong clock of three counted");
    ask(&third).await;

    until("the third has everything", || {
        let lags = first.lags();
        lags.len() == 2 && lags.iter().all(|(_, lag)| *lag == 0)
    })
    .await;
    first.transfer(third.id()).await.unwrap();
    until("the third leads", || third.leadership().borrow().leading).await;
    assert!(is_right(third.date().await), "it forgot what it was told, and nobody has asked it yet");
    for follower in [&first, &second] {
        ask(follower).await;
    }
    assert!(is_right(third.date().await), "its own clock counted for more than those of the others");
    assert!(is_right(third.clock().wall()));
}
