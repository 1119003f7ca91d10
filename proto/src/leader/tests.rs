//! Whom a channel asks next, and whom it remembers.

use super::*;

fn channel(masters: u16) -> (MasterChannel, Vec<String>) {
    let masters: Vec<String> = (1..=masters).map(|port| format!("127.0.0.1:{port}")).collect();
    (MasterChannel::new(&Environment::real(), &masters).unwrap(), masters)
}

impl MasterChannel {
    fn picked(&self) -> String {
        self.shared.lock().pick(self.environment.clock.moment()).0
    }
}

#[tokio::test]
async fn whichever_master_falls_silent_the_next_one_to_be_asked_is_another() {
    for leader in 0..3 {
        let (channel, masters) = channel(3);
        channel.shared.lock().leader = Some(masters[leader].clone());
        let mut asked = vec![masters[leader].clone()];
        for _ in 0..2 {
            channel.turn_from(asked.last().unwrap(), &Error::unavailable("no answer"));
            asked.push(channel.picked());
        }
        asked.sort();
        assert_eq!(asked, masters, "beginning with {leader}");
    }
}

#[tokio::test]
async fn a_leader_that_has_fallen_silent_is_not_asked_again_because_others_still_name_it() {
    let (channel, masters) = channel(3);
    let lost = &masters[0];
    channel.turn_from(lost, &Error::unavailable("no answer"));
    for _ in 0..4 {
        let asked = channel.picked();
        assert_ne!(&asked, lost);
        assert!(!channel.turn_from(&asked, &Error::NotLeader { leader: Some(lost.clone()) }));
    }
    // Until they know better.
    let asked = channel.picked();
    let new = masters.iter().find(|master| **master != asked && *master != lost).unwrap();
    assert!(channel.turn_from(&asked, &Error::NotLeader { leader: Some(new.clone()) }));
    assert_eq!(&channel.picked(), new);
}

#[tokio::test]
async fn who_had_no_time_to_answer_is_not_taken_for_silent() {
    let (channel, masters) = channel(3);
    channel.shared.lock().leader = Some(masters[1].clone());
    let asked = channel.call(Duration::from_millis(30), |_| std::future::pending::<Result<()>>()).await;
    assert!(matches!(asked, Err(Error::DeadlineExceeded { .. })), "{asked:?}");
    assert_eq!((channel.picked(), channel.shared.lock().silent.is_none()), (masters[1].clone(), true));
}

#[tokio::test]
async fn a_leader_that_says_wait_is_the_one_to_ask_again() {
    let (channel, masters) = channel(3);
    channel.shared.lock().leader = Some(masters[1].clone());
    channel.turn_from(&masters[1], &Error::Busy { what: "the tree".into() });
    assert_eq!(channel.picked(), masters[1]);
}

#[tokio::test]
async fn an_only_master_is_asked_again() {
    let (channel, masters) = channel(1);
    channel.turn_from(&masters[0], &Error::unavailable("no answer"));
    assert_eq!(channel.picked(), masters[0]);
}

#[tokio::test]
async fn masters_that_moved_away_make_room_for_those_that_came() {
    let (channel, given) = channel(3);
    let all: Vec<String> = (1..=2000).map(|port| format!("10.0.0.1:{port}")).collect();
    for members in all.windows(3) {
        channel.learn(members);
        let known = channel.addresses();
        assert!(known.len() <= MASTERS_MAX && given.iter().all(|master| known.contains(master)));
        assert!(members.iter().all(|member| known.contains(member)), "{members:?}");
    }
    // A hint is followed, too, and where it leads is not forgotten for others.
    let new = "10.0.0.2:1".to_owned();
    assert!(channel.turn_from(&given[0], &Error::NotLeader { leader: Some(new.clone()) }));
    for members in all.windows(3).take(200) {
        channel.learn(members);
        assert_eq!(channel.picked(), new);
    }
    assert_eq!(channel.addresses()[0], new);
    channel.learn(&["no port".into(), format!("{}:1", "x".repeat(1000))]);
    assert!(channel.addresses().iter().all(|address| is_address(address)));
}

#[tokio::test]
async fn a_leader_that_there_is_no_room_for_is_not_chosen_and_nothing_breaks() {
    let most = u16::try_from(MASTERS_MAX).unwrap();
    let (channel, masters) = channel(most);
    let hint = Error::NotLeader { leader: Some("10.0.0.2:1".into()) };
    assert!(!channel.turn_from(&masters[0], &hint));
    // Nor one that nobody knows.
    channel.shared.lock().leader = Some("10.0.0.2:1".into());
    assert!(masters.contains(&channel.picked()));
}

#[tokio::test(start_paused = true)]
async fn many_masters_that_are_silent_cost_no_more_than_the_patience_and_the_leader_has_its_half() {
    let (channel, masters) = channel(60);
    channel.shared.lock().leader = Some(masters[0].clone());
    let (patience, began) = (Duration::from_secs(10), tokio::time::Instant::now());
    let mut asked = 0;
    let told: Result<()> = channel
        .ask_any(patience, |_| {
            asked += 1;
            std::future::pending()
        })
        .await;
    assert!(matches!(told, Err(Error::DeadlineExceeded { .. })), "{told:?}");
    assert!(began.elapsed() <= patience + Duration::from_millis(100), "{:?}", began.elapsed());
    assert!((11..=20).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_broken_or_belongs_to_another_cluster_has_not_the_last_word() {
    for strange in [
        Error::internal("broke"),
        Error::WrongCluster { ours: "a".into(), theirs: "b".into() },
        Error::unavailable("x"),
    ] {
        let (channel, _) = channel(3);
        let mut asked = 0;
        let told = channel.ask_any(Duration::from_secs(10), |_| {
            asked += 1;
            let answer = if asked < 3 { Err(strange.clone()) } else { Ok(asked) };
            std::future::ready(answer)
        });
        assert_eq!(told.await, Ok(3), "{strange}");
    }
    let (channel, _) = channel(3);
    let mut asked = 0;
    let strange = Error::WrongCluster { ours: "a".into(), theirs: "b".into() };
    let told = channel.call(Duration::from_secs(10), |_| {
        asked += 1;
        std::future::ready(if asked < 3 { Err(strange.clone()) } else { Ok(()) })
    });
    assert_eq!(told.await, Ok(()), "the leader is looked for elsewhere");
}

#[test]
fn a_channel_is_for_one_cluster() {
    let meant = Meant::default();
    let [ours, other] = [1, 2].map(|byte| ClusterId::from_bytes([byte; 16]));
    assert_eq!(meant.check(&other.to_string()), Ok(()), "nothing is known yet");
    meant.settle(ours).unwrap();
    meant.settle(ours).unwrap();
    assert_eq!(meant.check(&ours.to_string()), Ok(()));
    for refused in [meant.settle(other), meant.check(&other.to_string())] {
        assert!(matches!(refused, Err(Error::WrongCluster { .. })), "{refused:?}");
    }
    assert_eq!(meant.check(""), Ok(()), "a master that does not say");
}
