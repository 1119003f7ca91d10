//! What a client knows about an operation when its call has returned.

use gfs_proto::Error;
use serde::{Deserialize, Serialize};

/// The end of an operation, as its client knows it. The checkers stand on this: a wrong `Fail` makes them
/// blame the system for what it may do, a needless `Info` hides what it may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Outcome<T> {
    /// It happened, exactly once, between the call and its return.
    Ok {
        /// What it returned.
        value: T,
    },
    /// It did not happen and never will.
    Fail {
        /// Why.
        reason: String,
    },
    /// It may have happened, may still happen later, or never: its call counts as open until the end.
    Info {
        /// What is in the way of knowing.
        reason: String,
    },
}

impl<T> Outcome<T> {
    /// Judges the result of a mutation.
    ///
    /// Only what the cluster decided is a `Fail`. Everything that leaves open whether a request was applied,
    /// or will be by a message that is still on its way, is `Info`: also a mere refusal to connect, because
    /// the client has repeated the request before.
    #[expect(clippy::wildcard_enum_match_arm, reason = "what is not known to have failed is unknown")]
    pub fn of_mutation(result: Result<T, Error>) -> Self {
        let error = match result {
            Ok(value) => return Self::Ok { value },
            Err(error) => error,
        };
        let reason = error.to_string();
        match error {
            Error::BadPath { .. }
            | Error::BadArgument { .. }
            | Error::TooLarge { .. }
            | Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::NotADirectory { .. }
            | Error::IsADirectory { .. }
            | Error::NotEmpty { .. }
            | Error::BadRename { .. } => Self::Fail { reason },
            _ => Self::Info { reason },
        }
    }

    /// Judges the result of an operation that changes nothing: it has no effect that could come later, so
    /// every error is a `Fail`.
    pub fn of_read(result: Result<T, Error>) -> Self {
        match result {
            Ok(value) => Self::Ok { value },
            Err(error) => Self::Fail { reason: error.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutation_fails_only_if_the_cluster_decided_so() {
        let decided = Error::AlreadyExists { path: "/a".into() };
        assert!(matches!(Outcome::<()>::of_mutation(Err(decided)), Outcome::Fail { .. }));
        for open in [
            Error::DeadlineExceeded { waited_ms: 1, last: "x".into() },
            Error::unavailable("no leader"),
            Error::internal("?"),
            Error::NotEnoughServers { wanted: 3, alive: 2 },
        ] {
            assert!(matches!(Outcome::<()>::of_mutation(Err(open)), Outcome::Info { .. }));
        }
    }

    #[test]
    fn a_read_that_got_no_answer_has_simply_failed() {
        assert!(matches!(Outcome::<()>::of_read(Err(Error::unavailable("x"))), Outcome::Fail { .. }));
        assert_eq!(Outcome::of_read(Ok(1)), Outcome::Ok { value: 1 });
    }
}
