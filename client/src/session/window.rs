//! Which request ids of a session are given out, and which of them are answered.

use std::collections::BTreeSet;

use gfs_proto::id::{ClientId, RequestId};
use gfs_proto::time::Moment;

/// Marks the ids of data mutations: chunks keep those, and the masters never see them.
const DATA: u64 = 1 << 63;

/// The request ids of one session: which are given out, which are answered.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// `None` before the first session and after one has expired.
    pub(super) client: Option<ClientId>,
    /// Until then the session is surely not forgotten, on our own clock: chunks forget the ids of its mutations some
    /// time after, and a repeat would be a mutation of its own (decision 0012).
    open_until: Moment,
    next: u64,
    outstanding: BTreeSet<u64>,
    /// The last data mutation, counted over all sessions, and those of this session that may still be sent or asked for.
    data_last: u64,
    data_outstanding: BTreeSet<u64>,
}

impl Window {
    pub(super) fn open(&mut self, client: ClientId, open_until: Moment) {
        let data_last = self.data_last;
        *self = Self { client: Some(client), open_until, next: 1, data_last, ..Self::default() };
    }
    pub(super) fn renewed(&mut self, client: ClientId, open_until: Moment) {
        if self.client == Some(client) {
            self.open_until = self.open_until.max(open_until);
        }
    }
    /// The session, if it is surely open.
    pub(super) fn surely_open(&self, now: Moment) -> Option<ClientId> {
        self.client.filter(|_| now < self.open_until)
    }
    /// Names a data mutation, if the session is surely open.
    pub(super) fn begin_data(&mut self, now: Moment) -> Option<RequestId> {
        let client = self.surely_open(now)?;
        self.data_last += 1;
        let sequence = DATA | self.data_last;
        self.data_outstanding.insert(sequence);
        Some(RequestId { client, sequence })
    }
    pub(super) fn end_data(&mut self, request: RequestId) {
        if self.client == Some(request.client) {
            self.data_outstanding.remove(&request.sequence);
        }
    }
    /// This session's data mutations below this will be neither sent nor asked for again; 0 if the request is of another
    /// session, about which nothing is known any more.
    pub(super) fn first_unacked_data(&self, request: RequestId) -> u64 {
        let first = self.data_outstanding.first().copied().unwrap_or(request.sequence);
        if self.client == Some(request.client) { first.min(request.sequence) } else { 0 }
    }
    pub(super) fn begin(&mut self) -> Option<RequestId> {
        let client = self.client?;
        let sequence = self.next;
        self.next += 1;
        self.outstanding.insert(sequence);
        Some(RequestId { client, sequence })
    }
    pub(super) fn end(&mut self, request: RequestId) {
        if self.client == Some(request.client) {
            self.outstanding.remove(&request.sequence);
        }
    }
    pub(super) fn expire(&mut self, client: ClientId) {
        if self.client == Some(client) {
            self.client = None;
        }
    }
    /// Everything below it is answered for good.
    pub(super) fn first_unacked(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.next)
    }
    /// What the masters may forget when they take this request: all below. 0 if it is of another session: those of its
    /// requests that were still unanswered when this one was opened are not known any more.
    pub(super) fn first_unacked_with(&self, request: RequestId) -> u64 {
        let first = self.first_unacked().min(request.sequence);
        if self.client == Some(request.client) { first } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_session_is_surely_open_only_until_its_last_renewal_would_have_it_end() {
        let (old, new) = (ClientId::from_raw(1), ClientId::from_raw(2));
        let mut window = Window::default();
        assert_eq!(window.surely_open(at(0)), None);
        window.open(old, at(60));
        assert_eq!((window.surely_open(at(59)), window.surely_open(at(60))), (Some(old), None));
        window.renewed(old, at(90));
        // Answers may overtake each other.
        window.renewed(old, at(80));
        assert_eq!((window.surely_open(at(89)), window.surely_open(at(90))), (Some(old), None));
        window.open(new, at(100));
        window.renewed(old, at(500));
        assert_eq!(window.surely_open(at(100)), None, "a late answer is about another session");
    }

    #[test]
    fn what_is_below_the_first_unacked_is_answered_for_good() {
        let mut window = Window::default();
        assert!(window.begin().is_none(), "there is no session yet");
        window.open(ClientId::from_raw(9), at(60));
        let requests: Vec<_> = (0..4).map(|_| window.begin().unwrap()).collect();
        assert_eq!(requests[3], RequestId { client: ClientId::from_raw(9), sequence: 4 });
        assert_eq!(window.first_unacked(), 1);
        window.end(requests[1]);
        assert_eq!(window.first_unacked(), 1);
        window.end(requests[0]);
        assert_eq!(window.first_unacked(), 3);
        window.end(requests[2]);
        window.end(requests[3]);
        assert_eq!(window.first_unacked(), 5);
    }

    #[test]
    fn a_data_mutation_is_not_given_up_before_it_is_dropped_and_never_for_another_session() {
        let mut window = Window::default();
        assert_eq!(window.begin_data(at(0)), None, "there is no session yet");
        window.open(ClientId::from_raw(9), at(60));
        let [first, second, third] = [(); 3].map(|()| window.begin_data(at(1)).unwrap());
        assert_eq!([first, second, third].map(|id| id.sequence), [1, 2, 3].map(|number| DATA | number));
        assert_eq!(window.first_unacked_data(third), first.sequence);
        window.end_data(second);
        assert_eq!(window.first_unacked_data(third), first.sequence);
        window.end_data(first);
        assert_eq!(window.first_unacked_data(third), third.sequence);
        // A repeat of an older one gives up nothing that came after it, and itself least of all.
        assert_eq!(window.first_unacked_data(second), second.sequence);
        window.open(ClientId::from_raw(10), at(90));
        assert_eq!(window.first_unacked_data(third), 0, "this session knows nothing of the other");
        let fourth = window.begin_data(at(61)).unwrap();
        window.end_data(RequestId { client: ClientId::from_raw(9), ..fourth });
        assert_eq!((fourth.sequence, window.first_unacked_data(fourth)), (DATA | 4, DATA | 4));
        assert_eq!(window.begin_data(at(90)), None, "it may have expired");
    }

    #[test]
    fn a_request_of_an_old_session_does_not_touch_the_new_one() {
        let mut window = Window::default();
        window.open(ClientId::from_raw(1), at(60));
        let old = window.begin().unwrap();
        window.expire(ClientId::from_raw(1));
        assert!(window.begin().is_none());
        window.open(ClientId::from_raw(2), at(60));
        let new = window.begin().unwrap();
        window.end(old);
        assert_eq!((old.sequence, new.sequence, window.first_unacked()), (1, 1, 1));
        window.expire(ClientId::from_raw(1));
        assert!(window.begin().is_some());
    }

    #[test]
    fn a_request_of_an_old_session_gives_up_none_of_the_others_of_that() {
        let mut window = Window::default();
        window.open(ClientId::from_raw(1), at(60));
        let [first, _, third] = [(); 3].map(|()| window.begin().unwrap());
        assert_eq!((window.first_unacked_with(first), window.first_unacked_with(third)), (1, 1));
        window.open(ClientId::from_raw(2), at(90));
        let new: Vec<_> = (0..9).map(|_| window.begin().unwrap()).collect();
        // The first may still be repeated: its answer is needed.
        assert_eq!(window.first_unacked_with(third), 0);
        window.end(new[0]);
        assert_eq!(window.first_unacked_with(new[8]), 2);
        window.expire(ClientId::from_raw(2));
        assert_eq!(window.first_unacked_with(new[8]), 0);
    }
}
